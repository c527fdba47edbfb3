//! What a load amounts to: what kept the traffic from being more, and every figure that is not as the scenario demands.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tollgate_config::rate;

use crate::load::generator::GeneratorCounts;
use crate::load::result::{Account, LimitedBy, LoadResult, Sample};
use crate::load::scenario::{Scenario, TrafficKind};
use crate::measure::spread::slope;

/// A gateway or a thread that used this share of its CPUs had none left.
const BUSY_SHARE: f64 = 0.9;
/// Of packets with a schedule, so many may be late before the harness is to blame.
const LATE_SHARE_MAX: f64 = 0.01;
/// The smallest burst of a limited user, in bytes.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// The first part of the samples, in which a gateway's memory still finds its size.
const WARM_UP_SHARE: f64 = 0.25;
/// Fewer samples than this tell no slope.
const SLOPE_SAMPLES_MIN: usize = 5;

/// How hard all worked while traffic was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Effort {
    /// The share of its CPUs that the gateway used.
    pub gateway_share: f64,
    /// The share of a CPU that the busiest thread of the harness used.
    pub thread_share_max: f64,
    /// Packets that had a schedule.
    pub scheduled_packets: u64,
    /// Those that were sent more than 1 ms late.
    pub late_packets: u64,
}

/// What kept the traffic from being more.
pub fn limited_by(scenario: &Scenario, effort: &Effort, lost_packets: u64) -> LimitedBy {
    let has_bulk = scenario.traffic.iter().any(|plan| matches!(plan.kind, TrafficKind::Bulk { .. }));
    let is_late = effort.late_packets as f64 > LATE_SHARE_MAX * effort.scheduled_packets as f64;
    if !has_bulk && !is_late && lost_packets == 0 {
        LimitedBy::Scenario
    } else if effort.gateway_share >= BUSY_SHARE {
        LimitedBy::Gateway
    } else if is_late || effort.thread_share_max > BUSY_SHARE {
        LimitedBy::Harness
    } else {
        LimitedBy::Window
    }
}

/// How much a gateway's memory grew for each connection that came while traffic ran, in bytes: the slope of the samples after the warm-up,
/// by least squares. `None` where too few connections came, or too few samples were taken, to tell.
pub fn bytes_per_connection(samples: &[Sample]) -> Option<f64> {
    let end = samples.last()?.seconds;
    let points: Vec<(f64, f64)> = samples
        .iter()
        .filter(|sample| sample.seconds >= WARM_UP_SHARE * end)
        .map(|sample| (sample.handshakes as f64, sample.gateway_memory_bytes as f64))
        .collect();
    if points.len() < SLOPE_SAMPLES_MIN {
        return None;
    }
    slope(&points)
}

/// Every figure of `result` that is not as `scenario` demands, in words. `counts` are those of all generators at the end.
pub fn failures(scenario: &Scenario, result: &LoadResult, counts: &GeneratorCounts) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    connections(scenario, result, counts, &mut failures);
    account("up", &result.up, &mut failures);
    account("down", &result.down, &mut failures);
    for group in &result.groups {
        for (way, flow) in group.ways() {
            for (what, packets) in [
                ("reordered", flow.counts.reordered_packets),
                ("duplicated", flow.counts.duplicated_packets),
                ("corrupted", flow.counts.corrupted_packets),
            ] {
                if packets > 0 {
                    failures.push(format!("{}, {way}: {packets} packets were {what}", group.name));
                }
            }
        }
    }
    loss(scenario, result, &mut failures);
    peaks(scenario, result, &mut failures)?;
    memory(scenario, result, &mut failures);
    Ok(failures)
}

fn connections(scenario: &Scenario, result: &LoadResult, counts: &GeneratorCounts, failures: &mut Vec<String>) {
    let ramp = &result.ramp;
    if scenario.demand.all_connected {
        if ramp.connected < ramp.wanted {
            failures.push(format!("{} of {} connections came up", ramp.connected, ramp.wanted));
        }
        if counts.failed > 0 && ramp.connected == ramp.wanted {
            failures.push(format!("{} clients could not connect again", counts.failed));
        }
        if result.churn.lost > 0 {
            failures.push(format!("{} connections ended although nobody wanted it", result.churn.lost));
        }
    }
    if counts.flows_refused > 0 {
        failures.push(format!("the responder refused {} flows", counts.flows_refused));
    }
    if counts.reports_missing > 0 {
        failures.push(format!("the responder's counts of {} flows are missing", counts.reports_missing));
    }
}

