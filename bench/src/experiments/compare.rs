//! `compare`: two gateways in turn, each pinned to one CPU, how they compare, and how far they are from the machine's floor.

use std::panic;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use tollgate_testkit::bulk;

use super::floor;
use super::tunnel::{Tunnel, TunnelOptions};
use crate::load::experiment::{Cell, Column, Results, three_digits, two_digits};
use crate::load::scenario::Direction;
use crate::measure::cpus;
use crate::measure::spread::{FIGURES_MIN, Spread};
use crate::measure::units::{bits_per_second, percent};

/// For how long each pair of the floor's stages is measured before each pair of runs.
const FLOOR_SLOT: Duration = Duration::from_millis(100);
/// The work of every run, in its order.
const WORKS: [Direction; 3] = [Direction::Up, Direction::Down, Direction::Both];

#[derive(Debug, clap::Args)]
#[command(mut_arg("peer", |arg| arg.default_value("quincy")))]
#[command(mut_arg("seconds", |arg| arg.default_value("4")), mut_arg("rounds", |arg| arg.default_value("5")))]
pub struct Options {
    #[command(flatten)]
    tunnel: TunnelOptions,
    /// The CPU that the gateways are pinned to, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    /// The CPUs that client, sender and receiver are pinned to [default: all but the gateway's].
    #[arg(long, value_name = "C,C...", value_delimiter = ',')]
    load_cpus: Vec<usize>,
    /// Fail if Tollgate needs more CPU per gigabyte than this many times the peer's: if the whole 95 % interval of a median ratio lies above.
    #[arg(long, value_name = "X", value_parser = ratio)]
    ratio_max: Option<f64>,
}

/// Bytes moved through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Transfer {
    /// Bytes of TCP payload inside the tunnel that arrived, in both directions together.
    bytes: u64,
    /// From the connection's start to the last byte's verification.
    seconds: f64,
    /// CPU time that the gateway's process used meanwhile, in user and kernel mode.
    gateway_cpu_seconds: f64,
    /// What the machine's floor was just before, in CPU seconds per gigabyte.
    floor: f64,
    /// The offset of the first byte that was not the one sent.
    corrupt_at_byte: Option<u64>,
}

/// Compares. Fails after all results when bytes were corrupted, or when ours is dearer than --ratio-max allows.
pub fn run(Options { tunnel: options, cpu, load_cpus, ratio_max }: &Options) -> Result<()> {
    cpus::require_usable(cpu.as_slice(), "--cpu")?;
    cpus::require_usable(load_cpus, "--load-cpus")?;
    let (cpus, duration) = (cpus::split(cpu.as_slice(), load_cpus)?, options.series.duration(1));
    let plan = format!(
        "bulk TCP up, down and both ways at once, {} s each; gateways in turn on CPU {}; client, sender and receiver on CPU {}",
        duration.as_secs(),
        cpus::list(&cpus.0),
        cpus::list(&cpus.1),
    );
    let (mut experiment, tunnels) = options.start(&plan, "", cpus)?;
    let rounds = experiment.rounds;
    ensure!(ratio_max.is_none() || rounds as usize >= FIGURES_MIN, "--ratio-max needs --pairs {FIGURES_MIN} or more");
    let mut floor = floor::Stages::set_up(tunnels.gateway_cpus[0], FLOOR_SLOT)?;
    let mut results = Results::new(WORKS.map(|work| (work.name().to_owned(), 0)), &experiment.gateways);
    for round in 1..=rounds {
        experiment.progress.step(&format!("pair {round} of {rounds}: the machine's floor"));
        let floor = floor.measure()?;
        let mut gateways: Vec<_> = experiment.gateways.iter().enumerate().collect();
        // Who runs first changes from pair to pair, so that a machine that slows down or warms up favours nobody.
        if round % 2 == 0 {
            gateways.reverse();
        }
        for (at, gateway) in gateways {
            let place = format!("pair {round} of {rounds}: {}", gateway.name);
            experiment.progress.step(&place);
            let mut tunnel = tunnels.start(gateway).with_context(|| place.clone())?;
            for (point, work) in WORKS.into_iter().enumerate() {
                experiment.progress.step(&format!("{place}, {}", work.name()));
                let moved = transfer(&mut tunnel, work, duration, floor.of(work)).with_context(|| place.clone())?;
                if moved.corrupt_at_byte.is_some() {
                    experiment.failures.push(format!("{place}, {}: bytes were corrupted", work.name()));
                }
                results.push(point, at, moved);
            }
            tunnel.stop()?;
        }
    }
    experiment.failures.extend(results.cells().filter_map(|cell| dearer(&cell, (*ratio_max)?)));
    let (table, figures) = results.table(&columns())?;
    experiment.finish("compare", &table, &json!({ "figures": figures, "transfers": results }))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio > 0.0);
    ratio.ok_or_else(|| "must be a number above 0".into())
}

