//! A NAT between client and gateway changes its mapping under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tollgate_test_support::datagrams::{DatagramReceiver, FlowCounts};
use tollgate_test_support::relay::{Relay, Way};
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{Namespace, PathToGateway, ROUTER_ALTERNATE_V4, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk, bulk_server, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::turn;

const DATAGRAMS_PER_S: u32 = 2000;
/// How long the load lasts, in seconds; the mapping changes after a third and after two.
const LOAD_S: u32 = 6;
/// Datagrams that one change of the mapping may cost in one direction: what was under way, and no more.
const LOST_MAX: u64 = 20;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_session_survives_a_change_of_port_and_of_address_under_load() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let site = &topology.clients[0];
    let relay = Relay::at_router(&topology, false, Way::default());
    let endpoint = relay.address().to_string();
    let login = Login { endpoint: &endpoint, ..Login::of("alice") };
    let mut attached = Attached::start(&peers, &deployment, &site.namespace, &gateway, login);
    wait_for_ping(&site.namespace, SERVER_V4);
    site.namespace.lengthen_queue(CLIENT_TUN, 50_000).unwrap();

    let up = datagram_receiver(&topology.network, SERVER_V4);
    let down = datagram_receiver(&site.namespace, attached.address);
    let [lost_up, lost_down] = under_load(&topology, &up, &down, || {
        let before = relay.source();
        let moved = relay.rebind(before.ip());
        assert_ne!(moved.port(), before.port());
        thread::sleep(third());
        relay.rebind(ROUTER_ALTERNATE_V4.into());
    });
    println!("lost: {lost_up} up, {lost_down} down, relay {:?}", relay.counts());
    assert!(lost_up <= 2 * LOST_MAX && lost_down <= 2 * LOST_MAX, "lost: {lost_up} up, {lost_down} down");

    assert_eq!(gateway.status().sum("/counters/handshakes"), 1);
    assert_eq!(gateway.count_lines("client connected"), 1);
    assert_eq!(gateway.count_lines("client disconnected"), 0);
    assert_eq!(attached.client.process.exit_status().unwrap(), None);
    gateway.assert_sound();
}

/// Runs bulk TCP and a paced flow both ways, and `change` after a third of the time. Returns the datagrams lost, up and down.
fn under_load(topology: &Topology, up: &DatagramReceiver, down: &DatagramReceiver, change: impl FnOnce()) -> [u64; 2] {
    let (inside, network) = (&topology.clients[0].namespace, &topology.network);
    let bulk_server = bulk_server(network, SERVER_V4);
    let server = bulk_server.address();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy = |direction| {
            let done = &done;
            move || {
                while !done.load(Ordering::Relaxed) {
                    bulk(inside, server, direction, 10_000_000);
                }
            }
        };
        let tcp = [scope.spawn(busy(Direction::Upload)), scope.spawn(busy(Direction::Download))];
        let flow_up = scope.spawn(|| flow(inside, up));
        let flow_down = scope.spawn(|| flow(network, down));
        thread::sleep(third());
        change();
        let lost = [flow_up, flow_down].map(|flow| {
            let (lost, counts) = flow.join().unwrap();
            assert_eq!((counts.duplicated, counts.corrupted), (0, 0));
            lost
        });
        done.store(true, Ordering::Relaxed);
        tcp.into_iter().for_each(|tcp| tcp.join().unwrap());
        lost
    })
}

fn flow(from: &Namespace, receiver: &DatagramReceiver) -> (u64, FlowCounts) {
    paced_flow(from, receiver, 1, u64::from(LOAD_S * DATAGRAMS_PER_S), DATAGRAMS_PER_S)
}

fn third() -> Duration {
    Duration::from_secs((LOAD_S / 3).into())
}
