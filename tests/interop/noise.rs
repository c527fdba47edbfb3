//! Garbage at the gateway's port while a client works.

use std::net::UdpSocket;
use std::time::Duration;

use tollgate_testkit::{SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::raw::{PacketSocket, udp_payloads_to};
use tollgate_test_support::status::Status;
use tollgate_test_support::traffic::{assert_pings, bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};

const RANDOM_DATAGRAMS: usize = 2000;
/// Real packets that are taken as a pattern.
const CAPTURED_MAX: usize = 200;
/// Every way in which the gateway accounts for a datagram that is no connection's.
const ACCOUNTS: [&str; 4] = [
    "/counters/drops/foreign_datagram",
    "/counters/drops/undecryptable",
    "/counters/stateless_responses",
    "/counters/drops/handshake_limit",
];

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn random_truncated_and_bit_flipped_packets_are_counted_and_hurt_nobody() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let wire = PacketSocket::open(inside, "wan0");
    let mut attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    // From the first Initial to protected packets with pings inside.
    let captured = std::iter::from_fn(|| wire.receive()).take(CAPTURED_MAX);
    let captured: Vec<Vec<u8>> =
        udp_payloads_to(PORT, captured).into_iter().filter(|payload| payload.len() > 40).collect();
    let long_headers = captured.iter().filter(|payload| payload[0] & 0x80 != 0).count();
    assert!(long_headers >= 2 && captured.len() >= long_headers + 10, "{long_headers} of {}", captured.len());

    let mut random = Random(0x7011_6a7e);
    let garbage: Vec<Vec<u8>> = (0..RANDOM_DATAGRAMS).map(|_| random.bytes()).collect();
    let truncated: Vec<Vec<u8>> =
        captured.iter().flat_map(|packet| [1, 20, packet.len() - 1].map(|length| packet[..length].to_vec())).collect();
    let flipped: Vec<Vec<u8>> =
        captured.iter().flat_map(|packet| (0..8).map(|_| random.flip(packet)).collect::<Vec<_>>()).collect();

    let socket = inside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect((SERVICE_V4, PORT)).unwrap();
    for (what, packets) in [("random", garbage), ("truncated", truncated), ("bit-flipped", flipped)] {
        let before = gateway.status();
        for (index, packet) in packets.iter().enumerate() {
            socket.send(packet).unwrap();
            if index % 64 == 63 {
                // No faster than the socket's buffer is emptied.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let counted = |status: &Status| ACCOUNTS.iter().map(|account| status.sum(account)).sum::<u64>();
        let all = eventually(PATIENCE, || counted(&gateway.status()) - counted(&before) >= packets.len() as u64);
        let after = gateway.status();
        let by_account: Vec<u64> = ACCOUNTS.iter().map(|account| after.sum(account) - before.sum(account)).collect();
        println!("{what}: {} sent, {by_account:?}", packets.len());
        assert!(all, "{what}: {} sent, counted as {ACCOUNTS:?}: {by_account:?}", packets.len());
        gateway.assert_sound();
        assert_pings(inside, SERVER_V4);
    }
    bulk_both_ways(inside, bulk_server(&topology.network, SERVER_V4).address(), 20_000_000);
    assert_pings(&topology.network, attached.address);
    assert_eq!(attached.client.process.exit_status().unwrap(), None);
    assert_eq!(gateway.count_lines("client disconnected"), 0);
    gateway.assert_sound();
}

/// The same garbage in every run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 1 to 1400 bytes.
    fn bytes(&mut self) -> Vec<u8> {
        (0..1 + self.next() % 1400).map(|_| self.next() as u8).collect()
    }

    /// `packet` with one bit wrong.
    fn flip(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        let bit = self.next() as usize % (8 * packet.len());
        packet[bit / 8] ^= 1 << (bit % 8);
        packet
    }
}
