//! Orders that do not reach all shards at one moment.

use std::time::Duration;

use tollgate_shards::{Command, CommandId, Event};
use tollgate_sim::world::{Setup, UserSpec, World};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_connection_is_told_of_once_with_the_epoch_that_closed_it_whichever_shard_enters_that_first() {
    for (home, owner) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for first in [0, 1] {
            let what = format!("home {home}, owner {owner}, first {first}");
            let users = vec![UserSpec { home: Some(home), ..UserSpec::default() }];
            let mut world = World::scenario(Setup { users, ..Setup::default() });
            world.attach(0, owner);
            world.seen.events.clear();
            let snapshot = world.snapshot_without_users();
            let mut told = Vec::new();
            for shard in [first, 1 - first] {
                let command = Command::Apply { id: CommandId(1), snapshot: snapshot.clone() };
                let now = world.instant();
                world.shard_mut(shard).handle_command(now, command);
                world.run(10 * MS);
                told.extend(world.seen.events.drain(..).filter_map(|event| match event {
                    Event::Detached { reason, version, .. } => Some((shard, reason, version)),
                    _ => None,
                }));
            }
            // Neither the home nor the owner lets it pass any longer than it must.
            let by = if home == first || owner == first { first } else { 1 - first };
            let reason = "closed by the gateway: Access revoked (code 0x04)".to_owned();
            assert_eq!(told, [(by, reason, snapshot.version)], "{what}");
            assert!(world.shards().all(|shard| shard.completed() == CommandId(1)), "{what}");
        }
    }
}
