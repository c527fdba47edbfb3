//! `tollgate-bench gateway`: two gateways in turn, each pinned to one CPU, and how they compare.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;
use tollgate::lab;
use tollgate::lab::bulk::Direction;
use tollgate::signals::{Signal, signals};

use crate::machine::{self, Machine};
use crate::peers::{self, Places};
use crate::progress::Progress;
use crate::site::{Contender, Deployment, Kind, Site};
use crate::table::{self, Comparison, Pair, Run};

/// The exit status of a program that an interrupt ended, as shells have it.
const INTERRUPTED: i32 = 130;

const CLIENT: &str = "quincy-client";

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The gateway to compare Tollgate with.
    #[arg(long, value_enum, default_value_t = Peer::Quincy)]
    peer: Peer,
    /// For how many seconds to move data in each direction: 1 to 600.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How many times each gateway runs: 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// The CPU that the gateways are pinned to, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    /// Tollgate's program [default: `tollgate` in the folder of this program].
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// The peer's program [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH")]
    peer_binary: Option<PathBuf>,
    /// The client's program, quincy-client, for both gateways [default: as the peer's].
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
    /// Write all figures to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Gateways that Tollgate can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// quincy-server.
    Quincy,
}

impl Peer {
    fn program(self) -> &'static str {
        match self {
            Peer::Quincy => "quincy-server",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Peer::Quincy => Kind::Quincy,
        }
    }
}

/// Everything about a comparison, for machines.
#[derive(Debug, Serialize)]
struct Results<'a> {
    benchmark: &'static str,
    command_line: Vec<String>,
    started_unix_seconds: u64,
    #[serde(flatten)]
    setup: &'a Setup,
    /// Whether every byte of every transfer was right.
    intact: bool,
    pairs: &'a [Pair],
    summary: &'a Comparison,
}

/// Everything that was looked up before the first run.
#[derive(Debug, Serialize)]
struct Setup {
    machine: Machine,
    commit: Option<String>,
    versions: Versions,
    cpu: usize,
    seconds: u16,
    #[serde(skip)]
    ours: Contender,
    #[serde(skip)]
    peer: Contender,
    #[serde(skip)]
    client: PathBuf,
}

/// The names and versions of all programs that take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Versions {
    ours: String,
    peer: String,
    client: String,
}

/// Compares, prints each run and the table on standard output, and writes the JSON file. Progress goes to standard error.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What is missing, in one line with the remedy; the first transfer that failed; or, after all results, that bytes were corrupted.
pub fn run(options: &Options) -> Result<()> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let setup = Setup::find(options)?;
    if let Some(path) = &options.json {
        require_writable(path)?;
    }
    lab::prepare()?;
    lab::require_tun()?;
    let deployment = Deployment::write()?;
    clean_up_on_interrupt(deployment.folder().to_owned())?;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures say nothing about Tollgate");
    }
    print(&setup.heading(options.pairs))?;
    let pairs = setup.run_pairs(&deployment, options.pairs)?;
    let summary = Comparison::of(setup.ours.name, setup.peer.name, &pairs).context("there was no pair")?;
    print(&format!("\n{summary}"))?;
    let corrupt = setup.corrupt_transfers(&pairs);
    if let Some(path) = &options.json {
        let results = Results {
            benchmark: "gateway",
            command_line: env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            started_unix_seconds: started.as_secs(),
            setup: &setup,
            intact: corrupt.is_empty(),
            pairs: &pairs,
            summary: &summary,
        };
        let text = serde_json::to_string_pretty(&results)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !corrupt.is_empty() {
        bail!("bytes were corrupted: {}", corrupt.join("; "));
    }
    Ok(())
}

impl Setup {
    fn find(options: &Options) -> Result<Self> {
        let places = Places::of_this_process();
        let gateway = peers::own_gateway(options.gateway.as_deref(), "--gateway")?;
        let peer = places.find(options.peer.program(), options.peer_binary.as_deref(), "--peer-binary")?;
        let client = places.find(CLIENT, options.client.as_deref(), "--client")?;
        let versions = Versions {
            ours: peers::stated_version(&gateway)?,
            peer: peers::embedded_version(&peer, options.peer.program())?,
            client: peers::embedded_version(&client, CLIENT)?,
        };
        Ok(Setup {
            machine: Machine::here(),
            commit: machine::commit(),
            versions,
            cpu: usable_cpu(options.cpu)?,
            seconds: options.seconds,
            ours: Contender { kind: Kind::Tollgate, name: "tollgate", program: gateway },
            peer: Contender { kind: options.peer.kind(), name: options.peer.program(), program: peer },
            client,
        })
    }

