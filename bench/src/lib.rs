//! The load-test harness of Tollgate: measures it from outside, on the real programs, in network namespaces made for the run.
//!
//! `load` holds thousands of clients against a gateway and accounts for every packet; `experiments` are the commands, most of them made
//! of loads; `deploy` starts gateways; `measure` has what all figures have in common; `engine` counts instructions without any of it.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a comment stands where the name does not say it")]

mod deploy;
pub mod engine;
mod experiments;
mod frames;
mod load;
mod measure;
mod programs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use experiments::{compare, floor, handshakes, idle, latency, modes, packets, scale, shaping};

/// Measures Tollgate, side by side with its peers.
///
/// Every command prints tables in Markdown on standard output and its progress on standard error; --json and --markdown write files too. The
/// exit status is 0 only if all figures are right: slow is not wrong. Nothing needs root where user namespaces are allowed, but
/// /dev/net/tun. Nothing is left behind.
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
    /// The gateways run in turn (A B B A ...), each in fresh network namespaces between a client and a server. Both read the same configuration
    /// files and have the same kind of client, quincy-client. Bulk TCP goes up, down, then both ways at once through the tunnel; every byte is
    /// verified. Before each pair, the machine's floor is measured on the gateway's CPU (see `floor`).
    ///
    /// The figure to trust is the ratio within a pair: on a shared machine absolute figures drift by tens of per cent, ratios hardly.
    #[command(alias = "gateway")]
    Compare(compare::Options),
    /// Load a gateway with thousands of clients, as a scenario says, and account for every packet.
    ///
    /// Clients have identities of their own and no TUN interface: inner traffic is made and checked in this process. The exit status is 0 only
    /// if both ends agree on every packet, up and down (sent = received + counted drops), and everything holds that the scenario demands.
    /// bench/README.md has all keys.
    Load(load::Options),
    /// Measure what a gateway's CPU costs for each packet where no sender has put packets together.
    ///
    /// Packets of 1300 and of 100 bytes and the simple IMIX, in one flow and in many, each packet sent by itself at an even rate. The gateways
    /// run in turn, round by round.
    Packets(packets::Options),
    /// Measure one offered load over more and more shards on one CPU, over more and more clients, and over more and more idle ones.
    ///
    /// CPU time for each gigabyte must not grow with shards. All points run in turn, round by round; ratios are to the first point of the
    /// same round.
    Scale(scale::Options),
    /// Measure how many full handshakes a core takes, alone and while forwarding, and what forwarding loses meanwhile.
    #[command(alias = "storm")]
    Handshakes(handshakes::Options),
    /// Measure what idle connections and users cost in memory, and keep-alives in CPU time.
    Idle(idle::Options),
    /// Measure round trips through the tunnel while it is idle, half loaded and saturated.
    ///
    /// Each is counted from when its request was due, not from when it was sent.
    Latency(latency::Options),
    /// Measure what Noise costs beside TLS, for bulk traffic and for handshakes.
    Modes(modes::Options),
    /// Measure how usable the tunnel of a limited user stays while bulk TCP fills it.
    ///
    /// A user with a bandwidth limit moves bulk TCP of the kernel through the tunnel, down and up, without ECN and with it, and pings through the
    /// same tunnel. The gateways run in turn, each in fresh network namespaces, with the same client, quincy-client. Pings count from when bulk
    /// has used up the user's burst.
    Shaping(shaping::Options),
    /// Measure what this machine's kernel and cipher allow one core of a gateway, whoever wrote it.
    ///
    /// Each stage of a packet's way is measured by itself, on one thread pinned to one CPU, by that thread's CPU time: TUN writes and
    /// reads, UDP sends and receives, with super-packets and without, ciphers. The stages that a gateway's core cannot do without add up
    /// to its floor in each direction.
    Floor(floor::Options),
    /// Count the instructions of the engine, without input and output, and hold them against another build's.
    ///
    /// Real shards and a real client are wired together in memory, under virtual time. Each benchmark runs under callgrind (Debian's package
    /// valgrind), which counts the instructions of the gateway's part alone; the table shows them for each packet or handshake. A count
    /// repeats within 0.1 %, whatever else the machine does. It is no time: it knows neither caches nor the kernel, and valgrind's
    /// processor lacks AVX-512.
    ///
    /// The exit status is 0 only if no benchmark costs 2 % more than in the build that --against names. `cargo xtask counts --against REV`
    /// builds both alike.
    Engine(engine::Options),
}

/// The program.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Compare(options) => compare::run(&options),
        Command::Load(options) => load::command(&options),
        Command::Packets(options) => packets::run(&options),
        Command::Scale(options) => scale::run(&options),
        Command::Handshakes(options) => handshakes::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Latency(options) => latency::run(&options),
        Command::Modes(options) => modes::run(&options),
        Command::Shaping(options) => shaping::run(&options),
        Command::Floor(options) => floor::run(&options),
        Command::Engine(options) => engine::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollgate-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
