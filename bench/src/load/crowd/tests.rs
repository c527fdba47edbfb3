//! Crowds against the real gateway, in namespaces of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tollgate::lab::SERVICE_V4;
use tollgate_shards::{Counters, DropReason};

use super::{ClientPlan, Crowd, CrowdCounts, CrowdPlan, CrowdReport, NearGroup, Order};
use crate::deployment::{
    CLIENTS_V4, Contender, FilesPlan, Gateway, GatewayFiles, Network, SERVICE, require_namespaces_or_skip, skip,
    usable_cpus,
};
use crate::identities::{Identities, trusted};
use crate::load::far_end::{FarEnd, FarTotals};
use crate::scenario::{
    Direction, GatewayPlan, HarnessPlan, Scenario, Sizes, Sources, StartedGateway, TrafficKind, TrafficPlan, Trouble,
    UserPlan,
};

/// Everything that a crowd needs.
struct World {
    scenario: Arc<Scenario>,
    identities: Identities,
    network: Network,
    files: GatewayFiles,
    gateway: Gateway,
    far_end: FarEnd,
}

/// What the whole run came to, on both ends and in the middle.
struct Outcome {
    report: CrowdReport,
    far: FarTotals,
    gateway: Counters,
}

impl World {
    /// `known` users of the scenario's have access. `None` where there is no gateway to start.
    fn build(scenario: Scenario, known: u32) -> Option<World> {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug/tollgate");
        if !program.is_file() {
            skip("target/debug/tollgate is missing; cargo build");
            return None;
        }
        let GatewayPlan::Started(plan) = &scenario.gateway else { panic!("to be started") };
        let identities = Identities::generate(scenario.users.count, |_| ()).unwrap();
        let users = Identities::users_file(&identities, scenario.users.limit.as_deref(), 0);
        let users: String = users.split_inclusive("[users.").take(known as usize + 1).collect();
        let users = users.strip_suffix("[users.").unwrap_or(&users);
        let files =
            GatewayFiles::write(&FilesPlan { users, mtu_bytes: plan.mtu_bytes, idle_timeout: plan.idle_timeout })
                .unwrap();
        let network = Network::build(plan.mtu_bytes).unwrap();
        let cpus = usable_cpus().unwrap();
        let gateway =
            Gateway::start(&Contender::tollgate(program), plan, &cpus[..1], &files, network.gateway()).unwrap();
        let far_end = FarEnd::start(vec![network.far_socket(0).unwrap(), network.far_socket(0).unwrap()], &[]).unwrap();
        Some(World { scenario: Arc::new(scenario), identities, network, files, gateway, far_end })
    }

    fn crowd(&self) -> Crowd {
        self.crowd_to(SERVICE)
    }

    fn crowd_to(&self, remote: SocketAddr) -> Crowd {
        let trusted = trusted(&self.files.certificate()).unwrap();
        let mut groups = (0..)
            .zip(&self.scenario.traffic)
            .flat_map(|(group, traffic)| std::iter::repeat_n(group, traffic.connections as usize));
        let clients = (0..self.scenario.connections()).map(|index| {
            let user = index / u32::from(self.scenario.users.connections);
            let tls = self.identities.client_tls(user, &trusted).unwrap();
            ClientPlan { index, user, tls, source: Some(address(index)), group: groups.next() }
        });
        let v4 = |address| match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(address) => panic!("{address}"),
        };
        let plan = CrowdPlan {
            scenario: Arc::clone(&self.scenario),
            thread: 5,
            cpus: Vec::new(),
            clients: clients.collect(),
            spare_sources: (1000..1100).map(address).collect(),
            remote,
            server_name: SERVICE_V4.to_string(),
            far_ends: self.far_end.addresses().into_iter().map(v4).collect::<Vec<SocketAddrV4>>(),
            run: 1,
        };
        Crowd::start(plan, Some(self.network.clients())).unwrap()
    }

    /// Runs traffic for `duration` from a crowd that is connected, and winds everything up.
    fn run(mut self, crowd: Crowd, duration: Duration) -> Outcome {
        crowd.order(Order::StartTraffic).unwrap();
        sleep(duration);
        crowd.order(Order::StopTraffic).unwrap();
        wait(&crowd, "settle", |counts| counts.is_settled());
        wait_until_unchanged(|| (crowd.counts().received_packets, self.far_end.totals().received_messages));
        crowd.order(Order::AskReports).unwrap();
        wait(&crowd, "report", |counts| counts.is_settled());
        wait_until_unchanged(|| (crowd.counts().received_packets, self.far_end.totals().received_messages));
        crowd.order(Order::Close).unwrap();
        wait(&crowd, "close", |counts| counts.is_settled() && counts.connected == 0);
        let report = crowd.join().unwrap();
        let status = self.gateway.sample().unwrap().status.expect("Tollgate tells");
        let mut gateway = Counters::default();
        status.shards.iter().for_each(|shard| super::report::add_counters(&mut gateway, &shard.counters));
        Outcome { report, far: self.far_end.stop().unwrap(), gateway }
    }
}

