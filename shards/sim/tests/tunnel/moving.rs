//! Clients who come back by themselves are asked to move to the process that takes over: they go on with the old connection until the new one has their
//! address.

use tollgate_noise::Kind;
use tollgate_shards::{Command, SessionLimits};
use tollgate_sim::{Hello, LinkPlan};

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const ONE_WAY: Duration = Duration::from_millis(20);
const MOVED: u64 = 0x09;

/// Two shards with clients who come back by themselves, each of a user of its own and 40 ms away.
fn with_clients(count: usize) -> (World, Vec<(usize, IpAddr)>) {
    with_clients_of(count, None)
}

/// Likewise, with Noise keys of a kind, or certificates.
fn with_clients_of(count: usize, kind: Option<Kind>) -> (World, Vec<(usize, IpAddr)>) {
    let users = vec![UserSpec::default(); count];
    let link = LinkPlan { delay: ONE_WAY, ..LinkPlan::UNDISTURBED };
    let hello = Hello { returns: true, ..Hello::default() };
    let mut world = World::scenario(Setup { users, link, hello, keys: vec![kind], ..Setup::default() });
    let clients = (0..count).map(|user| world.attach(user, user as u16 % 2)).collect();
    (world, clients)
}

/// Another process takes over, and the clients of the one before it are asked to move there. Returns the shards of that one.
fn upgrade(world: &mut World) -> Vec<ShardIndex> {
    let old: Vec<_> = world.shards().map(|shard| shard.index()).collect();
    world.start_successor(2);
    world.hand_over();
    world.run(10 * MS);
    assert!(world.has_taken_over());
    world.steer_to_successor();
    order(world, &old, &Command::Drain { over: Duration::ZERO, within: 60 * S, to_successor: true });
    old
}

fn order(world: &mut World, shards: &[ShardIndex], command: &Command) {
    for shard in shards {
        let now = world.instant();
        world.shard_mut(shard.0).handle_command(now, command.clone());
    }
}

/// How many clients the `old` process has, and how many the other one.
fn clients(world: &World, old: &[ShardIndex]) -> [usize; 2] {
    let of = |is_old: bool| world.shards().filter(move |shard| old.contains(&shard.index()) == is_old);
    [true, false].map(|is_old| of(is_old).map(|shard| shard.clients()).sum())
}

/// Lets `time` pass while a client sends a packet each millisecond and is sent one. Returns how many have not arrived: up, and down.
fn exchange_for(world: &mut World, (client, address): (usize, IpAddr), time: Duration) -> (usize, usize) {
    let down =
        |world: &World| world.devices[client].received.iter().map(|packet| marks(packet, 100).len()).sum::<usize>();
    world.seen.tun.clear();
    let (before, rounds) = (down(world), time.as_millis() as usize);
    for _ in 0..rounds {
        world.send_up(client, &udp4(address, SERVER, &[1; 100]));
        world.send_down(&udp4(SERVER, address, &[2; 100]));
        world.run(MS);
    }
    world.run(5 * ONE_WAY);
    let up: usize = world.seen.tun.iter().map(|(_, packet)| marks(packet, 100).len()).sum();
    (rounds - up, rounds - (down(world) - before))
}

#[test]
fn a_client_that_moves_keeps_its_address_and_loses_what_one_round_trip_up_holds_and_nothing_down() {
    let (mut world, clients_before) = with_clients(1);
    let old = upgrade(&mut world);
    let (up, down) = exchange_for(&mut world, clients_before[0], S);
    let (client, address) = clients_before[0];
    assert_eq!((clients(&world, &old), world.devices[client].address()), ([0, 1], Some(address)));
    assert_eq!(closed(&world, client), None);
    assert!(up <= 42, "{up} packets up are lost, of 40 in a round trip");
    assert!(down <= 1, "{down} packets down are lost");
    assert_eq!(exchange_for(&mut world, clients_before[0], S), (0, 0));
}

#[test]
fn a_client_moves_as_often_as_it_is_asked_by_tls_and_by_noise() {
    for kind in [None, Some(Kind::Standard), Some(Kind::Hybrid)] {
        move_thrice(kind);
    }
}

fn move_thrice(kind: Option<Kind>) {
    let (mut world, before) = with_clients_of(1, kind);
    for _ in 0..3 {
        let old = upgrade(&mut world);
        world.run(S);
        assert_eq!(clients(&world, &old), [0, 1]);
        assert!(world.is_drained());
        world.end_predecessor();
        world.run(S);
    }
    assert_eq!(exchange_for(&mut world, before[0], S), (0, 0));
}

#[test]
fn of_one_credential_each_has_its_own_address_again_and_only_those_move_who_are_asked() {
    let (mut world, gone) = with_clients(1);
    world.close(gone[0].0);
    let returning = std::mem::take(&mut world.seen.hello);
    let (staying, its_address) = world.attach(0, 0);
    world.seen.hello = returning;
    let before = [0, 1, 0].map(|owner| world.attach(0, owner));
    world.seen.hello = Hello::default();
    let old = upgrade(&mut world);
    let (late, late_address) = world.attach(0, 0);
    world.run(S);
    assert_eq!(clients(&world, &old), [1, 4]);
    for client in before.into_iter().chain([(staying, its_address), (late, late_address)]) {
        assert_eq!(exchange_for(&mut world, client, 100 * MS), (0, 0));
    }
}

/// Whoever is killed while the client is about to move, and whenever: it has its address and its tunnel.
#[test]
fn whichever_process_dies_meanwhile_the_client_has_a_tunnel_with_its_address() {
    for is_new in [false, true] {
        for after in [1, 30, 45, 70, 90, 110, 130, 150] {
            let (mut world, before) = with_clients(1);
            let old = upgrade(&mut world);
            world.run(after * MS);
            if is_new {
                world.kill_successor();
                order(&mut world, &old, &Command::Resume);
            } else {
                world.kill_predecessor();
            }
            let (client, address) = before[0];
            for _ in 0..100 {
                world.send_up(client, &udp4(address, SERVER, &[1; 100]));
                world.run(30 * MS);
            }
            let what = format!("killed the {} one after {after} ms", if is_new { "new" } else { "old" });
            match closed(&world, client) {
                None => assert_eq!(exchange_for(&mut world, before[0], 100 * MS), (0, 0), "{what}"),
                // It comes back by itself.
                Some(CloseCause::Reset | CloseCause::Gateway { code: MOVED, .. }) => {
                    assert_eq!(world.attach(0, 0).1, address, "{what}");
                }
                Some(other) => panic!("{what}: {other}"),
            }
        }
    }
}

#[test]
fn a_session_that_moves_ends_when_it_would_have_ended_where_it_began() {
    let (mut world, before) = with_clients(1);
    let limits = SessionLimits { idle_max: None, length_max: Some(30 * S), ends_with_certificate: false };
    world.limit_sessions(limits);
    // Its attachment has taken 2 s, of which it was logged in for all but a tenth.
    let end = world.now + 28 * S;
    world.run(20 * S);
    let old = upgrade(&mut world);
    world.run(S);
    assert_eq!(clients(&world, &old), [0, 1]);
    world.run(end - world.now);
    let (client, _) = before[0];
    assert!(world.is_attached(client));
    world.run(200 * MS);
    assert!(
        matches!(closed(&world, client), Some(CloseCause::Gateway { code: 0x0a, .. })),
        "{:?}",
        closed(&world, client)
    );
}
