//! Clients with Noise keys beside clients with certificates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use tollgate_noise::{ClientConfig, Kind, PrivateKey};
use tollgate_shards::{
    ClientEvent, CloseCause, Command, CommandId, CredentialKind, DropReason, Event, HandshakeOutcome, KindCounts,
    Snapshot,
};
use tollgate_sim::Dial;
use tollgate_sim::world::{Setup, World};

use crate::{ended, proven};

const MS: Duration = Duration::from_millis(1);
const LONG: [Kind; 2] = [Kind::PostQuantum, Kind::Hybrid];

/// A gateway with a user for each of `keys`.
fn world(keys: &[Option<Kind>]) -> World {
    World::scenario(Setup { users: vec![Default::default(); keys.len()], keys: keys.to_vec(), ..Setup::default() })
}

fn of_kind(kind: Kind, users: usize) -> World {
    world(&vec![Some(kind); users])
}

fn v4(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 19, 7, host], port))
}

fn apply(world: &mut World, snapshot: &Arc<Snapshot>) {
    let now = world.instant();
    for shard in 0..2 {
        let command = Command::Apply { id: CommandId(1), snapshot: snapshot.clone() };
        world.shard_mut(shard).handle_command(now, command);
    }
}

/// Why the connection of a client is over.
fn closed(world: &World, client: usize) -> Option<CloseCause> {
    world.devices[client].events.iter().find_map(|event| match event {
        ClientEvent::Closed(cause) => Some(cause.clone()),
        _ => None,
    })
}

fn is_unknown(event: &Event, kind: Kind) -> bool {
    matches!(event, Event::UnknownCredential { kind: CredentialKind::NoiseKey(its), .. } if *its == kind)
}

fn is_refused(world: &World, client: usize) -> bool {
    matches!(closed(world, client), Some(CloseCause::Handshake(words)) if words.contains("error 40"))
}

#[test]
fn clients_of_all_kinds_are_served_beside_each_other_and_reach_each_other() {
    let keys = [None, Some(Kind::Standard), Some(Kind::PostQuantum), Some(Kind::Hybrid)];
    let users = vec![Default::default(); keys.len()];
    let mut world = World::scenario(Setup { users, keys: keys.to_vec(), isolate_clients: false, ..Setup::default() });
    let clients: Vec<_> = (0..keys.len()).map(|user| world.attach(user, user as u16 % 2)).collect();
    for &(from, source) in &clients {
        for &(to, destination) in &clients {
            if from != to {
                let payload = [from as u8, to as u8, 7, 7];
                world.send_up(from, &tollgate_sim::udp((source, 1), (destination, 2), &payload));
                world.run(100 * MS);
                assert!(world.devices[to].received.iter().any(|packet| packet.ends_with(&payload)), "{from} to {to}");
            }
        }
    }
    assert_eq!(world.connections(), (4, 4));
    for kind in 0..keys.len() {
        let of = |counted: fn(&KindCounts) -> u64| world.sum(|all| counted(&all.handshake_ends.kinds()[kind].1));
        assert_eq!(of(|kind| kind.outcomes.of(HandshakeOutcome::LoggedIn)), 1);
        assert_eq!(of(|kind| kind.times.classes().map(|(_, count)| count).sum()), 1);
    }
}

#[test]
fn a_key_that_is_not_listed_is_refused_within_the_handshake_and_leaves_nothing() {
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 1);
        world.revoke_credential(0);
        let client = world.connect(0, 0);
        world.run(20 * MS);
        assert!(is_refused(&world, client), "{kind}: {:?}", closed(&world, client));
        assert_eq!((world.sum(|counters| counters.handshakes), world.connections()), (0, (0, 0)));
        assert_eq!(ended(&world, HandshakeOutcome::UnknownCredential), 1);
        assert!(matches!(&world.seen.events[..], [event] if is_unknown(event, kind)), "{:?}", world.seen.events);
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0);
    }
}

/// Otherwise anybody could ask who is listed: whose key it is, a client has only said by then.
#[test]
fn until_a_client_has_shown_that_it_holds_its_key_a_listed_one_and_another_get_the_same() {
    for kind in LONG {
        let answers = [true, false].map(|is_listed| {
            let mut world = of_kind(kind, 1);
            if !is_listed {
                world.revoke_credential(0);
            }
            let (client, hello) = proven(&mut world, 0, v4(1, 1000), 0);
            let before = world.seen.sent_to(v4(1, 1000));
            hello.iter().for_each(|datagram| world.udp(v4(1, 1000), datagram));
            world.run(5 * MS);
            assert_eq!(closed(&world, client), None);
            world.seen.sent_to(v4(1, 1000)) - before
        });
        assert_eq!(answers[0], answers[1], "{kind}");
        assert!(answers[0] > 2200);
    }
}

#[test]
fn a_client_with_another_gateways_key_costs_no_session_and_no_memory() {
    let source = Arc::new(SystemRandom::new());
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 1);
        let [own, other] = [0; 2].map(|_| PrivateKey::generate(kind, &*source).unwrap());
        let config = ClientConfig::new(&own, other.public(), source.clone()).unwrap();
        let dial = Dial { quic_version: config.quic_version(), handshake: Arc::new(config) };
        let client = world.dial(0, &dial, 0);
        world.run(20 * MS);
        assert!(is_refused(&world, client), "{kind}: {:?}", closed(&world, client));
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0);
        assert_eq!((world.sum(|counters| counters.handshakes), world.connections()), (0, (0, 0)));
        world.attach(0, 0);
    }
}

