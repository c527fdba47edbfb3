//! One limit for all connections of a user, on all shards and both ways together: never more than it, and no less.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::{Counters, DropReason};
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, udp4};

/// A user's connections, more of them than the limit lets through, and another user beside.
struct Offer {
    bits_per_s: u64,
    burst: Option<Duration>,
    shards: u16,
    connections: u16,
    /// The inner packets' length, in bytes, headers included.
    packet_bytes: usize,
    /// Packets of each connection each way in a round.
    packets: usize,
    round: Duration,
    /// Until the burst is used up.
    before: Duration,
    measured: Duration,
}

impl Offer {
    /// Sends for as long as planned and returns the share of the rate that has passed once the burst was used up.
    fn passed(&self) -> f64 {
        let limited = UserSpec { limit_bits_per_s: Some(self.bits_per_s), burst: self.burst, ..UserSpec::default() };
        let users = vec![limited, UserSpec::default()];
        let mut world = World::scenario(Setup { shards: self.shards, users, ..Setup::default() });
        let clients: Vec<_> = (0..self.connections).map(|owner| world.attach(0, owner % self.shards)).collect();
        let (other, other_address) = world.attach(1, 0);
        let offered = (8 * self.packets * self.packet_bytes * 2 * clients.len()) as f64 / self.round.as_secs_f64();
        assert!(offered > 1.2 * self.bits_per_s as f64, "{offered} bits/s are offered");

        let burst_bytes = self.burst.unwrap_or(Duration::from_secs(1)).as_secs_f64() * self.bits_per_s as f64 / 8.0;
        let burst_bytes = burst_bytes.max(65_536.0);
        let rate = self.bits_per_s as f64 / 8.0;
        // An ideal bucket: what it holds when each packet passes. Its packets pass here in rounds, so a round's worth is added.
        let mut level = burst_bytes;
        let (mut before, mut measured, mut others) = (0, 0, 0);
        let start = world.now;
        let payload = vec![7; self.packet_bytes - 28];
        while world.now < start + self.before + self.measured {
            let counted = world.now >= start + self.before;
            for &(client, address) in &clients {
                for _ in 0..self.packets {
                    world.send_up(client, &udp4(address, SERVER, &payload));
                    world.send_down(&udp4(SERVER, address, &payload));
                }
            }
            world.send_up(other, &udp4(other_address, SERVER, &[1; 100]));
            world.send_down(&udp4(SERVER, other_address, &[1; 100]));
            world.run(self.round);
            let (bytes, from_other) = take_passed(&mut world, other, other_address);
            others += from_other;
            level = (level + rate * self.round.as_secs_f64()).min(burst_bytes + rate * self.round.as_secs_f64());
            level -= bytes as f64;
            assert!(level >= -1.0, "{} bytes more than rate and burst allow", -level);
            if counted { measured += bytes } else { before += bytes }
        }
        let rounds = (self.before + self.measured).as_nanos().div_ceil(self.round.as_nanos()) as usize;
        assert_eq!(others, 2 * rounds, "the other user loses nothing");
        assert!(before as f64 >= burst_bytes, "the burst is used up");
        for reason in [DropReason::DatagramQueueFull, DropReason::ReceiveQueueFull, DropReason::NoRoute] {
            assert_eq!(world.dropped(reason), 0, "{reason:?}: nothing but the limit stands in the way");
        }
        let dropped = |counters: &Counters| {
            [DropReason::QueueDelay, DropReason::OverLimit].map(|reason| counters.drops.of(reason)).iter().sum()
        };
        assert!(world.sum(dropped) > 0, "what is too much is dropped");
        self.check_queues(&mut world);
        measured as f64 / (rate * self.measured.as_secs_f64())
    }

