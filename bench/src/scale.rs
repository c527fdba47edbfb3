//! `tollgate-bench scale`: one offered load, over more and more shards on one CPU, over more and more clients, and over more and more of which
//! few send.
//!
//! All points run in turn, round by round, so that a machine that becomes slower makes no difference between them.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders;
use crate::experiment::{BULK_TRAIN_PACKETS, Experiment, constant, scenario, traffic};
use crate::load::source::TRAIN_PACKETS_MAX;
use crate::record::{Output, print};
use crate::results::{Finding, LimitedBy, LoadResult, ScalePoint, ScaleResult, Spread};
use crate::scenario::{ADDRESSES_MAX, GatewayPlan, Scenario, StartedGateway};
use crate::units::{bits_per_second, count, percent};

/// Clients while shards change.
const CLIENTS: u32 = 100;
/// Shards while clients change.
const SHARDS: u16 = 1;
/// Clients that send while others, which are idle, become more.
const ACTIVE_MAX: u32 = 100;
/// Points of a series.
const POINTS_MAX: usize = 16;

/// What to measure.
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
        value_parser = clap::value_parser!(u32).range(1..=i64::from(ADDRESSES_MAX)))]
    clients: Vec<u32>,
    /// Numbers of clients of which at most 100 send anything.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,100,10000",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(ADDRESSES_MAX)))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    shards: u16,
    clients: u32,
    /// How many of them send.
    active: u32,
}

/// All series, and how each point is measured.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    by_shards: Vec<Point>,
    by_clients: Vec<Point>,
    by_idle_clients: Vec<Point>,
    offered_bits_per_second: f64,
    train_packets: u16,
    duration: Duration,
    rounds: u32,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that both ends of a load did not agree.
pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let gateway = contenders::ours(options.gateway.as_deref())?;
    let mut experiment = Experiment::start(&options.output, std::slice::from_ref(&gateway))?;
    print(&format!(
        "{} offered in trains of {} packets, {} round(s) of {} s; all shards share one CPU\n",
        bits_per_second(plan.offered_bits_per_second),
        plan.train_packets,
        plan.rounds,
        plan.duration.as_secs()
    ))?;
    // For each round, each point's result, in the order of the plan.
    let mut rounds: Vec<Vec<LoadResult>> = Vec::new();
    for round in 1..=plan.rounds {
        let mut results = Vec::new();
        for point in plan.points() {
            let Point { shards, clients, active } = point;
            let place = format!("round {round} of {}: {shards} shards, {active} of {clients} clients", plan.rounds);
            results.push(experiment.load(&place, &plan.scenario(point), &gateway)?);
        }
        rounds.push(results);
    }
    let result = plan.result(gateway.name, &rounds).context("nothing was carried")?;
    experiment.finish(&Table(&result).to_string(), Finding::Scale(result))
}

impl Plan {
    fn of(options: &Options) -> Self {
        let Options { shards, clients, mostly_idle, mbps, seconds, rounds, train, .. } = options;
        let (shards, clients, mostly_idle, mbps, seconds, rounds) = if options.quick {
            (&[1, 2][..], &[1, 10][..], &[1, 200][..], 20, 1, 1)
        } else {
            (&shards[..], &clients[..], &mostly_idle[..], *mbps, *seconds, *rounds)
        };
        let by_shards = shards.iter().map(|&shards| Point { shards, clients: CLIENTS, active: CLIENTS });
        let by_clients = clients.iter().map(|&clients| Point { shards: SHARDS, clients, active: clients });
        let by_idle_clients =
            mostly_idle.iter().map(|&clients| Point { shards: SHARDS, clients, active: clients.min(ACTIVE_MAX) });
        Plan {
            by_shards: by_shards.take(POINTS_MAX).collect(),
            by_clients: by_clients.take(POINTS_MAX).collect(),
            by_idle_clients: by_idle_clients.take(POINTS_MAX).collect(),
            offered_bits_per_second: f64::from(mbps) * 1e6,
            train_packets: *train,
            duration: Duration::from_secs(seconds.into()),
            rounds,
        }
    }

    fn points(&self) -> impl Iterator<Item = Point> {
        self.by_shards.iter().chain(&self.by_clients).chain(&self.by_idle_clients).copied()
    }

