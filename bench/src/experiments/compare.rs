//! `compare`: two gateways in turn, each pinned to one CPU, how they compare, and how far ours is from the machine's floor.

use std::fmt::Write as _;
use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tollgate_testkit::bulk::{Direction, Progress as BulkProgress};

use super::floor::{Floor, Rounds, Sums};
use super::tunnel::{CLIENT, Placement, Tunnel, TunnelFiles};
use crate::measure::cpus;
use crate::measure::progress::Progress;
use crate::measure::record::{Output, table};
use crate::measure::spread::{Compared, Interval95, Spread};
use crate::programs::{self, Gateway, GatewayOptions};

/// For how long each pair of the floor's stages is measured before each pair of runs.
const FLOOR_SLOT: Duration = Duration::from_millis(100);
/// A gateway that uses less of its CPU than this was never the limit.
const SATURATED_SHARE: f64 = 0.9;

/// The kinds of work of every run, in their order.
const WORKS: [Work; 3] = [Work::Up, Work::Down, Work::Both];

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

/// A kind of bulk work: from client to network, from network to client, both at once (bytes are the sum).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Up,
    Down,
    Both,
}

/// A run of each gateway, one after the other: one transfer for each kind of work.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Pair {
    ours: Vec<Transfer>,
    peer: Vec<Transfer>,
}

/// Bytes moved through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Transfer {
    work: Work,
    /// Bytes of TCP payload inside the tunnel that arrived.
    bytes: u64,
    /// From the connection's start to the last byte's verification.
    seconds: f64,
    /// CPU time that the gateway's process used meanwhile, in user and kernel mode.
    gateway_cpu_seconds: f64,
    /// The offset of the first byte that was not the one sent.
    corrupt_at_byte: Option<u64>,
}

/// What a kind of work came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary {
    work: Work,
    cpu_seconds_per_gigabyte: Compared,
    /// Where the median of the ratio lies; of fewer than six pairs it cannot be told.
    ratio_interval_95: Option<Interval95>,
    gigabits_per_second: Compared,
    /// The share of its CPU that the gateway used.
    cpu_share: Compared,
    /// Ours as a multiple of the floor of the same pair. Both ways at once are held against the mean of both directions.
    ours_to_floor: Spread,
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
    recording.print(&tables(&comparison))?;
    recording.write("compare", &comparison)?;
    let corrupt = comparison.pairs.iter().flat_map(|pair| pair.ours.iter().chain(&pair.peer));
    let corrupt = corrupt.filter(|transfer| transfer.corrupt_at_byte.is_some()).count();
    if corrupt > 0 {
        bail!("bytes were corrupted in {corrupt} transfers");
    }
    let dearer = ratio_max.map_or(Vec::new(), |ratio_max| dearer(&comparison.summaries, ratio_max));
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
            summaries: summaries(&pairs, &floors).context("there was no pair")?,
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

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Up => "up",
            Work::Down => "down",
            Work::Both => "both ways",
        }
    }

    fn floor(self, Sums { up, down }: Sums) -> f64 {
        match self {
            Work::Up => up,
            Work::Down => down,
            Work::Both => (up + down) / 2.0,
        }
    }
}

impl Transfer {
    fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.gateway_cpu_seconds * 1e9 / self.bytes as f64
    }
}

/// One for each kind of work; `floors` are those measured with the pairs, in their order. `None` of no pair.
fn summaries(pairs: &[Pair], floors: &[Sums]) -> Option<Vec<Summary>> {
    let summary = |(index, work): (usize, Work)| {
        let compared = |figure: fn(&Transfer) -> f64| {
            Compared::of(
                &pairs.iter().map(|pair| (figure(&pair.ours[index]), figure(&pair.peer[index]))).collect::<Vec<_>>(),
            )
        };
        let cost = Transfer::cpu_seconds_per_gigabyte;
        let ratios = pairs.iter().map(|pair| cost(&pair.ours[index]) / cost(&pair.peer[index]));
        let to_floor = pairs.iter().zip(floors).map(|(pair, round)| cost(&pair.ours[index]) / work.floor(*round));
        Some(Summary {
            work,
            cpu_seconds_per_gigabyte: compared(cost)?,
            ratio_interval_95: Interval95::of_median(ratios),
            gigabits_per_second: compared(|transfer| transfer.bytes as f64 * 8e-9 / transfer.seconds)?,
            cpu_share: compared(|transfer| transfer.gateway_cpu_seconds / transfer.seconds)?,
            ours_to_floor: Spread::of(to_floor)?,
        })
    };
    WORKS.into_iter().enumerate().map(summary).collect()
}

/// The kinds of work whose 95 % interval of the ratio lies above `ratio_max` as a whole, in words.
fn dearer(summaries: &[Summary], ratio_max: f64) -> Vec<String> {
    let told = summaries.iter().filter_map(|summary| Some((summary.work, summary.ratio_interval_95?)));
    let dearer = told.filter(|(_, interval)| interval.low > ratio_max);
    dearer
        .map(|(work, Interval95 { low, high })| {
            format!("{}: {low:.3} to {high:.3}, and {ratio_max} is allowed", work.name())
        })
        .collect()
}

