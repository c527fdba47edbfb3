//! Who may come in while strangers do what they can to keep others out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tollgate_shards::{DropReason, HandshakeOutcome, Machine, Output};
use tollgate_sim::Hello;
use tollgate_sim::world::{Setup, World};

use crate::ended;

/// As that of hybrid key exchange.
const LONG: Hello = Hello { is_long: true, asks_for_another_protocol: false, returns: false, claims: None };

fn world(shards: u16) -> World {
    World::scenario(Setup { shards, hello: LONG, ..Setup::default() })
}

/// A handshake of which the first `datagrams` datagrams arrive, from `address` with its address proven, and then nothing more.
fn stuck(world: &mut World, address: SocketAddr, owner: u16, datagrams: usize) {
    let (client, hello) = proven(world, 0, address, owner);
    hello.iter().take(datagrams).for_each(|datagram| world.udp(address, datagram));
    world.step();
    world.kill(client);
}

/// As [`crate::proven`], and what it sends next is two datagrams.
fn proven(world: &mut World, user: usize, address: SocketAddr, owner: u16) -> (usize, Vec<Vec<u8>>) {
    let (client, hello) = crate::proven(world, user, address, owner);
    assert_eq!(hello.len(), 2, "a ClientHello takes two datagrams");
    (client, hello)
}

fn v4(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 19, 7, host], port))
}

/// Logs in `logins` times beside what is pending, each on another shard, from `address`.
fn assert_logins(world: &mut World, address: Option<IpAddr>, logins: u16) {
    for login in 0..logins {
        let client = world.connect(1, login % 2);
        if let Some(ip) = address {
            world.move_to(client, SocketAddr::new(ip, 50_000 + login));
        }
        world.run(Duration::from_millis(100));
        assert!(world.is_attached(client), "login {login} is through");
    }
}

#[test]
fn half_handshakes_from_many_sources_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        stuck(&mut world, v4((number / 8) as u8 + 1, 1000 + number), number % 2, 1);
    }
    assert!(world.dropped(DropReason::HandshakeGaveWay) > 0);
    assert_logins(&mut world, None, 8);
    assert_eq!(world.dropped(DropReason::HandshakeLimit), 0);
}

#[test]
fn half_handshakes_from_behind_the_same_nat_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..256u16 {
        stuck(&mut world, v4(1, 1000 + number), number % 2, 1);
    }
    assert_logins(&mut world, Some(v4(1, 0).ip()), 8);
    assert_logins(&mut world, None, 8);
}

#[test]
fn half_handshakes_from_an_ipv6_site_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        let ip = Ipv6Addr::new(0xfd00, 0x19, 7, number.wrapping_mul(97), 0, 0, 0, 1);
        stuck(&mut world, SocketAddr::new(ip.into(), 1000), number % 2, 1);
    }
    assert_logins(&mut world, None, 8);
    assert_logins(&mut world, Some("fd00:19:7:ffff::1".parse().unwrap()), 8);
    assert_logins(&mut world, Some("fd00:19:8::1".parse().unwrap()), 8);
}

/// They cost a sender no certificate, and each looks like an honest client that is slow.
#[test]
fn handshakes_that_are_never_finished_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        stuck(&mut world, v4((number / 8) as u8 + 1, 1000 + number), number % 2, 2);
    }
    assert_logins(&mut world, None, 8);
    assert_logins(&mut world, Some(v4(1, 0).ip()), 2);
}

#[test]
fn a_client_hello_may_take_two_seconds_and_the_rest_ten() {
    for (datagrams, seconds) in [(1, 2), (2, 10)] {
        let mut world = world(1);
        stuck(&mut world, v4(1, 1000), 0, datagrams);
        world.run(Duration::from_millis(seconds * 1000 - 200));
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 1, "{datagrams} datagrams");
        world.run(Duration::from_millis(400));
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0, "{datagrams} datagrams");
        assert_eq!(ended(&world, HandshakeOutcome::TimedOut), 1);
    }
}

