//! `latency`: round trips through the tunnel while it is idle, half loaded and saturated.
//!
//! A few connections send requests at an even rate, whatever becomes of them; each round trip is counted from when its request was due, so
//! that a request that has to wait for a stall counts with all its waiting (no coordinated omission). Other connections make the load.

use anyhow::Result;

use crate::load::experiment::{BULK_TRAIN_PACKETS, Cell, Column, Point, Series, whole};
use crate::load::result::{GroupResult, LoadResult};
use crate::load::scenario::{Scenario, Size, TrafficKind, TrafficPlan};
use crate::measure::round_trips::Latencies;
use crate::measure::spread::Spread;
use crate::measure::units::{bits_per_second, count, nanoseconds};

/// Connections that probe, and those that make the load.
const PROBING: u32 = 4;
const LOADING: u32 = 8;
/// Length of a probe, and of its answer.
const PROBE_BYTES: u16 = 128;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// How many probes a second, over all connections that probe.
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(4..=100_000))]
    probes: u32,
}

pub fn run(Options { series, probes }: &Options) -> Result<()> {
    let probes = if series.quick { 200 } else { *probes };
    let mut experiment = series.start(&format!("{} probes a second of {PROBE_BYTES} bytes", count(probes.into())))?;
    let point = |name, loading, load: &dyn Fn(&mut Scenario)| {
        let mut scenario = Scenario::new("latency", PROBING + loading, series.duration(1));
        let (size, rate) = (Size::Fixed(PROBE_BYTES), f64::from(probes) / f64::from(PROBING));
        scenario.traffic =
            vec![TrafficPlan { size, rate, ..TrafficPlan::new("probes", PROBING, TrafficKind::Request) }];
        load(&mut scenario);
        Point::new(name, scenario)
    };
    // Their windows together fill any queue.
    let bulk = |scenario: &mut Scenario| scenario.traffic.push(TrafficPlan::new("load", LOADING, TrafficKind::Bulk));
    let mut results = experiment.loads(&[point("idle", 0, &|_| ()), point("saturated", LOADING, &bulk)])?;
    // Half of what the gateway carries that carries least when saturated: the same for all, so that their round trips can be compared.
    let saturated = results.cells().filter(|cell| cell.point == "saturated");
    let least = saturated.filter_map(|cell| Some(cell.each(carried)?.median)).fold(f64::INFINITY, f64::min);
    let half = |scenario: &mut Scenario| scenario.add_constant("load", LOADING, least / 2.0, BULK_TRAIN_PACKETS);
    results.extend(experiment.loads(&[point("half", LOADING, &half)])?);
    experiment.finish_loads("latency", &results, &columns())
}

/// Inner bits a second, both directions together, probes excluded.
fn carried(result: &LoadResult) -> Option<f64> {
    Some(result.groups[1..].iter().map(GroupResult::bits_per_second).sum())
}

fn columns() -> [Column; 8] {
    let time = |ns: f64| nanoseconds(ns as u64);
    let trips = |cell: &Cell, figure: fn(&Latencies) -> u64| {
        cell.each(|result| result.groups[0].round_trip.as_ref().map(|trips| figure(trips) as f64))
    };
    let lost = |result: &LoadResult| {
        let probes = &result.groups[0];
        probes.up.counts.sent_packets.saturating_sub(probes.down.counts.received_packets)
    };
    [
        Column::new("carried_bits_per_second", "carried", bits_per_second, |cell| cell.each(carried)),
        Column::new("p50_ns", "p50", time, move |cell| trips(cell, |trips| trips.p50_ns)),
        Column::new("p99_ns", "p99", time, move |cell| trips(cell, |trips| trips.p99_ns)),
        Column::new("p999_ns", "p99.9", time, move |cell| trips(cell, |trips| trips.p999_ns)),
        Column::new("max_ns", "longest", time, move |cell| Spread::of([trips(cell, |trips| trips.max_ns)?.max])),
        Column::new("probes", "probes", whole, |cell: &Cell| {
            cell.total(|result| result.groups[0].round_trip.as_ref().map_or(0, |trips| trips.count))
        }),
        Column::batch(),
        // Probes that were not answered.
        Column::new("lost", "lost", whole, move |cell| cell.total(lost)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::{figures, load_result};

    #[test]
    fn probes_are_timed_and_what_is_carried_is_the_load_alone() {
        let mut result = load_result(1e6);
        let mut load = result.groups[0].clone();
        load.up.bits_per_second = 5e6;
        result.groups[0].round_trip = Some(Latencies { count: 90, p50_ns: 7, max_ns: 9, ..Latencies::default() });
        result.groups[0].up.counts.sent_packets = 100;
        result.groups[0].down.counts.received_packets = 90;
        result.groups.push(load);
        let mut silent = result.clone();
        silent.groups[0].round_trip = None;
        let figures = figures(&columns(), vec![vec![result.clone(), result], vec![silent]]);
        assert_eq!([0, 1, 4, 5, 7].map(|at: usize| figures[0][at]), [6e6, 7.0, 9.0, 180.0, 20.0].map(Some));
        assert_eq!(figures[1][1], None);
    }
}