    fn scenario(&self, point: Point) -> Scenario {
        let mut scenario = scenario("scale", point.clients, self.duration);
        scenario.gateway =
            GatewayPlan::Started(StartedGateway { shards: Some(point.shards), ..StartedGateway::default() });
        let kind = constant(&scenario, point.active, self.offered_bits_per_second, self.train_packets);
        scenario.traffic = vec![traffic(&scenario, "load", point.active, kind)];
        scenario
    }

    /// Of `rounds`, each with a result for each point; `None` if in one of them nothing was carried.
    fn result(&self, gateway: &str, rounds: &[Vec<LoadResult>]) -> Option<ScaleResult> {
        let series = |points: &[Point], first: usize| -> Option<Vec<ScalePoint>> {
            let figures = points.iter().enumerate().map(|(at, point)| figures(*point, rounds, first, first + at));
            figures.collect()
        };
        Some(ScaleResult {
            gateway: gateway.to_owned(),
            offered_bits_per_second: self.offered_bits_per_second,
            train_packets: self.train_packets,
            by_shards: series(&self.by_shards, 0)?,
            by_clients: series(&self.by_clients, self.by_shards.len())?,
            by_idle_clients: series(&self.by_idle_clients, self.by_shards.len() + self.by_clients.len())?,
        })
    }
}

/// Of the point whose results are number `at` of each round, in the series that begins with number `first`.
fn figures(point: Point, rounds: &[Vec<LoadResult>], first: usize, at: usize) -> Option<ScalePoint> {
    let cost = |at: usize| -> Option<Vec<f64>> {
        rounds.iter().map(|round| round.get(at)?.gateway_cpu_seconds_per_gigabyte()).collect()
    };
    let (costs, first_costs) = (cost(at)?, cost(first)?);
    let results = || rounds.iter().filter_map(|round| round.get(at));
    let shards = || results().filter_map(|result| result.shards);
    let (crossed, arrived) = shards().fold((0, 0), |sum, shards| (sum.0 + shards.crossed, sum.1 + shards.arrived));
    let lost = |result: &LoadResult| -> u64 {
        result.groups.iter().map(|group| group.up.lost_packets + group.down.lost_packets).sum()
    };
    Some(ScalePoint {
        shards: point.shards,
        clients: point.clients,
        active_clients: point.active,
        to_first: Spread::of(costs.iter().zip(&first_costs).map(|(cost, first)| cost / first))?,
        cpu_seconds_per_gigabyte: Spread::of(costs)?,
        crossed_share: (arrived > 0).then(|| crossed as f64 / arrived as f64),
        carried_bits_per_second: Spread::of(results().map(LoadResult::carried_bits_per_second))?,
        lost_packets: results().map(lost).sum(),
        harness_limited: results().any(|result| result.limited_by == LimitedBy::Harness),
    })
}

/// All series, for people.
struct Table<'a>(&'a ScaleResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for points in [&self.0.by_shards, &self.0.by_clients, &self.0.by_idle_clients] {
            writeln!(
                f,
                "{:>7}{:>9}{:>9}{:>10}  {:>15}{:>12}  {:>13}{:>10}{:>12}{:>10}",
                "shards",
                "clients",
                "active",
                "CPU s/GB",
                "min - max",
                "to first",
                "min - max",
                "crossed",
                "carried",
                "lost"
            )?;
            points.iter().try_for_each(|point| line(f, point))?;
            writeln!(f)?;
        }
        f.write_str("CPU s/GB is the gateway's, for each gigabyte of inner packets; crossed: arrived at another shard than its own\n")
    }
}