#[test]
fn a_handshake_ends_in_time_though_no_datagram_leaves() {
    for (datagrams, seconds) in [(1, 2), (2, 10)] {
        let mut world = world(1);
        stuck(&mut world, v4(1, 1000), 0, datagrams);
        // Repetitions are due in between.
        world.run(Duration::from_millis(100));
        world.block(0, true);
        world.run(Duration::from_secs(seconds));
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0, "{datagrams} datagrams");
        assert_eq!(world.shard(0).owned_connections(), 1, "it is to be told");
        world.block(0, false);
        world.step();
        assert_eq!(world.shard(0).owned_connections(), 0);
    }
}

/// Where an honest client's last flight takes `trip`, and strangers behind the same NAT begin `strangers` handshakes meanwhile, of
/// `datagrams` datagrams each: whether it is through.
fn passes_beside_newer_ones(trip: Duration, strangers: u16, datagrams: usize) -> bool {
    let mut world = world(1);
    let (client, hello) = proven(&mut world, 1, v4(1, 50_000), 0);
    hello.iter().for_each(|datagram| world.udp(v4(1, 50_000), datagram));
    world.run(Duration::from_millis(1));
    for number in 0..strangers {
        stuck(&mut world, v4(1, 1000 + number), 0, datagrams);
        world.run(trip / u32::from(strangers));
    }
    world.unsilence(client);
    world.run(Duration::from_millis(50));
    world.is_attached(client)
}

#[test]
fn a_handshake_that_waits_for_its_client_is_not_overtaken_from_behind_the_same_nat() {
    for strangers in [9, 30, 200] {
        for datagrams in [1, 2] {
            assert!(
                passes_beside_newer_ones(Duration::from_millis(200), strangers, datagrams),
                "{strangers} newer ones"
            );
        }
    }
}

/// One batch brings all of its ClientHello and a newer handshake, while every place is taken by one that is further.
#[test]
fn a_handshake_does_not_give_way_to_one_that_came_with_the_rest_of_its_client_hello() {
    let mut world = world(1);
    for number in 0..256u16 {
        stuck(&mut world, v4((number / 8) as u8 + 1, 1000 + number), 0, 2);
    }
    let (client, hello) = proven(&mut world, 1, v4(200, 50_000), 0);
    let (other, others_hello) = proven(&mut world, 0, v4(201, 50_000), 0);
    for datagram in &hello {
        world.udp(v4(200, 50_000), datagram);
    }
    world.udp(v4(201, 50_000), &others_hello[0]);
    world.kill(other);
    world.devices[client].held = None;
    world.run(Duration::from_millis(100));
    assert!(world.is_attached(client));
}

/// The client repeats what nobody answered, and cannot know that it was there once.
#[test]
fn a_handshake_that_gives_way_before_it_is_answered_is_not_told_and_begins_anew() {
    let mut world = world(1);
    let (client, hello) = proven(&mut world, 1, v4(1, 50_000), 0);
    let others: Vec<_> = (0..32).map(|number| proven(&mut world, 0, v4(1, 1000 + number), 0)).collect();
    let before = world.seen.sent_to(v4(1, 50_000));
    world.udp(v4(1, 50_000), &hello[0]);
    for (number, (other, hello)) in others.iter().enumerate() {
        world.udp(v4(1, 1000 + number as u16), &hello[0]);
        world.kill(*other);
    }
    world.step();
    assert_eq!(world.dropped(DropReason::HandshakeGaveWay), 1);
    assert_eq!(world.seen.sent_to(v4(1, 50_000)), before);
    world.devices[client].held = None;
    world.run(Duration::from_millis(1500));
    assert!(world.is_attached(client));
}

