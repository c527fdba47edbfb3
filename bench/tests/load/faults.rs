//! A fault of a gateway makes the figure fail that it is about, and no other. Without the fault, the same load succeeds.

use tollgate_bench::deployment::faults::{Fault, FaultPlan, RelayCounts};
use tollgate_bench::load::{self, verdict};
use tollgate_bench::progress::Progress;
use tollgate_bench::results::{Direction, LoadResult};
use tollgate_bench::scenario::{Scenario, Sizes, Trouble};

use crate::harness::{constant, faulty_gateway, machine, run, scenario, shown};

/// How often a run is repeated in which the kernel dropped packets, because others use the machine.
const ATTEMPTS_MAX: usize = 5;
/// Faults: one of so many.
const EVERY: u64 = 10_000;

/// At least 100,000 packets, both ways.
fn many_packets() -> Scenario {
    let mut scenario = scenario(100, 9);
    scenario.traffic = vec![constant(100, Direction::Both, 60.0, Sizes::imix(1400))];
    scenario
}

/// Runs [`many_packets`] through a healthy gateway with this fault behind it, in one of so many packets.
fn faulted(fault: Fault, every: u64) -> (LoadResult, RelayCounts) {
    let faults = FaultPlan { fault, every, direction: Direction::Both };
    let gateway = faulty_gateway(&[]);
    let run = || load::run_with_faults(&many_packets(), &gateway, faults, &mut Progress::new()).expect("a load");
    let is_disturbed = |result: &LoadResult| {
        let drops = result.up.drops.keys().chain(result.down.drops.keys());
        drops.into_iter().any(|what| what.starts_with("kernel: "))
    };
    let mut runs = (0..ATTEMPTS_MAX).map(|_| run());
    let (result, counts) = runs.find(|(result, _)| !is_disturbed(result)).expect("a run without drops of the kernel");
    let context = format!("{counts:?}\n{}", shown(&result));
    assert!(counts.up >= 50_000 && counts.down >= 50_000, "{context}");
    let faults_min = 40_000 / every;
    assert!(counts.faults_up >= faults_min && counts.faults_down >= faults_min && counts.refused == 0, "{context}");
    (result, counts)
}

/// Asserts that something failed, and each failure is about one of `figures`.
fn assert_only(result: &LoadResult, figures: &[&str]) {
    let is_expected = |failure: &String| figures.iter().any(|figure| failure.contains(figure));
    let context = shown(result);
    assert!(!result.failures.is_empty() && result.failures.iter().all(is_expected), "{context}");
    let of_flows = |word: &str| result.failures.iter().filter(|failure| failure.contains(word)).count();
    assert!(figures.iter().all(|figure| of_flows(figure) > 0), "{context}");
}

#[test]
fn a_packet_lost_in_ten_thousand_is_lost_and_unaccounted_for() {
    let Some(_machine) = machine() else { return };
    let (result, counts) = faulted(Fault::Drop, EVERY);
    assert_only(&result, &["unaccounted for", "were lost"]);
    let unaccounted = (result.up.unaccounted as u64, result.down.unaccounted as u64);
    assert_eq!(unaccounted, (counts.faults_up, counts.faults_down), "{}", shown(&result));
    let group = &result.groups[0];
    assert_eq!((group.up.lost_packets, group.down.lost_packets), (counts.faults_up, counts.faults_down));
}

#[test]
fn neighbours_that_change_places_are_reordered() {
    let Some(_machine) = machine() else { return };
    let (result, counts) = faulted(Fault::Swap, EVERY);
    assert_only(&result, &["were reordered"]);
    let group = &result.groups[0];
    let reordered = (group.up.reordered_packets, group.down.reordered_packets);
    assert_eq!(reordered, (counts.faults_up, counts.faults_down), "{}", shown(&result));
    assert!(result.up.is_exact() && result.down.is_exact());
}

#[test]
fn a_changed_byte_is_a_corrupted_packet() {
    let Some(_machine) = machine() else { return };
    let (result, counts) = faulted(Fault::Flip, EVERY);
    assert_only(&result, &["were corrupted"]);
    let group = &result.groups[0];
    let corrupted = (group.up.corrupted_packets, group.down.corrupted_packets);
    assert_eq!(corrupted, (counts.faults_up, counts.faults_down), "{}", shown(&result));
    assert!(result.up.is_exact() && result.down.is_exact());
}

/// Clients that come and go, and nothing else.
fn churning() -> Scenario {
    let mut scenario = scenario(60, 15);
    scenario.trouble = Trouble { churn_per_second: 120.0, ..Trouble::default() };
    scenario.demands.bytes_per_churned_connection_max = Some(512.0);
    scenario
}

#[test]
fn memory_that_a_gateway_does_not_give_back_is_seen_in_its_slope() {
    let Some(_machine) = machine() else { return };
    let slope = |result: &LoadResult| verdict::bytes_per_connection(&result.samples).expect("a slope");
    let result = run(&churning(), &faulty_gateway(&["--leak"]));
    assert_only(&result, &["the gateway's memory grew by"]);
    let leaking = slope(&result);
    let result = run(&churning(), &faulty_gateway(&[]));
    assert_eq!(result.failures, Vec::<String>::new(), "{}", shown(&result));
    let healthy = slope(&result);
    assert!(result.churn.closed > 500, "{:?}", result.churn);
    eprintln!("bytes for each connection: {leaking:.0} with a leak of 1024, {healthy:.0} without");
}

/// Four users who want twice as much as a whole burst lets through.
fn greedy() -> Scenario {
    let mut scenario = scenario(4, 5);
    scenario.users.limit = Some("2 mbps".to_owned());
    scenario.traffic = vec![constant(4, Direction::Both, 500.0, Sizes::fixed(1400))];
    scenario.demands.loss_max = None;
    scenario
}

#[test]
fn a_gateway_that_takes_no_notice_of_limits_lets_a_user_have_too_much() {
    let Some(_machine) = machine() else { return };
    let result = run(&greedy(), &faulty_gateway(&["--no-limits"]));
    assert_only(&result, &["a user received"]);
    let result = run(&greedy(), &faulty_gateway(&[]));
    assert_eq!(result.failures, Vec::<String>::new(), "{}", shown(&result));
    let group = &result.groups[0];
    assert!(group.up.lost_packets > 0 && group.down.lost_packets > 0, "{}", shown(&result));
    let peaks = [group.up.user_peak_bits_per_second, group.down.user_peak_bits_per_second];
    assert!(peaks.iter().all(|peak| *peak > 0.0), "{}", shown(&result));
}

#[test]
fn behind_a_relay_without_faults_the_same_load_succeeds() {
    let Some(_machine) = machine() else { return };
    let (result, counts) = faulted(Fault::Drop, u64::MAX);
    assert_eq!((counts.faults_up, counts.faults_down), (0, 0));
    assert_eq!(result.failures, Vec::<String>::new(), "{}", shown(&result));
}
