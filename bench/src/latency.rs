//! `tollgate-bench latency`: round trips through the tunnel while it is idle, half loaded and saturated.
//!
//! A few connections send requests at an even rate, whatever becomes of them; each round trip is counted from when its request was due, so
//! that a request that has to wait for a stall counts with all its waiting (no coordinated omission). Other connections make the load.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders::ContenderOptions;
use crate::deployment::Contender;
use crate::experiment::{BULK_TRAIN_PACKETS, Experiment, constant, scenario, traffic};
use crate::record::{Output, print};
use crate::results::{Finding, GroupResult, LatencyPoint, LatencyResult, LimitedBy, LoadResult};
use crate::scenario::{Scenario, Sizes, TrafficKind, TrafficPlan};
use crate::units::{bits_per_second, count, nanoseconds};

/// Connections that probe.
const PROBING: u32 = 4;
/// Connections that make the load.
const LOADING: u32 = 8;
/// Length of a probe, and of its answer.
const PROBE_BYTES: u16 = 128;
/// The window of each loading connection, each way: together they fill any queue.
const WINDOW_BYTES: u32 = 262_144;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: ContenderOptions,
    /// How many probes a second, over all connections that probe.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    probes: u32,
    /// For how many seconds each load lasts.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// A second of each load: whether everything works.
    #[arg(long, conflicts_with_all = ["probes", "seconds"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// How much is moved beside the probes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Idle,
    /// So many bits a second, both directions together: half of what the gateway carries that carries least when saturated.
    Half(f64),
    Saturated,
}

/// How a gateway is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    probes_per_second: u32,
    duration: Duration,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that both ends of a load did not agree.
pub fn run(options: &Options) -> Result<()> {
    let Options { probes, seconds, quick, .. } = *options;
    let plan = Plan {
        probes_per_second: if quick { 200 } else { probes },
        duration: Duration::from_secs(if quick { 1 } else { seconds.into() }),
    };
    let gateways = options.gateways.find()?;
    let mut experiment = Experiment::start(&options.output, &gateways)?;
    print(&format!(
        "{} probes a second of {PROBE_BYTES} bytes, {} s for each load\n",
        count(plan.probes_per_second.into()),
        plan.duration.as_secs()
    ))?;
    let mut points = plan.points(&gateways, &mut experiment, Load::Idle)?;
    let saturated = plan.points(&gateways, &mut experiment, Load::Saturated)?;
    // The same for all, so that their round trips can be compared.
    let least = saturated.iter().map(|point| point.carried_bits_per_second).reduce(f64::min);
    let half = Load::Half(least.context("there is no gateway")? / 2.0);
    points.extend(plan.points(&gateways, &mut experiment, half)?);
    points.extend(saturated);
    points.sort_by_key(|point| gateways.iter().position(|gateway| gateway.name == point.gateway));
    let result = LatencyResult { points };
    experiment.finish(&Table(&result).to_string(), Finding::Latency(result))
}

impl Plan {
    /// One of each gateway, in turn.
    fn points(&self, gateways: &[Contender], experiment: &mut Experiment, load: Load) -> Result<Vec<LatencyPoint>> {
        let mut points = Vec::new();
        for gateway in gateways {
            let result = experiment.load(load.name(), &self.scenario(load), gateway)?;
            points.push(point(gateway.name, load, &result).context("no probe was answered")?);
        }
        Ok(points)
    }

    fn scenario(&self, load: Load) -> Scenario {
        let loading = if load == Load::Idle { 0 } else { LOADING };
        let mut scenario = scenario("latency", PROBING + loading, self.duration);
        let requests_per_second = f64::from(self.probes_per_second) / f64::from(PROBING);
        let probe = TrafficKind::Request { requests_per_second, answer_bytes: None };
        let probes = TrafficPlan { sizes: Sizes::fixed(PROBE_BYTES), ..traffic(&scenario, "probes", PROBING, probe) };
        scenario.traffic.push(probes);
        let kind = match load {
            Load::Idle => return scenario,
            Load::Half(bits_per_second) => constant(&scenario, loading, bits_per_second, BULK_TRAIN_PACKETS),
            Load::Saturated => TrafficKind::Bulk { window_bytes: WINDOW_BYTES },
        };
        scenario.traffic.push(traffic(&scenario, "load", loading, kind));
        scenario
    }
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Half(_) => "half",
            Load::Saturated => "saturated",
        }
    }
}

