//! Shards and clients of the real engine in one thread, under virtual time.

mod admission;
mod balance;
mod damage;
mod deadlines;
mod drain;
mod endings;
mod hostile;
mod limits;
mod memory;
mod moves;
mod moving;
mod mtu;
mod noise;
mod orders;
mod placement;
mod sharing;
mod upgrade;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tollgate_shards::{
    ClientEvent, CloseCause, CloseReason, ConnectionKey, ControlMessage, DropReason, Event, HandshakeOutcome,
    ShardIndex, UserIndex,
};
use tollgate_sim::udp;
use tollgate_sim::world::{Setup, UserSpec, World};

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 19, 9, 9));

fn udp4(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    udp((source, 1112), (destination, 2222), payload)
}

/// Handshakes that had this outcome, of all kinds.
fn ended(world: &World, outcome: HandshakeOutcome) -> u64 {
    world.sum(|counters| counters.handshake_ends.kinds().iter().map(|(_, kind)| kind.outcomes.of(outcome)).sum())
}

fn closed(world: &World, client: usize) -> Option<&CloseCause> {
    world.devices[client].events.iter().find_map(|event| match event {
        ClientEvent::Closed(cause) => Some(cause),
        ClientEvent::Assigned(_) | ClientEvent::PathMtu(_) => None,
    })
}

/// A client of `user` that has got its token: what it sends next, and all that follows is held.
fn proven(world: &mut World, user: usize, address: SocketAddr, owner: u16) -> (usize, Vec<Vec<u8>>) {
    let client = world.connect_from(address, user, owner);
    world.silence(client);
    world.step();
    let first = world.take_held(client);
    world.udp(address, &first[0]);
    world.step();
    (client, world.take_held(client))
}

/// Packets one way and the other, each marked; all must arrive, in order.
fn exchange(world: &mut World, client: usize, address: IpAddr, packets: u8) {
    world.seen.tun.clear();
    world.devices[client].received.clear();
    for mark in 0..packets {
        world.send_up(client, &udp4(address, SERVER, &[mark; 1000]));
        world.send_down(&udp4(SERVER, address, &[mark; 900]));
    }
    world.run(Duration::from_secs(1));
    let up: Vec<u8> = world
        .seen
        .tun
        .iter()
        .filter(|(_, packet)| packet[12..16] == octets(address))
        .flat_map(|(_, packet)| marks(packet, 1000))
        .collect();
    let down: Vec<u8> = world.devices[client].received.iter().flat_map(|packet| marks(packet, 900)).collect();
    assert_eq!(up, (0..packets).collect::<Vec<_>>());
    assert_eq!(down, (0..packets).collect::<Vec<_>>());
}

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("IPv4 only"),
    }
}

/// The marks of a frame, which may be a merged one.
fn marks(frame: &[u8], payload_bytes: usize) -> Vec<u8> {
    frame[28..].chunks(payload_bytes).map(|payload| payload[0]).collect()
}

#[test]
fn every_placement_of_owner_and_home_carries_traffic() {
    for owner in 0..2 {
        for home in 0..2 {
            let users = vec![UserSpec { home: Some(home), ..UserSpec::default() }];
            let mut world = World::scenario(Setup { users, ..Setup::default() });
            let (client, address) = world.attach(0, owner);
            exchange(&mut world, client, address, 50);
            let owned: Vec<_> = world.shards().map(|shard| shard.owned_connections()).collect();
            assert_eq!(owned[usize::from(owner)], 1, "owner {owner}, home {home}: {owned:?}");
            assert_eq!(world.shard(home).counters().users, 1);
            assert_eq!(world.shards().map(|shard| shard.counters().misrouted_frames).sum::<u64>(), 0);
        }
    }
}

#[test]
fn without_steering_the_mesh_carries_everything() {
    let mut world = World::scenario(Setup { shards: 4, ..Setup::default() });
    world.gateway.steers = false;
    let (client, address) = world.attach(0, 3);
    exchange(&mut world, client, address, 50);
    assert_eq!(world.shard(3).owned_connections(), 1);
    let counters = world.shard(0).counters();
    assert!(counters.misrouted_frames >= 50 && counters.misrouted_datagrams >= 50, "{counters:?}");
}

