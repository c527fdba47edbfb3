//! Packets that are too large for a client's path, and paths that become narrower or wider.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::{ClientEvent, DropReason, Event};
use tollgate_sim::LinkPlan;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, octets, udp4};

/// UDP payload over IPv4 where the path's MTU is 1350.
const NARROW: LinkPlan = LinkPlan { bytes_max: Some(1350 - 28), ..LinkPlan::UNDISTURBED };
/// What that leaves for inner packets at most, with connection IDs of 8 bytes.
const NARROW_INNER_BYTES: u16 = 1284;
const PAYLOAD_BYTES: usize = 1372;

fn fragmentable(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let payload: Vec<u8> = (0..PAYLOAD_BYTES).map(|at| at as u8).collect();
    let mut packet = udp4(source, destination, &payload);
    packet[6] = 0;
    // The flag was 0x4000, and the checksum is its complement's sum.
    let checksum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x4000;
    packet[10..12].copy_from_slice(&((checksum & 0xffff) + (checksum >> 16)).to_be_bytes()[2..]);
    packet
}

fn forbidden(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    udp4(source, destination, &[7; PAYLOAD_BYTES])
}

/// The payload that fragments carry together.
fn reassembled(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut fragments: Vec<_> =
        packets.iter().map(|packet| (u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff, packet)).collect();
    fragments.sort();
    fragments.iter().flat_map(|(_, packet)| packet[20..].to_vec()).collect()
}

/// MTUs that ICMP "fragmentation needed" among `packets` tells `to`, with the sender of each.
fn told(packets: impl IntoIterator<Item = Vec<u8>>, to: IpAddr) -> Vec<(u16, [u8; 4])> {
    let is_told = |packet: &Vec<u8>| packet[9] == 1 && packet[20..22] == [3, 4] && packet[16..20] == octets(to);
    let told = |packet: Vec<u8>| (u16::from_be_bytes([packet[26], packet[27]]), packet[12..16].try_into().unwrap());
    packets.into_iter().filter(is_told).map(told).collect()
}

fn tun(world: &World) -> Vec<Vec<u8>> {
    world.seen.tun.iter().map(|(_, packet)| packet.clone()).collect()
}

/// A burst of large packets that forbid fragmentation and then, as TCP does, one of them again and again. Stops at the first answer.
fn stall(world: &mut World, mut send: impl FnMut(&mut World), answered: impl Fn(&World) -> bool) -> Duration {
    let start = world.now;
    for _ in 0..10 {
        send(world);
    }
    let mut pause = Duration::from_millis(200);
    while !answered(world) {
        assert!(world.now - start < Duration::from_secs(30), "nobody is told");
        world.run(pause);
        pause *= 2;
        send(world);
        world.run(Duration::from_millis(1));
    }
    world.now - start
}

#[test]
fn a_path_that_narrows_while_packets_go_down_is_told_within_three_seconds_and_found_again_when_it_widens() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    world.send_down(&forbidden(SERVER, address));
    world.run(Duration::from_secs(1));
    assert_eq!(world.devices[client].received.len(), 1);
    assert_eq!(world.seen.client_mtus, [], "a path that carries all needs no route");

    world.relink(client, NARROW, NARROW);
    let took = stall(
        &mut world,
        |world| world.send_down(&forbidden(SERVER, address)),
        |world| !told(tun(world), SERVER).is_empty(),
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    let (mtu_bytes, from) = told(tun(&world), SERVER)[0];
    assert!((1280..=NARROW_INNER_BYTES).contains(&mtu_bytes), "{mtu_bytes}");
    assert_eq!(from, octets(address), "the gateway's own address would be a martian to its kernel");
    let route = world.seen.client_mtus.last().unwrap();
    assert_eq!((route.address, route.mtu_bytes), (address, Some(mtu_bytes)));
    assert!(world.seen.client_mtus.len() == 1, "told once: {:?}", world.seen.client_mtus);
    let narrowed = |event: &&Event| matches!(event, Event::PathNarrowed { is_too_narrow: false, .. });
    assert_eq!(
        (world.seen.events.iter().filter(narrowed).count(), world.sum(|counters| counters.narrowed_paths)),
        (1, 1)
    );

    world.devices[client].received.clear();
    world.send_down(&udp4(SERVER, address, &vec![7; usize::from(mtu_bytes) - 28]));
    world.send_down(&fragmentable(SERVER, address));
    world.run(Duration::from_secs(1));
    let received = &world.devices[client].received;
    assert_eq!(received.len(), 3, "one whole, one in two fragments");
    assert_eq!(reassembled(&received[1..])[8..], fragmentable(SERVER, address)[28..]);

    world.relink(client, LinkPlan::UNDISTURBED, LinkPlan::UNDISTURBED);
    for _ in 0..60 {
        world.send_down(&udp4(SERVER, address, &[7; 100]));
        world.run(Duration::from_millis(500));
    }
    assert_eq!(world.seen.client_mtus.last().unwrap().mtu_bytes, None);
    world.devices[client].received.clear();
    world.send_down(&forbidden(SERVER, address));
    world.run(Duration::from_secs(1));
    assert_eq!(world.devices[client].received.len(), 1);
}

