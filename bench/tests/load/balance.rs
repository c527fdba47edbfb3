//! Whole loads against real gateways: every packet is accounted for, on both ends.

use tollgate_bench::deployment::Contender;
use tollgate_bench::results::{Direction, LoadResult};
use tollgate_bench::scenario::{Scenario, Sizes, Sources, TrafficKind, TrafficPlan, Trouble};

use crate::harness::{constant, machine, quincy, run, scenario, shown, started, tollgate};

/// 200 clients: some send up, some are sent to, some ask, some are idle; all lengths from the shortest to the MTU.
fn mixed() -> Scenario {
    let mut scenario = scenario(200, 3);
    // A machine with other work drops packets, which is to be counted and not to fail a test.
    scenario.demands.loss_max = None;
    let group = |name: &str, plan: TrafficPlan| TrafficPlan { name: name.to_owned(), ..plan };
    let imix = Sizes::imix(1400);
    scenario.traffic = vec![
        group("up", constant(60, Direction::Up, 50.0, imix.clone())),
        group("down", constant(60, Direction::Down, 50.0, imix)),
        TrafficPlan {
            name: "request".to_owned(),
            connections: 60,
            flows: 2,
            kind: TrafficKind::Request { requests_per_second: 10.0, answer_bytes: Some(1400) },
            direction: Direction::Up,
            sizes: Sizes(vec![(52, 1), (300, 1)]),
        },
    ];
    scenario
}

fn assert_mixed_load_is_exact(gateway: &Contender, scenario: &Scenario) -> LoadResult {
    let result = run(scenario, gateway);
    let context = shown(&result);
    assert_eq!(result.failures, Vec::<String>::new(), "{context}");
    assert!(result.up.is_exact() && result.down.is_exact(), "{context}");
    assert_eq!((result.ramp.connected, result.churn.connected), (200, 200), "{context}");
    let [up, down, request] = &result.groups[..] else { panic!("{context}") };
    assert!(up.up.received_packets > 60 * 50 && down.down.received_packets > 60 * 50, "{context}");
    assert_eq!((up.down.sent_packets, down.up.sent_packets), (0, 0), "{context}");
    // Every request that arrived was answered, and each round trip timed.
    assert_eq!(request.up.received_packets, request.down.sent_packets, "{context}");
    assert_eq!(request.round_trip.as_ref().map_or(0, |trip| trip.count), request.down.received_packets, "{context}");
    assert!(request.down.received_packets > 60 * 2 * 10, "{context}");
    for (ledger, flows) in
        [(&result.up, [&up.up, &down.up, &request.up]), (&result.down, [&up.down, &down.down, &request.down])]
    {
        // The ledgers have the control messages too.
        let sent: u64 = flows.iter().map(|flow| flow.sent_packets).sum();
        assert!(ledger.sent > sent && ledger.sent < sent + 2000, "{context}");
        let lost: u64 = flows.iter().map(|flow| flow.lost_packets).sum();
        assert!(lost <= ledger.drops.values().sum(), "{context}");
    }
    assert!(result.samples.len() >= 2, "{context}");
    assert!(result.gateway_usage.is_some_and(|usage| usage.cpu_seconds > 0.0 && usage.memory_bytes > 1 << 20));
    assert!(result.harness_usage.cpu_seconds > 0.0);
    result
}

#[test]
fn two_hundred_clients_of_two_shards_are_accounted_for_to_the_packet() {
    let Some(_machine) = machine() else { return };
    let mut scenario = mixed();
    started(&mut scenario).shards = Some(2);
    let result = assert_mixed_load_is_exact(&tollgate(), &scenario);
    let shards = result.shards.expect("Tollgate tells");
    assert_eq!((shards.shards, shards.connections, shards.addresses_held), (2, 200, 200));
    assert!(shards.arrived > result.up.received, "{shards:?}");
}

#[test]
fn the_same_clients_are_accounted_for_with_quincys_server() {
    let Some(_machine) = machine() else { return };
    let Some(quincy) = quincy() else { return };
    let result = assert_mixed_load_is_exact(&quincy, &mixed());
    assert_eq!((result.gateway.as_str(), result.shards), ("quincy-server", None));
}

#[test]
fn clients_that_come_go_move_and_lose_datagrams_are_accounted_for_too() {
    let Some(_machine) = machine() else { return };
    for sources in [Sources::Addresses, Sources::Ports] {
        let mut scenario = scenario(60, 5);
        scenario.harness.threads = 2;
        scenario.harness.sources = sources;
        started(&mut scenario).shards = Some(3);
        let bulk = TrafficKind::Bulk { window_bytes: 30_000 };
        scenario.traffic = vec![
            constant(30, Direction::Both, 40.0, Sizes::imix(1400)),
            TrafficPlan { kind: bulk, ..constant(4, Direction::Both, 1.0, Sizes::fixed(1400)) },
        ];
        scenario.trouble =
            Trouble { churn_per_second: 10.0, loss: 0.005, rebinds_per_second: 10.0, ..Trouble::default() };
        scenario.demands.loss_max = None;
        let result = run(&scenario, &tollgate());
        let context = shown(&result);
        assert!(result.up.is_exact() && result.down.is_exact(), "{context}");
        assert!(result.up.drops["outer: lost on purpose"] > 0, "{context}");
        assert!(result.down.drops["outer: lost on purpose"] > 0, "{context}");
        assert!(result.churn.closed >= 20 && result.churn.rebound >= 20, "{context}");
        let damaged = |failure: &&String| !failure.contains("missing") && !failure.contains("connections");
        assert_eq!(result.failures.iter().filter(damaged).count(), 0, "{context}");
    }
}