#[test]
fn one_aggregate_with_packets_of_two_shards_kills_neither_connection() {
    let mut world = World::scenario(Setup::default());
    let (first, first_address) = world.attach(0, 0);
    let (second, second_address) = world.attach(1, 1);
    world.run(Duration::from_secs(3));
    let mut aggregate = Vec::new();
    let mut segment_bytes = 0;
    for (client, address) in [(first, first_address), (second, second_address)] {
        world.silence(client);
        world.send_up(client, &udp4(address, SERVER, &[7; 1000]));
        world.step();
        let held = world.devices[client].held.take().unwrap();
        segment_bytes = held[0].len();
        aggregate.extend(held.into_iter().next().unwrap());
    }
    world.seen.tun.clear();
    let remote = world.devices[first].outer;
    world.udp_aggregate(remote, segment_bytes, &aggregate);
    world.run(Duration::from_secs(1));
    assert_eq!(world.seen.tun.len(), 2, "both packets arrive");
    exchange(&mut world, first, first_address, 10);
    exchange(&mut world, second, second_address, 10);
}

#[test]
fn a_session_lasts_from_the_first_connection_to_the_last() {
    let mut world = World::scenario(Setup::default());
    assert_eq!(world.connections(), (0, 0));
    let clients: Vec<_> = (0..4).map(|index| world.attach(0, index % 2)).collect();
    let addresses: std::collections::BTreeSet<_> = clients.iter().map(|(_, address)| *address).collect();
    assert_eq!(addresses.len(), 4, "each connection has an address of its own");
    assert_eq!(world.connections(), (4, 1));
    assert_eq!(world.addresses_held(), 4);
    for (left, (client, _)) in clients.into_iter().enumerate() {
        world.close(client);
        world.run(Duration::from_secs(1));
        assert_eq!(world.connections().0, 3 - left as u64);
    }
    assert_eq!(world.connections(), (0, 0));
    assert_eq!(world.addresses_held(), 0);
    let told = world
        .seen
        .events
        .iter()
        .filter(|event| matches!(event, Event::Detached { reason, .. } if reason.contains("0x01")))
        .count();
    assert_eq!(told, 4, "the client's close code is seen: {:?}", world.seen.events);
    world.run(Duration::from_secs(60));
    assert!(world.shards().all(|shard| shard.owned_connections() == 0), "nothing is left behind");
}

#[test]
fn removing_an_unknown_connection_changes_nothing() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    let stranger = ConnectionKey { owner: ShardIndex(1), slot: 77, generation: 77 };
    let gone = |user| ControlMessage::Gone { user: UserIndex(user), connection: stranger };
    let messages = || {
        [
            gone(0),
            gone(1),
            ControlMessage::Close { connection: stranger, reason: CloseReason::Superseded, version: 0 },
            ControlMessage::Unroute { address, connection: stranger },
            ControlMessage::Admit { connection: stranger, address, age_ms: 0 },
        ]
    };
    let now = world.instant();
    for (shard, message) in (0..2).flat_map(|shard| messages().map(|message| (shard, message))) {
        world.shard_mut(shard).handle_message(now, message.into());
    }
    assert_eq!(world.connections(), (1, 1));
    exchange(&mut world, client, address, 5);
}

#[test]
fn a_client_that_vanishes_gives_its_address_back_after_the_idle_timeout() {
    let mut world = World::scenario(Setup::default());
    let (client, _) = world.attach(0, 1);
    world.kill(client);
    world.run(Duration::from_secs(20));
    assert_eq!(world.addresses_held(), 1);
    world.run(Duration::from_secs(20));
    assert_eq!(world.addresses_held(), 0);
    assert_eq!(world.connections(), (0, 0));
}

#[test]
fn a_fixed_address_goes_to_the_newest_connection_at_once() {
    let users = vec![UserSpec { pool: Some(("198.18.0.9", "198.18.0.9")), ..UserSpec::default() }];
    for (old_owner, new_owner) in [(0, 0), (0, 1), (1, 0)] {
        let mut world = World::scenario(Setup { users: users.clone(), ..Setup::default() });
        let (old, address) = world.attach(0, old_owner);
        world.kill(old);
        let (new, again) = world.attach(0, new_owner);
        assert_eq!(again, address);
        exchange(&mut world, new, address, 20);
        assert_eq!(world.connections(), (1, 1), "the old connection is gone");
        assert!(world.devices[old].received.is_empty());
        let superseded =
            |event: &Event| matches!(event, Event::Detached { reason, .. } if reason.contains("Superseded"));
        assert_eq!(world.seen.events.iter().filter(|event| superseded(event)).count(), 1);
    }
}