/// Its client has our ID by then, and gets no further with it.
#[test]
fn a_handshake_that_gives_way_once_it_is_answered_is_told_and_leaves_nothing_behind() {
    let mut world = world(1);
    let (_, hello) = proven(&mut world, 1, v4(1, 50_000), 0);
    world.udp(v4(1, 50_000), &hello[0]);
    world.step();
    let before = world.seen.sent_to(v4(1, 50_000));
    for number in 0..32u16 {
        stuck(&mut world, v4(1, 1000 + number), 0, 1);
    }
    assert_eq!((world.dropped(DropReason::HandshakeGaveWay), ended(&world, HandshakeOutcome::GaveWay)), (1, 1));
    assert!(world.seen.sent_to(v4(1, 50_000)) > before);
    assert_eq!(world.shard(0).owned_connections(), 32);
    world.run(Duration::from_secs(30));
    assert_eq!(world.shard(0).owned_connections(), 0);
}

/// A forged Initial of the kind that costs most: of the right size and version, and of some stranger's.
fn forged(number: u16, version: u32, token: &[u8]) -> (SocketAddr, Vec<u8>) {
    forged_of(1200, number, version, token)
}

fn forged_of(bytes: usize, number: u16, version: u32, token: &[u8]) -> (SocketAddr, Vec<u8>) {
    let mut initial = vec![0xc0];
    initial.extend(version.to_be_bytes());
    initial.push(8);
    initial.extend(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    initial.extend([0, 0x40 | (token.len() >> 8) as u8, token.len() as u8]);
    initial.extend(token);
    let length = bytes - initial.len() - 2;
    initial.extend((length as u16 | 0x4000).to_be_bytes());
    initial.resize(bytes, 0x55);
    let [high, low] = number.to_be_bytes();
    (SocketAddr::from(([198, 18, high, low], 1000)), initial)
}

#[test]
fn forged_initials_get_a_retry_each_and_allocate_nothing() {
    let mut world = world(1);
    let mut buf = Vec::with_capacity(2000);
    let mut flood = |forged: &[(SocketAddr, Vec<u8>)]| {
        let mut answers = 0;
        for (remote, initial) in forged {
            world.udp(*remote, initial);
        }
        let (now, shard) = (world.instant(), world.shard_mut(0));
        while let Some(output) = shard.poll_output(now, true, Some(&mut buf)) {
            let Output::Transmit(transmit) = output else { continue };
            assert!(transmit.bytes < 150 && buf[0] & 0xf0 == 0xf0, "a Retry");
            answers += 1;
            buf.clear();
        }
        answers
    };
    for token in [&[][..], &[7; 80], &[7; 300]] {
        let forged: Vec<_> = (0..100).map(|number| forged(number, 1, token)).collect();
        flood(&forged);
        let mut answers = 0;
        let heap = allocation_counter::measure(|| answers = flood(&forged));
        assert_eq!(answers, 100);
        // What stands for the kernel's buffers takes two.
        assert!(heap.count_total <= 2 * 100, "{heap:?}");
    }
    assert_eq!(world.sum(|counters| counters.retries), 600);
    assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0);
    assert_logins(&mut world, None, 1);
}

/// Else each would draw more than three times its length at one third of the cost (RFC 9000, section 14.1).
#[test]
fn an_initial_that_is_shorter_than_it_must_be_draws_nothing() {
    let mut world = world(1);
    for (number, bytes) in [(1, 60), (2, 600), (3, 1199)] {
        let (remote, initial) = forged_of(bytes, number, 1, &[]);
        world.udp(remote, &initial);
        world.step();
        assert_eq!(world.seen.sent_to(remote), 0, "{bytes} bytes");
    }
    assert_eq!((world.dropped(DropReason::ForeignDatagram), world.sum(|counters| counters.retries)), (3, 0));
}