/// A table of medians and extremes, and what they say in words.
fn tables(comparison: &Comparison) -> String {
    let Comparison { ours, peer, summaries, floor, .. } = comparison;
    let two = |figure: f64| format!("{figure:.2}");
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let rows = summaries.iter().flat_map(|summary| {
        let floor = summary.work.floor(floor.sums);
        let row = |who: &str, pick: fn(&Compared) -> Spread, to_floor: String| {
            [
                summary.work.name().to_owned(),
                who.to_owned(),
                pick(&summary.cpu_seconds_per_gigabyte).shown(two),
                to_floor,
                pick(&summary.gigabits_per_second).shown(two),
                pick(&summary.cpu_share).shown(percent),
            ]
        };
        [
            row(ours, |it| it.ours, summary.ours_to_floor.shown(two)),
            row(peer, |it| it.peer, String::new()),
            row("ratio", |it| it.ratio, format!("floor {floor:.2}")),
        ]
    });
    let mut text = format!("{}\n", table(2, &["bulk TCP", "", "CPU s/GB", "to the floor", "Gb/s", "of its CPU"], rows));
    for summary in summaries {
        let Spread { median, min, max } = summary.cpu_seconds_per_gigabyte.ratio;
        let judgement = match (min, max) {
            (_, max) if max < 1.0 => "less in every pair",
            (min, _) if min > 1.0 => "more in every pair",
            _ => "undecided: the pairs disagree",
        };
        let interval = summary.ratio_interval_95;
        let interval = interval.map(|it| format!("; 95 % interval of the median {:.3} to {:.3}", it.low, it.high));
        let (work, interval) = (summary.work.name(), interval.unwrap_or_default());
        let count = comparison.pairs.len();
        let _ = write!(
            text,
            "\n{work}: {ours} needs {median:.2} times the CPU per GB of {peer} ({min:.2} to {max:.2} over {count} pair(s); {judgement}{interval})"
        );
    }
    let shares = summaries.iter().map(|summary| summary.cpu_share.ours.max.max(summary.cpu_share.peer.max));
    let highest = shares.fold(0.0, f64::max);
    if highest < SATURATED_SHARE {
        let _ = write!(
            text,
            "\nneither gateway used more than {} of its CPU: the load, not they, limited Gb/s",
            percent(highest)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ours: f64, peer: f64) -> Pair {
        let run = |gateway_cpu_seconds| {
            [(Work::Up, 2), (Work::Down, 1), (Work::Both, 4)]
                .map(|(work, gigabytes)| Transfer {
                    work,
                    bytes: gigabytes * 1_000_000_000,
                    seconds: 4.0,
                    gateway_cpu_seconds,
                    corrupt_at_byte: None,
                })
                .to_vec()
        };
        Pair { ours: run(ours), peer: run(peer) }
    }

    const FLOORS: [Sums; 15] = [Sums { up: 0.25, down: 0.125 }; 15];

    #[test]
    fn each_pair_is_held_against_its_own_floor_and_both_ways_against_the_mean() {
        // The machine becomes twice as slow: gateways and floor alike.
        let floors = [Sums { up: 0.25, down: 0.125 }, Sums { up: 0.5, down: 0.25 }];
        let summaries = summaries(&[pair(1.0, 2.0), pair(2.0, 4.0)], &floors).unwrap();
        let same = |factor| Spread { median: factor, min: factor, max: factor };
        assert_eq!(
            summaries.iter().map(|it| it.ours_to_floor).collect::<Vec<_>>(),
            [same(2.0), same(8.0), same(0.25 / 0.1875)]
        );
        assert!(summaries.iter().all(|it| it.cpu_seconds_per_gigabyte.ratio == same(0.5)));
        assert_eq!(summaries[0].gigabits_per_second.ours.median, 4.0);
        assert_eq!(super::summaries(&[], &[]), None);
    }

    #[test]
    fn a_bound_is_missed_only_by_a_whole_interval() {
        let found = |ratios: &[f64]| {
            let pairs: Vec<Pair> = ratios.iter().map(|&ratio| pair(ratio, 1.0)).collect();
            dearer(&summaries(&pairs, &FLOORS).unwrap(), 1.03)
        };
        assert!(found(&[1.02, 1.04, 1.05, 1.06, 1.07, 1.08]).is_empty(), "the interval reaches down to 1.02");
        let all = found(&[1.035, 1.04, 1.05, 1.06, 1.07, 1.08]);
        assert_eq!((all.len(), all[0].as_str()), (3, "up: 1.035 to 1.080, and 1.03 is allowed"));
        assert!(found(&[2.0; 5]).is_empty(), "too few to tell");
    }

    #[test]
    fn the_tables_say_what_the_pairs_decide() {
        let shown = |pairs: &[Pair]| {
            tables(&Comparison {
                ours: "tollgate",
                peer: "quincy-server",
                gateway_cpus: vec![0],
                load_cpus: vec![1],
                seconds: 4,
                pairs: pairs.to_vec(),
                summaries: summaries(pairs, &FLOORS).unwrap(),
                floor: Floor { stages: Vec::new(), sums: Sums { up: 0.25, down: 0.5 } },
            })
        };
        let text = shown(&[pair(1.0, 2.0), pair(1.2, 2.0), pair(1.1, 2.0)]);
        assert!(text.contains("up: tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pair(s); less in every pair)"), "{text}");
        assert!(text.contains("neither gateway used more than 50 % of its CPU"), "{text}");
        assert!(shown(&[pair(1.0, 2.0), pair(2.0, 1.0)]).contains("undecided: the pairs disagree"));
    }
}
