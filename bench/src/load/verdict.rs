//! What a load amounts to: what kept the traffic from being more, and every figure that is not as the scenario demands.

use anyhow::{Result, anyhow};
use tollgate_config::rate;

use super::result::{Account, GroupResult, LimitedBy, LoadResult, Sample};
use super::scenario::{Scenario, TrafficKind};
use super::sink::FlowCounts;
use crate::measure::spread::slope;

/// A gateway or a thread that used this share of its CPUs had none left.
const BUSY_SHARE: f64 = 0.9;
/// Of packets with a schedule, so many may be late before the harness is to blame.
const LATE_SHARE_MAX: f64 = 0.01;
/// The smallest burst of a limited user, in bytes.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// The first part of the samples, in which a gateway's memory still finds its size.
const WARM_UP_SHARE: f64 = 0.25;
/// So many connections must have come, in so many samples, for growth with each to be told from the noise of the allocator.
const CHURNED_MIN: u64 = 4_000;
const SLOPE_SAMPLES_MIN: usize = 5;

/// What kept the traffic from being more.
pub fn limited_by(scenario: &Scenario, result: &LoadResult) -> LimitedBy {
    let has_bulk = scenario.traffic.iter().any(|plan| plan.kind == TrafficKind::Bulk);
    let is_late = result.late_share > LATE_SHARE_MAX;
    if !has_bulk && !is_late && result.lost_packets() == 0 {
        LimitedBy::Scenario
    } else if result.gateway_usage.cpu_share >= BUSY_SHARE {
        LimitedBy::Gateway
    } else if is_late || result.busiest_thread_share > BUSY_SHARE {
        LimitedBy::Harness
    } else {
        LimitedBy::Window
    }
}

/// How a figure of the gateway grew from the end of the warm-up to the last sample.
fn growth(samples: &[Sample], figure: fn(&Sample) -> u64) -> u64 {
    let warm = warm(samples);
    warm.first().zip(warm.last()).map_or(0, |(first, last)| figure(last).saturating_sub(figure(first)))
}

fn warm(samples: &[Sample]) -> &[Sample] {
    let end = samples.last().map_or(0.0, |sample| sample.seconds);
    let cold = samples.iter().take_while(|sample| sample.seconds < WARM_UP_SHARE * end).count();
    &samples[cold..]
}

/// How much a gateway's memory grew for each connection that came while traffic ran, in bytes: the slope of the samples after the warm-up,
/// by least squares. `None` where too few connections came, or too few samples were taken, to tell.
pub fn bytes_per_connection(samples: &[Sample]) -> Option<f64> {
    let point = |sample: &Sample| (sample.handshakes as f64, sample.gateway_memory_bytes as f64);
    let points: Vec<(f64, f64)> = warm(samples).iter().map(point).collect();
    let is_enough = growth(samples, |sample| sample.handshakes) >= CHURNED_MIN && points.len() >= SLOPE_SAMPLES_MIN;
    is_enough.then(|| slope(&points)).flatten()
}

