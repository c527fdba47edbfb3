//! `handshakes`: how many full handshakes a core takes, alone and while it forwards, and what forwarding loses meanwhile.
//!
//! A handshake here is a whole mutual TLS 1.3 handshake of a new connection with an identity of its own, up to the inner address; the end
//! of the connection before is part of its cost.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::result::LoadResult;
use crate::load::scenario::Scenario;
use crate::load::{Experiment, constant, scenario, traffic};
use crate::measure::record::{Output, table};
use crate::measure::spread::Spread;
use crate::measure::units::{bits_per_second, count, percent};
use crate::programs::GatewayOptions;

/// More than a core takes: as soon as a handshake is done, the next begins.
const CHURN_PER_SECOND: f64 = 10_000.0;
/// Connections that forward.
const FORWARDING: u32 = 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// How many connections come and go.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How many handshakes are in progress at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    handshakes: u32,
    /// What other connections forward, in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
    /// For how many seconds each load lasts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=3600))]
    seconds: u32,
    /// How many times each gateway is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A few clients, three seconds, once: whether everything works.
    #[arg(long, conflicts_with_all = ["clients", "handshakes", "mbps", "seconds", "rounds"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// How a gateway is measured.
#[derive(Debug, Clone, Copy)]
struct Plan {
    clients: u32,
    handshakes_max: u32,
    forwarded_bits_per_second: f64,
    duration: Duration,
}

/// The loads of one round of one gateway: handshakes and nothing else, forwarding and nothing else, both.
struct Round {
    alone: LoadResult,
    calm: LoadResult,
    both: LoadResult,
}

/// How a gateway takes handshakes.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    gateway: &'static str,
    handshakes_per_cpu_second: Spread,
    handshakes_per_second: Spread,
    handshakes_per_second_forwarding: Spread,
    forwarded_bits_per_second_alone: Spread,
    forwarded_bits_per_second: Spread,
    /// What forwarding lost: 1 - during / before.
    forwarding_lost_share: Spread,
    failed: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { clients, handshakes, mbps, seconds, rounds, quick, .. } = *options;
    let (clients, handshakes_max, mbps, seconds, rounds) =
        if quick { (20, 4, 5, 3, 1) } else { (clients, handshakes, mbps, seconds, rounds) };
    let forwarded_bits_per_second = f64::from(mbps) * 1e6;
    let plan =
        Plan { clients, handshakes_max, forwarded_bits_per_second, duration: Duration::from_secs(seconds.into()) };
    let gateways = options.gateways.find()?;
    let told = format!(
        "{} connections come and go, {handshakes_max} handshakes at once; {} forwarded beside them; {rounds} round(s) of {seconds} s",
        count(clients.into()),
        bits_per_second(forwarded_bits_per_second),
    );
    let mut experiment = Experiment::start(&options.output, &gateways, &told)?;
    let mut results: Vec<Vec<Round>> = gateways.iter().map(|_| Vec::new()).collect();
    for number in 1..=rounds {
        for (gateway, results) in gateways.iter().zip(&mut results) {
            let mut load = |what: &str, scenario: &Scenario| {
                experiment.load(&format!("round {number} of {rounds}: {what}"), scenario, gateway)
            };
            results.push(Round {
                alone: load("handshakes alone", &plan.scenario(true, false))?,
                calm: load("forwarding alone", &plan.scenario(false, true))?,
                both: load("handshakes while forwarding", &plan.scenario(true, true))?,
            });
        }
    }
    let figures = gateways.iter().zip(&results).map(|(gateway, rounds)| figures(gateway.name, rounds));
    let figures: Option<Vec<Figures>> = figures.collect();
    let figures = figures.context("there was no handshake, or nothing was forwarded")?;
    if figures[0].failed > 0 {
        experiment.failures.push(format!("{} handshakes failed", count(figures[0].failed)));
    }
    let rate = |rate: f64| format!("{rate:.0}");
    let rows = figures.iter().map(|it| {
        [
            it.gateway.to_owned(),
            it.handshakes_per_cpu_second.shown(rate),
            it.handshakes_per_second.shown(rate),
            it.handshakes_per_second_forwarding.shown(rate),
            it.forwarded_bits_per_second_alone.shown(bits_per_second),
            it.forwarded_bits_per_second.shown(bits_per_second),
            it.forwarding_lost_share.shown(percent),
            count(it.failed),
        ]
    });
    let heading = [
        "gateway",
        "per CPU second",
        "a second, alone",
        "forwarding",
        "forwarded before",
        "during",
        "lost to them",
        "failed",
    ];
    experiment.finish("handshakes", &table(1, &heading, rows), &figures)
}

