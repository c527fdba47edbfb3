//! Within a flow nothing overtakes anything.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::raw::{OrderWatch, PacketSocket};
use tollgate_test_support::traffic::{bulk, bulk_server, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::turn;

const BULK_BYTES: u64 = 200_000_000;
const DATAGRAMS_PER_S: u32 = 5000;
const DATAGRAMS: u64 = 20_000;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn datagrams_of_a_flow_arrive_in_order_beside_bulk_traffic() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let (inside, network) = (&topology.clients[0].namespace, &topology.network);
    let attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let receivers = [datagram_receiver(network, SERVER_V4), datagram_receiver(inside, attached.address)];
    let server = bulk_server(network, SERVER_V4);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for direction in [Direction::Upload, Direction::Download] {
            let (address, done) = (server.address(), &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    bulk(inside, address, direction, 10_000_000);
                }
            });
        }
        let flows = [(inside, &receivers[0]), (network, &receivers[1])]
            .map(|(from, receiver)| scope.spawn(move || paced_flow(from, receiver, 7, DATAGRAMS, DATAGRAMS_PER_S)));
        for flow in flows {
            let (lost, counts) = flow.join().unwrap();
            println!("{} datagrams, {lost} lost, {} reordered", counts.received, counts.reordered);
            assert_eq!((counts.reordered, counts.duplicated, counts.corrupted), (0, 0, 0), "{lost} lost");
            assert!(counts.received >= DATAGRAMS / 2, "{lost} lost");
        }
        done.store(true, Ordering::Relaxed);
    });
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn segments_leave_the_tunnel_in_the_order_in_which_they_entered() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    let IpAddr::V4(address) = attached.address else { panic!("{} in an IPv4 tunnel", attached.address) };
    wait_for_ping(inside, SERVER_V4);
    let server = bulk_server(&topology.network, SERVER_V4);
    for (direction, source) in [(Direction::Upload, address), (Direction::Download, SERVER_V4)] {
        let watch = |namespace: &Namespace, interface, source: Ipv4Addr| {
            OrderWatch::start(PacketSocket::open(namespace, interface), source)
        };
        let at_client = watch(inside, CLIENT_TUN, source);
        let at_gateway = watch(&topology.gateway, "tollgate0", source);
        bulk(inside, server.address(), direction, BULK_BYTES);
        let (at_client, at_gateway) = (at_client.finish(), at_gateway.finish());
        let (entered, left) = match direction {
            Direction::Upload => (at_client, at_gateway),
            Direction::Download => (at_gateway, at_client),
        };
        println!("{direction:?}: entered {entered:?}, left {left:?}");
        assert!(entered.packets >= BULK_BYTES / 65_536 && left.packets >= BULK_BYTES / 65_536);
        assert!(left.steps_back <= entered.steps_back, "{direction:?}: entered {entered:?}, left {left:?}");
    }
    gateway.assert_sound();
}
