//! `tollgate-bench packets`: what a gateway's CPU costs for each inner packet where no sender has put packets together.
//!
//! Bulk traffic reaches a TUN device in super-packets of up to 64 KiB; calls, games, tunnels within the tunnel and much of QUIC do not. Every
//! packet of this traffic is sent by itself, at an even rate that every gateway keeps up with, so that all do the same work.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders::ContenderOptions;
use crate::experiment::{Experiment, scenario, traffic};
use crate::load::sizes::SizeCycle;
use crate::record::{Output, print};
use crate::results::{Direction, Finding, LimitedBy, LoadResult, PacketsFigures, PacketsPoint, PacketsResult, Spread};
use crate::scenario::{Scenario, Sizes, TrafficKind, TrafficPlan};
use crate::units::count;

/// A small packet's length: a voice call's.
const SMALL_BYTES: u16 = 100;
/// A full packet's length, as of a QUIC connection within the tunnel.
const FULL_BYTES: u16 = 1300;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: ContenderOptions,
    /// Inner packets offered each second, both directions together.
    #[arg(long, value_name = "N", default_value_t = 48_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rate: u32,
    /// For how many seconds each kind of traffic runs in each round.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many times each gateway is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Few packets, a second each, once: whether everything works.
    #[arg(long, conflicts_with_all = ["rate", "seconds", "rounds"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// A kind of traffic.
#[derive(Debug, Clone, PartialEq)]
struct Kind {
    name: &'static str,
    connections: u32,
    /// Flows of each connection.
    flows: u16,
    direction: Direction,
    sizes: Sizes,
}

/// How each kind is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Plan {
    packets_per_second: f64,
    duration: Duration,
    rounds: u32,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that both ends of a load did not agree.
pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let gateways = options.gateways.find()?;
    let mut experiment = Experiment::start(&options.output, &gateways)?;
    print(&format!(
        "{} packets a second, each sent by itself, {} round(s) of {} s\n",
        count(plan.packets_per_second as u64),
        plan.rounds,
        plan.duration.as_secs()
    ))?;
    let mut points = Vec::new();
    for kind in kinds() {
        // For each round, each gateway's result.
        let mut rounds: Vec<Vec<LoadResult>> = Vec::new();
        for round in 1..=plan.rounds {
            let place = format!("{}, round {round} of {}", kind.name, plan.rounds);
            let scenario = plan.scenario(&kind);
            let results = gateways.iter().map(|gateway| experiment.load(&place, &scenario, gateway));
            rounds.push(results.collect::<Result<_>>()?);
        }
        let names: Vec<&str> = gateways.iter().map(|gateway| gateway.name).collect();
        points.push(plan.point(&kind, &names, &rounds).with_context(|| format!("{}: nothing arrived", kind.name))?);
    }
    let result = PacketsResult { points };
    experiment.finish(&Table(&result).to_string(), Finding::Packets(result))
}

/// All kinds, in the table's order.
fn kinds() -> Vec<Kind> {
    let kind = |name, connections, flows, direction, sizes| Kind { name, connections, flows, direction, sizes };
    let (small, full) = (Sizes::fixed(SMALL_BYTES), Sizes::fixed(FULL_BYTES));
    let imix = Sizes::imix(Scenario::default().mtu_bytes());
    vec![
        kind("1300 B, one flow up", 1, 1, Direction::Up, full.clone()),
        kind("1300 B, one flow down", 1, 1, Direction::Down, full),
        kind("100 B, one flow up", 1, 1, Direction::Up, small.clone()),
        kind("100 B, one flow down", 1, 1, Direction::Down, small.clone()),
        kind("100 B, 64 flows both ways", 8, 8, Direction::Both, small),
        kind("IMIX, 64 flows both ways", 8, 8, Direction::Both, imix),
    ]
}

/// The names of all kinds of traffic, in the table's order.
pub fn names() -> Vec<&'static str> {
    kinds().iter().map(|kind| kind.name).collect()
}

impl Kind {
    fn mean_bytes(&self) -> Option<f64> {
        SizeCycle::new(&self.sizes.0).ok().map(|cycle| cycle.mean())
    }

    /// One-way flows in all.
    fn one_way_flows(&self) -> f64 {
        let directions = if self.direction == Direction::Both { 2.0 } else { 1.0 };
        f64::from(self.connections) * f64::from(self.flows) * directions
    }
}

impl Plan {
    fn of(options: &Options) -> Self {
        let Options { rate, seconds, rounds, quick, .. } = *options;
        let (rate, seconds, rounds) = if quick { (2_000, 1, 1) } else { (rate, seconds, rounds) };
        Plan { packets_per_second: rate.into(), duration: Duration::from_secs(seconds.into()), rounds }
    }

    fn scenario(&self, kind: &Kind) -> Scenario {
        let mut scenario = scenario("packets", kind.connections, self.duration);
        let even = TrafficKind::Constant {
            packets_per_second: self.packets_per_second / kind.one_way_flows(),
            // No sender of these leaves segmentation to its kernel: each packet comes alone.
            train_packets: 1,
        };
        scenario.traffic = vec![TrafficPlan {
            flows: kind.flows,
            direction: kind.direction,
            sizes: kind.sizes.clone(),
            ..traffic(&scenario, "packets", kind.connections, even)
        }];
        scenario
    }