#[test]
fn an_exhausted_pool_refuses_with_quincys_code() {
    let mut world = World::scenario(Setup { tunnel: "198.18.0.1/30", ..Setup::default() });
    let (_, _) = world.attach(0, 0);
    let refused = world.connect(1, 1);
    world.run(Duration::from_secs(2));
    assert_eq!(
        closed(&world, refused),
        Some(&CloseCause::Gateway { code: 2, reason: "Session establishment failed".to_owned() })
    );
    assert_eq!(world.connections(), (1, 1));
    assert!(world.seen.events.contains(&Event::PoolExhausted { user: UserIndex(1) }));
}

#[test]
fn a_user_who_logs_in_as_often_as_it_can_leaves_the_last_addresses_to_those_who_have_none() {
    let mut world = World::scenario(Setup { tunnel: "198.18.0.1/29", shards: 4, ..Setup::default() });
    for owner in 0..4 {
        world.attach(0, owner);
    }
    let refused = world.connect(0, 1);
    world.run(Duration::from_secs(2));
    assert_eq!(
        closed(&world, refused),
        Some(&CloseCause::Gateway { code: 2, reason: "Session establishment failed".to_owned() })
    );
    assert!(world.seen.events.contains(&Event::PoolReserved { user: UserIndex(0) }));
    world.attach(1, 3);
    assert_eq!((world.connections(), world.addresses_held()), ((5, 2), 5));
    assert!(!world.seen.events.contains(&Event::PoolExhausted { user: UserIndex(1) }));
}

#[test]
fn a_stopping_gateway_tells_every_client() {
    let mut world = World::scenario(Setup { shards: 3, users: vec![UserSpec::default(); 6], ..Setup::default() });
    let clients: Vec<_> = (0..6).map(|user| world.attach(user, user as u16 % 3).0).collect();
    world.stop();
    world.run(Duration::from_secs(3));
    for client in clients {
        let expected = CloseCause::Gateway { code: 1, reason: "Server shutdown".to_owned() };
        assert_eq!(closed(&world, client), Some(&expected));
    }
    assert!(world.shards().all(|shard| shard.is_stopped()));
    assert_eq!(world.addresses_held(), 0);
    let late = world.connect(0, 1);
    world.run(Duration::from_secs(3));
    assert!(!world.is_attached(late), "nobody comes in any more");
}

#[test]
fn a_restarted_gateway_tells_its_old_clients_with_their_next_packet() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    exchange(&mut world, client, address, 5);
    world.crash();
    world.send_up(client, &udp4(address, SERVER, &[1; 500]));
    world.run(Duration::from_millis(100));
    assert_eq!(closed(&world, client), Some(&CloseCause::Reset));
}

#[test]
fn what_policy_forbids_is_not_delivered_and_counted_under_its_reason() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    let (other, other_address) = world.attach(1, 1);
    world.seen.tun.clear();
    let stranger = IpAddr::from([198, 18, 0, 77]);
    let cases: [(IpAddr, IpAddr, DropReason); 9] = [
        (stranger, SERVER, DropReason::ForgedSource),
        (other_address, SERVER, DropReason::ForgedSource),
        (address, other_address, DropReason::Isolated),
        (address, stranger, DropReason::Isolated),
        (address, IpAddr::from([224, 0, 0, 251]), DropReason::Multicast),
        (address, IpAddr::from([255, 255, 255, 255]), DropReason::Multicast),
        (address, IpAddr::from([198, 19, 0, 1]), DropReason::OuterAddress),
        (address, IpAddr::from([127, 0, 0, 1]), DropReason::Unroutable),
        (address, IpAddr::from([169, 254, 169, 254]), DropReason::Unroutable),
    ];
    for (source, destination, reason) in cases {
        let before = world.dropped(reason);
        world.send_forged(client, &udp4(source, destination, b"forbidden"));
        world.run(Duration::from_millis(200));
        assert_eq!(world.dropped(reason), before + 1, "{source} -> {destination}");
    }
    let before = world.dropped(DropReason::ForgedSource);
    let mut forged_v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    forged_v6.extend([0xfd; 32]);
    forged_v6.extend([0; 8]);
    world.send_forged(client, &forged_v6);
    world.run(Duration::from_millis(200));
    assert_eq!(world.dropped(DropReason::ForgedSource), before + 1, "IPv6");
    assert!(world.seen.tun.is_empty(), "{:?}", world.seen.tun);
    assert!(world.devices[other].received.is_empty());
    exchange(&mut world, client, address, 5);
}