    /// What is counted of leases and queues while packets wait, and what once nothing comes any more.
    fn check_queues(&self, world: &mut World) {
        let waits = world.sum(|counters| counters.waits.classes().map(|(_, count)| count).sum());
        let waited = world.sum(|counters| counters.waits.sum().as_micros() as u64);
        assert!(waits > 0 && waited < 2_000_000 * waits, "{waits} packets have waited for {waited} us");
        let waiting = |world: &World| world.sum(|counters| counters.waiting_packets);
        let leases = u64::from(self.shards.min(self.connections));
        assert!(waiting(world) > 0 && world.sum(|counters| counters.open_leases) == leases);
        assert!(world.sum(|counters| counters.lease_grants) > 0);
        world.run(Duration::from_secs(5));
        assert_eq!((waiting(world), world.sum(|counters| counters.queued_packets)), (0, 0));
    }
}

/// The bytes of the limited user that have passed, either way, and the packets of the other.
fn take_passed(world: &mut World, other: usize, other_address: IpAddr) -> (usize, usize) {
    let IpAddr::V4(of_other) = other_address else { panic!("IPv4 only") };
    let of_other = of_other.octets();
    let (mut bytes, mut others) = (0, 0);
    for (_, packet) in world.seen.tun.drain(..) {
        if packet[12..16] == of_other { others += 1 } else { bytes += inner_bytes(&packet) }
    }
    for (index, client) in world.devices.iter_mut().enumerate() {
        for packet in client.received.drain(..) {
            if index == other { others += 1 } else { bytes += inner_bytes(&packet) }
        }
    }
    (bytes, others)
}

/// The length of a packet, or of those that were merged into it, by the payload's length that all of them have.
fn inner_bytes(packet: &[u8]) -> usize {
    let segment_bytes = if packet.len() <= MTU_BYTES { packet.len() - 28 } else { PAYLOAD_BYTES };
    let payload_bytes = packet.len() - 28;
    payload_bytes + 28 * payload_bytes.div_ceil(segment_bytes)
}

const MTU_BYTES: usize = 1400;
/// What merged packets are made of.
const PAYLOAD_BYTES: usize = 1000;

fn is_the_rate(share: f64) {
    assert!((0.97..=1.01).contains(&share), "{:.2} % of the rate", 100.0 * share);
}

#[test]
fn four_connections_on_four_shards_share_80_mbps_both_ways() {
    is_the_rate(
        Offer {
            bits_per_s: 80_000_000,
            burst: None,
            shards: 4,
            connections: 4,
            packet_bytes: PAYLOAD_BYTES + 28,
            packets: 2,
            round: Duration::from_millis(1),
            before: Duration::from_secs(3),
            measured: Duration::from_secs(10),
        }
        .passed(),
    );
}

#[test]
fn two_connections_share_64_kbps() {
    is_the_rate(
        Offer {
            bits_per_s: 64_000,
            burst: None,
            shards: 2,
            connections: 2,
            packet_bytes: 228,
            packets: 1,
            round: Duration::from_millis(40),
            before: Duration::from_secs(30),
            measured: Duration::from_secs(10),
        }
        .passed(),
    );
}

#[test]
fn eight_connections_on_eight_shards_share_5_gbps() {
    is_the_rate(
        Offer {
            bits_per_s: 5_000_000_000,
            burst: Some(Duration::from_millis(10)),
            shards: 8,
            connections: 8,
            packet_bytes: PAYLOAD_BYTES + 28,
            packets: 24,
            round: Duration::from_micros(500),
            before: Duration::from_millis(50),
            measured: Duration::from_millis(500),
        }
        .passed(),
    );
}

/// Where the packets go of which a limited user is one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Through the TUN.
    Up,
    Down,
    /// From the limited user to another client: the owners of the two.
    RelayedFrom(u16, u16),
    /// To the limited user from another client.
    RelayedTo(u16, u16),
}

