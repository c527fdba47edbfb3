//! The result as a table for people. This module measures nothing.

use std::fmt::{self, Display, Formatter};

use crate::results::{ShapingPoint, ShapingResult, Spread};
use crate::units::{bits_per_second, count, nanoseconds, percent};

/// What a limited user's ping is to be at most, 99 % of the time, while bulk runs.
const P99_NS_MAX: u64 = 50_000_000;
/// The same, where bulk can be told to slow down without a loss.
const P99_ECN_NS_MAX: u64 = 10_000_000;

/// Displays all points, and how each of ours compares.
pub(super) struct Table<'a>(pub(super) &'a ShapingResult);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<13}{:<15}{:>9}{:>9}{:>9}{:>20}{:>8}{:>10}{:>9}{:>9}{:>8}{:>9}{:>8}",
            "bulk",
            "gateway",
            "p50",
            "p99",
            "p99.9",
            "p99 of each pair",
            "lost",
            "carried",
            "of limit",
            "passed",
            "CE",
            "dropped",
            "resent"
        )?;
        let mut last = String::new();
        for point in &self.0.points_by_kind() {
            let kind = point.kind();
            writeln!(f, "{:<13}{}", if kind == last { "" } else { &kind }, self.line(point))?;
            last = kind;
        }
        f.write_str(
            "ping round trips beside bulk; carried, of limit: TCP payload, whose share is at most 96 % with headers; passed: inner packets as the \
             gateway counts them;\nCE: packets that arrived marked; dropped: by the gateway; resent: TCP segments; sums over all pairs\n\n",
        )?;
        self.0.points.iter().filter_map(|ours| self.verdict(ours)).try_for_each(|line| f.write_str(&line))
    }
}

impl ShapingResult {
    /// All points, those of the same bulk traffic together.
    fn points_by_kind(&self) -> Vec<&ShapingPoint> {
        let mut points: Vec<&ShapingPoint> = self.points.iter().collect();
        points.sort_by_key(|point| self.points.iter().position(|other| other.kind() == point.kind()));
        points
    }
}

impl Table<'_> {
    fn line(&self, point: &ShapingPoint) -> String {
        let limit = self.0.limit_bits_per_second;
        let trips = &point.round_trip;
        let [p50, p99, p999] = [trips.p50_ns, trips.p99_ns, trips.p999_ns].map(nanoseconds);
        let range = |spread: Option<Spread>| {
            spread.map_or_else(String::new, |it| {
                format!("{} - {}", nanoseconds(it.min as u64), nanoseconds(it.max as u64))
            })
        };
        let each = range(point.spread(|run| run.p99_ns as f64));
        let median = |spread: Option<Spread>| spread.map_or(0.0, |spread| spread.median);
        let bulk = median(point.spread(|run| run.bulk_bits_per_second));
        let has_counters = point.runs.iter().all(|run| run.inner_bits_per_second.is_some());
        let passed = median(point.spread(|run| run.inner_bits_per_second.unwrap_or(0.0)));
        let passed = if has_counters { percent(passed / limit) } else { "-".to_owned() };
        let dropped = point.gateway_dropped().map_or("-".to_owned(), count);
        format!(
            "{:<15}{p50:>9}{p99:>9}{p999:>9}{each:>20}{:>8}{:>10}{:>9}{passed:>9}{:>8}{dropped:>9}{:>8}",
            point.gateway,
            count(point.sum(|run| run.lost_pings)),
            bits_per_second(bulk),
            percent(bulk / limit),
            count(point.sum(|run| run.ce_marks)),
            count(point.sum(|run| run.resent_segments)),
        )
    }

    /// How the first gateway stands under one kind of bulk traffic, beside what is asked of it and beside the others.
    fn verdict(&self, ours: &ShapingPoint) -> Option<String> {
        if ours.gateway != self.0.points.first()?.gateway {
            return None;
        }
        let max_ns = if ours.ecn { P99_ECN_NS_MAX } else { P99_NS_MAX };
        let p99_ns = ours.round_trip.p99_ns;
        let verb = if p99_ns < max_ns { "is" } else { "is NOT" };
        let others = self.0.points.iter().filter(|other| other.kind() == ours.kind() && other.gateway != ours.gateway);
        let compared: String = others.filter_map(|other| ratio(ours, other)).collect();
        Some(format!(
            "{:<14}p99 of {} {verb} under {}: {}{compared}\n",
            format!("{}:", ours.kind()),
            ours.gateway,
            nanoseconds(max_ns),
            nanoseconds(p99_ns),
        ))
    }
}