#[test]
fn a_path_that_narrows_while_packets_go_up_is_told_on_the_clients_side() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    world.relink(client, NARROW, NARROW);
    let received = |world: &World| world.devices[client].received.clone();
    let took = stall(
        &mut world,
        |world| world.send_up(client, &forbidden(address, SERVER)),
        |world| !told(received(world), address).is_empty(),
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    let (mtu_bytes, _) = told(received(&world), address)[0];
    assert!((1280..=NARROW_INNER_BYTES).contains(&mtu_bytes), "{mtu_bytes}");
    assert!(world.devices[client].events.contains(&ClientEvent::PathMtu(mtu_bytes)));
    world.seen.tun.clear();
    world.send_up(client, &fragmentable(address, SERVER));
    world.run(Duration::from_secs(1));
    assert_eq!(reassembled(&tun(&world))[8..], fragmentable(address, SERVER)[28..]);
}

#[test]
fn losses_on_a_path_that_stays_as_it_is_tell_nobody_of_another_mtu() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    world.relink(client, LinkPlan::UNDISTURBED, LinkPlan { loss_ppm: 1_000_000 / 7, ..LinkPlan::UNDISTURBED });
    for _ in 0..300 {
        for _ in 0..3 {
            world.send_down(&forbidden(SERVER, address));
        }
        world.run(Duration::from_millis(30));
    }
    assert_eq!((&world.seen.client_mtus[..], told(tun(&world), SERVER)), (&[][..], vec![]));
}

#[test]
fn a_narrow_path_is_forgotten_with_its_client() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 1);
    world.relink(client, NARROW, NARROW);
    stall(&mut world, |world| world.send_down(&forbidden(SERVER, address)), |world| !world.seen.client_mtus.is_empty());
    world.close(client);
    world.run(Duration::from_secs(1));
    let told: Vec<_> = world.seen.client_mtus.iter().map(|told| (told.address, told.mtu_bytes.is_some())).collect();
    assert_eq!(told, [(address, true), (address, false)]);
}

#[test]
fn of_many_paths_that_narrow_at_once_all_are_counted_and_a_few_told() {
    const CLIENTS: usize = 30;
    let users = vec![UserSpec::default(); CLIENTS];
    let mut world = World::scenario(Setup { shards: 1, users, ..Setup::default() });
    let clients: Vec<_> = (0..CLIENTS).map(|user| world.attach(user, 0)).collect();
    clients.iter().for_each(|&(client, _)| world.relink(client, NARROW, NARROW));
    stall(
        &mut world,
        |world| clients.iter().for_each(|&(_, address)| world.send_down(&forbidden(SERVER, address))),
        |world| world.seen.client_mtus.len() == CLIENTS,
    );
    world.run(Duration::from_millis(1));
    let told = world.seen.events.iter().filter(|event| matches!(event, Event::PathNarrowed { .. })).count();
    assert_eq!(world.sum(|counters| counters.narrowed_paths), CLIENTS as u64);
    assert!((10..CLIENTS / 2).contains(&told), "{told} lines for {CLIENTS} clients");
}

#[test]
fn between_clients_a_packet_is_fragmented_or_its_sender_is_told_limited_or_not() {
    for limit_bits_per_s in [None, Some(10_000_000)] {
        for shards in [1, 2] {
            let users = vec![UserSpec { limit_bits_per_s, ..UserSpec::default() }; 2];
            let mut world = World::scenario(Setup { shards, isolate_clients: false, users, ..Setup::default() });
            let (wide, from) = world.attach(0, 0);
            let (narrow, to) = world.attach(1, shards - 1);
            // Its own path only: what it receives from the server finds that out.
            world.relink(narrow, NARROW, NARROW);
            stall(
                &mut world,
                |world| world.send_down(&forbidden(SERVER, to)),
                |world| !world.seen.client_mtus.is_empty(),
            );
            world.devices[narrow].received.clear();
            world.send_up(wide, &fragmentable(from, to));
            world.run(Duration::from_secs(1));
            let payload = reassembled(&world.devices[narrow].received);
            assert_eq!(payload.get(8..), Some(&fragmentable(from, to)[28..]), "{limit_bits_per_s:?}, {shards} shards");
            world.send_up(wide, &forbidden(from, to));
            world.run(Duration::from_secs(1));
            let told = told(world.devices[wide].received.clone(), from);
            assert_eq!(told.len(), 1, "{limit_bits_per_s:?}, {shards} shards");
            assert_eq!((told[0].1, told[0].0 <= NARROW_INNER_BYTES), ([198, 18, 0, 1], true));
            assert_eq!(world.dropped(DropReason::NoRoute), 0);
        }
    }
}

#[test]
fn of_a_limited_users_flow_what_is_fragmented_and_what_is_not_arrive_in_order() {
    let users =
        vec![UserSpec { limit_bits_per_s: Some(4_000_000), burst: Some(Duration::ZERO), ..UserSpec::default() }];
    let mut world = World::scenario(Setup { shards: 1, users, ..Setup::default() });
    let (client, address) = world.attach(0, 0);
    world.relink(client, NARROW, NARROW);
    stall(&mut world, |world| world.send_down(&forbidden(SERVER, address)), |world| !world.seen.client_mtus.is_empty());
    world.devices[client].received.clear();
    // The burst is spent soon, and the others wait.
    for number in 0..=u8::MAX {
        let mut small = udp4(SERVER, address, &[number; 1000]);
        let mut large = fragmentable(SERVER, address);
        (small[28], large[28]) = (number, number);
        world.send_down(&small);
        world.send_down(&large);
        world.run(Duration::from_millis(4));
    }
    world.run(Duration::from_secs(1));
    let begins = world.devices[client].received.iter().filter(|packet| packet[7] == 0 && packet[6] & 0x1f == 0);
    let numbers: Vec<u8> = begins.map(|packet| packet[28]).collect();
    assert!(world.dropped(DropReason::QueueDelay) > 0 && numbers.len() > 100, "{}", numbers.len());
    assert!(numbers.is_sorted(), "{numbers:?}");
}
