//! `tollgate-bench storm`: how many full handshakes a core takes, alone and while it forwards, and what forwarding loses meanwhile.
//!
//! A handshake here is a whole mutual TLS 1.3 handshake of a new connection with an identity of its own, up to the inner address; the end
//! of the connection before is part of its cost.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders::ContenderOptions;
use crate::experiment::{Experiment, constant, scenario, traffic};
use crate::record::{Output, print};
use crate::results::{Finding, LoadResult, Spread, StormFigures, StormResult};
use crate::scenario::Scenario;
use crate::units::{bits_per_second, count, percent};

/// More than a core takes: as soon as a handshake is done, the next begins.
const CHURN_PER_SECOND: f64 = 10_000.0;
/// Connections that forward.
const FORWARDING: u32 = 20;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: ContenderOptions,
    /// How many connections come and go.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How many handshakes are in progress at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    handshakes: u32,
    /// What other connections forward, in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
    /// For how many seconds each storm lasts.
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
#[derive(Debug, Clone, Copy, PartialEq)]
struct Plan {
    clients: u32,
    handshakes_max: u32,
    forwarded_bits_per_second: f64,
    duration: Duration,
    rounds: u32,
}

/// The loads of one round of one gateway.
struct Round {
    /// The storm, and nothing else.
    alone: LoadResult,
    /// Forwarding, and nothing else.
    calm: LoadResult,
    /// Both.
    storm: LoadResult,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that handshakes failed or both ends of a load did not agree.
pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let gateways = options.gateways.find()?;
    let mut experiment = Experiment::start(&options.output, &gateways)?;
    print(&format!(
        "{} connections come and go, {} handshakes at once; {} forwarded beside them; {} round(s) of {} s\n",
        count(plan.clients.into()),
        plan.handshakes_max,
        bits_per_second(plan.forwarded_bits_per_second),
        plan.rounds,
        plan.duration.as_secs()
    ))?;
    let mut rounds: Vec<Vec<Round>> = gateways.iter().map(|_| Vec::new()).collect();
    for number in 1..=plan.rounds {
        for (gateway, rounds) in gateways.iter().zip(&mut rounds) {
            let mut load = |what: &str, scenario: &Scenario| {
                experiment.load(&format!("round {number} of {}: {what}", plan.rounds), scenario, gateway)
            };
            rounds.push(Round {
                alone: load("storm alone", &plan.scenario(true, false))?,
                calm: load("forwarding alone", &plan.scenario(false, true))?,
                storm: load("storm while forwarding", &plan.scenario(true, true))?,
            });
        }
    }
    let mut result = StormResult { gateways: Vec::new() };
    for (gateway, rounds) in gateways.iter().zip(&rounds) {
        result
            .gateways
            .push(figures(gateway.name, rounds).context("there was no handshake, or nothing was forwarded")?);
    }
    if result.gateways[0].failed > 0 {
        experiment.fail(format!("{} handshakes failed", count(result.gateways[0].failed)));
    }
    experiment.finish(&Table(&result).to_string(), Finding::Storm(result))
}

impl Plan {
    fn of(options: &Options) -> Self {
        let Options { clients, handshakes, mbps, seconds, rounds, .. } = *options;
        let (clients, handshakes_max, mbps, seconds, rounds) =
            if options.quick { (20, 4, 5, 3, 1) } else { (clients, handshakes, mbps, seconds, rounds) };
        Plan {
            clients,
            handshakes_max,
            forwarded_bits_per_second: f64::from(mbps) * 1e6,
            duration: Duration::from_secs(seconds.into()),
            rounds,
        }
    }