fn account(way: &str, account: &Account, failures: &mut Vec<String>) {
    let Account { sent, received, drops, unaccounted } = account;
    let dropped: u64 = drops.values().sum();
    if *unaccounted != 0 {
        failures.push(format!(
            "{way}: sent {sent}, received {received}, counted as dropped {dropped}: {unaccounted} packets are unaccounted for"
        ));
    }
}

fn loss(scenario: &Scenario, result: &LoadResult, failures: &mut Vec<String>) {
    let Some(loss_max) = scenario.loss_max() else { return };
    let flows = result.groups.iter().flat_map(|group| [&group.up, &group.down]);
    let (sent, lost) =
        flows.fold((0, 0), |(sent, lost), flow| (sent + flow.counts.sent_packets, lost + flow.lost_packets));
    if lost as f64 > loss_max * sent as f64 {
        let share = 100.0 * lost as f64 / sent as f64;
        failures.push(format!(
            "{lost} of {sent} packets were lost: {share:.4} %, but at most {:.4} % may be",
            100.0 * loss_max
        ));
    }
}

/// How late it may be known what came up: acknowledgements go down, where they wait in the user's own queue, or are dropped there and follow later.
const ACKNOWLEDGED_LATE_MAX: Duration = Duration::from_millis(250);

/// What a user may receive in any second: the rate, a whole burst, and one packet that was begun.
fn peaks(scenario: &Scenario, result: &LoadResult, failures: &mut Vec<String>) -> Result<()> {
    let Some(limit) = &scenario.users.limit else { return Ok(()) };
    let limit = rate(limit).map_err(|what| anyhow!("the limit of users is {limit:?}, {what}"))?;
    let bytes_per_second = limit.bits_per_s() / 8;
    let bytes_max = bytes_per_second + bytes_per_second.max(BURST_BYTES_MIN) + u64::from(scenario.mtu_bytes());
    let late_bytes = (bytes_per_second as f64 * ACKNOWLEDGED_LATE_MAX.as_secs_f64()) as u64;
    for group in &result.groups {
        for (way, flow, bytes_max) in [("up", &group.up, bytes_max + late_bytes), ("down", &group.down, bytes_max)] {
            let peak = flow.user_peak_bits_per_second;
            if peak > bytes_max as f64 * 8.0 {
                failures.push(format!(
                    "{}, {way}: a user received {:.3} Mb in a second, but a limit of {:.3} Mb/s allows {:.3} with its burst",
                    group.name,
                    peak / 1e6,
                    limit.bits_per_s() as f64 / 1e6,
                    bytes_max as f64 * 8.0 / 1e6
                ));
            }
        }
    }
    Ok(())
}