/// What passes of a second's offer of four times the limit, in bytes, on `path`.
fn passed_on(path: Path, limit_bits_per_s: Option<u64>) -> usize {
    const PACKETS: usize = 4;
    let (of_limited, of_other) = match path {
        Path::Up | Path::Down => (0, 0),
        Path::RelayedFrom(from, to) => (from, to),
        Path::RelayedTo(from, to) => (to, from),
    };
    let limited = UserSpec { limit_bits_per_s, burst: Some(Duration::from_millis(100)), ..UserSpec::default() };
    let users = vec![limited, UserSpec::default()];
    let mut world = World::scenario(Setup { isolate_clients: false, users, ..Setup::default() });
    let (client, address) = world.attach(0, of_limited);
    let (other, other_address) = world.attach(1, of_other);
    let payload = [7; PAYLOAD_BYTES];
    let mut bytes = 0;
    for _ in 0..1000 {
        for _ in 0..PACKETS {
            match path {
                Path::Up => world.send_up(client, &udp4(address, SERVER, &payload)),
                Path::Down => world.send_down(&udp4(SERVER, address, &payload)),
                Path::RelayedFrom(..) => world.send_up(client, &udp4(address, other_address, &payload)),
                Path::RelayedTo(..) => world.send_up(other, &udp4(other_address, address, &payload)),
            }
        }
        world.run(Duration::from_millis(1));
        let written = world.seen.tun.drain(..).map(|(_, packet)| packet);
        let received = world.devices.iter_mut().flat_map(|client| client.received.drain(..));
        bytes += written.chain(received).map(|packet| inner_bytes(&packet)).sum::<usize>();
    }
    for reason in [DropReason::DatagramQueueFull, DropReason::ReceiveQueueFull, DropReason::NoRoute] {
        assert_eq!(world.dropped(reason), 0, "{path:?}: {reason:?}: nothing but the limit stands in the way");
    }
    bytes
}

/// On `path` a user with a limit gets that, and one without gets all through.
fn pays(path: Path) {
    const BITS_PER_S: u64 = 8_000_000;
    let allowed = 1_000_000 + 100_000;
    let passed = passed_on(path, Some(BITS_PER_S));
    assert!((allowed * 95 / 100..=allowed).contains(&passed), "{path:?}: {passed} of {allowed} bytes");
    let unlimited = passed_on(path, None);
    assert!(unlimited > 3 * allowed, "{path:?}: {unlimited} bytes without a limit");
}

#[test]
fn packets_from_a_limited_client_to_the_network_pay() {
    pays(Path::Up);
}

#[test]
fn packets_from_the_network_to_a_limited_client_pay() {
    pays(Path::Down);
}

#[test]
fn packets_relayed_within_a_shard_pay_at_the_limited_end_whichever_it_is() {
    pays(Path::RelayedFrom(1, 1));
    pays(Path::RelayedTo(1, 1));
}

#[test]
fn packets_relayed_across_shards_pay_at_the_limited_end_whichever_it_is() {
    pays(Path::RelayedFrom(0, 1));
    pays(Path::RelayedTo(0, 1));
}

#[test]
fn packets_between_two_clients_of_one_limited_user_pay_at_either_end() {
    for owners in [(0, 0), (0, 1)] {
        let limit = UserSpec {
            limit_bits_per_s: Some(8_000_000),
            burst: Some(Duration::from_millis(100)),
            ..UserSpec::default()
        };
        let mut world = World::scenario(Setup { isolate_clients: false, users: vec![limit], ..Setup::default() });
        let (sender, source) = world.attach(0, owners.0);
        let (receiver, destination) = world.attach(0, owners.1);
        let mut bytes = 0;
        for _ in 0..1000 {
            (0..4).for_each(|_| world.send_up(sender, &udp4(source, destination, &[7; PAYLOAD_BYTES])));
            world.run(Duration::from_millis(1));
            bytes += world.devices[receiver].received.drain(..).map(|packet| inner_bytes(&packet)).sum::<usize>();
        }
        // Each packet twice: once from a client of the user's, once to one.
        assert!(bytes <= 550_000, "{owners:?}: {bytes} bytes");
        assert!(bytes >= 300_000, "{owners:?}: {bytes} bytes");
    }
}