#[test]
fn an_initial_of_another_version_draws_a_version_negotiation_and_nothing_else() {
    let mut world = world(1);
    for version in [2, 0xff00_001d, 0x0a0a_0a0a] {
        let (remote, initial) = forged(1, version, &[]);
        world.udp(remote, &initial);
        let (now, shard) = (world.instant(), world.shard_mut(0));
        let mut buf = Vec::new();
        assert!(matches!(shard.poll_output(now, true, Some(&mut buf)), Some(Output::Transmit(_))));
        assert_eq!(buf[1..5], [0; 4], "version {version:#x}");
        buf.clear();
        assert!(!matches!(shard.poll_output(now, true, Some(&mut buf)), Some(Output::Transmit(_))));
    }
    assert_eq!(world.sum(|counters| counters.retries), 0);
}

/// Neither is protected, so anybody who sees a packet of the client's can send one.
#[test]
fn what_only_servers_send_ends_no_handshake() {
    let of_a_server: [fn(&mut Vec<u8>); 2] = [|retry| retry[0] |= 0x30, |negotiation| negotiation[1..5].fill(0)];
    for (forge, is_coalesced) in of_a_server.into_iter().flat_map(|forge| [(forge, false), (forge, true)]) {
        let mut world = world(1);
        let address = v4(1, 1000);
        let (client, hello) = proven(&mut world, 0, address, 0);
        world.udp(address, &hello[0]);
        let mut forged = hello[0].clone();
        forge(&mut forged);
        world.udp(address, &if is_coalesced { [&hello[1][..], &forged].concat() } else { forged });
        world.step();
        world.devices[client].held = None;
        world.udp(address, &hello[1]);
        world.run(Duration::from_millis(100));
        assert!(world.is_attached(client), "coalesced: {is_coalesced}");
    }
}

#[test]
fn a_token_serves_only_its_address_and_only_for_a_while() {
    for (address, seconds, admitted) in
        [(v4(1, 1000), 0, 1), (v4(1, 1001), 0, 0), (v4(2, 1000), 0, 0), (v4(1, 1000), 20, 0)]
    {
        let mut world = world(1);
        let (client, second) = proven(&mut world, 0, v4(1, 1000), 0);
        world.kill(client);
        world.run(Duration::from_secs(seconds));
        for _ in 0..1000 {
            world.udp(address, &second[0]);
        }
        world.step();
        assert_eq!(world.shard(0).inspect().handshakes_admitted(), admitted, "{address} after {seconds} s");
        assert_eq!(world.dropped(DropReason::InvalidToken) > 900, admitted == 0, "most are not even looked at");
    }
}

#[test]
fn a_token_does_not_serve_beside_an_id_that_no_retry_has_given() {
    let mut world = world(1);
    let (_, second) = proven(&mut world, 0, v4(1, 1000), 0);
    for bit in 0..64 {
        let mut changed = second[0].clone();
        changed[6 + bit / 8] ^= 1 << (bit % 8);
        world.udp(v4(1, 1000), &changed);
    }
    assert_eq!((world.dropped(DropReason::ForeignDatagram), world.dropped(DropReason::Undecryptable)), (64, 0));
    assert_eq!(world.shard(0).inspect().handshakes_admitted(), 0);
}

/// Handshakes with a certificate that nobody has, as fast as can be.
fn fail(world: &mut World, ip: IpAddr, attempts: u16) {
    for attempt in 0..attempts {
        let client = world.connect_from(SocketAddr::new(ip, 1000 + attempt), 2, attempt % 2);
        world.run(Duration::from_millis(2));
        world.kill(client);
    }
}

