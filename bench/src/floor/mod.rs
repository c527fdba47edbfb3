//! `tollgate-bench floor`: what this machine's kernel and ciphers allow one core of a gateway, whoever wrote it.
//!
//! Each stage of a packet's way is measured by itself, on one thread pinned to one CPU, by that thread's CPU time. A gateway's core cannot
//! do without three of them in each direction; their sum is the floor that gateways are held against. Nothing of a gateway runs here.

mod aead;
mod crossing;
mod meter;
mod packet;
mod rounds;
mod table;
mod tun;
mod udp;

use std::time::Duration;

use anyhow::{Context, Result};
use tollgate::lab;

use crate::cpus;
use crate::progress::Progress;
use crate::record::{self, Output};
use crate::results::Finding;

pub use rounds::{Round, Rounds};

/// How often each stage is measured, and for how long each pair of them at a time.
const FULL: (usize, Duration) = (9, Duration::from_millis(100));
/// The same with `--quick`.
const QUICK: (usize, Duration) = (5, Duration::from_millis(40));

/// How to measure the floor.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Take 2 seconds instead of 8: figures with more noise.
    #[arg(long)]
    quick: bool,
    /// The CPU to measure on, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    #[command(flatten)]
    output: Output,
}

/// Measures, prints the table on standard output, and writes the JSON file. Progress goes to standard error.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What is missing, in one line with the remedy, or what the kernel refused.
pub fn run(options: &Options) -> Result<()> {
    let cpu = cpus::one(options.cpu, "--cpu")?;
    let recording = options.output.start([])?;
    lab::prepare()?;
    lab::require_tun()?;
    let (count, slot) = if options.quick { QUICK } else { FULL };
    let mut progress = Progress::new();
    progress.step("setting up");
    let mut rounds = Rounds::set_up(cpu, slot)?;
    for round in 1..=count {
        progress.update(|| format!("round {round} of {count}"));
        rounds.run()?;
    }
    progress.clear();
    let floor = rounds.floor().context("there was no round")?;
    let table = table::Table { floor: &floor, rounds: count };
    record::print(&format!("{}one thread, pinned to CPU {cpu}\n\n{table}", recording.heading()))?;
    recording.write(Finding::Floor(floor))
}
