//! A narrow place whose queue marks packets instead of dropping them.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use tollgate_testkit::bulk::{BulkPlan, Direction, transfer};
use tollgate_testkit::long_path::{LongPath, LongPathPlan, QueueManagement};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{PathToGateway, ROUTER_V4, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_testkit::bed::client::{Attached, Login};
use tollgate_testkit::bed::deployment::{Deployment, PORT, Plan};
use tollgate_testkit::bed::gateway::Gateway;
use tollgate_testkit::bed::peers::Peers;
use tollgate_testkit::bed::traffic::{bulk_server, wait_for_ping};
use tollgate_testkit::bed::turn;

/// Connections that download at once.
const STREAMS: usize = 8;

/// The median round trip of a ping beside eight downloads behind a narrow place of 5 Mb/s and 20 ms.
fn median(peers: &Peers, management: QueueManagement) -> Duration {
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let site = &topology.clients[0];
    let path = LongPathPlan {
        listen: SocketAddr::new(site.first_hop_v4.into(), PORT),
        gateway: SocketAddr::new(SERVICE_V4.into(), PORT),
        source: ROUTER_V4.into(),
        one_way: Duration::from_millis(10),
        bits_per_second: 5_000_000,
        queue_bytes_max: 1_000_000,
        lost_of: None,
        management,
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
        duration: Some(Duration::from_secs(10)),
        deadline: Duration::from_secs(120),
        ..BulkPlan::new(server.address(), Direction::Download, u64::MAX)
    };
    let pinged = thread::scope(|scope| {
        scope.spawn(|| site.namespace.run(|| transfer(&plan, |_| {})).unwrap());
        // Until the downloads have filled the queue.
        thread::sleep(Duration::from_secs(3));
        let plan = PingPlan {
            count: 120,
            interval: Duration::from_millis(50),
            timeout: Duration::from_secs(3),
            ..PingPlan::new(SERVER_V4.into())
        };
        site.namespace.run(|| ping(&plan)).unwrap()
    });
    let median = Duration::from_nanos(pinged.rtt_percentile_ns(50.0));
    println!("{management:?}: ping {median:?}, {} of {} answered, {:?}", pinged.received, pinged.sent, path.counts());
    assert!(path.counts().marked + path.counts().dropped > 0, "the queue did not stand");
    gateway.assert_sound();
    median
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_queue_that_marks_delays_a_ping_beside_downloads_no_more_than_one_that_drops() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let (marks, drops) = (median(&peers, QueueManagement::Marks), median(&peers, QueueManagement::Drops));
    assert!(marks.as_secs_f64() <= 1.5 * drops.as_secs_f64(), "{marks:?} where it marks, {drops:?} where it drops");
}
