//! A long way between client and gateway: a few datagrams are lost on it, or a narrow place marks some instead of dropping them.

use std::thread;
use std::time::Duration;

use tollgate_test_support::relay::{QueueManagement, Relay, Way};
use tollgate_testkit::bulk::{BulkPlan, BulkReport, Direction, transfer};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{Namespace, PathToGateway, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk_server, wait_for_ping};
use tollgate_test_support::turn;

/// Connections that download at once.
const STREAMS: usize = 8;

/// What `during` found behind such a way, while eight TCP connections downloaded for `time`, and what these got.
fn beside_downloads<T: Send>(
    peers: &Peers,
    settings: &str,
    way: Way,
    time: Duration,
    during: impl FnOnce(&Namespace) -> T + Send,
) -> (T, BulkReport, Relay) {
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", &format!("[connection]\n{settings}\n[control]"));
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let relay = Relay::at_router(&topology, false, way);
    let endpoint = relay.address().to_string();
    let login = Login { endpoint: &endpoint, ..Login::of("alice") };
    let _attached = Attached::start(peers, &deployment, inside, &gateway, login);
    wait_for_ping(inside, SERVER_V4);
    for namespace in [inside, &topology.network] {
        namespace.sysctl("net/ipv4/tcp_congestion_control", "reno").unwrap();
    }
    let server = bulk_server(&topology.network, SERVER_V4);
    let plan = BulkPlan {
        streams: STREAMS,
        duration: Some(time),
        deadline: Duration::from_secs(120),
        ..BulkPlan::new(server.address(), Direction::Download, u64::MAX)
    };
    let (found, report) = thread::scope(|scope| {
        let downloads = scope.spawn(|| inside.run(|| transfer(&plan, |_| {})).unwrap());
        (during(inside), downloads.join().unwrap())
    });
    assert!(report.is_intact(), "{report:?}");
    gateway.assert_sound();
    (found, report, relay)
}

/// What the downloads get over 40 ms of round trip and a loss of one in a hundred, in bits a second.
fn downloaded(peers: &Peers, controller: &str) -> f64 {
    let way = Way {
        one_way: Duration::from_millis(20),
        bits_per_second: 100_000_000,
        queue_bytes_max: 500_000,
        lost_of: Some(100),
        ..Way::default()
    };
    let ((), report, relay) = beside_downloads(peers, controller, way, Duration::from_secs(5), |_| ());
    println!("{controller}: {:.1} Mb/s, {:?}", report.bits_per_second() / 1e6, relay.counts());
    report.bits_per_second()
}

/// The median round trip of a ping beside the downloads behind a narrow place of 5 Mb/s and 20 ms.
fn median(peers: &Peers, management: QueueManagement) -> Duration {
    let way = Way {
        one_way: Duration::from_millis(10),
        bits_per_second: 5_000_000,
        queue_bytes_max: 1_000_000,
        management,
        ..Way::default()
    };
    let (pinged, _, relay) = beside_downloads(peers, "", way, Duration::from_secs(10), |inside| {
        // Until the downloads have filled the queue.
        thread::sleep(Duration::from_secs(3));
        let (interval, timeout) = (Duration::from_millis(50), Duration::from_secs(3));
        let plan = PingPlan { count: 120, interval, timeout, ..PingPlan::new(SERVER_V4.into()) };
        inside.run(|| ping(&plan)).unwrap()
    });
    let (median, counts) = (Duration::from_nanos(pinged.rtt_percentile_ns(50.0)), relay.counts());
    println!("{management:?}: ping {median:?}, {} of {} answered, {counts:?}", pinged.received, pinged.sent);
    assert!(counts.marked + counts.dropped > 0, "the queue did not stand");
    median
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

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_queue_that_marks_delays_a_ping_beside_downloads_no_more_than_one_that_drops() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let (marks, drops) = (median(&peers, QueueManagement::Marks), median(&peers, QueueManagement::Drops));
    assert!(marks.as_secs_f64() <= 1.5 * drops.as_secs_f64(), "{marks:?} where it marks, {drops:?} where it drops");
}
