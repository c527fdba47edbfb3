//! The switches of `[data_path]`: what they leave out is left out, and everything still arrives.

use std::thread;
use std::time::Duration;

use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::faults::Locks;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::status::Status;
use tollgate_test_support::traffic::{bulk, bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::turn;

const BULK_BYTES: u64 = 50_000_000;
/// Longer than any single packet, in bytes.
const SINGLE_BYTES_MAX: f64 = 1500.0;

/// Locks for a million packets: those of who reads the counters, and of threads that wait for something else meanwhile.
const LOCKS_FOR_A_MILLION_PACKETS_MAX: u64 = 300;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_gateway_that_forwards_takes_no_locks() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let locks = Locks::build();
    let mut command = Gateway::command(&deployment);
    locks.prepare(&mut command);
    let mut gateway = Gateway::start_with(command, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let _attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let server = bulk_server(&topology.network, SERVER_V4);
    bulk_both_ways(inside, server.address(), BULK_BYTES);
    assert!(locks.counts().sum() > 0, "a start takes some");
    let (before, taken_before) = (gateway.status(), locks.counts());
    bulk_both_ways(inside, server.address(), 4 * BULK_BYTES);
    let (taken, after) = (locks.counts().since(taken_before), gateway.status());
    let packets: u64 = ["/counters/up_packets", "/counters/down_packets"]
        .map(|pointer| after.sum(pointer) - before.sum(pointer))
        .iter()
        .sum();
    println!("{taken:?} for {packets} packets");
    assert!(taken.sum() * 1_000_000 <= LOCKS_FOR_A_MILLION_PACKETS_MAX * packets, "{taken:?} for {packets} packets");
    gateway.assert_sound();
}

/// Bulk TCP down and then both ways, through a gateway whose file has `settings`. Returns its counters before, between and after.
fn carries(peers: &Peers, settings: &str) -> [Status; 3] {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", &format!("[data_path]\n{settings}\n[control]"));
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let _attached = Attached::start(peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let before = gateway.status();
    let server = bulk_server(&topology.network, SERVER_V4);
    bulk(inside, server.address(), Direction::Download, BULK_BYTES);
    let between = gateway.status();
    bulk_both_ways(inside, server.address(), BULK_BYTES);
    let after = gateway.status();
    gateway.assert_sound();
    [before, between, after]
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn acknowledgements_that_others_supersede_stay_away_from_the_tun() {
    let peers = Peers::find();
    // While all goes down, what comes up is acknowledgements.
    let [before, after, _] = carries(&peers, "");
    let since = |pointer| after.sum(pointer) - before.sum(pointer);
    let (thinned, written, up) =
        (since("/counters/thinned_acks"), since("/traffic/tun_writes"), since("/counters/up_packets"));
    assert!(thinned > up / 2, "{thinned} of {up} packets up were acknowledgements that others superseded");
    assert!(written < up, "{written} frames of {up} packets");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_gateway_whose_switches_are_all_off_carries_single_packets_and_loses_none() {
    let peers = Peers::find();
    let off = "coalesce_us = 0\nthin_acks = false\ngro = false\ngso = false\ntso = false\nuso = false";
    let [before, _, after] = carries(&peers, off);
    assert_eq!(after.sum("/counters/thinned_acks"), 0);
    for kind in ["read", "write"] {
        let (bytes, frames) = (format!("/traffic/tun_data_{kind}_bytes"), format!("/traffic/tun_data_{kind}s"));
        let mean_bytes = after.mean_since(&before, &bytes, &frames);
        assert!(mean_bytes <= SINGLE_BYTES_MAX, "{mean_bytes} bytes in a frame {kind}");
    }
    for (datagrams, messages) in [("udp_sent_datagrams", "udp_sends"), ("udp_received_datagrams", "udp_receives")] {
        let mean = after.mean_since(&before, &format!("/traffic/{datagrams}"), &format!("/traffic/{messages}"));
        assert!((0.99..=1.01).contains(&mean), "{mean} {datagrams} to one of {messages}");
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn packets_of_nine_kilobytes_pass_whole_where_both_ends_and_the_path_allow_them() {
    let peers = Peers::find();
    let _turn = turn::together();
    let plan = TopologyPlan { clients: 1, mtu_bytes: 9200, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", "[connection]\nmtu = 9000\n[control]");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let login = Login::of("alice");
    let config = deployment.write_client(login);
    deployment.edit("client_alice.toml", "mtu = 1400", "mtu = 9000");
    let client = Client::start_with(&peers, &deployment, inside, &config);
    client.wait_for_address();
    wait_for_ping(inside, SERVER_V4);
    let before = gateway.status();
    let server = bulk_server(&topology.network, SERVER_V4);
    bulk_both_ways(inside, server.address(), BULK_BYTES);
    let after = gateway.status();
    for way in ["up", "down"] {
        let (bytes, packets) = (format!("/counters/{way}_bytes"), format!("/counters/{way}_packets"));
        let mean_bytes = after.mean_since(&before, &bytes, &packets);
        // Half of them are acknowledgements, if not less.
        assert!(mean_bytes > 4000.0, "{way}: {mean_bytes} bytes in a packet");
    }
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_core_that_may_goes_on_looking_for_a_while_and_then_sleeps() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", "[data_path]\nbusy_poll_us = 50000\n[control]");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let _attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    let started = gateway.status();
    wait_for_ping(inside, SERVER_V4);
    thread::sleep(Duration::from_millis(500));
    let pinged = gateway.status();
    let since = |after: &Status, before: &Status, what| after.sum(what) - before.sum(what);
    let looked = since(&pinged, &started, "/traffic/passes");
    assert!(looked > 1000 + 10 * since(&pinged, &started, "/traffic/sleeps"), "{looked} passes around a ping");
    // Now and then a kernel says something of its own.
    let is_quiet = (0..20).any(|_| {
        let before = gateway.status();
        thread::sleep(Duration::from_millis(200));
        since(&gateway.status(), &before, "/traffic/passes") < 1000
    });
    assert!(is_quiet, "a gateway with nothing to do goes on looking");
    gateway.assert_sound();
}