impl Outcome {
    /// Every inner packet is accounted for, outer datagrams that were lost on purpose as they were counted.
    fn assert_balanced(&self) {
        let Outcome { report, far, gateway } = self;
        let CrowdReport { counts, counters, .. } = report;
        let context = format!("{report:#?}\n{far:?}\n{gateway:?}");
        // At the client: what was given to the tunnel was carried or dropped.
        let drops = |counters: &Counters, reasons: &[DropReason]| -> u64 {
            reasons.iter().map(|reason| counters.drops.of(*reason)).sum()
        };
        let queue =
            [DropReason::DatagramQueueFull, DropReason::TooBig, DropReason::NotAttached, DropReason::ConnectionClosed];
        assert_eq!(counts.sent_packets, counters.datagrams_sent + drops(counters, &queue), "client, up\n{context}");
        // On the way: what is missing was lost on purpose. An outer datagram carries several of the shortest packets.
        let lost_up = counters.datagrams_sent - gateway.datagrams_received;
        let most = 1450 / 52;
        assert!(lost_up <= counts.injected_lost_up * most, "outer, up: {lost_up}\n{context}");
        assert_eq!(lost_up > 0, counts.injected_lost_up > 0, "outer, up\n{context}");
        let lost_down = gateway.datagrams_sent - counters.datagrams_received;
        assert!(lost_down <= counts.injected_lost_down * most, "outer, down: {lost_down}\n{context}");
        // At the gateway and behind it.
        let outer = drops(gateway, &DropReason::OUTER);
        // What a limited user's queue drops may have been on either way; all else was on its way up.
        let queued = drops(gateway, &[DropReason::QueueDelay, DropReason::OverLimit, DropReason::WaitedTooLong]);
        let queued_up = gateway.datagrams_received - gateway.up_packets - (gateway.drops.total() - outer - queued);
        assert!(queued_up <= queued, "gateway, up: {queued_up} of {queued}\n{context}");
        assert_eq!(gateway.up_packets, far.received_messages, "network, up\n{context}");
        let queued_down = queued - queued_up;
        assert_eq!(far.sent_messages, gateway.down_packets + queued_down, "network, down\n{context}");
        assert_eq!(gateway.down_packets, gateway.datagrams_sent, "gateway, down\n{context}");
        assert_eq!(counters.datagrams_received, counts.received_packets, "client, down\n{context}");
        assert_eq!((counts.foreign_packets, counts.stray_packets, counts.damaged_packets), (0, 0, 0), "{context}");
        assert_eq!((far.foreign, far.flows_expired), (0, 0), "{context}");
    }
}

fn address(index: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(CLIENTS_V4.network().to_bits() + 1 + index))
}

fn wait(crowd: &Crowd, what: &str, until: impl Fn(&CrowdCounts) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !until(&crowd.counts()) {
        assert!(Instant::now() < deadline, "does not {what}: {:#?}", crowd.report());
        sleep(Duration::from_millis(2));
    }
}

fn wait_until_unchanged<T: PartialEq>(counts: impl Fn() -> T) {
    let mut before = counts();
    loop {
        sleep(Duration::from_millis(200));
        let now = counts();
        if now == before {
            return;
        }
        before = now;
    }
}

fn traffic(name: &str, connections: u32, flows: u16, kind: TrafficKind, direction: Direction) -> TrafficPlan {
    TrafficPlan { name: name.to_owned(), connections, flows, kind, direction, sizes: Sizes::imix(1400) }
}

fn scenario(users: u32, sources: Sources, traffic: Vec<TrafficPlan>) -> Scenario {
    Scenario {
        duration: Duration::from_secs(5),
        gateway: GatewayPlan::Started(StartedGateway { shards: Some(2), ..StartedGateway::default() }),
        users: UserPlan { count: users, handshakes_max: 8, ..UserPlan::default() },
        harness: HarnessPlan { sources, ..HarnessPlan::default() },
        traffic,
        ..Scenario::default()
    }
}