/// Of a load whose first group are the probes; `None` if none was answered.
fn point(gateway: &str, load: Load, result: &LoadResult) -> Option<LatencyPoint> {
    let (probes, others) = result.groups.split_first()?;
    let carried = |group: &GroupResult| group.up.bits_per_second + group.down.bits_per_second;
    Some(LatencyPoint {
        gateway: gateway.to_owned(),
        load: load.name().to_owned(),
        carried_bits_per_second: others.iter().map(carried).sum(),
        round_trip: probes.round_trip.clone().filter(|trips| trips.count > 0)?,
        lost: probes.up.sent_packets.saturating_sub(probes.down.received_packets),
        harness_limited: result.limited_by == LimitedBy::Harness,
    })
}

/// All points, for people.
struct Table<'a>(&'a LatencyResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<15}{:<10}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}{:>9}{:>8}",
            "gateway", "load", "carried", "least", "p50", "p99", "p99.9", "longest", "probes", "lost"
        )?;
        for point in &self.0.points {
            let trips = &point.round_trip;
            let times = [trips.min_ns, trips.p50_ns, trips.p99_ns, trips.p999_ns, trips.max_ns].map(nanoseconds);
            let carried = bits_per_second(point.carried_bits_per_second);
            write!(f, "{:<15}{:<10}{carried:>11}", point.gateway, point.load)?;
            times.iter().try_for_each(|time| write!(f, "{time:>10}"))?;
            writeln!(f, "{:>9}{:>8}", count(trips.count), count(point.lost))?;
        }
        f.write_str(
            "round trips are counted from when each probe was due; carried: the load, both directions together\n",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::fixture::load_result;
    use crate::results::Latencies;

    const PLAN: Plan = Plan { probes_per_second: 1000, duration: Duration::from_secs(10) };

    fn probed(answered: u64) -> LoadResult {
        let mut result = load_result(1e8);
        let mut probes = result.groups[0].clone();
        probes.up.sent_packets = 100;
        probes.down.received_packets = answered;
        probes.round_trip =
            Some(Latencies { count: answered, p50_ns: 150_000, p999_ns: 2_000_000, ..Latencies::default() });
        result.groups.insert(0, probes);
        result
    }

    #[test]
    fn probes_are_the_first_group_and_the_load_is_beside_them() {
        let groups = |load| PLAN.scenario(load).traffic;
        assert_eq!(groups(Load::Idle).len(), 1);
        let kind = TrafficKind::Request { requests_per_second: 250.0, answer_bytes: None };
        assert_eq!((groups(Load::Idle)[0].kind, groups(Load::Idle)[0].connections), (kind, PROBING));
        assert_eq!(groups(Load::Saturated)[1].kind, TrafficKind::Bulk { window_bytes: WINDOW_BYTES });
        let TrafficKind::Constant { packets_per_second, .. } = groups(Load::Half(1e8))[1].kind else { panic!() };
        assert!((packets_per_second * f64::from(LOADING) * 2.0 * 1400.0 * 8.0 - 1e8).abs() < 1.0);
        assert_eq!(PLAN.scenario(Load::Saturated).connections(), PROBING + LOADING);
    }

    #[test]
    fn what_probes_carry_is_no_load_and_unanswered_ones_are_lost() {
        let point = point("tollgate", Load::Half(1.0), &probed(98)).unwrap();
        assert_eq!((point.carried_bits_per_second, point.lost, point.load.as_str()), (2e8, 2, "half"));
        let shown = Table(&LatencyResult { points: vec![point] }).to_string();
        assert!(
            shown.contains("tollgate       half         200 Mb/s      0 ns    150 us      0 ns   2.00 ms"),
            "{shown}"
        );
    }

    #[test]
    fn without_an_answer_there_is_no_point() {
        assert_eq!(point("tollgate", Load::Idle, &probed(0)), None);
    }
}
