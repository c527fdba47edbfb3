//! `latency`: round trips through the tunnel while it is idle, half loaded and saturated.
//!
//! A few connections send requests at an even rate, whatever becomes of them; each round trip is counted from when its request was due, so
//! that a request that has to wait for a stall counts with all its waiting (no coordinated omission). Other connections make the load.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::result::{GroupResult, LimitedBy, LoadResult};
use crate::load::scenario::{Scenario, TrafficKind, TrafficPlan};
use crate::load::{BULK_TRAIN_PACKETS, Experiment, constant, scenario, traffic};
use crate::measure::record::{Output, table};
use crate::measure::round_trips::Latencies;
use crate::measure::spread::Spread;
use crate::measure::units::{bits_per_second, count, nanoseconds};
use crate::programs::{Gateway, GatewayOptions};

/// Connections that probe, and those that make the load.
const PROBING: u32 = 4;
const LOADING: u32 = 8;
/// Length of a probe, and of its answer.
const PROBE_BYTES: u16 = 128;
/// The window of each loading connection, each way: together they fill any queue.
const WINDOW_BYTES: u32 = 262_144;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// How many probes a second, over all connections that probe.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    probes: u32,
    /// For how many seconds each load lasts.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many times each gateway is measured under each load.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A second of each load, once: whether everything works.
    #[arg(long, conflicts_with_all = ["probes", "seconds", "rounds"])]
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

/// Round trips of one gateway under one load. Times are medians over the rounds.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    gateway: &'static str,
    load: &'static str,
    /// Inner bits a second carried meanwhile, both directions together, probes excluded.
    carried_bits_per_second: f64,
    p50_ns: Spread,
    p99_ns: Spread,
    p999_ns: Spread,
    max_ns: u64,
    probes: u64,
    /// Probes that were not answered.
    lost: u64,
    /// Whether the harness was at its limit or late, so that round trips may be its own.
    harness_limited: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { probes, seconds, rounds, quick, .. } = *options;
    let (probes, seconds, rounds) = if quick { (200, 1, 1) } else { (probes, seconds, rounds) };
    let gateways = options.gateways.find()?;
    let plan = format!(
        "{} probes a second of {PROBE_BYTES} bytes, {rounds} round(s) of {seconds} s for each load",
        count(probes.into())
    );
    let mut experiment = Experiment::start(&options.output, &gateways, &plan)?;
    let mut points = |load: Load| points(&mut experiment, load, &gateways, probes, seconds, rounds);
    let mut all = points(Load::Idle)?;
    let saturated = points(Load::Saturated)?;
    // The same for all, so that their round trips can be compared.
    let least = saturated.iter().map(|point| point.carried_bits_per_second).fold(f64::INFINITY, f64::min);
    all.extend(points(Load::Half(least / 2.0))?);
    all.extend(saturated);
    all.sort_by_key(|point| gateways.iter().position(|gateway| gateway.name == point.gateway));
    let time = |ns: f64| nanoseconds(ns as u64);
    let rows = all.iter().map(|it| {
        [
            it.gateway.to_owned(),
            it.load.to_owned(),
            bits_per_second(it.carried_bits_per_second),
            it.p50_ns.shown(time),
            it.p99_ns.shown(time),
            it.p999_ns.shown(time),
            nanoseconds(it.max_ns),
            count(it.probes),
            count(it.lost),
        ]
    });
    let heading = ["gateway", "load", "carried", "p50", "p99", "p99.9", "longest", "probes", "lost"];
    experiment.finish("latency", &table(2, &heading, rows), &all)
}

/// One point of each gateway.
fn points(
    experiment: &mut Experiment,
    load: Load,
    gateways: &[Gateway],
    probes: u32,
    seconds: u32,
    rounds: u32,
) -> Result<Vec<Figures>> {
    let scenario = load.scenario(probes, Duration::from_secs(seconds.into()));
    let results = experiment.rounds(load.name(), rounds, &scenario, gateways)?;
    let points = gateways.iter().zip(&results).map(|(gateway, results)| figures(gateway.name, load, results));
    points.collect::<Option<_>>().context("no probe was answered")
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Half(_) => "half",
            Load::Saturated => "saturated",
        }
    }

    fn scenario(self, probes_per_second: u32, duration: Duration) -> Scenario {
        let loading = if self == Load::Idle { 0 } else { LOADING };
        let mut scenario = scenario("latency", PROBING + loading, duration);
        let requests_per_second = f64::from(probes_per_second) / f64::from(PROBING);
        let probe = TrafficKind::Request { requests_per_second, answer_bytes: None };
        let probes = TrafficPlan { sizes: vec![(PROBE_BYTES, 1)], ..traffic(&scenario, "probes", PROBING, probe) };
        scenario.traffic.push(probes);
        let kind = match self {
            Load::Idle => return scenario,
            Load::Half(bits_per_second) => constant(&scenario, loading, bits_per_second, BULK_TRAIN_PACKETS),
            Load::Saturated => TrafficKind::Bulk { window_bytes: WINDOW_BYTES },
        };
        scenario.traffic.push(traffic(&scenario, "load", loading, kind));
        scenario
    }
}

/// Of loads whose first group are the probes; `None` if in one of them none was answered.
fn figures(gateway: &'static str, load: Load, results: &[LoadResult]) -> Option<Figures> {
    let probes = || results.iter().map(|result| &result.groups[0]);
    let trips: Vec<&Latencies> = probes().map(|probes| probes.round_trip.as_ref()).collect::<Option<_>>()?;
    let spread = |figure: fn(&Latencies) -> u64| Spread::of(trips.iter().map(|trips| figure(trips) as f64));
    let carried = results.iter().map(|result| result.groups[1..].iter().map(GroupResult::bits_per_second).sum());
    let lost = |group: &GroupResult| group.up.counts.sent_packets.saturating_sub(group.down.counts.received_packets);
    Some(Figures {
        gateway,
        load: load.name(),
        carried_bits_per_second: Spread::of(carried)?.median,
        p50_ns: spread(|trips| trips.p50_ns)?,
        p99_ns: spread(|trips| trips.p99_ns)?,
        p999_ns: spread(|trips| trips.p999_ns)?,
        max_ns: trips.iter().map(|trips| trips.max_ns).max()?,
        probes: trips.iter().map(|trips| trips.count).sum(),
        lost: probes().map(lost).sum(),
        harness_limited: results.iter().any(|result| result.limited_by == LimitedBy::Harness),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::load_result;

    #[test]
    fn probes_are_timed_and_what_is_carried_is_the_load_alone() {
        let mut result = load_result(1e6);
        let mut load = result.groups[0].clone();
        load.up.bits_per_second = 5e6;
        result.groups[0].round_trip = Some(Latencies { count: 90, p50_ns: 7, max_ns: 9, ..Latencies::default() });
        result.groups[0].up.counts.sent_packets = 100;
        result.groups[0].down.counts.received_packets = 90;
        result.groups.push(load);
        let figures = figures("x", Load::Saturated, &[result.clone(), result.clone()]).unwrap();
        assert_eq!((figures.carried_bits_per_second, figures.probes, figures.lost, figures.max_ns), (6e6, 180, 20, 9));
        result.groups[0].round_trip = None;
        assert_eq!(super::figures("x", Load::Idle, &[result]), None);
        let half = Load::Half(8e6).scenario(1000, Duration::from_secs(1));
        assert_eq!((half.connections(), half.traffic.len()), (12, 2));
    }
}