    /// Of `rounds`, each with a result of each gateway; `None` if in one of them nothing arrived.
    fn point(&self, kind: &Kind, names: &[&str], rounds: &[Vec<LoadResult>]) -> Option<PacketsPoint> {
        let packets_per_second = |at: usize| -> Option<Vec<f64>> {
            let rate =
                |round: &Vec<LoadResult>| Some(round.get(at)?.carried_bits_per_second() / 8.0 / kind.mean_bytes()?);
            rounds.iter().map(rate).collect()
        };
        let per_cpu_second = |at: usize| -> Option<Vec<f64>> {
            let cpu_share = |round: &Vec<LoadResult>| {
                let result = round.get(at)?;
                Some(result.gateway_usage?.cpu_seconds / result.seconds)
            };
            let rates = packets_per_second(at)?.into_iter().zip(rounds);
            rates.map(|(rate, round)| Some(rate / cpu_share(round)?).filter(|rate| rate.is_normal())).collect()
        };
        let ours = per_cpu_second(0)?;
        let figures = |(at, name): (usize, &&str)| {
            let per_cpu_second = per_cpu_second(at)?;
            let results = || rounds.iter().filter_map(move |round| round.get(at));
            let lost = results().flat_map(|result| &result.groups).map(|it| it.up.lost_packets + it.down.lost_packets);
            Some(PacketsFigures {
                name: (*name).to_owned(),
                ours_to_this: Spread::of(ours.iter().zip(&per_cpu_second).map(|(ours, this)| ours / this))?,
                packets_per_cpu_second: Spread::of(per_cpu_second)?,
                packets_per_second: Spread::of(packets_per_second(at)?)?,
                lost_packets: lost.sum(),
                harness_limited: results().any(|result| result.limited_by == LimitedBy::Harness),
            })
        };
        Some(PacketsPoint {
            traffic: kind.name.to_owned(),
            offered_packets_per_second: self.packets_per_second,
            gateways: names.iter().enumerate().map(figures).collect::<Option<_>>()?,
        })
    }
}

/// All kinds of traffic, for people.
struct Table<'a>(&'a PacketsResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<27}{:<15}{:>12}{:>19}{:>19}{:>9}{:>15}{:>11}{:>9}",
            "traffic",
            "gateway",
            "ns a packet",
            "min - max",
            "packets/CPU second",
            "ours",
            "min - max",
            "a second",
            "lost"
        )?;
        for point in &self.0.points {
            for gateway in &point.gateways {
                line(f, &point.traffic, gateway)?;
            }
        }
        f.write_str("ns a packet: CPU time of the gateway for each packet that arrived; ours: how many times as many ours passes for it\n")
    }
}

fn line(f: &mut fmt::Formatter<'_>, traffic: &str, gateway: &PacketsFigures) -> fmt::Result {
    let cost = gateway.cpu_ns_per_packet();
    let whole = |figure: f64| count(figure.round() as u64);
    let Spread { median, min, max } = gateway.ours_to_this;
    writeln!(
        f,
        "{traffic:<27}{:<15}{:>12}{:>19}{:>19}{median:>9.2}{:>15}{:>11}{:>9}",
        gateway.name,
        whole(cost.median),
        format!("{} - {}", whole(cost.min), whole(cost.max)),
        whole(gateway.packets_per_cpu_second.median),
        format!("{min:.2} - {max:.2}"),
        whole(gateway.packets_per_second.median),
        count(gateway.lost_packets)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::fixture::load_result;

    const PLAN: Plan = Plan { packets_per_second: 48_000.0, duration: Duration::from_secs(4), rounds: 2 };

    #[test]
    fn every_kind_offers_as_many_packets() {
        for kind in kinds() {
            let scenario = PLAN.scenario(&kind);
            let TrafficPlan { connections, flows, kind: timing, direction, .. } = &scenario.traffic[0];
            let TrafficKind::Constant { packets_per_second, train_packets: 1 } = timing else { panic!() };
            let ways = if *direction == Direction::Both { 2.0 } else { 1.0 };
            let offered = packets_per_second * f64::from(*connections) * f64::from(*flows) * ways;
            assert!((offered - 48_000.0).abs() < 1e-6, "{}: {offered}", kind.name);
            assert!(kind.mean_bytes().is_some() && scenario.connections() == *connections, "{}", kind.name);
        }
    }

    #[test]
    fn a_gateway_is_held_against_ours_of_the_same_round() {
        let kind = &kinds()[0];
        // 104 Mb/s each way are 10,000 packets of 1300 bytes; 5 CPU seconds in 10 s. The second round is twice as slow for both.
        let costing = |factor: f64| {
            let mut result = load_result(1.04e8);
            result.gateway_usage.as_mut().unwrap().cpu_seconds *= factor;
            result.groups[0].down.lost_packets = 2;
            result
        };
        let rounds = [vec![costing(1.0), costing(3.0)], vec![costing(2.0), costing(6.0)]];
        let point = PLAN.point(kind, &["tollgate", "peer"], &rounds).unwrap();
        let [ours, peer] = &point.gateways[..] else { panic!() };
        assert_eq!(ours.packets_per_cpu_second, Spread { median: 30_000.0, min: 20_000.0, max: 40_000.0 });
        assert!((peer.ours_to_this.min - 3.0).abs() < 1e-9 && (peer.ours_to_this.max - 3.0).abs() < 1e-9);
        assert_eq!((ours.ours_to_this.median, ours.packets_per_second.median, ours.lost_packets), (1.0, 20_000.0, 4));
        let shown = Table(&PacketsResult { points: vec![point] }).to_string();
        let expected = "1300 B, one flow up        peer                100,000   75,000 - 150,000             10,000     3.00    3.00 - 3.00     20,000        4\n";
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn where_nothing_arrived_there_is_no_figure() {
        let rounds = [vec![load_result(1e8), load_result(0.0)]];
        assert_eq!(PLAN.point(&kinds()[0], &["tollgate", "peer"], &rounds), None);
    }
}
