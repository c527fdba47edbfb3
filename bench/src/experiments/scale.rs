//! `scale`: one offered load, over more and more shards on one CPU, over more and more clients, and over more and more of which few send.
//!
//! All points run in turn, round by round, so that a machine that becomes slower makes no difference between them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::flow::source::TRAIN_PACKETS_MAX;
use crate::load::result::{LimitedBy, LoadResult};
use crate::load::scenario::{CONNECTIONS_MAX, Scenario};
use crate::load::{BULK_TRAIN_PACKETS, Experiment, constant, scenario, traffic};
use crate::measure::record::{Output, table};
use crate::measure::spread::Spread;
use crate::measure::units::{bits_per_second, count, percent};
use crate::programs::Gateway;

/// Clients while shards change.
const CLIENTS: u32 = 100;
/// Clients that send while others, which are idle, become more.
const ACTIVE_MAX: u32 = 100;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Tollgate's program [default: `tollgate` in the folder of this program].
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Numbers of shards, all on one CPU.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,2,4,8,16",
        value_parser = clap::value_parser!(u16).range(1..=128))]
    shards: Vec<u16>,
    /// Numbers of clients.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,10,100,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    clients: Vec<u32>,
    /// Numbers of clients of which at most 100 send anything.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,100,10000",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    mostly_idle: Vec<u32>,
    /// The load in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
    /// Packets that come together, as from senders that leave segmentation to their kernel; 1: each alone.
    #[arg(long, value_name = "N", default_value_t = BULK_TRAIN_PACKETS,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(TRAIN_PACKETS_MAX)))]
    train: u16,
    /// For how many seconds each point runs in each round.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many times each point runs.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only two points of each series, a second each, once: whether everything works, in half a minute.
    #[arg(long, conflicts_with_all = ["shards", "clients", "mostly_idle", "seconds", "rounds", "mbps"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// One point of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Point {
    shards: u16,
    clients: u32,
    /// How many of them send.
    active: u32,
    /// The number of the first point of its series.
    first: usize,
}

/// What a point came to, over all rounds.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    #[serde(flatten)]
    point: Point,
    /// Of the gateway, for each gigabyte of inner packets.
    cpu_seconds_per_gigabyte: Spread,
    /// The same, divided by the first point's of the same round.
    to_first: Spread,
    /// Inner packets and datagrams that crossed shards, as a share of all.
    crossed_share: f64,
    carried_bits_per_second: Spread,
    lost_packets: u64,
    harness_limited: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let Options { shards, clients, mostly_idle, mbps, seconds, rounds, train, .. } = options;
    let (shards, clients, mostly_idle, mbps, seconds, rounds) = if options.quick {
        (&[1, 2][..], &[1, 10][..], &[1, 200][..], 20, 1, 1)
    } else {
        (&shards[..], &clients[..], &mostly_idle[..], *mbps, *seconds, *rounds)
    };
    let points = points(shards, clients, mostly_idle);
    let gateway = Gateway::tollgate(options.gateway.as_deref())?;
    let bits = f64::from(mbps) * 1e6;
    let plan = format!(
        "{} offered in trains of {train} packets, {rounds} round(s) of {seconds} s; all shards share one CPU",
        bits_per_second(bits)
    );
    let mut experiment = Experiment::start(&options.output, std::slice::from_ref(&gateway), &plan)?;
    let mut results: Vec<Vec<LoadResult>> = Vec::new();
    for round in 1..=rounds {
        let mut load = |point: &Point| {
            let Point { shards, clients, active, .. } = point;
            let place = format!("round {round} of {rounds}: {shards} shards, {active} of {clients} clients");
            experiment.load(&place, &point.scenario(bits, *train, Duration::from_secs(seconds.into())), &gateway)
        };
        results.push(points.iter().map(&mut load).collect::<Result<_>>()?);
    }
    let figures = (0..points.len()).map(|at| figures(&points, &results, at));
    let figures = figures.collect::<Option<Vec<_>>>().context("nothing was carried")?;
    let rows = figures.iter().map(|it| {
        let two = |figure: f64| format!("{figure:.2}");
        [
            count(it.point.shards.into()),
            count(it.point.clients.into()),
            count(it.point.active.into()),
            it.cpu_seconds_per_gigabyte.shown(two),
            it.to_first.shown(two),
            percent(it.crossed_share),
            bits_per_second(it.carried_bits_per_second.median),
            count(it.lost_packets),
        ]
    });
    let heading = ["shards", "clients", "active", "CPU s/GB", "to first of series", "crossed", "carried", "lost"];
    experiment.finish("scale", &table(0, &heading, rows), &figures)
}

