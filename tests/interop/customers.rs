//! What the gateway's log says of customers.

use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::wait_for_ping;
use tollgate_test_support::{PATIENCE, control, eventually, turn};

/// The levels that an operator reads every day.
const TOLD: [&str; 3] = ["ERROR", " WARN", " INFO"];

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn customers_addresses_stand_in_the_log_at_debug_only() {
    let peers = Peers::find();
    let _turn = turn::together();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.write_identity("mallory", &[]);
    deployment.edit_user("bob", "max_connections = 1");
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let mut command = Gateway::command(&deployment);
    command.env("RUST_LOG", "debug");
    let mut gateway = Gateway::start_with(command, &topology.gateway);
    let inside = |client: usize| &topology.clients[client].namespace;

    // Whoever comes, goes, is refused, is one too many, is sent away.
    let alice = Attached::start(&peers, &deployment, inside(0), &gateway, Login::of("alice"));
    wait_for_ping(inside(0), SERVER_V4);
    let mut mallory = Client::start(&peers, &deployment, inside(1), Login::of("mallory"));
    assert!(!mallory.process.wait(PATIENCE).unwrap().success());
    let bob = Attached::start(&peers, &deployment, inside(1), &gateway, Login::of("bob"));
    let mut second = Client::start(&peers, &deployment, inside(0), Login::of("bob"));
    assert!(!second.process.wait(PATIENCE).unwrap().success());
    assert!(control::kick(&deployment, "alice").done);
    let addresses = [alice.address, bob.address].map(|address| address.to_string());
    drop((alice, bob));
    let gone = || gateway.count_lines("client disconnected") == 2;
    assert!(eventually(PATIENCE, gone), "{:#?}", gateway.process.lines());
    gateway.status();

    let mut addresses = addresses.to_vec();
    addresses.extend(topology.clients.iter().map(|client| client.v4.to_string()));
    let lines = gateway.process.lines();
    let is_named = |line: &String| addresses.iter().any(|address| line.contains(address));
    let (told, detailed): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|line| !line.contains("DEBUG") || TOLD.iter().any(|level| line.contains(level)));
    let named: Vec<_> = told.iter().filter(|line| is_named(line)).collect();
    assert!(named.is_empty(), "{named:#?}");
    assert!(told.len() > 6 && detailed.iter().any(is_named), "{told:#?} {detailed:#?}");
    gateway.assert_sound();
}
