//! Orders that do not reach all shards at one moment.

use std::time::Duration;

use tollgate_shards::{AddressRange, Command, CommandId, Event};
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

/// Every message is under way for so long that an order comes between the question for an address and the answer.
#[test]
fn an_address_that_comes_when_its_user_may_not_have_it_any_more_is_not_taken() {
    for home in [0, 1] {
        let users = vec![UserSpec { home: Some(home), ..UserSpec::default() }];
        let mut world = World::scenario(Setup { users, ..Setup::default() });
        world.delay_messages(10 * MS);
        let client = world.connect(0, 1);
        // The question is under way.
        while world.shard(1).counters().handshakes == 0 {
            world.run(MS);
        }
        let other = AddressRange::new([198, 18, 0, 99].into(), [198, 18, 0, 99].into()).unwrap();
        let snapshot = world.snapshot_with_pool(0, other);
        let now = world.instant();
        world.shard_mut(1).handle_command(now, Command::Apply { id: CommandId(1), snapshot });
        world.run(100 * MS);
        let is_attached = |event: &Event| matches!(event, Event::Attached { .. });
        assert!(!world.seen.events.iter().any(is_attached), "home {home}: {:?}", world.seen.events);
        assert!(!world.is_attached(client) && world.addresses_held() == 0, "home {home}");
    }
}
