//! Sessions end at their deadlines: to the moment, on every shard, and after a reload as well.

use tollgate_shards::{DropReason, Event, SessionEnd, SessionLimits};

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const UNLIMITED: SessionLimits = SessionLimits { idle_max: None, length_max: None, ends_with_certificate: false };

/// Clients of two shards under `limits`, each of a user of its own.
fn with_clients(limits: SessionLimits) -> (World, [(usize, IpAddr); 2]) {
    let mut world = World::scenario(Setup::default());
    world.limit_sessions(limits);
    world.run(MS);
    let clients = [0, 1].map(|user| world.attach(user, user as u16));
    (world, clients)
}

fn over(world: &World, client: usize) -> Option<&str> {
    match closed(world, client)? {
        CloseCause::Gateway { code: 0x0a, reason } => Some(reason),
        other => panic!("{other:?}"),
    }
}

fn ended(world: &World, why: SessionEnd) -> u64 {
    world.sum(|counters| counters.session_ends.of(why))
}

#[test]
fn a_session_without_limits_goes_on() {
    let (mut world, clients) = with_clients(UNLIMITED);
    world.run(3600 * S);
    assert!(clients.iter().all(|&(client, _)| world.is_attached(client)));
}

#[test]
fn a_session_is_over_when_it_has_lasted_as_long_as_it_may_however_busy_it_is() {
    let (mut world, [(client, address), (other, _)]) =
        with_clients(SessionLimits { length_max: Some(10 * S), ..UNLIMITED });
    // They have logged in 4 s and 2 s ago.
    world.run(50 * MS);
    for tenth in 0..79 {
        world.send_up(client, &udp4(address, SERVER, &[7; 100]));
        world.run(100 * MS);
        assert_eq!((over(&world, client).is_some(), over(&world, other)), (tenth >= 59, None), "after {tenth} tenths");
    }
    assert_eq!(over(&world, client), Some("The session has lasted as long as it may"));
    world.run(200 * MS);
    assert_eq!(over(&world, other), Some("The session has lasted as long as it may"));
    assert_eq!((ended(&world, SessionEnd::Length), world.connections(), world.addresses_held()), (2, (0, 0), 0));
    let told = world
        .seen
        .events
        .iter()
        .filter(|event| matches!(event, Event::Detached { reason, .. } if reason.contains("0x0a")));
    assert_eq!(told.count(), 2);
    let arrived = world.seen.tun.len();
    world.send_up(client, &udp4(address, SERVER, &[7; 100]));
    world.run(S);
    assert_eq!(world.seen.tun.len(), arrived, "nothing is carried afterwards");
}

#[test]
fn an_idle_session_is_over_and_packets_either_way_keep_one_alive() {
    let limits = SessionLimits { idle_max: Some(10 * S), ..UNLIMITED };
    for is_up in [true, false] {
        let (mut world, [(client, address), (other, _)]) = with_clients(limits);
        for _ in 0..10 {
            world.run(2 * S);
            if is_up {
                world.send_up(client, &udp4(address, SERVER, &[7; 100]));
            } else {
                world.send_down(&udp4(SERVER, address, &[7; 100]));
            }
        }
        assert!(world.is_attached(client), "up: {is_up}");
        assert_eq!(over(&world, other), Some("The session was idle for too long"));
        world.run(10 * S - MS);
        assert!(world.is_attached(client), "up: {is_up}");
        world.run(10 * MS);
        assert_eq!(over(&world, client), Some("The session was idle for too long"), "up: {is_up}");
        assert_eq!(ended(&world, SessionEnd::Idle), 2);
    }
}

#[test]
fn packets_for_somebody_whose_session_is_over_go_nowhere() {
    let (mut world, [(client, address), _]) = with_clients(SessionLimits { length_max: Some(5 * S), ..UNLIMITED });
    world.run(2 * S);
    assert!(over(&world, client).is_some());
    world.send_down(&udp4(SERVER, address, &[7; 100]));
    world.run(100 * MS);
    assert_eq!(world.dropped(DropReason::NoRoute), 1);
}

#[test]
fn a_reload_sets_deadlines_for_those_who_are_there_takes_them_back_and_closes_who_is_late_at_once() {
    let (mut world, [(client, _), (other, _)]) = with_clients(UNLIMITED);
    world.run(20 * S);
    world.limit_sessions(SessionLimits { length_max: Some(30 * S), ..UNLIMITED });
    world.run(5 * S);
    world.limit_sessions(UNLIMITED);
    world.run(20 * S);
    assert!(world.is_attached(client) && world.is_attached(other), "the deadline was taken back");
    world.limit_sessions(SessionLimits { length_max: Some(30 * S), ..UNLIMITED });
    world.run(100 * MS);
    for client in [client, other] {
        assert!(over(&world, client).is_some(), "on every shard within 100 ms");
    }
}