    fn scenario(&self, is_stormy: bool, is_forwarding: bool) -> Scenario {
        let forwarding = if is_forwarding { FORWARDING } else { 0 };
        let mut scenario = scenario("storm", self.clients + forwarding, self.duration);
        scenario.users.handshakes_max = self.handshakes_max;
        // Some are always on the way.
        scenario.demands.all_connected = !is_stormy;
        if is_stormy {
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
fn figures(name: &str, rounds: &[Round]) -> Option<StormFigures> {
    let spread = |figure: &dyn Fn(&Round) -> Option<f64>| {
        let figures: Option<Vec<f64>> =
            rounds.iter().map(|round| figure(round).filter(|figure| figure.is_finite())).collect();
        Spread::of(figures?)
    };
    let rate = |result: &LoadResult| handshakes(result).map(|(number, seconds, _)| number / seconds);
    Some(StormFigures {
        name: name.to_owned(),
        handshakes_per_cpu_second: spread(&|round| {
            let (number, _, cpu_seconds) = handshakes(&round.alone)?;
            Some(number / cpu_seconds)
        })?,
        handshakes_per_second: spread(&|round| rate(&round.alone))?,
        handshakes_per_second_forwarding: spread(&|round| rate(&round.storm))?,
        forwarded_bits_per_second: [
            spread(&|round| Some(round.calm.carried_bits_per_second()))?,
            spread(&|round| Some(round.storm.carried_bits_per_second()))?,
        ],
        forwarding_lost_share: spread(&|round| {
            Some(1.0 - round.storm.carried_bits_per_second() / round.calm.carried_bits_per_second())
        })?,
        failed: rounds
            .iter()
            .flat_map(|round| [&round.alone, &round.calm, &round.storm])
            .map(|load| load.churn.failed)
            .sum(),
    })
}

/// Handshakes from the first sample to the last, in how many seconds, and how many CPU seconds of the gateway: neither ramp nor end.
fn handshakes(result: &LoadResult) -> Option<(f64, f64, f64)> {
    let (first, last) = (result.samples.first()?, result.samples.last()?);
    let number = (last.handshakes - first.handshakes) as f64;
    Some((number, last.seconds - first.seconds, last.gateway_cpu_seconds - first.gateway_cpu_seconds))
}

/// All gateways, for people.
struct Table<'a>(&'a StormResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<52}{:>12}  {:>24}", "", "median", "min - max")?;
        let rate = |rate: f64| format!("{rate:.0}");
        for gateway in &self.0.gateways {
            writeln!(f, "{}", gateway.name)?;
            line(f, "handshakes for a CPU second of the gateway", gateway.handshakes_per_cpu_second, rate)?;
            line(f, "handshakes a second, alone", gateway.handshakes_per_second, rate)?;
            line(f, "handshakes a second, while forwarding", gateway.handshakes_per_second_forwarding, rate)?;
            let [calm, storm] = gateway.forwarded_bits_per_second;
            line(f, "forwarded before the storm", calm, bits_per_second)?;
            line(f, "forwarded during the storm", storm, bits_per_second)?;
            line(f, "lost to the storm", gateway.forwarding_lost_share, percent)?;
            writeln!(f, "  {:<50}{:>12}", "failed handshakes", count(gateway.failed))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, label: &str, spread: Spread, shown: impl Fn(f64) -> String) -> fmt::Result {
    let extremes = format!("{} - {}", shown(spread.min), shown(spread.max));
    writeln!(f, "  {label:<50}{:>12}  {extremes:>24}", shown(spread.median))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::fixture::load_result;
    use crate::results::Sample;

    const PLAN: Plan = Plan {
        clients: 1000,
        handshakes_max: 64,
        forwarded_bits_per_second: 2e8,
        duration: Duration::from_secs(5),
        rounds: 1,
    };

    fn round(carried_in_storm: f64) -> Round {
        let mut round = Round { alone: load_result(0.0), calm: load_result(1e8), storm: load_result(carried_in_storm) };
        let samples = |each_second: u64| {
            let sample = |second: u64| Sample {
                seconds: second as f64,
                // The ramp's come before.
                handshakes: 1_000 + second * each_second,
                gateway_cpu_seconds: 3.0 + second as f64 / 2.0,
                ..Sample::default()
            };
            (1..=10).map(sample).collect()
        };
        (round.alone.samples, round.storm.samples) = (samples(1_000), samples(400));
        round.storm.churn.failed = 2;
        round
    }

    #[test]
    fn only_idle_connections_come_and_go() {
        let [alone, calm, storm] =
            [(true, false), (false, true), (true, true)].map(|(stormy, forwarding)| PLAN.scenario(stormy, forwarding));
        assert!(alone.traffic.is_empty() && alone.trouble.churn_per_second > 0.0 && !alone.demands.all_connected);
        assert!(calm.trouble.churn_per_second == 0.0 && calm.demands.all_connected && calm.traffic == storm.traffic);
        assert!(storm.trouble.churn_idle_only && storm.connections() == 1000 + FORWARDING);
    }

    #[test]
    fn what_forwarding_loses_is_taken_round_by_round() {
        let figures = figures("tollgate", &[round(8e7), round(9e7)]).unwrap();
        // 1,000 handshakes a second, for half a CPU second.
        assert_eq!(
            (figures.handshakes_per_cpu_second.median, figures.handshakes_per_second.median),
            (2_000.0, 1_000.0)
        );
        assert_eq!((figures.handshakes_per_second_forwarding.median, figures.failed), (400.0, 4));
        assert_eq!(figures.forwarded_bits_per_second[0].median, 2e8);
        let lost = figures.forwarding_lost_share;
        assert!((lost.min - 0.1).abs() < 1e-9 && (lost.max - 0.2).abs() < 1e-9, "{lost:?}");
        let result = StormResult { gateways: vec![figures] };
        let shown = Table(&result).to_string();
        assert!(
            shown
                .contains("handshakes for a CPU second of the gateway                2000               2000 - 2000\n"),
            "{shown}"
        );
        assert!(shown.contains("failed handshakes                                            4\n"), "{shown}");
    }

    #[test]
    fn without_forwarding_there_is_nothing_to_lose() {
        let mut round = round(0.0);
        round.calm = load_result(0.0);
        assert_eq!(figures("tollgate", &[round]), None);
    }
}
