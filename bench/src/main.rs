//! The load-test harness of Tollgate: its command line.
//!
//! Everything is measured from outside, on the real programs, in network namespaces made for the run.

#![forbid(unsafe_code)]

mod gateway;
mod machine;
mod peers;
mod progress;
mod site;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Tollgate, side by side with its peers.
#[derive(Debug, Parser)]
#[command(name = "tollgate-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare the CPU time per gigabyte, and the throughput, of two gateways that are each pinned to one CPU.
    ///
    /// The gateways run in turn (A B A B ...), each in fresh network namespaces between a client and a server, from the same configuration
    /// files, with the same kind of client: quincy-client. Bulk TCP goes up, then down, through the tunnel; every byte is verified. Only
    /// the gateway is pinned: client, sender, receiver and kernel use every CPU.
    ///
    /// The figure to trust is the ratio within a pair: on a shared machine absolute figures drift by tens of per cent, ratios hardly.
    /// Progress goes to standard error, results to standard output. The exit status is 0 only if every byte of every transfer was right.
    /// Needs no root where user namespaces are allowed, but /dev/net/tun. Nothing is left behind.
    Gateway(gateway::Options),
}

fn main() -> ExitCode {
    let Cli { command: Command::Gateway(options) } = Cli::parse();
    match gateway::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
