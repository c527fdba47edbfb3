//! All clients are sent away, at a pace, and nobody new is taken.

use tollgate_shards::Command;
use tollgate_sim::{Hello, LinkPlan};

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn order(world: &mut World, command: &Command) {
    for shard in 0..2 {
        let now = world.instant();
        world.shard_mut(shard).handle_command(now, command.clone());
    }
}

/// Clients on two shards, each of a user of its own.
fn with_clients(count: usize) -> (World, Vec<usize>) {
    let users = vec![UserSpec::default(); count];
    let mut world = World::scenario(Setup { users, ..Setup::default() });
    let clients = (0..count).map(|user| world.attach(user, (user % 2) as u16).0).collect();
    (world, clients)
}

fn sent_away(world: &World, clients: &[usize]) -> usize {
    told(world, clients, 0x05)
}

/// How many have been closed with this code, and none with another.
fn told(world: &World, clients: &[usize], code: u64) -> usize {
    let is_told = |client: &&usize| match closed(world, **client) {
        None => false,
        Some(CloseCause::Gateway { code: told, .. }) if *told == code => true,
        other => panic!("{other:?}"),
    };
    clients.iter().filter(is_told).count()
}

fn attached(world: &World) -> usize {
    world.shards().map(|shard| shard.clients()).sum()
}

#[test]
fn clients_are_sent_away_at_an_even_pace_on_all_shards_and_addresses_come_back() {
    let (mut world, clients) = with_clients(20);
    order(&mut world, &Command::Drain { over: 10 * S, within: 60 * S, to_successor: false });
    world.run(100 * MS);
    for second in 1..=10 {
        assert_eq!(sent_away(&world, &clients), 2 * (second - 1), "in second {second}");
        assert_eq!(attached(&world), 20 - 2 * (second - 1), "in second {second}");
        world.run(S);
    }
    assert_eq!((sent_away(&world, &clients), world.addresses_held()), (20, 0));
}

#[test]
fn at_the_deadline_everybody_who_is_left_goes() {
    let (mut world, clients) = with_clients(8);
    order(&mut world, &Command::Drain { over: 60 * S, within: 5 * S, to_successor: false });
    world.run(4900 * MS);
    assert_eq!(sent_away(&world, &clients), 0);
    world.run(200 * MS);
    assert_eq!(sent_away(&world, &clients), 8);
}

#[test]
fn a_second_drain_changes_the_pace() {
    let (mut world, clients) = with_clients(8);
    order(&mut world, &Command::Drain { over: 80 * S, within: 80 * S, to_successor: false });
    world.run(20500 * MS);
    assert_eq!(sent_away(&world, &clients), 2);
    order(&mut world, &Command::Drain { over: 3 * S, within: 80 * S, to_successor: false });
    for left in [6, 4, 2] {
        assert_eq!(8 - sent_away(&world, &clients), left);
        world.run(S + 10 * MS);
    }
    assert_eq!(sent_away(&world, &clients), 8);
}

#[test]
fn a_new_client_is_told_at_once_that_it_is_not_taken_until_the_drain_is_taken_back() {
    let (mut world, clients) = with_clients(4);
    order(&mut world, &Command::Drain { over: 4 * S, within: 4 * S, to_successor: false });
    world.run(S + 100 * MS);
    for shard in 0..2 {
        let refused = world.connect(0, shard);
        world.run(100 * MS);
        assert_eq!(closed(&world, refused), Some(&CloseCause::NotTaken));
    }
    let not_taken: u64 = world.shards().map(|shard| shard.counters().drops.of(DropReason::NotTaken)).sum();
    assert_eq!(not_taken, 2);
    let gone = sent_away(&world, &clients);
    order(&mut world, &Command::Resume);
    world.attach(0, 0);
    world.run(10 * S);
    assert_eq!(sent_away(&world, &clients), gone, "nobody any more");
}

#[test]
fn whoever_logs_in_when_its_handshake_had_begun_before_is_sent_away() {
    let users = vec![UserSpec { home: Some(1), ..UserSpec::default() }];
    let link = LinkPlan { delay: 20 * MS, ..LinkPlan::UNDISTURBED };
    let mut world = World::scenario(Setup { users, link, ..Setup::default() });
    let client = world.connect(0, 0);
    while world.shard(0).owned_connections() == 0 {
        world.run(MS);
    }
    assert_eq!(world.shard(0).counters().handshakes, 0);
    order(&mut world, &Command::Drain { over: 60 * S, within: 60 * S, to_successor: false });
    world.run(S);
    assert_eq!((sent_away(&world, &[client]), world.addresses_held()), (1, 0));
    assert_eq!(world.connections(), (0, 0));
}

#[test]
fn for_a_successor_whoever_was_logging_in_is_taken_and_stays_unless_it_comes_back_by_itself() {
    const UPGRADE: u64 = 0x09;
    for (returns, gone) in [(false, 0), (true, 1)] {
        let users = vec![UserSpec { home: Some(1), ..UserSpec::default() }];
        let link = LinkPlan { delay: 20 * MS, ..LinkPlan::UNDISTURBED };
        let mut world = World::scenario(Setup { users, link, ..Setup::default() });
        world.seen.hello = Hello { returns, ..Hello::default() };
        let client = world.connect(0, 0);
        while world.shards().all(|shard| shard.counters().retries == 0) {
            world.run(MS);
        }
        assert_eq!(world.connections(), (0, 0), "its handshake has not begun");
        order(&mut world, &Command::Drain { over: 5 * S, within: 5 * S, to_successor: true });
        world.run(4 * S);
        assert_eq!(told(&world, &[client], UPGRADE), gone);
        assert_eq!(world.shards().map(|shard| shard.counters().handshakes).sum::<u64>(), 1);
        world.run(2 * S);
        assert_eq!(told(&world, &[client], UPGRADE), 1);
    }
}

/// Here is no successor, so whoever is asked to move comes here again, and is sent away.
#[test]
fn for_a_successor_those_who_come_back_are_asked_at_an_even_pace_and_all_others_go_at_the_end() {
    const UPGRADE: u64 = 0x09;
    let users = vec![UserSpec::default(); 8];
    let mut world = World::scenario(Setup { users, ..Setup::default() });
    let attach = |world: &mut World, users: std::ops::Range<usize>| -> Vec<usize> {
        users.map(|user| world.attach(user, (user % 2) as u16).0).collect()
    };
    let staying = attach(&mut world, 0..4);
    world.seen.hello = Hello { returns: true, ..Hello::default() };
    let going = attach(&mut world, 4..8);
    order(&mut world, &Command::Drain { over: 2 * S, within: 20 * S, to_successor: true });
    world.run(100 * MS);
    for (seconds, gone) in [(1, [2, 0]), (1, [4, 0]), (17, [4, 0]), (1, [4, 4])] {
        world.run(seconds * S);
        assert_eq!([&going, &staying].map(|clients| told(&world, clients, UPGRADE)), gone);
    }
}