/// The ratio of both gateways' p99, pair by pair.
fn ratio(ours: &ShapingPoint, other: &ShapingPoint) -> Option<String> {
    let ratios = ours.runs.iter().zip(&other.runs).map(|(ours, other)| ours.p99_ns as f64 / other.p99_ns.max(1) as f64);
    let Spread { median, min, max } = Spread::of(ratios)?;
    let number = ours.runs.len();
    let pairs = if number == 1 { "pair" } else { "pairs" };
    Some(format!(", {median:.3} times that of {} ({min:.3} to {max:.3} over {number} {pairs})", other.gateway))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Direction, Latencies, ShapingRun};

    fn point(gateway: &str, ecn: bool, p99_ms: &[u64], has_counters: bool) -> ShapingPoint {
        let run = |ms: &u64| ShapingRun {
            p99_ns: ms * 1_000_000,
            pings: 1000,
            lost_pings: 1,
            bulk_bits_per_second: 1.9e7,
            inner_bits_per_second: has_counters.then_some(2e7),
            ce_marks: 10,
            resent_segments: 3,
            gateway_drops: has_counters.then(|| [("over_limit".to_owned(), 4), ("too_big".to_owned(), 1)].into()),
            tun_queue_drops: 0,
            corrupt_at_byte: None,
        };
        let p99_ns = p99_ms.iter().max().unwrap() * 1_000_000;
        let round_trip =
            Latencies { count: 2000, p50_ns: 1_000_000, p99_ns, p999_ns: p99_ns * 2, ..Latencies::default() };
        let (gateway, runs) = (gateway.to_owned(), p99_ms.iter().map(run).collect());
        ShapingPoint { gateway, direction: Direction::Down, ecn, round_trip, runs }
    }

    fn shown(points: Vec<ShapingPoint>) -> String {
        let result = ShapingResult {
            limit_bits_per_second: 2e7,
            congestion_control: "reno".to_owned(),
            ping_interval_seconds: 0.01,
            seconds: 10,
            client: "c".to_owned(),
            points,
        };
        Table(&result).to_string()
    }

    #[test]
    fn gateways_under_the_same_bulk_traffic_stand_together_and_are_compared_pair_by_pair() {
        let shown = shown(vec![
            point("tollgate", false, &[20, 40], true),
            point("tollgate", true, &[5, 8], true),
            point("quincy-server", false, &[200, 200], false),
        ]);
        let expected = "
bulk         gateway              p50      p99    p99.9    p99 of each pair    lost   carried of limit   passed      CE  dropped  resent
down, no ECN tollgate         1.00 ms  40.0 ms  80.0 ms   20.0 ms - 40.0 ms       2 19.0 Mb/s     95 %    100 %      20       10       6
             quincy-server    1.00 ms   200 ms   400 ms     200 ms - 200 ms       2 19.0 Mb/s     95 %        -      20        -       6
down, ECN    tollgate         1.00 ms  8.00 ms  16.0 ms   5.00 ms - 8.00 ms       2 19.0 Mb/s     95 %    100 %      20       10       6
";
        assert!(format!("\n{shown}").starts_with(expected), "{shown}");
        let verdicts = "
down, no ECN: p99 of tollgate is under 50.0 ms: 40.0 ms, 0.150 times that of quincy-server (0.100 to 0.200 over 2 pairs)
down, ECN:    p99 of tollgate is under 10.0 ms: 8.00 ms
";
        assert!(shown.ends_with(verdicts), "{shown}");
    }

    #[test]
    fn what_is_not_as_it_is_to_be_is_told() {
        let shown = shown(vec![point("tollgate", true, &[11], true)]);
        assert!(shown.contains("p99 of tollgate is NOT under 10.0 ms: 11.0 ms\n"), "{shown}");
    }
}