fn line(f: &mut fmt::Formatter<'_>, point: &ScalePoint) -> fmt::Result {
    let extremes = |spread: Spread| format!("{:.2} - {:.2}", spread.min, spread.max);
    let (clients, active) = (count(point.clients.into()), count(point.active_clients.into()));
    let mut text = format!("{:>7}{clients:>9}{active:>9}", point.shards);
    let (cost, ratio) = (point.cpu_seconds_per_gigabyte, point.to_first);
    write!(text, "{:>10.2}  {:>15}{:>12.2}  {:>13}", cost.median, extremes(cost), ratio.median, extremes(ratio))?;
    let crossed = point.crossed_share.map_or_else(|| "-".to_owned(), percent);
    let carried = bits_per_second(point.carried_bits_per_second.median);
    writeln!(f, "{text}{crossed:>10}{carried:>12}{:>10}", count(point.lost_packets))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::experiment::fixture::load_result;
    use crate::scenario::TrafficKind;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(line: &str) -> Result<Plan, String> {
        Cli::try_parse_from(line.split(' ')).map(|cli| Plan::of(&cli.options)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_point_offers_the_same_load() {
        let plan = parsed("scale").unwrap();
        assert_eq!(
            (plan.by_shards.len(), plan.by_clients.len(), plan.by_idle_clients.len(), plan.rounds),
            (5, 5, 3, 3)
        );
        for point in plan.points() {
            let scenario = plan.scenario(point);
            let TrafficKind::Constant { packets_per_second, train_packets: 32 } = scenario.traffic[0].kind else {
                panic!()
            };
            let bits = packets_per_second * f64::from(scenario.traffic[0].connections) * 2.0 * 1400.0 * 8.0;
            assert!((bits - plan.offered_bits_per_second).abs() < 1.0, "{point:?}: {bits}");
            let GatewayPlan::Started(gateway) = &scenario.gateway else { panic!() };
            assert_eq!((scenario.connections(), gateway.shards), (point.clients, Some(point.shards)));
            assert_eq!(scenario.traffic[0].connections, point.active);
        }
        assert_eq!(plan.by_idle_clients.last(), Some(&Point { shards: 1, clients: 10_000, active: 100 }));
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        let plan = parsed("scale --shards 1,3 --clients 5 --rounds 1").unwrap();
        assert_eq!(plan.by_shards.iter().map(|point| point.shards).collect::<Vec<_>>(), [1, 3]);
        for wrong in ["--shards 0", "--shards 129", "--clients 16001", "--rounds 0", "--quick --rounds 2"] {
            assert!(parsed(&format!("scale {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_point_is_held_against_the_first_of_its_own_round() {
        let plan = parsed("scale --shards 1,2 --clients 1,10 --mostly-idle 1,500 --rounds 2").unwrap();
        // The second round is twice as slow; the second point costs a fifth more in each, the last twice as much.
        let costing = |factor: f64| {
            let mut result = load_result(1e8);
            result.gateway_usage.as_mut().unwrap().cpu_seconds *= factor;
            result.groups[0].up.lost_packets = 3;
            result
        };
        let round = |slow: f64| [1.0, 1.2, 1.0, 2.0, 2.0, 5.0].map(|factor| costing(factor * slow)).to_vec();
        let result = plan.result("tollgate", &[round(1.0), round(2.0)]).unwrap();
        let [first, second] = &result.by_shards[..] else { panic!() };
        assert_eq!(first.to_first, Spread { median: 1.0, min: 1.0, max: 1.0 });
        assert!((second.to_first.min - 1.2).abs() < 1e-9 && (second.to_first.max - 1.2).abs() < 1e-9);
        // 5 CPU seconds for 10 s of 0.2 Gb/s, which is a quarter of a gigabyte.
        assert_eq!((first.cpu_seconds_per_gigabyte.min, first.cpu_seconds_per_gigabyte.max), (20.0, 40.0));
        assert_eq!((second.crossed_share, second.lost_packets), (Some(0.25), 6));
        assert_eq!(result.by_clients[1].to_first.median, 2.0);
        assert_eq!((result.by_idle_clients[1].to_first.median, result.by_idle_clients[1].active_clients), (2.5, 100));
        let shown = Table(&result).to_string();
        assert!(
            shown.contains(
                "      2      100      100     36.00    24.00 - 48.00        1.20    1.20 - 1.20      25 %    200 Mb/s         6"
            ),
            "{shown}"
        );
    }

    #[test]
    fn a_point_that_carried_nothing_has_no_cost() {
        let plan = parsed("scale --shards 1 --clients 1 --mostly-idle 1 --rounds 1").unwrap();
        assert_eq!(plan.result("tollgate", &[vec![load_result(0.0), load_result(1.0), load_result(1.0)]]), None);
        assert_eq!(plan.result("tollgate", &[]), None);
    }
}
