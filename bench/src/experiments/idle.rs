//! `idle`: what a gateway keeps in memory for each idle connection and for each user, and what thousands of idle connections cost it in CPU
//! time.
//!
//! Memory is what the kernel counts as resident. All runs of a gateway have the same number of users but those that tell what a user costs.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::deploy::{GatewayFiles, GatewayPlan, Network, RunningGateway};
use crate::load::absent_user;
use crate::load::experiment::Experiment;
use crate::load::scenario::{CONNECTIONS_MAX, Scenario};
use crate::measure::cpus;
use crate::measure::record::{Output, table};
use crate::measure::spread::{Spread, slope};
use crate::measure::units::{bytes, count, percent};
use crate::programs::{Gateway, GatewayOptions};

/// How long runs last that only tell memory.
const STEP: Duration = Duration::from_secs(2);
/// How long a gateway is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// Users that tell what one costs.
const USERS: [u32; 2] = [1, 20_001];

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// How many idle connections at last.
    #[arg(long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(8..=i64::from(CONNECTIONS_MAX)))]
    connections: u32,
    /// For how many seconds CPU time is measured: several keep-alives long.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many seconds there are between keep-alives of a connection.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=29))]
    keep_alive: u32,
    /// How many times each gateway is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Forty connections, for a second, once: whether everything works.
    #[arg(long, conflicts_with_all = ["connections", "seconds", "keep_alive", "rounds"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// What a gateway's idle connections cost, in one round.
#[derive(Debug, Serialize)]
struct Round {
    /// Resident memory while it had no connection and one user.
    empty_bytes: f64,
    /// For each known user without a connection.
    bytes_per_user: f64,
    /// For each idle connection.
    bytes_per_connection: f64,
    /// Memory after so many connections, as measured on the way.
    steps: Vec<(u64, u64)>,
    /// The share of one CPU that the gateway used while all were idle.
    cpu_share: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    gateway: &'static str,
    rounds: Vec<Round>,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { connections, seconds, keep_alive, rounds, quick, .. } = *options;
    let (connections, seconds, keep_alive, rounds) =
        if quick { (40, 1, 1, 1) } else { (connections, seconds, keep_alive, rounds) };
    let gateways = options.gateways.find()?;
    let plan = format!(
        "up to {} connections of as many users, idle for {seconds} s, with a keep-alive every {keep_alive} s, {rounds} round(s)",
        count(connections.into())
    );
    let mut experiment = Experiment::start(&options.output, gateways.clone(), &plan)?;
    let [duration, keep_alive] = [seconds, keep_alive].map(|seconds| Duration::from_secs(seconds.into()));
    let mut all: Vec<Figures> =
        gateways.iter().map(|gateway| Figures { gateway: gateway.name, rounds: Vec::new() }).collect();
    for _ in 0..rounds {
        for (gateway, figures) in gateways.iter().zip(&mut all) {
            let round = measure(gateway, connections, duration, keep_alive, &mut experiment);
            figures.rounds.push(round.with_context(|| gateway.name.to_owned())?);
        }
    }
    let shown = |figures: &Figures, figure: fn(&Round) -> f64, unit: fn(f64) -> String| {
        Spread::of(figures.rounds.iter().map(figure)).map_or_else(String::new, |spread| spread.shown(unit))
    };
    let rows = all.iter().map(|it| {
        [
            it.gateway.to_owned(),
            shown(it, |round| round.empty_bytes, bytes),
            shown(it, |round| round.bytes_per_user, bytes),
            shown(it, |round| round.bytes_per_connection, bytes),
            shown(it, |round| round.cpu_share, percent),
        ]
    });
    let heading = ["gateway", "empty", "for each user", "for each idle connection", "share of a CPU"];
    experiment.finish("idle", &table(1, &heading, rows), &all)
}

fn measure(
    gateway: &Gateway,
    connections: u32,
    duration: Duration,
    keep_alive: Duration,
    experiment: &mut Experiment,
) -> Result<Round> {
    let mut empty = [0.0; 2];
    for (bytes, users) in empty.iter_mut().zip(USERS) {
        experiment.progress.step(&format!("{}: {} users, no connection", gateway.name, count(users.into())));
        *bytes = memory_without_connections(gateway, users)? as f64;
    }
    let (mut steps, mut cpu_share) = (Vec::new(), 0.0);
    for part in [8, 4, 2, 1] {
        let number = connections / part;
        let place = format!("{} of {} connections", count(number.into()), count(connections.into()));
        let mut scenario = Scenario::new("idle", number, if part == 1 { duration } else { STEP.min(duration) });
        scenario.users.absent = connections - number;
        scenario.users.keep_alive = keep_alive;
        let load = experiment.load(&place, &scenario, gateway, &mut |_, _| Ok(()))?;
        steps.push((u64::from(load.ramp.connected), load.gateway_usage.memory_bytes));
        cpu_share = load.gateway_usage.cpu_seconds / load.seconds;
    }
    let points: Vec<(f64, f64)> = steps.iter().map(|(number, bytes)| (*number as f64, *bytes as f64)).collect();
    Ok(Round {
        empty_bytes: empty[0],
        bytes_per_user: (empty[1] - empty[0]) / f64::from(USERS[1] - USERS[0]),
        bytes_per_connection: slope(&points).context("all runs had the same number of connections")?,
        steps,
        cpu_share,
    })
}

/// The resident memory of `gateway` with so many users, none of whom ever came.
fn memory_without_connections(gateway: &Gateway, users: u32) -> Result<u64> {
    let plan = GatewayPlan::default();
    let text: String = (1..=users).map(|number| absent_user(number, "")).collect();
    let files = GatewayFiles::write(&plan, &text)?;
    let network = Network::build(plan.mtu_bytes)?;
    let (cpus, _) = cpus::split(&[], &[])?;
    let mut gateway = RunningGateway::start(gateway, &plan, &cpus, &files, network.gateway())?;
    std::thread::sleep(SETTLE);
    let bytes = gateway.sample()?.memory_bytes;
    gateway.stop()?;
    Ok(bytes)
}
