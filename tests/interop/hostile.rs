//! A client that sends what it must not, past its kernel: nothing of it arrives, and all of it is counted.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{SERVER_V4, SERVER_V6, Topology, TopologyPlan};

use crate::placement::connect_at;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::raw::{PacketSocket, contains, udp_packet};
use tollgate_test_support::traffic::{assert_pings, bulk, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};

/// How many packets of each kind are sent.
const PACKETS: u64 = 20;
/// How long a packet may take that must not arrive.
const LATE: Duration = Duration::from_millis(500);
const CROSSING_BYTES: u64 = 100_000_000;
const HONEST: &[u8] = b"tollgate-test-honest";
const HOSTILE: &[u8] = b"tollgate-test-hostile";

/// What is forbidden, and how the gateway counts it.
struct Forbidden {
    what: &'static str,
    packet: Vec<u8>,
    reason: &'static str,
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn nothing_forbidden_passes_an_ipv4_tunnel() {
    let plan = Plan::default();
    hostile(plan, Login::of("alice").endpoint, SERVER_V4.into(), |own| {
        let to = |destination: &str| udp(own, destination);
        let outsider = "198.18.7.7".parse().unwrap();
        vec![
            forbid("a forged source", "forged_source", udp_packet(outsider, SERVER_V4.into(), HOSTILE)),
            forbid("a source of the other family", "forged_source", udp6("fd00:19:80::2", "fd00:19::2")),
            forbid("a packet to nobody in the tunnel", "isolated", to("198.19.128.77")),
            forbid("multicast to all hosts", "multicast", to("224.0.0.1")),
            forbid("multicast with a scope", "multicast", to("239.1.2.3")),
            forbid("limited broadcast", "multicast", to("255.255.255.255")),
            forbid("the tunnel's broadcast", "multicast", to("198.19.128.255")),
            forbid("the gateway's outer address", "outer_address", to("198.18.0.1")),
            forbid("loopback", "unroutable", to("127.0.0.1")),
            forbid("link-local", "unroutable", to("169.254.1.1")),
            forbid("the unspecified address", "unroutable", to("0.0.0.0")),
        ]
    });
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn nothing_forbidden_passes_an_ipv6_tunnel() {
    let plan = Plan { tunnel: "fd00:19:80::1/64", bind: "::", ..Plan::default() };
    hostile(plan, "[fd00:18::1]:55555", SERVER_V6.into(), |own| {
        let to = |destination: &str| udp(own, destination);
        vec![
            forbid("a forged source", "forged_source", udp6("fd00:99::1", "fd00:19::2")),
            forbid("a link-local source", "forged_source", udp6("fe80::1", "fd00:19::2")),
            forbid("a packet to nobody in the tunnel", "isolated", to("fd00:19:80::77")),
            forbid("multicast to all nodes", "multicast", to("ff02::1")),
            forbid("multicast of the site", "multicast", to("ff05::2")),
            forbid("the gateway's outer address", "outer_address", to("fd00:18::1")),
            forbid("loopback", "unroutable", to("::1")),
            forbid("link-local", "unroutable", to("fe80::1")),
            forbid("the unspecified address", "unroutable", to("::")),
        ]
    });
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn without_isolation_clients_on_different_shards_exchange_bulk_data() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan { isolate_clients: false, ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [alice_site, bob_site] = [0, 1].map(|index| &topology.clients[index].namespace);
    let alice = connect_at(&peers, &deployment, alice_site, &gateway, "alice", 0);
    let bob = connect_at(&peers, &deployment, bob_site, &gateway, "bob", 1);
    wait_for_ping(alice_site, bob.address);
    assert_pings(bob_site, alice.address);

    let before = gateway.status();
    let server = bulk_server(bob_site, bob.address);
    for direction in [Direction::Upload, Direction::Download] {
        bulk(alice_site, server.address(), direction, CROSSING_BYTES);
    }
    let after = gateway.status();
    for shard in 0..2 {
        let relayed =
            |status: &tollgate_test_support::status::Status| status.of_shard(shard, "/counters/relayed_packets");
        let packets = relayed(&after) - relayed(&before);
        assert!(packets >= CROSSING_BYTES / 1400, "shard {shard} relayed {packets}");
    }
    assert_eq!(after.sum("/counters/up_packets"), before.sum("/counters/up_packets"), "none took the way of the TUN");
    gateway.assert_sound();
}

/// Sends what is forbidden in this family, and what is in each, from a client beside another one.
fn hostile(plan: Plan, endpoint: &str, server: IpAddr, of_family: impl Fn(IpAddr) -> Vec<Forbidden>) {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&plan);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [inside, other_site] = [0, 1].map(|index| &topology.clients[index].namespace);
    let login = |user| Login { endpoint, ..Login::of(user) };
    let attached = Attached::start(&peers, &deployment, inside, &gateway, login("alice"));
    let other = Attached::start(&peers, &deployment, other_site, &gateway, login("bob"));
    wait_for_ping(inside, server);
    wait_for_ping(other_site, server);

    let tun = PacketSocket::open(inside, CLIENT_TUN);
    let watched = [
        ("the gateway's TUN", PacketSocket::open(&topology.gateway, "tollgate0")),
        ("the gateway's loopback", PacketSocket::open(&topology.gateway, "lo")),
        ("the network", PacketSocket::open(&topology.network, "lan0")),
        ("the other client", PacketSocket::open(other_site, CLIENT_TUN)),
    ];
    // What is honest passes, and is seen: so would be the rest.
    tun.send(&udp_packet(attached.address, server, HONEST));
    assert!(watched[0].1.sees(HONEST, PATIENCE) && watched[2].1.sees(HONEST, PATIENCE), "an honest packet is seen");

    let own = attached.address;
    let mut forbidden = of_family(own);
    forbidden.push(forbid("another client's source", "forged_source", udp_packet(other.address, server, HOSTILE)));
    forbidden.push(forbid("a packet to another client", "isolated", udp_packet(own, other.address, HOSTILE)));
    forbidden.extend(malformed(&udp_packet(own, server, HOSTILE), if own.is_ipv4() { 2 } else { 4 }));
    for Forbidden { what, packet, reason } in forbidden {
        let before = gateway.status();
        (0..PACKETS).for_each(|_| tun.send(&packet));
        let counted = || gateway.status().dropped(reason) - before.dropped(reason);
        assert!(
            eventually(PATIENCE, || counted() >= PACKETS),
            "{what}: counted {} under {reason}; in all: {}",
            counted(),
            gateway.status().drops_since(&before)
        );
        // What the clients' kernels say to their link-local neighbours counts as forged too.
        assert!(counted() == PACKETS || reason == "forged_source", "{what} is counted {} times", counted());
    }
    std::thread::sleep(LATE);
    for (place, socket) in &watched {
        let arrived = std::iter::from_fn(|| socket.receive()).filter(|packet| contains(packet, HOSTILE)).count();
        assert_eq!(arrived, 0, "delivered at {place}");
    }
    assert_pings(inside, server);
    assert_pings(other_site, server);
    gateway.assert_sound();
}

fn forbid(what: &'static str, reason: &'static str, packet: Vec<u8>) -> Forbidden {
    Forbidden { what, packet, reason }
}

/// `packet` cut short, and with a length (at `length_at`) that it does not have, and of no IP version at all.
fn malformed(packet: &[u8], length_at: usize) -> Vec<Forbidden> {
    let mut too_long = packet.to_vec();
    too_long[length_at] = 0x7f;
    let mut versionless = packet.to_vec();
    versionless[0] = 0xf5;
    vec![
        forbid("a cut-off packet", "malformed", packet[..packet.len() - 4].to_vec()),
        forbid("half a header", "malformed", packet[..10].to_vec()),
        forbid("a wrong length", "malformed", too_long),
        forbid("an unknown IP version", "malformed", versionless),
    ]
}

fn udp(source: IpAddr, destination: &str) -> Vec<u8> {
    udp_packet(source, destination.parse().unwrap(), HOSTILE)
}

fn udp6(source: &str, destination: &str) -> Vec<u8> {
    udp(source.parse().unwrap(), destination)
}
