//! `tollgate-bench idle`: what a gateway keeps in memory for each idle connection and for each user, and what thousands of idle connections
//! cost it in CPU time.
//!
//! Memory is what the kernel counts as resident. All runs of a gateway have the same number of users but those that tell what a user costs.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders::ContenderOptions;
use crate::deployment::{self, Contender, FilesPlan, Gateway, GatewayFiles, Network};
use crate::experiment::{Experiment, scenario};
use crate::identities::Identities;
use crate::record::{Output, print};
use crate::results::{Finding, IdleFigures, IdleResult, slope};
use crate::scenario::{ADDRESSES_MAX, Scenario, StartedGateway};
use crate::units::{bytes, count, percent};

/// Traffic's place is empty in runs that only tell memory.
const STEP_SECONDS: u64 = 2;
/// How long a gateway is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);
/// Users that tell what one costs, and far fewer of them.
const USERS: [u32; 2] = [1, 20_001];

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: ContenderOptions,
    /// How many idle connections at last.
    #[arg(long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(8..=i64::from(ADDRESSES_MAX)))]
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

/// How a gateway is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    connections: u32,
    duration: Duration,
    keep_alive: Duration,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that connections did not come up or did not stay.
pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let gateways = options.gateways.find()?;
    let mut experiment = Experiment::start(&options.output, &gateways)?;
    print(&format!(
        "up to {} connections of as many users, idle for {} s, with a keep-alive every {} s\n",
        count(plan.connections.into()),
        plan.duration.as_secs(),
        plan.keep_alive.as_secs()
    ))?;
    let mut result = IdleResult { gateways: Vec::new() };
    for gateway in &gateways {
        let figures = plan.measure(gateway, &mut experiment).with_context(|| gateway.name.to_owned())?;
        result.gateways.push(figures);
    }
    experiment.finish(&Table(&result).to_string(), Finding::Idle(result))
}

impl Plan {
    fn of(options: &Options) -> Self {
        let Options { connections, seconds, keep_alive, .. } = *options;
        let (connections, seconds, keep_alive) =
            if options.quick { (40, 1, 1) } else { (connections, seconds, keep_alive) };
        let [duration, keep_alive] = [seconds, keep_alive].map(|seconds| Duration::from_secs(seconds.into()));
        Plan { connections, duration, keep_alive }
    }

    fn measure(&self, gateway: &Contender, experiment: &mut Experiment) -> Result<IdleFigures> {
        let mut empty = [0; 2];
        for (bytes, users) in empty.iter_mut().zip(USERS) {
            experiment.progress().step(&format!("{}: {} users, no connection", gateway.name, count(users.into())));
            *bytes = memory_without_connections(gateway, users)?;
        }
        let mut steps = Vec::new();
        let mut cpu_share = 0.0;
        for connections in self.steps() {
            let place = format!("{} of {} connections", count(connections.into()), count(self.connections.into()));
            let load = experiment.load(&place, &self.scenario(connections), gateway)?;
            let usage = load.gateway_usage.context("the gateway's memory is not known")?;
            steps.push((u64::from(load.ramp.connected), usage.memory_bytes));
            cpu_share = usage.cpu_seconds / load.seconds;
        }
        let points: Vec<(f64, f64)> =
            steps.iter().map(|(connections, bytes)| (*connections as f64, *bytes as f64)).collect();
        Ok(IdleFigures {
            name: gateway.name.to_owned(),
            connections: steps.last().map_or(0, |(connections, _)| *connections),
            users: self.connections.into(),
            empty_bytes: empty[0],
            bytes_per_user: (empty[1] as f64 - empty[0] as f64) / f64::from(USERS[1] - USERS[0]),
            bytes_per_connection: slope(&points).context("all runs had the same number of connections")?,
            steps,
            keep_alive_seconds: self.keep_alive.as_secs_f64(),
            cpu_share,
        })
    }