#[test]
fn a_revoked_key_loses_its_connection_at_once() {
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 1);
        let (client, _) = world.attach(0, 1);
        let snapshot = world.snapshot_without_users();
        apply(&mut world, &snapshot);
        world.run(10 * MS);
        let cause = closed(&world, client);
        assert!(matches!(cause, Some(CloseCause::Gateway { code: 4, .. })), "{kind}: {cause:?}");
        assert_eq!(world.connections(), (0, 0));
    }
}

/// Its handshake began while it was listed.
#[test]
fn a_key_that_is_revoked_during_the_handshake_logs_nobody_in() {
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 1);
        let address = v4(1, 1000);
        let (client, hello) = proven(&mut world, 0, address, 0);
        hello.iter().for_each(|datagram| world.udp(address, datagram));
        world.run(5 * MS);
        let snapshot = world.snapshot_without_users();
        apply(&mut world, &snapshot);
        world.unsilence(client);
        world.run(20 * MS);
        assert!(world.seen.events.iter().any(|event| is_unknown(event, kind)), "{kind}: {:?}", world.seen.events);
        assert_eq!((world.connections(), world.is_attached(client)), ((0, 0), false));
    }
}

#[test]
fn a_first_flight_of_three_datagrams_may_come_in_any_order() {
    for kind in LONG {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut world = of_kind(kind, 1);
            let (client, hello) = proven(&mut world, 0, v4(1, 1000), 0);
            assert_eq!(hello.len(), 3, "{kind}");
            world.devices[client].held = None;
            order.into_iter().for_each(|place| world.udp(v4(1, 1000), &hello[place]));
            world.run(20 * MS);
            assert!(world.is_attached(client), "{kind}, {order:?}");
        }
    }
}

#[test]
fn of_a_first_flight_any_two_datagrams_may_be_lost() {
    for kind in LONG {
        for arrives in 0..3 {
            let mut world = of_kind(kind, 1);
            let (client, hello) = proven(&mut world, 0, v4(1, 1000), 0);
            world.devices[client].held = None;
            world.udp(v4(1, 1000), &hello[arrives]);
            world.run(Duration::from_secs(2));
            assert!(world.is_attached(client), "{kind}, only datagram {arrives}");
        }
    }
}

/// Nothing but this client can repeat it, and quinn-proto repeats no Initial once a Handshake packet is sent.
#[test]
fn a_clients_last_message_may_be_lost() {
    for kind in LONG {
        let mut world = of_kind(kind, 1);
        let (client, hello) = proven(&mut world, 0, v4(1, 1000), 0);
        hello.iter().for_each(|datagram| world.udp(v4(1, 1000), datagram));
        world.run(5 * MS);
        let lost = world.take_held(client);
        assert!(!lost.is_empty() && !world.is_attached(client), "{kind}");
        world.devices[client].held = None;
        world.run(Duration::from_secs(3));
        assert!(world.is_attached(client), "{kind}");
    }
}

#[test]
fn every_datagram_of_a_first_flight_gets_a_retry_and_one_of_them_is_enough() {
    for kind in LONG {
        let mut world = of_kind(kind, 1);
        let client = world.connect(0, 0);
        world.run(20 * MS);
        assert_eq!(world.sum(|counters| counters.retries), 3, "{kind}");
        assert!(world.is_attached(client));
        assert_eq!(world.sum(|counters| counters.handshakes), 1);
    }
}

#[test]
fn half_handshakes_keep_nobody_out() {
    for kind in LONG {
        let mut world = of_kind(kind, 2);
        for number in 0..320u16 {
            let address = v4((number / 8) as u8 + 1, 1000 + number);
            let (client, hello) = proven(&mut world, 0, address, number % 2);
            hello.iter().take(usize::from(number % 3)).for_each(|datagram| world.udp(address, datagram));
            world.step();
            world.kill(client);
        }
        for login in 0..8 {
            let client = world.connect(1, login % 2);
            world.run(100 * MS);
            assert!(world.is_attached(client), "{kind}, login {login}");
        }
    }
}

#[test]
fn a_source_whose_keys_are_refused_is_charged_for_each_and_ignored() {
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 2);
        world.revoke_credential(0);
        for attempt in 0..300 {
            let client = world.connect_from(v4(1, 1000 + attempt), 0, 0);
            world.run(MS);
            world.kill(client);
        }
        assert!(world.dropped(DropReason::HandshakeRate) > 100, "{kind}: {}", world.dropped(DropReason::HandshakeRate));
        let neighbour = world.connect_from(v4(2, 1000), 1, 0);
        world.run(100 * MS);
        assert!(world.is_attached(neighbour), "{kind}");
    }
}

#[test]
fn a_client_of_a_version_that_is_not_served_is_told_at_once() {
    for kind in Kind::ALL {
        let mut world = World::scenario(Setup::default());
        let source = Arc::new(SystemRandom::new());
        let own = PrivateKey::generate(kind, &*source).unwrap();
        let config = ClientConfig::new(&own, own.public(), source).unwrap();
        let dial = Dial { quic_version: config.quic_version(), handshake: Arc::new(config) };
        let client = world.dial(0, &dial, 0);
        let address = world.devices[client].outer;
        world.run(5 * MS);
        assert_eq!(closed(&world, client), Some(CloseCause::Version), "{kind}");
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0);
        assert!(world.seen.sent_to(address) < 200, "{} bytes", world.seen.sent_to(address));
    }
}

#[test]
fn after_a_crash_a_client_is_reset_at_once() {
    for kind in Kind::ALL {
        let mut world = of_kind(kind, 1);
        let (client, address) = world.attach(0, 0);
        world.crash();
        for _ in 0..10 {
            world.send_up(client, &tollgate_sim::udp((address, 1), ("192.0.2.1".parse().unwrap(), 2), &[7; 100]));
            world.run(10 * MS);
        }
        assert_eq!(closed(&world, client), Some(CloseCause::Reset), "{kind}");
        world.attach(0, 0);
    }
}
