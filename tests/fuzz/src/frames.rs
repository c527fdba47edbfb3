//! Frames of TUN queues and inner packets, both ways: of any bytes behind any virtio header. What passes bears the right addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tollgate_shards::Machine;
use tollgate_shards::packet::vnet::HEADER_BYTES;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::input::Input;
use crate::packets::{addresses, draw, sum};

/// The gateway's own address in either tunnel.
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))];
const STEPS_MAX: usize = 64;
const FRAME_BYTES_MAX: usize = 65_535;

/// A gateway with two clients: frames from its networks, frames and forged packets from the clients. A good packet passes afterwards.
pub fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.u8();
    let limit_bits_per_s = (switches & 2 != 0).then_some(1_000_000);
    let users = vec![UserSpec { limit_bits_per_s, ..UserSpec::default() }, UserSpec::default()];
    let tunnel = if switches & 4 == 0 { "198.18.0.1/24" } else { "fd00::1/64" };
    let isolate_clients = switches & 1 == 0;
    let mut world = World::scenario(Setup { users, tunnel, isolate_clients, is_open: true, ..Setup::default() });
    let clients = [world.attach(0, 0), world.attach(1, 1)];
    let mut comes_down = false;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        comes_down |= step(&mut world, clients, &mut input);
    }
    world.run(Duration::from_secs(2));
    judge(&world, clients, isolate_clients, comes_down);
    // Whatever there was, a good packet passes each way.
    let (client, address) = clients[1];
    let server = if address.is_ipv4() { "198.19.9.9" } else { "fd01::9" }.parse().expect("an address");
    world.seen.tun.clear();
    world.devices[client].received.clear();
    world.send_up(client, &tollgate_sim::udp((address, 1111), (server, 2222), b"the last one up"));
    world.send_down(&tollgate_sim::udp((server, 2222), (address, 1111), b"the last one down"));
    world.run(Duration::from_secs(1));
    assert!(world.seen.tun.iter().any(|(_, packet)| packet.ends_with(b"the last one up")));
    assert!(world.devices[client].received.iter().any(|packet| packet.ends_with(b"the last one down")));
}

/// Returns whether a frame came from the gateway's networks.
fn step(world: &mut World, clients: [(usize, IpAddr); 2], input: &mut Input<'_>) -> bool {
    let (kind, switches) = (input.u8(), input.u8());
    let (client, address) = clients[usize::from(kind >> 7)];
    let is_up = kind & 0x40 == 0;
    if kind % 16 == 0 {
        world.run(Duration::from_millis(1 << (switches % 10)));
        return false;
    }
    let header = if switches & 1 == 0 { [0; HEADER_BYTES] } else { input.array() };
    let mut packet = if switches & 2 == 0 {
        let bytes = usize::from(input.u16()) % (FRAME_BYTES_MAX - 120);
        draw(input, bytes).build()
    } else {
        input.bytes().to_vec()
    };
    // A fuzzer seldom finds addresses and checksums by itself.
    if switches & 4 == 0 {
        write_address(&mut packet, address, is_up);
    }
    if switches & 8 == 0 {
        write_lengths_and_checksum(&mut packet);
    }
    let frame = [&header[..], &packet].concat();
    match kind % 16 {
        1..=5 if is_up => {
            let now = world.instant();
            world.client_mut(client).handle_frame(now, &frame);
        }
        _ if is_up => world.send_forged(client, &packet),
        _ => world.send_down_frame(&frame),
    }
    if kind & 0x20 == 0 {
        world.step();
    }
    !is_up
}

/// Makes `address` the source or the destination of what looks like a packet of its family.
fn write_address(packet: &mut [u8], address: IpAddr, as_source: bool) {
    let (at, octets) = match address {
        IpAddr::V4(address) => (if as_source { 12 } else { 16 }, address.octets().to_vec()),
        IpAddr::V6(address) => (if as_source { 8 } else { 24 }, address.octets().to_vec()),
    };
    let is_of_family = packet.first().is_some_and(|first| first >> 4 == if address.is_ipv4() { 4 } else { 6 });
    if is_of_family && let Some(place) = packet.get_mut(at..at + octets.len()) {
        place.copy_from_slice(&octets);
    }
}

fn write_lengths_and_checksum(packet: &mut [u8]) {
    let bytes = packet.len() as u16;
    match packet.first().map(|first| first >> 4) {
        Some(4) if bytes >= 20 => {
            packet[2..4].copy_from_slice(&bytes.to_be_bytes());
            let header_bytes = (usize::from(packet[0] & 15) * 4).min(packet.len());
            packet[10..12].fill(0);
            let checksum = !sum(&packet[..header_bytes]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        Some(6) if bytes >= 40 => packet[4..6].copy_from_slice(&(bytes - 40).to_be_bytes()),
        _ => {}
    }
}

/// Up goes only what bears its client's address, down only what is for the client's.
/// Where nothing `comes_down` from the gateway's networks, which may call themselves what they like, clients get nothing of each other.
fn judge(world: &World, clients: [(usize, IpAddr); 2], isolate_clients: bool, comes_down: bool) {
    let is_client = |address: IpAddr| clients.iter().any(|&(_, client)| client == address);
    // The gateway's own messages to senders.
    let is_message = |packet: &[u8]| match packet[0] >> 4 {
        4 => packet[9] == 1,
        _ => packet[6] == 58,
    };
    for (_, packet) in &world.seen.tun {
        let (source, destination) = addresses(packet).expect("only packets go out");
        if is_message(packet) && GATEWAYS.contains(&source) {
            continue;
        }
        assert!(is_client(source), "{source} -> {destination} went out");
        assert!(!isolate_clients || !is_client(destination), "{source} -> {destination} went out");
    }
    for (client, address) in clients {
        for packet in &world.devices[client].received {
            let (source, destination) = addresses(packet).expect("only packets arrive");
            assert_eq!(destination, address, "from {source}");
            assert!(!isolate_clients || comes_down || !is_client(source), "{source} -> {destination} arrived");
        }
    }
}
