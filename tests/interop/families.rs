//! IPv6 outside and IPv6 inside.

use std::net::IpAddr;

use tollgate_testkit::{SERVER_V4, SERVER_V6, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::turn;

const BULK_BYTES: u64 = 20_000_000;
const ENDPOINT_V6: &str = "[fd00:18::1]:55555";

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn ipv4_travels_through_a_tunnel_over_ipv6() {
    carries(Plan { bind: "::", ..Plan::default() }, ENDPOINT_V6, SERVER_V4.into());
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn ipv6_travels_through_a_tunnel_over_ipv4() {
    carries(Plan { tunnel: "fd00:19:80::1/64", ..Plan::default() }, Login::of("alice").endpoint, SERVER_V6.into());
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn ipv6_travels_through_a_tunnel_over_ipv6() {
    carries(Plan { tunnel: "fd00:19:80::1/64", bind: "::", ..Plan::default() }, ENDPOINT_V6, SERVER_V6.into());
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_gateway_on_all_ipv6_addresses_serves_ipv4_clients_too() {
    carries(Plan { bind: "::", ..Plan::default() }, Login::of("alice").endpoint, SERVER_V4.into());
}

fn carries(plan: Plan, endpoint: &str, server: IpAddr) {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&plan);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let login = Login { endpoint, ..Login::of("alice") };
    let attached = Attached::start(&peers, &deployment, inside, &gateway, login);

    wait_for_ping(inside, server);
    assert_pings(inside, server);
    assert_pings(&topology.network, attached.address);
    bulk_both_ways(inside, bulk_server(&topology.network, server).address(), BULK_BYTES);
    gateway.assert_sound();
}
