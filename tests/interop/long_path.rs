//! A long way between client and gateway, on which a few datagrams are lost.

use std::net::SocketAddr;
use std::time::Duration;

use tollgate_testkit::bulk::{BulkPlan, Direction, transfer};
use tollgate_testkit::long_path::{LongPath, LongPathPlan, QueueManagement};
use tollgate_testkit::{PathToGateway, ROUTER_V4, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_testkit::bed::client::{Attached, Login};
use tollgate_testkit::bed::deployment::{Deployment, PORT, Plan};
use tollgate_testkit::bed::gateway::Gateway;
use tollgate_testkit::bed::peers::Peers;
use tollgate_testkit::bed::traffic::{bulk_server, wait_for_ping};
use tollgate_testkit::bed::turn;

/// Connections that download at once.
const STREAMS: usize = 8;

/// What eight TCP connections get in five seconds over 40 ms of round trip and a loss of one in a hundred, in bits a second.
fn downloaded(peers: &Peers, controller: &str) -> f64 {
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", &format!("[connection]\n{controller}\n[control]"));
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let site = &topology.clients[0];
    let path = LongPathPlan {
        listen: SocketAddr::new(site.first_hop_v4.into(), PORT),
        gateway: SocketAddr::new(SERVICE_V4.into(), PORT),
        source: ROUTER_V4.into(),
        one_way: Duration::from_millis(20),
        bits_per_second: 100_000_000,
        queue_bytes_max: 500_000,
        lost_of: Some(100),
        management: QueueManagement::Tail,
    };
    let path = LongPath::start(topology.router.as_ref().expect("the path has one"), path).unwrap();
    let endpoint = path.address().to_string();
    let login = Login { endpoint: &endpoint, ..Login::of("alice") };
    let _attached = Attached::start(peers, &deployment, &site.namespace, &gateway, login);
    wait_for_ping(&site.namespace, SERVER_V4);
    for namespace in [&site.namespace, &topology.network] {
        namespace.sysctl("net/ipv4/tcp_congestion_control", "reno").unwrap();
    }
    let server = bulk_server(&topology.network, SERVER_V4);
    let plan = BulkPlan {
        streams: STREAMS,
        duration: Some(Duration::from_secs(5)),
        deadline: Duration::from_secs(120),
        ..BulkPlan::new(server.address(), Direction::Download, u64::MAX)
    };
    let report = site.namespace.run(|| transfer(&plan, |_| {})).unwrap();
    assert!(report.is_intact(), "{report:?}");
    println!("{controller}: {:.1} Mb/s, {:?}", report.bits_per_second() / 1e6, path.counts());
    gateway.assert_sound();
    report.bits_per_second()
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_loss_of_one_connection_slows_none_of_the_others() {
    let peers = Peers::find();
    let _turn = turn::together();
    // By default nothing in the tunnel is slowed down but by itself; with one controller around all, each loss slows all of them.
    let (by_themselves, together) = (downloaded(&peers, ""), downloaded(&peers, "congestion_controller = \"cubic\""));
    assert!(by_themselves > 2.0 * together, "{by_themselves} and {together} bits a second");
}