    /// Numbers of connections, rising to all of them.
    fn steps(&self) -> [u32; 4] {
        [8, 4, 2, 1].map(|part| self.connections / part)
    }

    fn scenario(&self, connections: u32) -> Scenario {
        let is_last = connections == self.connections;
        let step = Duration::from_secs(STEP_SECONDS).min(self.duration);
        let mut scenario = scenario("idle", connections, if is_last { self.duration } else { step });
        scenario.users.absent = self.connections - connections;
        scenario.users.keep_alive = self.keep_alive;
        scenario
    }
}

/// The resident memory of `gateway` with so many users, none of whom ever came.
fn memory_without_connections(gateway: &Contender, users: u32) -> Result<u64> {
    let plan = StartedGateway::default();
    let nobody = Identities::generate(0, |_| ())?;
    let files = GatewayFiles::write(&FilesPlan {
        users: &nobody.users_file(None, users),
        mtu_bytes: plan.mtu_bytes,
        idle_timeout: plan.idle_timeout,
    })?;
    let network = Network::build(plan.mtu_bytes)?;
    let cpus = deployment::usable_cpus()?;
    let mut gateway = Gateway::start(gateway, &plan, &cpus[..1], &files, network.gateway())?;
    std::thread::sleep(SETTLE);
    let bytes = gateway.sample()?.memory_bytes;
    gateway.stop()?;
    Ok(bytes)
}

/// All gateways, for people.
struct Table<'a>(&'a IdleResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for gateway in &self.0.gateways {
            writeln!(f, "{}", gateway.name)?;
            let mut line = |label: &str, figure: String| writeln!(f, "  {label:<44}{figure:>12}");
            line("memory without connections, with one user", bytes(gateway.empty_bytes as f64))?;
            line("memory for each user", bytes(gateway.bytes_per_user))?;
            for (connections, memory) in &gateway.steps {
                line(&format!("memory with {} connections", count(*connections)), bytes(*memory as f64))?;
            }
            line("memory for each idle connection", bytes(gateway.bytes_per_connection))?;
            let label = format!("share of a CPU, keep-alives every {} s", gateway.keep_alive_seconds);
            line(&label, percent(gateway.cpu_share))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { connections: 10_000, duration: Duration::from_secs(30), keep_alive: Duration::from_secs(10) };

    #[test]
    fn all_steps_have_the_same_users_and_only_the_last_takes_long() {
        let scenarios = PLAN.steps().map(|connections| PLAN.scenario(connections));
        assert_eq!(scenarios.each_ref().map(Scenario::connections), [1_250, 2_500, 5_000, 10_000]);
        assert!(scenarios.iter().all(|scenario| scenario.users.count + scenario.users.absent == 10_000));
        assert_eq!(scenarios.each_ref().map(|scenario| scenario.duration.as_secs()), [2, 2, 2, 30]);
        assert!(scenarios.iter().all(|scenario| scenario.traffic.is_empty() && scenario.demands.all_connected));
    }

    #[test]
    fn the_table_shows_what_each_connection_and_user_costs() {
        let result = IdleResult {
            gateways: vec![IdleFigures {
                name: "tollgate".to_owned(),
                connections: 10_000,
                users: 10_000,
                empty_bytes: 12_000_000,
                bytes_per_user: 150.0,
                bytes_per_connection: 20_500.0,
                steps: vec![(5_000, 120_000_000), (10_000, 220_000_000)],
                keep_alive_seconds: 10.0,
                cpu_share: 0.035,
            }],
        };
        let expected = "
tollgate
  memory without connections, with one user        12.0 MB
  memory for each user                               150 B
  memory with 5,000 connections                     120 MB
  memory with 10,000 connections                    220 MB
  memory for each idle connection                  20.5 kB
  share of a CPU, keep-alives every 10 s            3.50 %
";
        assert_eq!(format!("\n{}", Table(&result)), expected);
    }
}