    /// What is compared, where, and the heading of the runs' table.
    fn heading(&self, pairs: u16) -> String {
        let unknown = || "unknown".to_owned();
        let Machine { cpu, cpus, kernel, .. } = &self.machine;
        format!(
            "{} and {} in turn, {pairs} pair{}, each pinned to CPU {}; client {}\n\
             bulk TCP up, then down, {} s each; s/GB is CPU time of the gateway per gigabyte of payload, Gb/s is of payload\n\
             {}, {} CPUs, Linux {}\n\n{}\n",
            self.versions.ours,
            self.versions.peer,
            if pairs == 1 { "" } else { "s" },
            self.cpu,
            self.versions.client,
            self.seconds,
            cpu.clone().unwrap_or_else(unknown),
            cpus.map_or_else(unknown, |cpus| cpus.to_string()),
            kernel.clone().unwrap_or_else(unknown),
            table::run_heading()
        )
    }

    fn run_pairs(&self, deployment: &Deployment, count: u16) -> Result<Vec<Pair>> {
        let mut progress = Progress::new();
        let mut run = |pair: u16, contender: &Contender| -> Result<Run> {
            let place = format!("pair {pair} of {count}: {}", contender.name);
            let run = self.run_one(deployment, contender, &place, &mut progress);
            progress.clear();
            let run = run.with_context(|| place)?;
            print(&format!("{}\n", table::run_line(pair, contender.name, &run)))?;
            Ok(run)
        };
        (1..=count).map(|pair| Ok(Pair { ours: run(pair, &self.ours)?, peer: run(pair, &self.peer)? })).collect()
    }

    fn run_one(
        &self,
        deployment: &Deployment,
        contender: &Contender,
        place: &str,
        progress: &mut Progress,
    ) -> Result<Run> {
        progress.step(&format!("{place}: connecting"));
        let site = Site::start(deployment, contender, &self.client, self.cpu)?;
        let duration = Duration::from_secs(self.seconds.into());
        let mut transfer = |direction, name| {
            progress.step(&format!("{place}: {name}"));
            site.transfer(direction, duration, |state| {
                progress.update(|| {
                    let megabytes = state.bytes / 1_000_000;
                    format!("{place}: {name}, {megabytes} MB in {:.1} s", state.elapsed.as_secs_f64())
                });
            })
        };
        let run = Run { up: transfer(Direction::Upload, "up")?, down: transfer(Direction::Download, "down")? };
        site.stop()?;
        Ok(run)
    }

    /// All transfers that delivered a wrong byte, in words.
    fn corrupt_transfers(&self, pairs: &[Pair]) -> Vec<String> {
        let runs = (1..)
            .zip(pairs)
            .flat_map(|(number, pair)| [(number, self.ours.name, pair.ours), (number, self.peer.name, pair.peer)]);
        runs.flat_map(|(number, name, run)| {
            let transfers = table::corrupt_transfers(&run).into_iter();
            transfers.map(move |(direction, offset)| format!("pair {number}, {name}, {direction}, byte {offset}"))
        })
        .collect()
    }
}

/// `wanted`, or the first CPU that this process may use.
fn usable_cpu(wanted: Option<usize>) -> Result<usize> {
    let allowed = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match wanted {
        None => usable.next().context("no CPU may be used"),
        Some(cpu) if usable.clone().any(|other| other == cpu) => Ok(cpu),
        Some(cpu) => {
            let list: Vec<String> = usable.map(|cpu| cpu.to_string()).collect();
            bail!("--cpu is {cpu}, but this process may use only {}", list.join(", "));
        }
    }
}

/// Refuses a file in a folder that cannot be written to, before minutes are spent on what it shall hold.
fn require_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = tempfile::NamedTempFile::new_in(folder);
    let Err(error) = probe else { return Ok(()) };
    bail!("--json is {}, but no file can be made in its folder ({})", path.display(), error.kind())
}

