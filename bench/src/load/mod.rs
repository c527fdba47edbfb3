//! `load`: thousands of clients from one process, inner traffic made and checked on both ends.
//!
//! Threads of the harness, all in one process:
//! - each *generator* thread drives its part of the clients (the engine's [`Tunnel`](tollgate_shards::Tunnel) machines) over one UDP
//!   socket, and is both ends of their flows: the near ones in the clients, the far ones at a *responder*, a UDP service behind the gateway;
//! - the *controller* (the calling thread) ramps up, starts and stops traffic, samples the gateway, and at the end balances the accounts.
//!
//! Both ends know which flows there are; all else goes through the gateway, in the packets of [`message`].

mod accounts;
mod client;
mod context;
mod controller;

pub mod experiment;
pub mod flow;
mod generator;
pub mod logins;
mod message;
mod meters;
mod report;
pub mod result;
pub mod scenario;
pub mod scrapes;
mod sink;
mod sockets;
mod testbed;
mod timers;
mod verdict;
mod worker;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::measure::record::Output;
use crate::programs::Gateway;
use result::LoadResult;
use scenario::Scenario;
use tollgate::progress::Progress;

/// How often the JSON file is written meanwhile.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);

/// A struct of counters, each of which adds up.
macro_rules! counts {
    ($(#[$attribute:meta])* $name:ident { $($(#[$comment:meta])* $field:ident,)+ }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
        pub struct $name {
            $($(#[$comment])* pub $field: u64,)+
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                $(self.$field += other.$field;)+
            }
        }
    };
}
use counts;

/// What to load, and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The scenario, a TOML file: see bench/scenarios/ for examples, bench/README.md for all keys.
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// The gateway to start: `tollgate`, `quincy-server`, or the path of either.
    #[arg(long, value_name = "NAME|PATH", default_value = "tollgate")]
    gateway: String,
    /// Run traffic for so many seconds, in place of the scenario's duration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=518_400))]
    seconds: Option<u64>,
    /// Have the gateway's metrics scraped so many times a second, in place of the scenario's `gateway.scrapes`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    scrapes: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// Runs the scenario and prints the table. Fails after all results when the load has failed.
pub fn command(options: &Options) -> Result<()> {
    let mut scenario = Scenario::load(&options.scenario)?;
    if let Some(seconds) = options.seconds {
        scenario.duration = Duration::from_secs(seconds);
    }
    scenario.gateway.scrapes = options.scrapes.unwrap_or(scenario.gateway.scrapes);
    let gateway = Gateway::named(&options.gateway)?;
    let version = gateway.version()?;
    tollgate_testkit::prepare()?;
    tollgate_testkit::require_tun()?;
    let mut recording = options.output.start([version])?;
    let mut progress = Progress::default();
    // A load of hours keeps its figures when it is interrupted.
    let mut recorded_at = Instant::now();
    let mut record = |so_far: &LoadResult| {
        if recorded_at.elapsed() < RECORD_INTERVAL {
            return Ok(());
        }
        recorded_at = Instant::now();
        recording.write("load", so_far)
    };
    let result = controller::run(&scenario, &gateway, &mut progress, &mut record);
    progress.clear();
    let result = result?;
    recording.print(&result)?;
    recording.write("load", &result)?;
    match result.failures.len() {
        0 => Ok(()),
        failures => bail!("the load failed, for {failures} reason(s): see the table"),
    }
}
