//! Each key exchange carries a session from its first packet to its goodbyes, and carries it in big strides.

use rustix::process::Signal;
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::PATIENCE;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, bulk, bulk_server, wait_for_ping};
use tollgate_test_support::turn;

const BULK_BYTES: u64 = 300_000_000;
/// What a TUN frame of bulk data must hold on average, in bytes.
const FRAME_BYTES_MIN: f64 = 16.0 * 1024.0;
/// How many packets a UDP send of bulk data must hold on average, also where the machine has other work: senders then come in smaller trains.
const SEND_DATAGRAMS_MIN: f64 = 5.0;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_session_with_standard_key_exchange_from_address_to_goodbye() {
    session("standard");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_session_with_hybrid_key_exchange_from_address_to_goodbye() {
    session("hybrid");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_session_with_post_quantum_key_exchange_from_address_to_goodbye() {
    session("post_quantum");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_client_logs_in_with_a_certificate_made_by_quincy() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let plan = Plan::default();
    let mut deployment = Deployment::write(&plan);
    deployment.write_quincy_identity(&peers, "alice");
    deployment.write_users(&plan.users);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    assert_pings(&topology.network, attached.address);
    gateway.assert_sound();
}

fn session(key_exchange: &'static str) {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan { key_exchange: Some(key_exchange), ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    // A tunnel of IPv4 only: the kernel is not to look for IPv6 routers through it at the wrong moment.
    inside.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let login = Login { key_exchange, ..Login::of("alice") };

    let mut attached = Attached::start(&peers, &deployment, inside, &gateway, login);
    wait_for_ping(inside, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    assert_pings(&topology.network, attached.address);
    bulk_in_big_strides(&gateway, inside, &topology.network);
    assert_eq!(gateway.status().sum("/counters/handshakes"), 1);

    // The client goes first.
    let first = gateway.process.line_count();
    attached.client.process.signal(Signal::INT).unwrap();
    let goodbye = gateway.process.wait_for_line_from(first, "client disconnected", PATIENCE).unwrap();
    assert!(goodbye.contains("closed by the client: Client shutdown (code 0x01)"), "{goodbye}");
    attached.client.process.wait(PATIENCE).unwrap();

    // The gateway goes first.
    let mut attached = Attached::start(&peers, &deployment, inside, &gateway, login);
    wait_for_ping(inside, SERVER_V4);
    gateway.process.signal(Signal::TERM).unwrap();
    let status = gateway.process.wait(PATIENCE).unwrap();
    assert!(status.success(), "{:#?}", gateway.process.lines());
    // It knows no clean end: whatever the gateway's reason is, it says the code and fails.
    attached.client.process.wait_for_line("QUIC application error: 1", PATIENCE).unwrap();
    assert_eq!(attached.client.process.wait(PATIENCE).unwrap().code(), Some(1));
}

fn bulk_in_big_strides(gateway: &Gateway, inside: &Namespace, network: &Namespace) {
    let server = bulk_server(network, SERVER_V4);
    for (direction, frames) in [(Direction::Upload, "write"), (Direction::Download, "read")] {
        let before = gateway.status();
        let report = bulk(inside, server.address(), direction, BULK_BYTES);
        let after = gateway.status();
        let (bytes, count) = (format!("/traffic/tun_data_{frames}_bytes"), format!("/traffic/tun_data_{frames}s"));
        let frame_bytes = after.mean_since(&before, &bytes, &count);
        let send_datagrams = after.mean_since(&before, "/traffic/udp_data_datagrams", "/traffic/udp_data_sends");
        println!(
            "{direction:?}: {:.1} s, {:.2} Gbit/s, {frame_bytes:.0} bytes a TUN frame, {send_datagrams:.1} datagrams a UDP send",
            report.seconds,
            report.bits_per_second() / 1e9
        );
        assert!(frame_bytes > FRAME_BYTES_MIN, "{direction:?}: {frame_bytes:.0} bytes a TUN frame");
        // What goes out during an upload is not data.
        assert!(
            direction == Direction::Upload || send_datagrams > SEND_DATAGRAMS_MIN,
            "{send_datagrams:.1} datagrams a UDP send"
        );
    }
}