/// Makes SIGINT and SIGTERM remove `folder` and end this process. The kernel does the rest: children die with their parent, and
/// namespaces with those in them.
fn clean_up_on_interrupt(folder: PathBuf) -> Result<()> {
    let signals = signals().context("cannot watch signals")?;
    let watch = move || {
        while let Ok(signal) = signals.recv() {
            if signal == Signal::Stop {
                let removed = fs::remove_dir_all(&folder);
                eprintln!("tollgate-bench: interrupted");
                if let Err(error) = removed {
                    eprintln!("tollgate-bench: cannot remove {}: {error}", folder.display());
                }
                process::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("interrupt".to_owned()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// Prints on standard output, which may be closed.
fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("cannot print")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::table::Transfer;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.options)
    }

    fn setup() -> Setup {
        let version = || "x 1".to_owned();
        let contender = |kind, name| Contender { kind, name, program: "/bin/true".into() };
        Setup {
            machine: Machine { cpu: None, cpus: Some(2), memory_bytes: None, kernel: Some("6.18".into()) },
            commit: None,
            versions: Versions { ours: version(), peer: version(), client: version() },
            cpu: 1,
            seconds: 4,
            ours: contender(Kind::Tollgate, "tollgate"),
            peer: contender(Kind::Quincy, "quincy-server"),
            client: "/bin/true".into(),
        }
    }

    fn pair(corrupt_at_byte: Option<u64>) -> Pair {
        let intact = Transfer { bytes: 1_000, seconds: 1.0, gateway_cpu_seconds: 0.5, corrupt_at_byte: None };
        let run = Run { up: intact, down: intact };
        Pair { ours: run, peer: Run { down: Transfer { corrupt_at_byte, ..intact }, ..run } }
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let options = parsed("gateway --seconds 9 --pairs 3 --cpu 1 --peer quincy").unwrap();
        assert_eq!((options.seconds, options.pairs, options.cpu, options.peer), (9, 3, Some(1), Peer::Quincy));
        for wrong in ["--seconds 0", "--seconds 601", "--pairs 0", "--pairs 1001", "--cpu all", "--peer none"] {
            let error = parsed(&format!("gateway {wrong}")).unwrap_err().to_string();
            assert!(error.contains("invalid value"), "{error}");
        }
    }

    #[test]
    fn a_cpu_that_may_not_be_used_is_refused() {
        let first = usable_cpu(None).unwrap();
        assert_eq!(usable_cpu(Some(first)).unwrap(), first);
        let error = usable_cpu(Some(CpuSet::MAX_CPU)).unwrap_err().to_string();
        assert!(error.contains("may use only"), "{error}");
    }

    #[test]
    fn a_json_file_in_a_missing_folder_is_refused_and_a_possible_one_not_yet_made() {
        let folder = tempfile::tempdir().unwrap();
        require_writable(&folder.path().join("results.json")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = require_writable(&folder.path().join("none/results.json")).unwrap_err().to_string();
        assert!(error.starts_with("--json is ") && error.ends_with("(entity not found)"), "{error}");
    }

    #[test]
    fn a_corrupt_transfer_is_named() {
        assert!(setup().corrupt_transfers(&[pair(None), pair(None)]).is_empty());
        let named = setup().corrupt_transfers(&[pair(None), pair(Some(77))]);
        assert_eq!(named, ["pair 2, quincy-server, down, byte 77"]);
    }

    #[test]
    fn results_for_machines_tell_where_and_with_what_they_were_made() {
        let (setup, pairs) = (setup(), [pair(None)]);
        let summary = Comparison::of("tollgate", "quincy-server", &pairs).unwrap();
        let results = Results {
            benchmark: "gateway",
            command_line: vec!["tollgate-bench".into()],
            started_unix_seconds: 1,
            setup: &setup,
            intact: true,
            pairs: &pairs,
            summary: &summary,
        };
        let json = serde_json::to_value(&results).unwrap();
        for (place, value) in [
            ("/command_line/0", "tollgate-bench".into()),
            ("/machine/kernel", "6.18".into()),
            ("/versions/client", "x 1".into()),
            ("/cpu", 1.into()),
            ("/pairs/0/ours/up/bytes", 1_000.into()),
            ("/summary/up/cpu_seconds_per_gigabyte/ratio/median", 1.0.into()),
        ] {
            assert_eq!(json.pointer(place), Some::<&serde_json::Value>(&value), "{place}");
        }
    }
}