#[test]
fn a_tunnel_in_a_network_that_is_never_routed_reaches_the_gateway_and_other_clients() {
    for tunnel in ["169.254.7.1/24", "100.64.7.1/24", "240.0.7.1/24", "0.7.7.1/24"] {
        let mut world = World::scenario(Setup { tunnel, isolate_clients: false, ..Setup::default() });
        let (client, address) = world.attach(0, 0);
        let (other, other_address) = world.attach(1, 1);
        world.seen.tun.clear();
        let (gateway, _) = tunnel.split_once('/').unwrap();
        world.send_up(client, &udp4(address, gateway.parse().unwrap(), b"to the gateway"));
        world.send_up(client, &udp4(address, other_address, b"to another client"));
        world.run(Duration::from_millis(200));
        assert_eq!(world.seen.tun.len(), 1, "{tunnel}");
        assert_eq!(world.devices[other].received.len(), 1, "{tunnel}");
        // What else is in that class has no business here.
        world.send_up(client, &udp4(address, IpAddr::from([169, 254, 169, 254]), b"to nobody"));
        world.run(Duration::from_millis(200));
        assert_eq!((world.dropped(DropReason::Unroutable), world.seen.tun.len()), (1, 1), "{tunnel}");
    }
}

#[test]
fn without_isolation_clients_reach_each_other_within_and_across_shards() {
    for owner in 0..2 {
        let mut world = World::scenario(Setup { isolate_clients: false, ..Setup::default() });
        let (first, first_address) = world.attach(0, 0);
        let (second, second_address) = world.attach(1, owner);
        for mark in 0..100 {
            world.send_up(first, &udp4(first_address, second_address, &[mark; 1200]));
            world.send_up(second, &udp4(second_address, first_address, &[mark; 1100]));
        }
        world.run(Duration::from_secs(1));
        let at = |client: usize, bytes: usize| {
            world.devices[client].received.iter().flat_map(|packet| marks(packet, bytes)).collect::<Vec<_>>()
        };
        assert_eq!(at(second, 1200), (0..100).collect::<Vec<_>>());
        assert_eq!(at(first, 1100), (0..100).collect::<Vec<_>>());
        assert!(world.seen.tun.is_empty());
    }
}

#[test]
fn a_packet_too_large_for_the_clients_path_is_answered_and_the_connection_lives() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    world.seen.tun.clear();
    world.send_down(&udp4(SERVER, address, &[1; 2000]));
    world.run(Duration::from_millis(500));
    assert_eq!(world.dropped(DropReason::TooBig), 1);
    let (_, reply) = &world.seen.tun[0];
    assert_eq!((reply[9], reply[20], reply[21]), (1, 3, 4), "ICMP, destination unreachable, fragmentation needed");
    assert_eq!(reply[12..16], octets(address), "one of its own addresses would be a martian to the gateway's kernel");
    assert_eq!(reply[16..20], octets(SERVER), "to the packet's sender");
    let mtu_bytes = u16::from_be_bytes([reply[26], reply[27]]);
    assert!((1400..1450).contains(&mtu_bytes), "{mtu_bytes}");
    exchange(&mut world, client, address, 5);
}

#[test]
fn a_flood_of_too_large_packets_is_not_answered_with_a_flood() {
    let mut world = World::scenario(Setup::default());
    let (_, address) = world.attach(0, 0);
    world.seen.tun.clear();
    for _ in 0..1000 {
        world.send_down(&udp4(SERVER, address, &[1; 2000]));
        world.step();
    }
    assert_eq!(world.seen.tun.len() as u64 + world.dropped(DropReason::ReplyLimit), 1000);
    assert!(world.seen.tun.len() <= 100, "{}", world.seen.tun.len());
}

