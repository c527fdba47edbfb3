//! `tollgate demo`: a gateway and two clients at work, in network namespaces of their own, and what they achieve in one table.
//!
//! This module runs the real commands of this very program, `serve` and `connect`, and looks at them from outside only. It never touches the
//! network that it was started in.

mod clients;
mod interrupt;
mod measure;
mod site;
mod table;
mod tally;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tollgate_config::ShardCount;
use tollgate_shards::SHARDS_MAX;

use self::interrupt::Interrupt;
use self::site::Site;
use self::table::Findings;
use crate::identity::noise::{KeyExchange, NoiseKeyError};
use crate::output;
use crate::progress::Progress;
use crate::signals::Signal;
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{self as testkit, LabError, Privilege};

/// How often a demo on hold looks after its processes.
const HOLD_INTERVAL: Duration = Duration::from_millis(200);

/// Options of `tollgate demo`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// For how many seconds to move data, each way: 1 to 600.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    #[arg(
        long,
        help = format!("How many shards the gateway has: \"auto\" for one a core, or a number from 1 to {SHARDS_MAX}, which may exceed the cores"),
        value_name = "auto|N",
        default_value = "auto",
        value_parser = shard_count
    )]
    shards: ShardCount,
    /// How many TCP connections each client has at once: 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: u16,
    /// Log the clients in by Noise keys of that kind, "standard" if none is said, instead of TLS.
    #[arg(long, value_name = "KIND", num_args = 0..=1, default_missing_value = "standard")]
    noise: Option<KeyExchange>,
    /// Keep everything up after the table, and say how to reach it, until Ctrl-C.
    #[arg(long)]
    hold: bool,
}

/// Why the demo did not run to its end, or not well.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The namespaces, or what runs in them.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The directory with configurations and certificates.
    #[error("cannot {operation} '{path}': {source}")]
    Files {
        /// The operation that failed.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A Noise key cannot be made.
    #[error(transparent)]
    Key(#[from] NoiseKeyError),
    /// Something of the system that every program has.
    #[error("cannot {operation}: {source}")]
    System {
        /// The operation that failed.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// An event did not come in time.
    #[error("{awaited} did not come within {} s\n{logs}", timeout.as_secs())]
    Awaited {
        /// The event.
        awaited: String,
        /// The time it was given.
        timeout: Duration,
        /// The last lines of those concerned.
        logs: Logs,
    },
    /// A gateway or client ended by itself, or not with status 0.
    #[error("{process} has ended ({status})\n{logs}")]
    Ended {
        /// The name of the process.
        process: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its last lines.
        logs: Logs,
    },
    /// The traffic through a tunnel did not go through.
    #[error("{source}\n{logs}")]
    Traffic {
        /// The error of the transfer or ping.
        source: LabError,
        /// The last lines of gateway and client.
        logs: Logs,
    },
    /// A thread that made traffic panicked, and has said why.
    #[error("a thread of the demo itself failed")]
    Panicked,
    /// Bytes did not arrive as they were sent.
    #[error("corrupt: byte {offset} of TCP connection {stream} of client {client} is not the one sent")]
    Corrupt {
        /// The client's number, from 0.
        client: usize,
        /// Which of its connections, from 0.
        stream: usize,
        /// The offset of the first wrong byte in the stream.
        offset: u64,
    },
    /// Nothing was answered or moved.
    #[error("client {client}: {what}\n{logs}")]
    Silence {
        /// The client's number, from 0.
        client: usize,
        /// The traffic of which nothing arrived.
        what: &'static str,
        /// The last lines of gateway and client.
        logs: Logs,
    },
    /// The gateway's counters cannot be read.
    #[error("the gateway's counters cannot be read: {0}")]
    Counters(#[from] serde_json::Error),
    /// Not every shard has said how it stands.
    #[error("only {answered} of {shards} shards have reported their counters")]
    MissingShards {
        /// The number of shards that answered.
        answered: usize,
        /// The number of shards of the gateway.
        shards: usize,
    },
    /// SIGINT or SIGTERM came before the end.
    #[error("interrupted")]
    Interrupted,
}

/// The last lines of some processes, for an error.
#[derive(Debug, Default)]
pub struct Logs(Vec<(String, Vec<String>)>);

impl fmt::Display for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (process, lines)) in self.0.iter().enumerate() {
            let said = if lines.is_empty() { "said nothing" } else { "said last:" };
            write!(f, "{}{process} {said}", if index > 0 { "\n" } else { "" })?;
            lines.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        }
        Ok(())
    }
}

