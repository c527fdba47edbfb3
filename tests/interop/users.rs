//! Users who come and go, and users who take all they can.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;

use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::control;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};

/// Users in the file.
const USERS: usize = 2_000;
/// Of them, so many have another name with each reload.
const RENAMED: usize = 800;
/// Reloads until the gateway has what it needs.
const WARM_UP: usize = 30;
const RELOADS: usize = 150;
/// What its memory may have grown by then. Were each name kept, it would be 25 MB and more.
const GROWTH_BYTES_MAX: u64 = 6 << 20;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn users_who_come_and_go_with_reloads_leave_no_memory_behind() {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    write_many_users(&deployment, 0);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let mut before = 0;
    for reload in 0..WARM_UP + RELOADS {
        write_many_users(&deployment, reload);
        let answer = control::reload(&deployment);
        assert!(answer.done, "reload {reload}: {answer:?}");
        if reload == WARM_UP {
            before = gateway.process.memory_bytes().unwrap();
        }
    }
    let after = gateway.process.memory_bytes().unwrap();
    println!("{before} bytes after {WARM_UP} reloads, {after} after {RELOADS} more");
    assert!(after < before + GROWTH_BYTES_MAX, "{before} bytes became {after}");
    gateway.assert_sound();
}

fn write_many_users(deployment: &Deployment, reload: usize) {
    let mut text = String::new();
    for user in 0..USERS {
        let version = if user < RENAMED { reload } else { 0 };
        writeln!(text, "[users.a-name-of-usual-length-{user}-{version}]\nauthorized_certs = [\"sha256:{user:064x}\"]")
            .expect("a string takes everything");
    }
    fs::write(deployment.path("users.toml"), text).expect("users.toml");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn one_user_who_logs_in_as_often_as_it_can_does_not_shut_another_out() {
    let peers = Peers::find();
    let _turn = turn::together();
    // Five addresses for clients, of which one is kept.
    let topology = Topology::build(&TopologyPlan { clients: 6, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan { tunnel: "198.19.128.1/29", ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside: Vec<_> = topology.clients.iter().map(|site| &site.namespace).collect();
    let _greedy: Vec<_> = inside[..4]
        .iter()
        .map(|inside| Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice")))
        .collect();
    let first = gateway.process.line_count();
    let _refused = Client::start(&peers, &deployment, inside[4], Login::of("alice"));
    let line = gateway.process.wait_for_line_from(first, "client refused", PATIENCE).unwrap();
    assert!(line.contains("alice") && line.contains("kept for users who have none"), "{line}");

    let other = Attached::start(&peers, &deployment, inside[5], &gateway, Login::of("bob"));
    assert_eq!(other.address, Ipv4Addr::new(198, 19, 128, 6));
    wait_for_ping(inside[5], SERVER_V4);
    assert_pings(inside[5], SERVER_V4);
    gateway.assert_sound();
}
