//! `packets`: what a gateway's CPU costs for each inner packet where no sender has put packets together.
//!
//! Bulk traffic reaches a TUN device in super-packets of up to 64 KiB; calls, games, tunnels within the tunnel and much of QUIC do not. Every
//! packet of this traffic is sent when it is due, at an even rate that every gateway keeps up with, so that all do the same work.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::flow::sizes::SizeCycle;
use crate::load::result::{LimitedBy, LoadResult};
use crate::load::scenario::{Direction, Scenario, TrafficKind, TrafficPlan};
use crate::load::{Experiment, scenario, traffic};
use crate::measure::record::{Output, table};
use crate::measure::spread::Spread;
use crate::measure::units::count;
use crate::programs::GatewayOptions;

/// A voice call's packet, and a full one as of a QUIC connection within the tunnel.
const SMALL_BYTES: u16 = 100;
const FULL_BYTES: u16 = 1300;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
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
struct Kind {
    name: &'static str,
    connections: u32,
    /// Flows of each connection.
    flows: u16,
    direction: Direction,
    sizes: Vec<(u16, u32)>,
}

/// How one gateway took one kind of traffic.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    traffic: &'static str,
    gateway: &'static str,
    /// CPU time of the gateway for each packet that arrived.
    cpu_ns_per_packet: Spread,
    /// How many times as many ours passes with as much CPU time, in the same round.
    ours_to_this: Spread,
    packets_per_second: Spread,
    /// The share of the time that the gateway's CPU was busy, whoever was billed for it.
    cpu_busy: Spread,
    /// Inner packets for each outer datagram; `None` of a peer.
    batch: Option<Spread>,
    /// Packets that did not arrive, over all rounds.
    lost_packets: u64,
    /// Whether the harness was at its limit, or late, in any round.
    harness_limited: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { rate, seconds, rounds, quick, .. } = *options;
    let (rate, seconds, rounds) = if quick { (2_000, 1, 1) } else { (rate, seconds, rounds) };
    let gateways = options.gateways.find()?;
    let plan =
        format!("{} packets a second, each sent by itself, {rounds} round(s) of {seconds} s", count(rate.into()));
    let mut experiment = Experiment::start(&options.output, &gateways, &plan)?;
    let mut all = Vec::new();
    for kind in kinds() {
        let scenario = kind.scenario(rate, Duration::from_secs(seconds.into()));
        let results = experiment.rounds(kind.name, rounds, &scenario, &gateways)?;
        for (gateway, these) in gateways.iter().zip(&results) {
            all.push(
                kind.figures(gateway.name, &results[0], these)
                    .with_context(|| format!("{}: nothing arrived", kind.name))?,
            );
        }
    }
    let whole = |figure: f64| count(figure.round() as u64);
    let rows = all.iter().map(|it| {
        [
            it.traffic.to_owned(),
            it.gateway.to_owned(),
            it.cpu_ns_per_packet.shown(whole),
            whole(1e9 / it.cpu_ns_per_packet.median),
            it.ours_to_this.shown(|ratio| format!("{ratio:.2}")),
            it.batch.map_or("-".to_owned(), |batch| format!("{:.2}", batch.median)),
            format!("{:.0} %", it.cpu_busy.median * 100.0),
            whole(it.packets_per_second.median),
            count(it.lost_packets),
        ]
    });
    let heading =
        ["traffic", "gateway", "ns a packet", "packets/CPU second", "ours", "batch", "CPU busy", "a second", "lost"];
    experiment.finish("packets", &table(2, &heading, rows), &all)
}