/// Shows it all: sets up, measures, prints the table on standard output, and takes everything down. Progress goes to standard error.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What is missing on this machine, in one line with the remedy; or the first step that failed, corrupt bytes among them. Everything is
/// taken down in any case.
pub fn run(options: &Options) -> Result<(), DemoError> {
    let privilege = testkit::prepare()?;
    testkit::require_tun()?;
    let signals =
        crate::signals::signals().map_err(|source| DemoError::System { operation: "watch signals", source })?;
    let interrupt = Interrupt::new(signals);
    let mut progress = Progress::default();
    progress.step("building network namespaces");
    let mut site = Site::build(options.shards, options.noise.map(KeyExchange::kind))?;
    let shown = show(options, privilege, &mut site, &interrupt, &mut progress);
    progress.step("stopping clients and gateway");
    let stopped = site.stop();
    if stopped.is_ok() {
        progress.note("all is stopped, nothing left behind");
    }
    shown.and(stopped)
}

fn show(
    options: &Options,
    privilege: Privilege,
    site: &mut Site,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<(), DemoError> {
    progress.step("starting the gateway");
    let kernel = site.start_gateway(interrupt)?;
    progress.step("connecting two clients");
    site.connect_clients(interrupt)?;
    let placement = site.status(interrupt)?;
    progress.step("ping through the tunnels, idle");
    let idle = measure::idle(site, interrupt)?;
    let mut load = |direction| measure::load(site, options, direction, interrupt, progress);
    let findings = Findings {
        clients: site::CLIENTS.len(),
        streams: options.streams.into(),
        kernel,
        placement,
        idle,
        up: load(Direction::Upload)?,
        down: load(Direction::Download)?,
    };
    progress.clear();
    print(&findings.to_string())?;
    if options.hold {
        progress.note(&site.directions(privilege));
        hold(site, interrupt)?;
    }
    Ok(())
}

/// Keeps it all up until a signal comes.
fn hold(site: &mut Site, interrupt: &Interrupt) -> Result<(), DemoError> {
    loop {
        match interrupt.wait(HOLD_INTERVAL) {
            Some(Signal::Stop) => return Ok(()),
            Some(Signal::Report) => print(&format!("{}\n", site.status(interrupt)?))?,
            None => site.check()?,
        }
    }
}

/// Prints on standard output, which may be closed.
fn print(text: &str) -> Result<(), DemoError> {
    output::print(text.trim_end()).map_err(|source| DemoError::System { operation: "print", source })
}

fn shard_count(text: &str) -> Result<ShardCount, String> {
    text.parse().map_err(|_| format!("write \"auto\" or a number from 1 to {SHARDS_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        <Cli as clap::Parser>::try_parse_from(line.split(' ')).map(|cli| cli.options)
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let options = parsed("demo").unwrap();
        assert_eq!((options.seconds, options.shards, options.streams), (4, ShardCount::Auto, 1));
        assert!(!options.hold);
        let options = parsed("demo --seconds 9 --shards 3 --streams 64 --hold").unwrap();
        assert_eq!(options.shards, ShardCount::Fixed(3.try_into().unwrap()));
        assert!(options.hold);
        for wrong in ["--seconds 0", "--seconds 601", "--shards 0", "--shards 129", "--shards all", "--streams 65"] {
            let error = parsed(&format!("demo {wrong}")).unwrap_err().to_string();
            assert!(error.contains("invalid value"), "{error}");
        }
    }

    #[test]
    fn an_error_ends_with_the_last_lines_of_those_concerned() {
        let logs = Logs(vec![("gateway".into(), vec!["a".into(), "b".into()]), ("client 0".into(), vec![])]);
        let error = DemoError::Awaited { awaited: "a reply".into(), timeout: Duration::from_secs(3), logs };
        let expected = "a reply did not come within 3 s\ngateway said last:\n  a\n  b\nclient 0 said nothing";
        assert_eq!(error.to_string(), expected);
    }
}
