//! `compare`: two gateways in turn, each pinned to one CPU, how they compare, and how far ours is from the machine's floor.

mod figures;

use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tollgate_testkit::bulk::{Direction, Progress as BulkProgress};

use self::figures::{Pair, Summary, Transfer, WORKS, Work};
use super::floor::{Floor, Rounds};
use super::tunnel::{CLIENT, Placement, Tunnel, TunnelFiles};
use crate::measure::cpus;
use crate::measure::progress::Progress;
use crate::measure::record::Output;
use crate::measure::spread::Interval95;
use crate::programs::{self, Gateway, GatewayOptions};

/// For how long each pair of the floor's stages is measured before each pair of runs.
const FLOOR_SLOT: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// For how many seconds to move data up, then down, then both ways.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How many times each gateway runs.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// The CPU that the gateways are pinned to, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    /// The CPUs that client, sender and receiver are pinned to [default: all but the gateway's].
    #[arg(long, value_name = "C,C...", value_delimiter = ',')]
    load_cpus: Vec<usize>,
    /// The program of the client that speaks Quincy's protocol, quincy-client [default: as the peer's].
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
    /// Fail if Tollgate needs more CPU per gigabyte than this many times the peer's: if the whole 95 % interval of a median ratio lies above.
    #[arg(long, value_name = "X", value_parser = ratio)]
    ratio_max: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// What a comparison found.
#[derive(Debug, Serialize)]
struct Comparison {
    ours: &'static str,
    peer: &'static str,
    gateway_cpus: Vec<usize>,
    load_cpus: Vec<usize>,
    /// For how long each transfer was to send.
    seconds: u16,
    pairs: Vec<Pair>,
    /// One for each kind of work.
    summaries: Vec<Summary>,
    floor: Floor,
}

/// Everything that was looked up before the first run.
struct Setup {
    ours: Gateway,
    peer: Gateway,
    client: PathBuf,
    placement: Placement,
    duration: Duration,
}

/// Compares. Fails after all results when bytes were corrupted, or when ours is dearer than --ratio-max allows.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
pub fn run(options: &Options) -> Result<()> {
    let &Options { seconds, pairs, ratio_max, .. } = options;
    let pairs_min = Interval95::FIGURES_MIN;
    ensure!(ratio_max.is_none() || usize::from(pairs) >= pairs_min, "--ratio-max needs --pairs {pairs_min} or more");
    let setup = Setup::find(options)?;
    let versions = [setup.ours.version()?, setup.peer.version()?, programs::embedded_version(&setup.client, CLIENT)?];
    tollgate_testkit::prepare()?;
    tollgate_testkit::require_tun()?;
    let mut recording = options.output.start(versions)?;
    let Placement { gateway_cpus, load_cpus } = &setup.placement;
    recording.print(&format!(
        "{} and {} in turn, {pairs} pair(s), pinned to CPU {}; client, sender and receiver on CPU {}\n\
         bulk TCP up, down, both ways at once, {seconds} s each; CPU time of the gateway per gigabyte of payload",
        setup.ours.name,
        setup.peer.name,
        cpus::list(gateway_cpus),
        cpus::list(load_cpus),
    ))?;
    let comparison = setup.compare(pairs, seconds)?;
    recording.print(&figures::tables(&comparison))?;
    recording.write("compare", &comparison)?;
    let corrupt = comparison.pairs.iter().flat_map(|pair| pair.ours.iter().chain(&pair.peer));
    let corrupt = corrupt.filter(|transfer| transfer.corrupt_at_byte.is_some()).count();
    if corrupt > 0 {
        bail!("bytes were corrupted in {corrupt} transfers");
    }
    let dearer = ratio_max.map_or(Vec::new(), |ratio_max| figures::dearer(&comparison.summaries, ratio_max));
    if !dearer.is_empty() {
        bail!("dearer than --ratio-max allows: {}", dearer.join("; "));
    }
    Ok(())
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio > 0.0);
    ratio.ok_or_else(|| "must be a number above 0".into())
}

impl Setup {
    fn find(options: &Options) -> Result<Self> {
        let (ours, peer) = options.gateways.find_pair()?;
        cpus::require_usable(options.cpu.as_slice(), "--cpu")?;
        cpus::require_usable(&options.load_cpus, "--load-cpus")?;
        let (gateway_cpus, load_cpus) = cpus::split(options.cpu.as_slice(), &options.load_cpus)?;
        Ok(Setup {
            ours,
            peer,
            client: programs::find(CLIENT, options.client.as_deref(), "--client")?,
            placement: Placement { gateway_cpus, load_cpus },
            duration: Duration::from_secs(options.seconds.into()),
        })
    }