#[test]
fn a_source_whose_handshakes_keep_failing_is_ignored_for_a_while_and_its_neighbours_are_not() {
    let mut world = World::scenario(Setup { users: vec![Default::default(); 3], ..Setup::default() });
    world.revoke_credential(2);
    let nat = v4(1, 0).ip();
    fail(&mut world, nat, 1000);
    let refused =
        world.seen.events.iter().filter(|event| matches!(event, tollgate_shards::Event::UnknownCredential { .. }));
    let refused = refused.count();
    assert!((400..=600).contains(&refused), "{refused} of 1000 came as far as a certificate");
    assert!(world.dropped(DropReason::HandshakeRate) > 250);
    assert_logins(&mut world, None, 4);
    // Behind the same NAT an honest client comes in with what it repeats after a second or two.
    let client = world.connect_from(SocketAddr::new(nat, 50_000), 1, 0);
    world.run(Duration::from_secs(4));
    assert!(world.is_attached(client));
}

/// A stranger who never repeats what is not answered costs little, and a client that does so comes in within a few round trips.
#[test]
fn a_neighbour_of_handshakes_that_are_never_finished_comes_in_with_its_first_packets() {
    let mut world = world(2);
    let nat = v4(1, 0).ip();
    for number in 0..1000u16 {
        stuck(&mut world, v4(1, 1000 + number), number % 2, 2);
        world.run(Duration::from_millis(2));
        if number % 50 == 49 {
            let client = world.connect_from(SocketAddr::new(nat, 50_000 + number), 1, number / 50 % 2);
            world.run(Duration::from_millis(50));
            assert!(world.is_attached(client), "after {number} that came to nothing");
        }
    }
    assert!(world.dropped(DropReason::HandshakeRate) > 300, "most are not heard");
}

/// As many as a handful of clients make that somebody has revoked and that try again at once.
#[test]
fn a_neighbour_of_handshakes_that_are_refused_comes_in_with_its_first_packets() {
    let mut world = World::scenario(Setup { users: vec![Default::default(); 3], ..Setup::default() });
    world.revoke_credential(2);
    let nat = v4(1, 0).ip();
    for number in 0..10 {
        for attempt in 0..40 {
            let refused = world.connect_from(SocketAddr::new(nat, 1000 + number * 40 + attempt), 2, attempt % 2);
            world.run(Duration::from_millis(6));
            world.kill(refused);
        }
        let client = world.connect_from(SocketAddr::new(nat, 50_000 + number), 1, number % 2);
        world.run(Duration::from_millis(100));
        assert!(world.is_attached(client), "login {number} is through");
    }
}

#[test]
fn a_handshake_that_tls_refuses_is_charged_once() {
    let hello = Hello { asks_for_another_protocol: true, ..LONG };
    let mut world = World::scenario(Setup { shards: 1, hello, ..Setup::default() });
    for attempt in 0..90 {
        let client = world.connect_from(v4(1, 1000 + attempt), 0, 0);
        world.run(Duration::from_micros(1));
        world.kill(client);
    }
    let failed = |event: &&tollgate_shards::Event| matches!(event, tollgate_shards::Event::HandshakeFailed { .. });
    assert_eq!(
        world.seen.events.iter().filter(failed).count(),
        65,
        "64 ms of a core at once, and one that exceeds them"
    );
    assert_eq!(ended(&world, HandshakeOutcome::Refused), 65);
}

/// The handshake that gave way for it was what made the source one that is ignored.
#[test]
fn the_rest_of_a_client_hello_is_heard_from_a_source_that_is_ignored_by_then() {
    let users = vec![Default::default(); 3];
    let mut world = World::scenario(Setup { users, shards: 1, hello: LONG, ..Setup::default() });
    world.revoke_credential(2);
    let address = v4(1, 50_000);
    let (client, hello) = proven(&mut world, 1, address, 0);
    world.udp(address, &hello[0]);
    for attempt in 0..90 {
        let failing = world.connect_from(v4(1, 1000 + attempt), 2, 0);
        world.run(Duration::from_micros(500));
        world.kill(failing);
    }
    assert!(world.dropped(DropReason::HandshakeRate) > 0, "the source is not heard as it was");
    world.devices[client].held = None;
    world.udp(address, &hello[1]);
    world.run(Duration::from_millis(20));
    assert!(world.is_attached(client));
}