fn kinds() -> [Kind; 6] {
    let kind = |name, connections, flows, direction, sizes| Kind { name, connections, flows, direction, sizes };
    let (small, full) = (vec![(SMALL_BYTES, 1)], vec![(FULL_BYTES, 1)]);
    let imix = TrafficPlan::imix(1400);
    [
        kind("1300 B, one flow up", 1, 1, Direction::Up, full.clone()),
        kind("1300 B, one flow down", 1, 1, Direction::Down, full),
        kind("100 B, one flow up", 1, 1, Direction::Up, small.clone()),
        kind("100 B, one flow down", 1, 1, Direction::Down, small.clone()),
        kind("100 B, 64 flows both ways", 8, 8, Direction::Both, small),
        kind("IMIX, 64 flows both ways", 8, 8, Direction::Both, imix),
    ]
}

impl Kind {
    fn scenario(&self, rate: u32, duration: Duration) -> Scenario {
        let mut scenario = scenario("packets", self.connections, duration);
        let directions = if self.direction == Direction::Both { 2.0 } else { 1.0 };
        let one_way_flows = f64::from(self.connections) * f64::from(self.flows) * directions;
        let even = TrafficKind::Constant { packets_per_second: f64::from(rate) / one_way_flows, train_packets: 1 };
        scenario.traffic = vec![TrafficPlan {
            flows: self.flows,
            direction: self.direction,
            sizes: self.sizes.clone(),
            ..traffic(&scenario, "packets", self.connections, even)
        }];
        scenario
    }

    /// `None` if in one of the rounds nothing arrived.
    fn figures(&self, gateway: &'static str, ours: &[LoadResult], these: &[LoadResult]) -> Option<Figures> {
        let mean_bytes = SizeCycle::new(&self.sizes).ok()?.mean();
        let rate = |result: &LoadResult| result.carried_bits_per_second() / 8.0 / mean_bytes;
        let cost = |result: &LoadResult| {
            Some(result.gateway_usage.cpu_seconds * 1e9 / result.seconds / rate(result)).filter(|cost| cost.is_normal())
        };
        let costs = |results: &[LoadResult]| results.iter().map(cost).collect::<Option<Vec<f64>>>();
        let (ours, costs) = (costs(ours)?, costs(these)?);
        Some(Figures {
            traffic: self.name,
            gateway,
            ours_to_this: Spread::of(costs.iter().zip(&ours).map(|(this, ours)| this / ours))?,
            cpu_ns_per_packet: Spread::of(costs)?,
            packets_per_second: Spread::of(these.iter().map(rate))?,
            cpu_busy: Spread::of(these.iter().map(|result| result.gateway_cpus_busy))?,
            batch: these.iter().map(|result| result.batch).collect::<Option<Vec<f64>>>().and_then(Spread::of),
            lost_packets: these.iter().map(LoadResult::lost_packets).sum(),
            harness_limited: these.iter().any(|result| result.limited_by == LimitedBy::Harness),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::load_result;

    #[test]
    fn every_kind_offers_the_whole_rate_and_its_cost_is_for_each_packet() {
        for kind in kinds() {
            let scenario = kind.scenario(48_000, Duration::from_secs(1));
            let TrafficKind::Constant { packets_per_second, train_packets } = scenario.traffic[0].kind else {
                panic!()
            };
            let directions = if kind.direction == Direction::Both { 2.0 } else { 1.0 };
            let offered = packets_per_second * f64::from(kind.connections * u32::from(kind.flows)) * directions;
            assert_eq!((offered.round(), train_packets), (48_000.0, 1), "{}", kind.name);
        }
        // 8 Mb/s both ways are 2,000 packets of 1,000 bytes a second, and half a second of CPU time.
        let kind = Kind { sizes: vec![(1000, 1)], ..kinds().into_iter().next().unwrap() };
        let (result, slow) = (load_result(8e6), load_result(4e6));
        let figures = kind.figures("x", &[result], &[slow]).unwrap();
        assert_eq!((figures.cpu_ns_per_packet.median, figures.ours_to_this.median), (500_000.0, 2.0));
        assert_eq!(kind.figures("x", &[load_result(0.0)], &[load_result(0.0)]), None);
    }
}