/// Every figure of `result` that is not as `scenario` demands, in words.
pub fn failures(scenario: &Scenario, result: &LoadResult) -> Result<Vec<String>> {
    let LoadResult { ramp, clients, groups, samples, .. } = result;
    let (demand, shards) = (&scenario.demand, result.shards.unwrap_or_default());
    let ways = [("up", &result.up), ("down", &result.down)];
    let mut failures = Vec::new();
    let mut require = |is_right: bool, failure: String| failures.extend((!is_right).then_some(failure));
    if demand.all_connected {
        let (is_up, failed, lost) = (ramp.connected == ramp.wanted, clients.failed, clients.lost);
        require(is_up, format!("{} of {} connections came up", ramp.connected, ramp.wanted));
        require(!is_up || failed == 0, format!("{failed} clients could not connect again"));
        require(lost == 0, format!("{lost} connections ended although nobody wanted it"));
    }
    for (way, Account { sent, received, drops, unaccounted, .. }) in ways {
        let dropped: u64 = drops.values().sum();
        let counts = format!("sent {sent}, received {received}, counted as dropped {dropped}");
        require(*unaccounted == 0, format!("{way}: {counts}: {unaccounted} packets are unaccounted for"));
    }
    for (group, (way, flow)) in groups.iter().flat_map(|group| group.ways().map(|way| (&group.name, way))) {
        let FlowCounts { reordered_packets, duplicated_packets, corrupted_packets, .. } = flow.counts;
        let damaged = [reordered_packets, duplicated_packets, corrupted_packets];
        for (packets, what) in damaged.into_iter().zip(["reordered", "duplicated", "corrupted"]) {
            require(packets == 0, format!("{group}, {way}: {packets} packets were {what}"));
        }
    }
    if let Some(loss_max) = scenario.loss_max() {
        let sent = groups.iter().flat_map(GroupResult::ways).map(|(_, flow)| flow.counts.sent_packets).sum::<u64>();
        let lost = result.lost_packets();
        let (share, max) = (100.0 * lost as f64 / sent as f64, 100.0 * loss_max);
        let shares = format!("{share:.4} %, but at most {max:.4} % may be");
        require(lost as f64 <= loss_max * sent as f64, format!("{lost} of {sent} packets were lost: {shares}"));
    }
    if let Some(limit) = &scenario.users.limit {
        let limit = rate(limit).map_err(|what| anyhow!("the limit of users is {limit:?}, {what}"))?.bits_per_s();
        // What a user may receive in any second: the rate, a whole burst, and one packet that was begun.
        let burst_bytes = (limit / 8).max(BURST_BYTES_MIN) + u64::from(scenario.mtu_bytes());
        let max = limit as f64 + burst_bytes as f64 * 8.0;
        for (way, account) in ways {
            let peak = account.user_peak_bits_per_second;
            let [received, limit, allowed] = [peak, limit as f64, max].map(|bits| bits / 1e6);
            let bound = format!("a limit of {limit:.3} Mb/s allows {allowed:.3} with its burst");
            require(peak <= max, format!("{way}: a user received {received:.3} Mb in a second, but {bound}"));
        }
    }
    if let Some(max) = demand.bytes_per_churned_connection_max {
        let failure = match bytes_per_connection(samples) {
            Some(bytes) if bytes <= max => None,
            Some(bytes) => Some(format!(
                "grew by {bytes:.0} bytes for each connection that came, but at most {max:.0} are allowed"
            )),
            None => Some("cannot be judged: too few connections came, or too few samples were taken".to_owned()),
        };
        require(failure.is_none(), format!("the gateway's memory {}", failure.unwrap_or_default()));
    }
    if let Some(max) = demand.descriptors_growth_max {
        let grown = growth(samples, |sample| sample.gateway_descriptors);
        require(
            grown <= max,
            format!("{grown} descriptors more are open than after the warm-up, but at most {max} may be"),
        );
    }
    for (held, what) in [(shards.addresses_held, "addresses"), (shards.sessions, "sessions")] {
        let connections = shards.connections;
        require(held <= connections, format!("{held} {what} are held, but there are {connections} connections"));
    }
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::experiment::fixture::load_result;
    use crate::load::scenario::TrafficPlan;

    fn with(kind: TrafficKind) -> Scenario {
        let mut scenario = Scenario::new("s", 1, Duration::from_secs(1));
        scenario.demand.loss_max = Some(0.0);
        scenario.traffic = vec![TrafficPlan::new("group", 1, kind)];
        scenario
    }

    fn sound() -> LoadResult {
        let mut result = load_result(1e6);
        result.groups[0].up.counts.sent_packets = 1000;
        result.groups[0].down.counts.sent_packets = 1000;
        result
    }

    fn found(scenario: &Scenario, result: &LoadResult) -> Vec<String> {
        failures(scenario, result).unwrap()
    }

    #[test]
    fn each_wrong_figure_fails_by_itself_and_alone() {
        let scenario = with(TrafficKind::Constant);
        assert!(found(&scenario, &sound()).is_empty());
        type Harm = fn(&mut LoadResult);
        let cases: [(Harm, &str); 8] = [
            (|result| result.ramp.connected = 0, "0 of 1 connections came up"),
            (|result| result.clients.lost = 3, "3 connections ended although nobody wanted it"),
            (
                |result| result.shards.iter_mut().for_each(|shards| shards.sessions = 3),
                "3 sessions are held, but there are 0 connections",
            ),
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
            let found = found(&scenario, &result);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        }
    }

    #[test]
    fn a_user_may_have_rate_burst_and_a_packet_in_a_second_and_no_more() {
        let mut scenario = with(TrafficKind::Constant);
        scenario.users.limit = Some("800 kbps".to_owned());
        // 100,000 of rate, as many of burst, and 1,400.
        for (bytes, wrong) in [(201_400.0, 0), (201_401.0, 1)] {
            let mut result = sound();
            result.up.user_peak_bits_per_second = bytes * 8.0;
            let found = found(&scenario, &result);
            assert_eq!(found.len(), wrong, "{found:?}");
        }
    }

    #[test]
    fn what_grows_with_each_connection_is_told_from_what_grows_at_first() {
        let growing = |bytes: u64, descriptors: u64| -> Vec<Sample> {
            let sample = |second: u64| Sample {
                seconds: second as f64,
                handshakes: second * 1000,
                // Memory grows fast in the beginning, whatever comes later.
                gateway_memory_bytes: 50_000_000 + second * 1000 * bytes + second.min(4) * 1_000_000,
                gateway_descriptors: 20 + second * descriptors,
                ..Sample::default()
            };
            (0..20).map(sample).collect()
        };
        let slow: Vec<Sample> =
            growing(5, 0).into_iter().map(|sample| Sample { handshakes: sample.handshakes / 10, ..sample }).collect();
        let slopes = [&growing(0, 0)[..], &growing(5, 0)[..4], &slow].map(bytes_per_connection);
        assert_eq!(slopes, [Some(0.0), None, None]);
        let mut scenario = with(TrafficKind::Constant);
        scenario.demand.bytes_per_churned_connection_max = Some(500.0);
        scenario.demand.descriptors_growth_max = Some(8);
        let found = |samples| found(&scenario, &LoadResult { samples, ..sound() });
        assert!(found(growing(1024, 0))[0].starts_with("the gateway's memory grew by 1024 bytes for each connection"));
        assert!(found(growing(0, 1))[0].starts_with("14 descriptors more are open than after the warm-up"));
        assert!(found(growing(400, 0)).is_empty());
    }

    #[test]
    fn what_limits_a_load_is_told_apart() {
        let (bulk, constant) = (with(TrafficKind::Bulk), with(TrafficKind::Constant));
        for (scenario, [gateway, thread, late], lost, expected) in [
            (&constant, [0.3, 0.3, 0.0], 0, LimitedBy::Scenario),
            (&constant, [0.95, 0.3, 0.0], 0, LimitedBy::Scenario),
            (&constant, [0.95, 0.3, 0.0], 5, LimitedBy::Gateway),
            (&constant, [0.95, 0.3, 0.011], 0, LimitedBy::Gateway),
            (&constant, [0.3, 0.3, 0.011], 0, LimitedBy::Harness),
            (&bulk, [0.95, 0.3, 0.0], 0, LimitedBy::Gateway),
            (&bulk, [0.3, 0.95, 0.0], 0, LimitedBy::Harness),
            (&bulk, [0.3, 0.3, 0.0], 0, LimitedBy::Window),
        ] {
            let mut result = LoadResult { busiest_thread_share: thread, late_share: late, ..sound() };
            result.gateway_usage.cpu_share = gateway;
            result.groups[0].up.lost_packets = lost;
            assert_eq!(limited_by(scenario, &result), expected, "{gateway} {thread} {late} {lost}");
        }
    }
}