impl Plan {
    fn scenario(&self, has_handshakes: bool, is_forwarding: bool) -> Scenario {
        let forwarding = if is_forwarding { FORWARDING } else { 0 };
        let mut scenario = scenario("handshakes", self.clients + forwarding, self.duration);
        scenario.ramp.handshakes_max = self.handshakes_max;
        // Some are always on the way.
        scenario.demand.all_connected = !has_handshakes;
        if has_handshakes {
            scenario.trouble.churn_per_second = CHURN_PER_SECOND;
            scenario.trouble.churn_idle_only = true;
        }
        if is_forwarding {
            let kind = constant(&scenario, forwarding, self.forwarded_bits_per_second, 1);
            scenario.traffic = vec![traffic(&scenario, "forwarded", forwarding, kind)];
        }
        scenario
    }
}

/// Of all rounds of a gateway; `None` if in one of them there was no handshake, or nothing forwarded.
fn figures(gateway: &'static str, rounds: &[Round]) -> Option<Figures> {
    let spread = |figure: &dyn Fn(&Round) -> Option<f64>| {
        let figures = rounds.iter().map(|round| figure(round).filter(|figure| figure.is_finite()));
        Spread::of(figures.collect::<Option<Vec<f64>>>()?)
    };
    let rate = |result: &LoadResult| handshakes(result).map(|(number, seconds, _)| number / seconds);
    let carried = LoadResult::carried_bits_per_second;
    let loads = rounds.iter().flat_map(|round| [&round.alone, &round.calm, &round.both]);
    Some(Figures {
        gateway,
        handshakes_per_cpu_second: spread(&|round| handshakes(&round.alone).map(|(number, _, cpu)| number / cpu))?,
        handshakes_per_second: spread(&|round| rate(&round.alone))?,
        handshakes_per_second_forwarding: spread(&|round| rate(&round.both))?,
        forwarded_bits_per_second_alone: spread(&|round| Some(carried(&round.calm)))?,
        forwarded_bits_per_second: spread(&|round| Some(carried(&round.both)))?,
        forwarding_lost_share: spread(&|round| Some(1.0 - carried(&round.both) / carried(&round.calm)))?,
        failed: loads.map(|load| load.churn.failed).sum(),
    })
}

/// Handshakes from the first sample to the last, in how many seconds, and how many CPU seconds of the gateway: neither ramp nor end.
fn handshakes(result: &LoadResult) -> Option<(f64, f64, f64)> {
    let (first, last) = (result.samples.first()?, result.samples.last()?);
    let number = (last.handshakes - first.handshakes) as f64;
    Some((number, last.seconds - first.seconds, last.gateway_cpu_seconds - first.gateway_cpu_seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::load_result;
    use crate::load::result::Sample;

    #[test]
    fn handshakes_are_counted_between_the_samples_and_forwarding_against_calm() {
        let sample = |seconds, handshakes, gateway_cpu_seconds| Sample {
            seconds,
            handshakes,
            gateway_cpu_seconds,
            ..Sample::default()
        };
        let load =
            |bits| LoadResult { samples: vec![sample(1.0, 500, 3.0), sample(5.0, 2500, 4.0)], ..load_result(bits) };
        let figures = figures("x", &[Round { alone: load(0.0), calm: load(4e6), both: load(3e6) }]).unwrap();
        assert_eq!((figures.handshakes_per_cpu_second.median, figures.handshakes_per_second.median), (2000.0, 500.0));
        assert_eq!(figures.forwarding_lost_share.median, 0.25);
        let empty = || load_result(0.0);
        assert_eq!(super::figures("x", &[Round { alone: empty(), calm: empty(), both: empty() }]), None);
    }
}
