//! No flow is ever reordered, over however many shards its packets come, whether the kernel steers them or not.

use tollgate_bench::deployment::Contender;
use tollgate_bench::results::{Direction, FlowFigures, LoadResult};
use tollgate_bench::scenario::{Scenario, Sizes, TrafficKind, TrafficPlan};

use crate::harness::{constant, faulty_gateway, machine, run, scenario, shown, started, tollgate};

/// 48 clients of six shards. Of the 560 flows, some go one way, some both, some as fast as their windows let. The TUN driver forgets a flow
/// after three seconds without a packet from the client.
fn many_flows() -> Scenario {
    let mut scenario = scenario(48, 8);
    // A machine with other work drops packets, which is to be counted and not to fail a test.
    scenario.demands.loss_max = None;
    started(&mut scenario).shards = Some(6);
    let group = |name: &str, flows, plan| TrafficPlan { name: name.to_owned(), flows, ..plan };
    let imix = Sizes::imix(1400);
    let bulk = TrafficKind::Bulk { window_bytes: 30_000 };
    scenario.traffic = vec![
        group("up", 16, constant(10, Direction::Up, 40.0, imix.clone())),
        group("down", 16, constant(10, Direction::Down, 40.0, imix.clone())),
        group("both", 10, constant(20, Direction::Both, 25.0, imix)),
        group("bulk", 5, TrafficPlan { kind: bulk, ..constant(8, Direction::Both, 1.0, Sizes::fixed(1400)) }),
    ];
    scenario
}

fn assert_nothing_is_reordered(gateway: &Contender) -> LoadResult {
    let result = run(&many_flows(), gateway);
    let context = shown(&result);
    assert!(result.up.is_exact() && result.down.is_exact(), "{context}");
    let figures: Vec<&FlowFigures> = result.groups.iter().flat_map(|group| [&group.up, &group.down]).collect();
    let sum = |count: fn(&FlowFigures) -> u64| figures.iter().map(|it| count(it)).sum::<u64>();
    assert!(sum(|it| it.received_packets) > 50_000, "{context}");
    let wrong = [sum(|it| it.reordered_packets), sum(|it| it.duplicated_packets), sum(|it| it.corrupted_packets)];
    assert_eq!(wrong, [0; 3], "reordered, twice, corrupt: {context}");
    result
}

#[test]
fn flows_over_steered_shards_keep_their_order() {
    let Some(_machine) = machine() else { return };
    let shards = assert_nothing_is_reordered(&tollgate()).shards.expect("Tollgate tells");
    assert!(shards.crossed * 100 < shards.arrived, "the TUN device is steered: {shards:?}");
}

#[test]
fn flows_keep_their_order_where_the_kernel_may_not_steer() {
    let Some(_machine) = machine() else { return };
    let shards = assert_nothing_is_reordered(&faulty_gateway(&["--no-bpf"])).shards.expect("Tollgate tells");
    assert!(shards.crossed > 1_000, "the driver has forgotten the flows that only go down: {shards:?}");
}
