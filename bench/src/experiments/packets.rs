//! `packets`: what a gateway's CPU costs for each inner packet where no sender has put packets together.
//!
//! Bulk traffic reaches a TUN device in super-packets of up to 64 KiB; calls, games, tunnels within the tunnel and much of QUIC do not. Every
//! packet of this traffic is sent when it is due, at an even rate that every gateway keeps up with, so that all do the same work.

use std::time::Duration;

use anyhow::Result;

use crate::load::experiment::{Column, Point, Series, two_digits, whole};
use crate::load::result::LoadResult;
use crate::load::scenario::{Direction, Scenario, Size, SizeName, TrafficKind, TrafficPlan};
use crate::measure::spread::Spread;
use crate::measure::units::count;

/// A voice call's packet, and a full one as of a QUIC connection within the tunnel.
const SMALL: Size = Size::Fixed(100);
const FULL: Size = Size::Fixed(1300);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// Inner packets offered each second, both directions together.
    #[arg(long, value_name = "N", default_value_t = 48_000, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rate: u32,
}

pub fn run(Options { series, rate }: &Options) -> Result<()> {
    let rate = if series.quick { 2_000 } else { *rate };
    let mut experiment = series.start(&format!("{} packets a second, each sent by itself", count(rate.into())))?;
    let results = experiment.loads(&points(rate, series.duration(1)))?;
    experiment.finish_loads("packets", &results, &columns())
}

fn points(rate: u32, duration: Duration) -> Vec<Point> {
    let kinds = [
        ("1300 B, one flow up", 1, 1, Direction::Up, FULL),
        ("1300 B, one flow down", 1, 1, Direction::Down, FULL),
        ("100 B, one flow up", 1, 1, Direction::Up, SMALL),
        ("100 B, one flow down", 1, 1, Direction::Down, SMALL),
        ("100 B, 64 flows both ways", 8, 8, Direction::Both, SMALL),
        ("IMIX, 64 flows both ways", 8, 8, Direction::Both, Size::Named(SizeName::Imix)),
    ];
    let point = |(name, connections, flows, direction, size)| {
        let mut scenario = Scenario::new("packets", connections, duration);
        let directions = if direction == Direction::Both { 2.0 } else { 1.0 };
        let rate = f64::from(rate) / (f64::from(connections) * f64::from(flows) * directions);
        let plan = TrafficPlan::new("packets", connections, TrafficKind::Constant);
        scenario.traffic = vec![TrafficPlan { flows, direction, size, rate, ..plan }];
        Point::new(name, scenario)
    };
    kinds.into_iter().map(point).collect()
}

fn columns() -> [Column; 7] {
    let rate = |result: &LoadResult| Some(result.received_packets() as f64 / result.seconds);
    let cost = |result: &LoadResult| Some(result.gateway_usage.cpu_seconds * 1e9 / result.received_packets() as f64);
    [
        Column::new("cpu_ns_per_packet", "ns a packet", whole, move |cell| cell.each(cost)),
        Column::new("packets_per_cpu_second", "packets/CPU second", whole, move |cell| {
            Spread::of([1e9 / cell.each(cost)?.median])
        }),
        // How many times as many ours passes with as much CPU time, in the same round.
        Column::new("ours_to_this", "ours", two_digits, move |cell| cell.ratio(cell.ours, cost)),
        Column::batch(),
        Column::busy(),
        Column::new("packets_per_second", "a second", whole, move |cell| cell.each(rate)),
        Column::lost(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::{figures, load_result};

    #[test]
    fn every_kind_offers_the_whole_rate_and_its_cost_is_for_each_packet() {
        for point in points(48_000, Duration::from_secs(1)) {
            let plan = &point.scenario.traffic[0];
            let directions = if plan.direction == Direction::Both { 2.0 } else { 1.0 };
            let offered = plan.rate * f64::from(plan.connections * u32::from(plan.flows)) * directions;
            assert_eq!((offered.round(), plan.train), (48_000.0, 1), "{}", point.name);
        }
        // 8 Mb/s both ways are 2,000 packets of 1,000 bytes a second, and half a second of CPU time.
        let figures = figures(&columns(), vec![vec![load_result(8e6)], vec![load_result(0.0)]]);
        assert_eq!(figures[0][..3], [Some(250_000.0), Some(4_000.0), Some(1.0)]);
        assert_eq!(figures[1][..3], [None; 3]);
    }
}