    fn compare(&self, count: u16, seconds: u16) -> Result<Comparison> {
        let files = TunnelFiles::write("")?;
        let mut progress = Progress::new();
        let mut rounds = Rounds::set_up(self.placement.gateway_cpus[0], FLOOR_SLOT)?;
        let (mut pairs, mut floors): (Vec<Pair>, _) = (Vec::new(), Vec::new());
        for number in 1..=count {
            progress.step(&format!("pair {number} of {count}: the machine's floor"));
            floors.push(rounds.run()?);
            let mut run = |gateway: &Gateway| {
                let place = format!("pair {number} of {count}: {}", gateway.name);
                let run = self.run_one(&files, gateway, &place, &mut progress);
                progress.clear();
                run.with_context(|| place)
            };
            // Who runs first changes from pair to pair, so that a machine that slows down or warms up favours nobody.
            let (ours, peer) = if number % 2 == 1 {
                let ours = run(&self.ours)?;
                (ours, run(&self.peer)?)
            } else {
                let peer = run(&self.peer)?;
                (run(&self.ours)?, peer)
            };
            pairs.push(Pair { ours, peer });
        }
        let Placement { gateway_cpus, load_cpus } = self.placement.clone();
        Ok(Comparison {
            ours: self.ours.name,
            peer: self.peer.name,
            gateway_cpus,
            load_cpus,
            seconds,
            summaries: figures::summaries(&pairs, &floors).context("there was no pair")?,
            pairs,
            floor: rounds.floor().context("there was no pair")?,
        })
    }

    /// All kinds of work with one gateway.
    fn run_one(
        &self,
        files: &TunnelFiles,
        gateway: &Gateway,
        place: &str,
        progress: &mut Progress,
    ) -> Result<Vec<Transfer>> {
        progress.step(&format!("{place}: connecting"));
        let mut tunnel = Tunnel::start(files, gateway, &self.client, &self.placement)?;
        let mut transfers = Vec::new();
        for work in WORKS {
            progress.step(&format!("{place}: {}", work.name()));
            let tell = |state: BulkProgress| {
                progress.update(|| {
                    let (name, megabytes) = (work.name(), state.bytes / 1_000_000);
                    format!("{place}: {name}, {megabytes} MB in {:.1} s", state.elapsed.as_secs_f64())
                });
            };
            transfers.push(transfer(&mut tunnel, work, self.duration, tell)?);
        }
        tunnel.stop()?;
        Ok(transfers)
    }
}

/// Does `work` for `duration`, calling `progress` now and then.
fn transfer(
    tunnel: &mut Tunnel,
    work: Work,
    duration: Duration,
    mut progress: impl FnMut(BulkProgress) + Send,
) -> Result<Transfer> {
    let before = tunnel.gateway.cpu_seconds()?;
    let moved = &*tunnel;
    let reports = match work {
        Work::Up => vec![moved.bulk(Direction::Upload, duration, progress)],
        Work::Down => vec![moved.bulk(Direction::Download, duration, progress)],
        Work::Both => {
            let up_bytes = AtomicU64::new(0);
            thread::scope(|scope| {
                let tell = |state: BulkProgress| up_bytes.store(state.bytes, Ordering::Relaxed);
                let up = scope.spawn(move || moved.bulk(Direction::Upload, duration, tell));
                let down = moved.bulk(Direction::Download, duration, |state| {
                    progress(BulkProgress { bytes: state.bytes + up_bytes.load(Ordering::Relaxed), ..state });
                });
                vec![up.join().unwrap_or_else(|payload| panic::resume_unwind(payload)), down]
            })
        }
    };
    let gateway_cpu_seconds = tunnel.gateway.cpu_seconds()? - before;
    let reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(Transfer {
        work,
        bytes: reports.iter().map(|report| report.bytes).sum(),
        seconds: reports.iter().map(|report| report.seconds).fold(0.0, f64::max),
        gateway_cpu_seconds,
        corrupt_at_byte: reports.iter().find_map(|report| report.corrupt_at).map(|(_, offset)| offset),
    })
}