fn points(shards: &[u16], clients: &[u32], mostly_idle: &[u32]) -> Vec<Point> {
    let by_shards = shards.iter().map(|&shards| Point { shards, clients: CLIENTS, active: CLIENTS, first: 0 });
    let first = shards.len();
    let by_clients = clients.iter().map(|&clients| Point { shards: 1, clients, active: clients, first });
    let first = first + clients.len();
    let by_idle =
        mostly_idle.iter().map(|&clients| Point { shards: 1, clients, active: clients.min(ACTIVE_MAX), first });
    by_shards.chain(by_clients).chain(by_idle).collect()
}

impl Point {
    fn scenario(&self, bits_per_second: f64, train_packets: u16, duration: Duration) -> Scenario {
        let mut scenario = scenario("scale", self.clients, duration);
        scenario.gateway.shards = self.shards;
        let kind = constant(&scenario, self.active, bits_per_second, train_packets);
        scenario.traffic = vec![traffic(&scenario, "load", self.active, kind)];
        scenario
    }
}

/// Of the point whose results are number `at` of each round; `None` if in one of them nothing was carried.
fn figures(points: &[Point], rounds: &[Vec<LoadResult>], at: usize) -> Option<Figures> {
    let cost = |at: usize| -> Option<Vec<f64>> {
        rounds.iter().map(|round| round[at].cpu_seconds_per_gigabyte(round[at].gateway_usage)).collect()
    };
    let (costs, first_costs) = (cost(at)?, cost(points[at].first)?);
    let results = || rounds.iter().map(|round| &round[at]);
    let shards = results().filter_map(|result| result.shards);
    let (crossed, arrived) = shards.fold((0, 0), |sum, shards| (sum.0 + shards.crossed, sum.1 + shards.arrived));
    Some(Figures {
        point: points[at],
        to_first: Spread::of(costs.iter().zip(&first_costs).map(|(cost, first)| cost / first))?,
        cpu_seconds_per_gigabyte: Spread::of(costs)?,
        crossed_share: crossed as f64 / arrived.max(1) as f64,
        carried_bits_per_second: Spread::of(results().map(LoadResult::carried_bits_per_second))?,
        lost_packets: results().map(LoadResult::lost_packets).sum(),
        harness_limited: results().any(|result| result.limited_by == LimitedBy::Harness),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fixture::load_result;

    #[test]
    fn each_point_is_held_against_the_first_of_its_series_in_the_same_round() {
        let points = points(&[1, 2], &[1, 10], &[]);
        // The machine becomes twice as slow, which makes no difference.
        let rounds = [1e9, 5e8].map(|bits| [1.0, 2.0, 4.0, 1.0].map(|factor| load_result(bits * factor)).to_vec());
        let to_first = |at| figures(&points, &rounds, at).unwrap().to_first;
        assert_eq!([0, 1, 2, 3].map(|at| to_first(at).median), [1.0, 0.5, 1.0, 4.0]);
        assert_eq!((to_first(3).min, to_first(3).max), (4.0, 4.0));
        assert_eq!(figures(&points, &rounds, 0).unwrap().crossed_share, 0.25);
        assert_eq!(figures(&points, &[vec![load_result(0.0); 4]], 0), None);
    }
}