fn mix() -> Vec<TrafficPlan> {
    vec![
        traffic("bulk", 2, 2, TrafficKind::Bulk { window_bytes: 65_536 }, Direction::Both),
        traffic("calls", 6, 3, TrafficKind::Constant { packets_per_second: 50.0, train_packets: 1 }, Direction::Both),
        traffic(
            "web",
            4,
            1,
            TrafficKind::Request { requests_per_second: 30.0, answer_bytes: Some(900) },
            Direction::Both,
        ),
        traffic("meter", 2, 1, TrafficKind::Constant { packets_per_second: 20.0, train_packets: 1 }, Direction::Up),
        traffic("film", 2, 1, TrafficKind::Constant { packets_per_second: 20.0, train_packets: 1 }, Direction::Down),
    ]
}

fn assert_undamaged(group: &NearGroup) {
    for counts in [&group.near, &group.far] {
        assert_eq!(
            (counts.reordered_packets, counts.duplicated_packets, counts.corrupted_packets),
            (0, 0, 0),
            "{group:?}"
        );
    }
}

#[test]
fn every_packet_of_every_kind_arrives_and_both_ends_agree() {
    require_namespaces_or_skip!();
    for sources in [Sources::Addresses, Sources::Ports] {
        let Some(world) = World::build(scenario(20, sources, mix()), 20) else { return };
        let crowd = world.crowd();
        assert_eq!((crowd.counts().handshakes, crowd.counts().clients), (0, 20));
        crowd.order(Order::Connect).unwrap();
        wait(&crowd, "connect", |counts| counts.connected == 20);
        let outcome = world.run(crowd, Duration::from_secs(2));
        outcome.assert_balanced();
        let CrowdReport { counts, groups, counters, failures } = &outcome.report;
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!((counts.handshakes, counts.failed_handshakes, counts.closed, counts.lost), (20, 0, 20, 0));
        assert_eq!((counts.flows_open, counts.reports_missing, counts.connecting, counts.failed), (0, 0, 0, 0));
        // Each handshake begins with a Retry, which brings no frame.
        assert_eq!(counters.drops.total(), counters.drops.of(DropReason::Undecryptable), "{counters:?}");
        assert_eq!(counts.sent_packets, outcome.far.received_messages);
        assert_eq!(counts.received_packets, outcome.far.sent_messages);
        let flows = [4, 18, 4, 2, 2];
        for (group, flows) in groups.iter().zip(flows) {
            assert_undamaged(group);
            assert_eq!((group.flows, group.reports), (flows, flows));
            assert_eq!(group.near.sent_packets, group.far.received_packets, "{group:?}");
            assert_eq!(group.far.sent_packets, group.near.received_packets, "{group:?}");
        }
        let moved = |group: usize| (groups[group].near.sent_packets, groups[group].near.received_packets);
        assert!(moved(0).0 > 1000 && moved(0).1 > 1000, "{:?}", moved(0));
        assert!(moved(1).0 > 500 && moved(1).1 > 500, "{:?}", moved(1));
        assert!(moved(2).0 > 60 && moved(2).0 == moved(2).1, "{:?}", moved(2));
        assert_eq!((moved(3).1, moved(4).0), (0, 0), "one direction only");
        let round_trips = groups[2].round_trips.latencies().unwrap();
        assert_eq!(round_trips.count, moved(2).1);
        assert!(round_trips.min_ns > 1000 && round_trips.max_ns < 2_000_000_000, "{round_trips:?}");
        assert_eq!(counts.scheduled_packets, moved(1).0 + moved(2).0 + moved(3).0);
    }
}

#[test]
fn churn_loss_and_moves_leave_nothing_unaccounted_for() {
    require_namespaces_or_skip!();
    for sources in [Sources::Addresses, Sources::Ports] {
        let mut scenario = scenario(20, sources, mix());
        // Packets that fit every path: losses of larger ones may mean that a path has shrunk, and both ends then send packets of their own.
        let mtu_bytes = 1150;
        scenario.gateway =
            GatewayPlan::Started(StartedGateway { shards: Some(2), mtu_bytes, ..StartedGateway::default() });
        scenario.traffic.iter_mut().for_each(|traffic| traffic.sizes = Sizes::imix(mtu_bytes));
        scenario.trouble =
            Trouble { churn_per_second: 10.0, loss: 0.02, rebinds_per_second: 10.0, ..Trouble::default() };
        let Some(world) = World::build(scenario, 20) else { return };
        let crowd = world.crowd();
        crowd.order(Order::Connect).unwrap();
        wait(&crowd, "connect", |counts| counts.connected == 20);
        let outcome = world.run(crowd, Duration::from_secs(4));
        outcome.assert_balanced();
        let CrowdReport { counts, groups, failures, .. } = &outcome.report;
        assert!(failures.is_empty(), "{failures:?}");
        assert!(counts.closed > 30 && counts.handshakes == counts.closed, "{counts:?}");
        assert!(counts.rebound > 10 && counts.lost == 0, "{counts:?}");
        assert!(counts.injected_lost_up > 0 && counts.injected_lost_down > 0);
        for group in groups {
            assert_undamaged(group);
            assert!(group.flows >= group.reports && group.flows - group.reports == 0, "{group:?}");
            assert!(group.near.sent_packets >= group.far.received_packets, "{group:?}");
            assert!(group.far.sent_packets >= group.near.received_packets, "{group:?}");
        }
    }
}

