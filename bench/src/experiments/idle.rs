//! `idle`: what a gateway keeps in memory for each idle connection and for each user, and what thousands of idle connections cost it in CPU
//! time.
//!
//! Memory is what the kernel counts as resident. All runs of a gateway have the same number of users but those that tell what a user costs.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::deploy::{GatewayFiles, GatewayPlan, Network, RunningGateway};
use crate::load::scenario::CONNECTIONS_MAX;
use crate::load::{Experiment, absent_user, scenario};
use crate::measure::cpus;
use crate::measure::record::{Output, table};
use crate::measure::spread::slope;
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
    /// Forty connections, for a second: whether everything works.
    #[arg(long, conflicts_with_all = ["connections", "seconds", "keep_alive"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// What a gateway's idle connections cost.
#[derive(Debug, Serialize)]
struct Figures {
    gateway: &'static str,
    /// Resident memory while it had no connection and one user.
    empty_bytes: u64,
    /// For each known user without a connection.
    bytes_per_user: f64,
    /// For each idle connection.
    bytes_per_connection: f64,
    /// Memory after so many connections, as measured on the way.
    steps: Vec<(u64, u64)>,
    /// The share of one CPU that the gateway used while all were idle.
    cpu_share: f64,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { connections, seconds, keep_alive, quick, .. } = *options;
    let (connections, seconds, keep_alive) = if quick { (40, 1, 1) } else { (connections, seconds, keep_alive) };
    let gateways = options.gateways.find()?;
    let plan = format!(
        "up to {} connections of as many users, idle for {seconds} s, with a keep-alive every {keep_alive} s",
        count(connections.into())
    );
    let mut experiment = Experiment::start(&options.output, &gateways, &plan)?;
    let [duration, keep_alive] = [seconds, keep_alive].map(|seconds| Duration::from_secs(seconds.into()));
    let mut all = Vec::new();
    for gateway in &gateways {
        let figures = measure(gateway, connections, duration, keep_alive, &mut experiment);
        all.push(figures.with_context(|| gateway.name.to_owned())?);
    }
    let rows = all.iter().map(|it: &Figures| {
        let steps =
            it.steps.iter().map(|(connections, memory)| format!("{}: {}", count(*connections), bytes(*memory as f64)));
        [
            it.gateway.to_owned(),
            bytes(it.empty_bytes as f64),
            bytes(it.bytes_per_user),
            bytes(it.bytes_per_connection),
            steps.collect::<Vec<_>>().join(", "),
            percent(it.cpu_share),
        ]
    });
    let heading =
        ["gateway", "empty", "for each user", "for each idle connection", "memory by connections", "share of a CPU"];
    experiment.finish("idle", &table(1, &heading, rows), &all)
}

fn measure(
    gateway: &Gateway,
    connections: u32,
    duration: Duration,
    keep_alive: Duration,
    experiment: &mut Experiment,
) -> Result<Figures> {
    let mut empty = [0; 2];
    for (bytes, users) in empty.iter_mut().zip(USERS) {
        experiment.progress.step(&format!("{}: {} users, no connection", gateway.name, count(users.into())));
        *bytes = memory_without_connections(gateway, users)?;
    }
    let (mut steps, mut cpu_share) = (Vec::new(), 0.0);
    for part in [8, 4, 2, 1] {
        let number = connections / part;
        let place = format!("{} of {} connections", count(number.into()), count(connections.into()));
        let mut scenario = scenario("idle", number, if part == 1 { duration } else { STEP.min(duration) });
        scenario.users.absent = connections - number;
        scenario.users.keep_alive = keep_alive;
        let load = experiment.load(&place, &scenario, gateway)?;
        steps.push((u64::from(load.ramp.connected), load.gateway_usage.memory_bytes));
        cpu_share = load.gateway_usage.cpu_seconds / load.seconds;
    }
    let points: Vec<(f64, f64)> = steps.iter().map(|(number, bytes)| (*number as f64, *bytes as f64)).collect();
    Ok(Figures {
        gateway: gateway.name,
        empty_bytes: empty[0],
        bytes_per_user: (empty[1] as f64 - empty[0] as f64) / f64::from(USERS[1] - USERS[0]),
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