#[test]
fn a_limited_user_gets_the_rate_over_all_connections_and_directions_in_order() {
    let users =
        vec![UserSpec { limit_bits_per_s: Some(8_000_000), home: Some(1), ..UserSpec::default() }, UserSpec::default()];
    let mut world = World::scenario(Setup { users, ..Setup::default() });
    let (first, first_address) = world.attach(0, 0);
    let (second, second_address) = world.attach(0, 1);
    world.seen.tun.clear();
    let start = world.now;
    // The burst is 1 s of the rate, 1,000,000 bytes; 1,400 packets of 1,028 bytes need about half a second more.
    for _ in 0..7 {
        for mark in 0..100 {
            world.send_up(first, &udp4(first_address, SERVER, &[mark; 1000]));
            world.send_down(&udp4(SERVER, second_address, &[mark; 1000]));
        }
        world.run(Duration::from_millis(10));
    }
    let passed = |world: &World| {
        world.seen.tun.iter().map(|(_, packet)| packet.len()).sum::<usize>()
            + world.devices[second].received.iter().map(Vec::len).sum::<usize>()
    };
    let elapsed = (world.now - start).as_secs_f64();
    assert!(passed(&world) as f64 <= 1_000_000.0 * (1.0 + elapsed), "{} bytes in {elapsed} s", passed(&world));
    world.run(Duration::from_secs(3));
    assert_eq!(world.dropped(DropReason::OverLimit), 0);
    let ups: Vec<_> = world.seen.tun.iter().flat_map(|(_, packet)| marks(packet, 1000)).collect();
    let downs: Vec<_> = world.devices[second].received.iter().flat_map(|packet| marks(packet, 1000)).collect();
    for marks in [&ups, &downs] {
        let mut sent = (0..7).flat_map(|_| 0..100);
        assert!(marks.iter().all(|mark| sent.any(|sent| sent == *mark)), "in order: {marks:?}");
    }
    // These flows do not slow down when they are told to, so the queue is shortened.
    let dropped = world.dropped(DropReason::QueueDelay) as usize;
    assert!((1..100).contains(&dropped), "{dropped}");
    assert_eq!(ups.len() + downs.len() + dropped, 1400);
}

#[test]
fn a_changed_port_and_address_keep_the_session() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    for rebound in ["198.19.1.1:50000", "198.19.77.7:50000"] {
        world.move_to(client, rebound.parse().unwrap());
        // The gateway learns of it from the first packet that comes the new way.
        world.send_up(client, &udp4(address, SERVER, &[0; 1000]));
        world.run(Duration::from_millis(1));
        exchange(&mut world, client, address, 50);
    }
    let handshakes: u64 = world.shards().map(|shard| shard.counters().handshakes).sum();
    assert_eq!(handshakes, 1);
}

#[test]
fn a_gateway_that_only_sends_hears_of_a_clients_new_address_even_if_the_first_word_is_lost() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    for (rebound, first_is_lost) in [("198.19.1.1:50000", false), ("198.19.77.7:50000", true)] {
        // Nothing waits to be repeated.
        world.run(Duration::from_secs(5));
        world.move_to(client, rebound.parse().unwrap());
        world.devices[client].received.clear();
        world.devices[client].held = first_is_lost.then(Vec::new);
        let now = world.instant();
        world.client_mut(client).tunnel.handle_path_change(now, true);
        world.run(Duration::from_millis(100));
        world.devices[client].held = None;
        world.run(Duration::from_millis(200));
        world.send_down(&udp4(SERVER, address, &[7; 900]));
        world.run(Duration::from_millis(50));
        assert_eq!(world.devices[client].received.len(), 1, "at {rebound}");
    }
    let sent = world.sum_clients(|counters| counters.datagrams_sent);
    exchange(&mut world, client, address, 20);
    assert_eq!(world.sum_clients(|counters| counters.datagrams_sent), sent + 20);
}

#[test]
fn a_client_takes_no_packet_to_the_gateways_own_address_into_the_tunnel() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    let sent = world.sum_clients(|counters| counters.datagrams_sent);
    world.send_up(client, &udp4(address, IpAddr::from([198, 19, 0, 1]), b"its own datagram"));
    world.run(Duration::from_millis(200));
    let counters = world.client(client).tunnel.counters();
    assert_eq!(counters.drops.of(DropReason::OuterAddress), 1);
    assert_eq!(world.sum_clients(|counters| counters.datagrams_sent), sent);
}