fn memory(scenario: &Scenario, result: &LoadResult, failures: &mut Vec<String>) {
    let Some(bytes_max) = scenario.demand.bytes_per_churned_connection_max else { return };
    match bytes_per_connection(&result.samples) {
        None => failures.push(
            "too few connections came, or too few samples were taken, to tell the growth of the gateway's memory"
                .to_owned(),
        ),
        Some(bytes) if bytes > bytes_max => failures.push(format!(
            "the gateway's memory grew by {bytes:.0} bytes for each connection that came, but at most {bytes_max:.0} are allowed"
        )),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::experiment::{fixture, scenario, traffic};

    fn with(kind: TrafficKind) -> Scenario {
        let mut scenario = scenario("s", 1, Duration::from_secs(1));
        scenario.demand.loss_max = Some(0.0);
        scenario.traffic = vec![traffic(&scenario, "group", 1, kind)];
        scenario
    }

    fn constant() -> Scenario {
        with(TrafficKind::Constant { packets_per_second: 10.0, train_packets: 1 })
    }

    fn sound() -> LoadResult {
        let mut result = fixture::load_result(1e6);
        result.groups[0].up.counts.sent_packets = 1000;
        result.groups[0].down.counts.sent_packets = 1000;
        result
    }

    fn found(scenario: &Scenario, result: &LoadResult) -> Vec<String> {
        failures(scenario, result, &GeneratorCounts::default()).unwrap()
    }

    #[test]
    fn each_wrong_figure_fails_by_itself_and_alone() {
        assert!(found(&constant(), &sound()).is_empty());
        type Harm = fn(&mut LoadResult);
        let cases: [(Harm, &str); 7] = [
            (|result| result.ramp.connected = 0, "0 of 1 connections came up"),
            (|result| result.churn.lost = 3, "3 connections ended although nobody wanted it"),
            (|result| result.down.unaccounted = 2, "down: sent 0, received 0, counted as dropped 0: 2 packets are"),
            (|result| result.groups[0].up.counts.reordered_packets = 4, "load, up: 4 packets were reordered"),
            (|result| result.groups[0].down.counts.duplicated_packets = 5, "load, down: 5 packets were duplicated"),
            (|result| result.groups[0].up.counts.corrupted_packets = 6, "load, up: 6 packets were corrupted"),
            (
                |result| result.groups[0].down.lost_packets = 1,
                "1 of 2000 packets were lost: 0.0500 %, but at most 0.0000 %",
            ),
        ];
        for (harm, expected) in cases {
            let mut result = sound();
            harm(&mut result);
            let found = found(&constant(), &result);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
        let counts = GeneratorCounts { reports_missing: 2, ..GeneratorCounts::default() };
        let found = failures(&constant(), &sound(), &counts).unwrap();
        assert_eq!(found, ["the responder's counts of 2 flows are missing".to_owned()]);
    }

    #[test]
    fn a_user_may_have_rate_burst_and_a_packet_in_a_second_and_no_more() {
        let mut scenario = constant();
        scenario.users.limit = Some("800 kbps".to_owned());
        let mut result = sound();
        // 100,000 of rate, as many of burst, and 1,400. Upwards it may be known a quarter of a second late.
        for (up_bytes, down_bytes, wrong) in
            [(226_400.0, 201_400.0, 0), (226_401.0, 201_400.0, 1), (226_400.0, 201_401.0, 1)]
        {
            result.groups[0].up.user_peak_bits_per_second = up_bytes * 8.0;
            result.groups[0].down.user_peak_bits_per_second = down_bytes * 8.0;
            let found = found(&scenario, &result);
            assert_eq!(found.len(), wrong, "{found:?}");
        }
    }

    #[test]
    fn memory_that_grows_with_each_connection_is_told_from_memory_that_grows_at_first() {
        let growing = |bytes: u64| -> Vec<Sample> {
            let sample = |second: u64| Sample {
                seconds: second as f64,
                handshakes: second * 100,
                // It grows fast in the beginning, whatever comes later.
                gateway_memory_bytes: 50_000_000 + second * 100 * bytes + second.min(4) * 1_000_000,
                ..Sample::default()
            };
            (0..20).map(sample).collect()
        };
        assert_eq!(bytes_per_connection(&growing(0)), Some(0.0));
        assert_eq!(bytes_per_connection(&growing(5)[..4]), None);
        let mut scenario = constant();
        scenario.demand.bytes_per_churned_connection_max = Some(500.0);
        let result = |bytes| LoadResult { samples: growing(bytes), ..sound() };
        let expected =
            "the gateway's memory grew by 1024 bytes for each connection that came, but at most 500 are allowed";
        assert_eq!(found(&scenario, &result(1024)), [expected]);
        assert!(found(&scenario, &result(400)).is_empty());
    }

    #[test]
    fn what_limits_a_load_is_told_apart() {
        let easy = Effort { gateway_share: 0.3, scheduled_packets: 1000, ..Effort::default() };
        let late = Effort { late_packets: 11, ..easy };
        let busy = Effort { gateway_share: 0.95, ..easy };
        let bulk = with(TrafficKind::Bulk { window_bytes: 100_000 });
        let constant = constant();
        for (scenario, effort, lost, expected) in [
            (&constant, easy, 0, LimitedBy::Scenario),
            (&constant, busy, 0, LimitedBy::Scenario),
            (&constant, busy, 5, LimitedBy::Gateway),
            (&constant, Effort { gateway_share: 0.95, ..late }, 0, LimitedBy::Gateway),
            (&constant, late, 0, LimitedBy::Harness),
            (&bulk, busy, 0, LimitedBy::Gateway),
            (&bulk, Effort { thread_share_max: 0.95, ..easy }, 0, LimitedBy::Harness),
            (&bulk, easy, 0, LimitedBy::Window),
        ] {
            assert_eq!(limited_by(scenario, &effort, lost), expected, "{effort:?} {lost}");
        }
    }
}