/// Does `work` for `duration`.
fn transfer(tunnel: &mut Tunnel, work: Direction, duration: Duration, floor: f64) -> Result<Transfer> {
    let directions = match work {
        Direction::Up => &[bulk::Direction::Upload][..],
        Direction::Down => &[bulk::Direction::Download],
        Direction::Both => &[bulk::Direction::Upload, bulk::Direction::Download],
    };
    let before = tunnel.gateway.cpu_seconds()?;
    let moving = &*tunnel;
    let reports: Result<Vec<_>> = thread::scope(|scope| {
        let start = |&direction| scope.spawn(move || moving.bulk(direction, duration, |_| {}));
        let threads: Vec<_> = directions.iter().map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
            .collect()
    });
    let gateway_cpu_seconds = tunnel.gateway.cpu_seconds()? - before;
    let reports = reports?;
    Ok(Transfer {
        bytes: reports.iter().map(|report| report.bytes).sum(),
        seconds: reports.iter().map(|report| report.seconds).fold(0.0, f64::max),
        gateway_cpu_seconds,
        floor,
        corrupt_at_byte: reports.iter().find_map(|report| report.corrupt_at).map(|(_, offset)| offset),
    })
}

impl Transfer {
    fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.gateway_cpu_seconds * 1e9 / self.bytes as f64
    }

    fn cpu_share(&self) -> f64 {
        self.gateway_cpu_seconds / self.seconds
    }
}

fn columns() -> [Column<Transfer>; 7] {
    let cost = Transfer::cpu_seconds_per_gigabyte;
    [
        Column::new("cpu_seconds_per_gigabyte", "CPU s/GB", two_digits, move |cell| cell.each(|it| Some(cost(it)))),
        // What ours needs, as a multiple of this one in the same pair.
        Column::new("ours_to_this", "ours", two_digits, compared),
        // Between which bounds its median lies, with a probability of 95 %.
        Column::new("ours_to_this_95", "ours, 95 %", three_digits, |cell| {
            let ratio = compared(cell)?;
            ratio.interval_95.map(|[min, max]| Spread { min, max, ..ratio })
        }),
        Column::new("floor", "floor", two_digits, |cell| cell.each(|it: &Transfer| Some(it.floor))),
        Column::new("to_floor", "to the floor", two_digits, move |cell| cell.each(|it| Some(cost(it) / it.floor))),
        Column::new("bits_per_second", "rate", bits_per_second, |cell| {
            cell.each(|it: &Transfer| Some(it.bytes as f64 * 8.0 / it.seconds))
        }),
        Column::new("cpu_share", "of its CPU", percent, |cell| cell.each(|it: &Transfer| Some(it.cpu_share()))),
    ]
}

/// Our CPU time per gigabyte as a multiple of this gateway's, pair by pair; `None` of ours.
fn compared(cell: &Cell<Transfer>) -> Option<Spread> {
    let is_ours = std::ptr::eq(cell.rounds, cell.ours);
    cell.ratio(cell.ours, |it| Some(1.0 / it.cpu_seconds_per_gigabyte())).filter(|_| !is_ours)
}

/// The failure of a cell whose 95 % interval of the ratio lies above `ratio_max` as a whole.
fn dearer(cell: &Cell<Transfer>, ratio_max: f64) -> Option<String> {
    let [low, high] = compared(cell)?.interval_95.filter(|[low, _]| *low > ratio_max)?;
    let Cell { point, gateway, .. } = cell;
    Some(format!(
        "{point}: {low:.3} to {high:.3} times the CPU per GB of {gateway}, and --ratio-max allows {ratio_max}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transfers of a gigabyte with each cost of ours and of the peer, and the floor then.
    fn pairs(costs: &[(f64, f64, f64)]) -> [Vec<Transfer>; 2] {
        let of = |gateway_cpu_seconds, floor| Transfer {
            bytes: 1_000_000_000,
            seconds: 4.0,
            gateway_cpu_seconds,
            floor,
            corrupt_at_byte: None,
        };
        let ours = costs.iter().map(|&(ours, _, floor)| of(ours, floor)).collect();
        [ours, costs.iter().map(|&(_, peer, floor)| of(peer, floor)).collect()]
    }

    fn peer([ours, rounds]: &[Vec<Transfer>; 2]) -> Cell<'_, Transfer> {
        Cell { point: "up", gateway: "quincy-server", rounds, ours, first: rounds }
    }

    #[test]
    fn each_pair_is_held_against_its_own_floor_and_its_own_peer() {
        // The machine becomes twice as slow: gateways and floor alike.
        let pairs = pairs(&[(1.0, 2.0, 0.25), (2.0, 4.0, 0.5)]);
        let cell = peer(&pairs);
        let figures: Vec<_> = columns().iter().filter_map(|column| Some(column.of(&cell)?.median)).collect();
        assert_eq!(figures, [3.0, 0.5, 0.375, 8.0, 2e9, 0.75]);
        assert_eq!(compared(&Cell { rounds: &pairs[0], ..cell }), None);
    }

    #[test]
    fn a_bound_is_missed_only_by_a_whole_interval() {
        let found = |ratios: &[f64]| {
            let pairs = pairs(&ratios.iter().map(|&ratio| (ratio, 1.0, 1.0)).collect::<Vec<_>>());
            dearer(&peer(&pairs), 1.03)
        };
        assert_eq!(found(&[1.02, 1.04, 1.05, 1.06, 1.07, 1.08]), None, "the interval reaches down to 1.02");
        let dear = "up: 1.035 to 1.080 times the CPU per GB of quincy-server, and --ratio-max allows 1.03";
        assert_eq!(found(&[1.035, 1.04, 1.05, 1.06, 1.07, 1.08]).as_deref(), Some(dear));
        assert_eq!(found(&[2.0; 5]), None, "too few to tell");
    }
}