#[test]
fn who_is_refused_is_tried_a_few_times_and_then_failed_with_the_reason() {
    require_namespaces_or_skip!();
    let Some(world) = World::build(scenario(3, Sources::Addresses, Vec::new()), 2) else { return };
    let crowd = world.crowd();
    crowd.order(Order::Connect).unwrap();
    wait(&crowd, "fail", |counts| counts.connecting == 0);
    let report = crowd.report().unwrap();
    let counts = report.counts;
    assert_eq!((counts.connected, counts.failed, counts.handshakes, counts.failed_handshakes), (2, 1, 2, 4));
    let reasons: BTreeMap<_, _> = report.failures;
    assert_eq!(reasons.values().sum::<u64>(), 4, "{reasons:?}");
    assert!(reasons.keys().all(|reason| !reason.contains('\n')), "{reasons:?}");
}

#[test]
fn clients_of_a_gateway_that_dies_are_lost_and_their_reports_missing() {
    require_namespaces_or_skip!();
    let mut scenario = scenario(4, Sources::Addresses, mix()[1..2].to_vec());
    scenario.traffic[0].connections = 3;
    scenario.gateway =
        GatewayPlan::Started(StartedGateway { idle_timeout: Duration::from_secs(2), ..Default::default() });
    let Some(world) = World::build(scenario, 4) else { return };
    let crowd = world.crowd();
    crowd.order(Order::Connect).unwrap();
    wait(&crowd, "connect", |counts| counts.connected == 4);
    crowd.order(Order::StartTraffic).unwrap();
    wait(&crowd, "open flows", |counts| counts.flows_open == 9);
    drop(world.gateway);
    wait(&crowd, "notice", |counts| counts.lost == 4);
    let report = crowd.join().unwrap();
    assert_eq!((report.counts.connected, report.counts.reports_missing, report.counts.flows_open), (0, 9, 0));
    assert!(report.failures.contains_key("connection lost: the gateway does not answer"), "{:?}", report.failures);
}

#[test]
fn a_limited_user_is_seen_to_keep_the_limit() {
    require_namespaces_or_skip!();
    let bulk = traffic("bulk", 2, 1, TrafficKind::Bulk { window_bytes: 65_536 }, Direction::Both);
    let mut scenario = scenario(1, Sources::Addresses, vec![bulk]);
    scenario.users.connections = 2;
    scenario.users.limit = Some("8 mbps".to_owned());
    let Some(world) = World::build(scenario, 1) else { return };
    let crowd = world.crowd();
    crowd.order(Order::Connect).unwrap();
    wait(&crowd, "connect", |counts| counts.connected == 2);
    let outcome = world.run(crowd, Duration::from_secs(4));
    outcome.assert_balanced();
    let group = &outcome.report.groups[0];
    let (up, down) = (group.user_peak_up_bytes, group.user_peak_down_bytes);
    assert!(up > 50_000 && down > 50_000, "{up} {down}");
    assert!(up < 1_300_000 && down < 1_300_000, "{up} {down}");
}

#[test]
fn traffic_that_was_stopped_begins_again_in_new_flows() {
    require_namespaces_or_skip!();
    let Some(world) = World::build(scenario(3, Sources::Addresses, mix()[1..2].to_vec()), 3) else { return };
    let crowd = world.crowd();
    crowd.order(Order::Connect).unwrap();
    wait(&crowd, "connect", |counts| counts.connected == 3);
    for _ in 0..2 {
        crowd.order(Order::StartTraffic).unwrap();
        wait(&crowd, "open flows", |counts| counts.flows_open == 9);
    }
    crowd.order(Order::StopTraffic).unwrap();
    wait(&crowd, "settle", |counts| counts.is_settled() && counts.flows_open == 0);
    let outcome = world.run(crowd, Duration::from_millis(300));
    outcome.assert_balanced();
    let group = &outcome.report.groups[0];
    assert_eq!((group.flows, group.reports, outcome.far.flows_opened), (18, 18, 18));
    assert_eq!(group.near.sent_packets, group.far.received_packets);
}
