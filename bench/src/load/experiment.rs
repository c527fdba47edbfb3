//! What the experiments that are made of loads have in common: loads at several points against several gateways in turn, round after round,
//! what is made of them, their progress, what went wrong, and the end of it all.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

use super::controller;
use super::result::{LimitedBy, LoadResult};
use super::scenario::Scenario;
use crate::measure::progress::Progress;
use crate::measure::record::{Output, Recording, table};
use crate::measure::spread::Spread;
use crate::measure::units::{count, percent};
use crate::programs::{Gateway, GatewayOptions, Kind};

/// Full packets of a train of bulk work: 45 kB, somewhat less than what bulk TCP hands over in one piece.
pub const BULK_TRAIN_PACKETS: u16 = 32;

/// What all experiments that are made of loads are asked.
#[derive(Debug, clap::Args)]
pub struct Series {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// For how many seconds each load lasts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many times each load runs against each gateway.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Small loads of seconds, once: whether everything works.
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    pub quick: bool,
    #[command(flatten)]
    output: Output,
}

pub struct Experiment {
    gateways: Vec<Gateway>,
    rounds: u32,
    recording: Recording,
    progress: Progress,
    /// Loads that the harness limited.
    limited: Vec<String>,
    /// What is wrong with a figure of ours.
    pub failures: Vec<String>,
    remarks: Vec<String>,
}

/// Something to measure, for each gateway.
#[derive(Debug)]
pub struct Point {
    pub name: String,
    pub scenario: Scenario,
    /// The point that it is held against, by number.
    pub first: usize,
}

/// What a gateway did at a point, round by round, and what it is held against.
#[derive(Clone, Copy)]
pub struct Cell<'a> {
    pub point: &'a Point,
    pub gateway: &'static str,
    pub rounds: &'a [LoadResult],
    /// Those of ours at this point, and of this gateway at the first point, in the same rounds.
    pub ours: &'a [LoadResult],
    pub first: &'a [LoadResult],
}

/// Loads by point, gateway and round.
pub struct Results {
    points: Vec<Point>,
    gateways: Vec<&'static str>,
    loads: Vec<Vec<Vec<LoadResult>>>,
}

/// A figure of each cell.
pub struct Column {
    key: &'static str,
    heading: &'static str,
    figure: Box<dyn Fn(Cell) -> Option<Spread>>,
    shown: fn(f64) -> String,
}

impl Series {
    /// How long each load lasts, or `quick_seconds`.
    pub fn duration(&self, quick_seconds: u32) -> Duration {
        Duration::from_secs(if self.quick { quick_seconds } else { self.seconds }.into())
    }

    /// The experiment begins: prints what takes part, and `plan`.
    ///
    /// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
    pub fn start(&self, plan: &str) -> Result<Experiment> {
        let gateways = self.gateways.find()?;
        let rounds = if self.quick { 1 } else { self.rounds };
        let versions: Vec<String> = gateways.iter().map(Gateway::version).collect::<Result<_>>()?;
        tollgate_testkit::prepare()?;
        tollgate_testkit::require_tun()?;
        let mut recording = self.output.start(versions)?;
        recording.print(&format!("{plan}; {rounds} round(s)"))?;
        let (limited, failures, remarks) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Experiment { gateways, rounds, recording, progress: Progress::new(), limited, failures, remarks })
    }
}

impl Experiment {
    /// Runs one load; `place` says in a few words which one.
    ///
    /// What is wrong with its figures fails the experiment at its end, if the gateway is ours. A peer counts no drops, so not all its packets
    /// can be accounted for: what is wrong there is a remark.
    fn load(&mut self, place: &str, scenario: &Scenario, gateway: &Gateway) -> Result<LoadResult> {
        let place = format!("{place}, {}", gateway.name);
        self.progress.step(&place);
        let result = controller::run(scenario, gateway, &mut self.progress, &mut |_| Ok(()));
        self.progress.clear();
        let result = result.with_context(|| place.clone())?;
        if result.limited_by == LimitedBy::Harness {
            self.limited.push(place.clone());
        }
        let is_empty = !scenario.traffic.is_empty() && result.carried_bits_per_second() == 0.0;
        let nothing = is_empty.then(|| format!("{place}: nothing arrived"));
        let wrong = result.failures.iter().map(|failure| format!("{place}: {failure}")).chain(nothing);
        match gateway.kind {
            Kind::Tollgate => self.failures.extend(wrong),
            _ => self.remarks.extend(wrong),
        }
        Ok(result)
    }

    /// Runs all points against all gateways in turn, round after round: a machine that becomes slower makes no difference between them.
    pub fn rounds(&mut self, points: Vec<Point>) -> Result<Results> {
        let (gateways, rounds) = (self.gateways.clone(), self.rounds);
        let mut loads = vec![vec![Vec::new(); gateways.len()]; points.len()];
        for round in 1..=rounds {
            for (point, loads) in points.iter().zip(&mut loads) {
                for (gateway, loads) in gateways.iter().zip(loads) {
                    let place = format!("{}, round {round} of {rounds}", point.name);
                    loads.push(self.load(&place, &point.scenario, gateway)?);
                }
            }
        }
        Ok(Results { points, gateways: gateways.iter().map(|gateway| gateway.name).collect(), loads })
    }

    /// The end of an experiment of rounds: a row for each cell, and for each in JSON an object with all figures.
    pub fn finish_table(self, name: &str, results: &Results, columns: &[Column]) -> Result<()> {
        let (mut rows, mut objects) = (Vec::new(), Vec::new());
        for cell in results.cells() {
            let mut row = vec![cell.point.name.clone(), cell.gateway.to_owned()];
            let mut object = Map::new();
            object.insert("point".to_owned(), cell.point.name.clone().into());
            object.insert("gateway".to_owned(), cell.gateway.into());
            for Column { key, figure, shown, .. } in columns {
                let figure = figure(cell);
                row.push(figure.map_or("-".to_owned(), |figure| figure.shown(shown)));
                object.insert((*key).to_owned(), serde_json::to_value(figure)?);
            }
            let limited = cell.rounds.iter().any(|result| result.limited_by == LimitedBy::Harness);
            object.insert("harness_limited".to_owned(), limited.into());
            rows.push(row);
            objects.push(Value::Object(object));
        }
        let heading: Vec<_> = ["", "gateway"].into_iter().chain(columns.iter().map(|column| column.heading)).collect();
        self.finish(name, &table(2, &heading, rows), &objects)
    }

    /// The end: prints `table`, whether the harness was the limit, what a peer had wrong, and what ours had; writes the files. Fails when
    /// anything of ours was wrong.
    pub fn finish(mut self, name: &str, table: &impl Display, result: &impl Serialize) -> Result<()> {
        self.progress.clear();
        self.recording.print(table)?;
        if let Some(first) = self.limited.first() {
            let number = self.limited.len();
            self.remarks.push(format!(
                "the harness was at its limit, or late, in {number} loads (first: {first}); the gateway may be able to do more"
            ));
        }
        let remarks = self.remarks.iter().map(|remark| format!("remark: {remark}"));
        for line in remarks.chain(self.failures.iter().map(|failure| format!("WRONG: {failure}"))) {
            self.recording.print(&line)?;
        }
        self.recording.write(name, result)?;
        match self.failures.len() {
            0 => Ok(()),
            number => bail!("{number} figure(s) are wrong: see above"),
        }
    }
}

impl Results {
    /// The loads of a gateway by point, each round by round.
    pub fn by_gateway(&self) -> impl Iterator<Item = (&'static str, Vec<&[LoadResult]>)> {
        let of =
            |(at, gateway): (usize, &&'static str)| (*gateway, self.loads.iter().map(|loads| &*loads[at]).collect());
        self.gateways.iter().enumerate().map(of)
    }

    /// By point, then by gateway.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        let numbers = (0..self.points.len()).flat_map(|point| (0..self.gateways.len()).map(move |at| (point, at)));
        numbers.map(|(number, at)| {
            let point = &self.points[number];
            let (rounds, ours) = (&self.loads[number][at], &self.loads[number][0]);
            Cell { point, gateway: self.gateways[at], rounds, ours, first: &self.loads[point.first][at] }
        })
    }

    /// Adds points of another series against the same gateways.
    pub fn extend(&mut self, other: Results) {
        let moved = self.points.len();
        self.points.extend(other.points.into_iter().map(|point| Point { first: point.first + moved, ..point }));
        self.loads.extend(other.loads);
    }
}

impl Point {
    /// A point that is held against itself.
    pub fn new(name: &str, scenario: Scenario) -> Point {
        Point { name: name.to_owned(), scenario, first: 0 }
    }
}

impl Cell<'_> {
    /// A figure of each round; `None` if one of them has none.
    pub fn each(&self, figure: impl Fn(&LoadResult) -> Option<f64>) -> Option<Spread> {
        let figures = self.rounds.iter().map(|result| figure(result).filter(|figure| figure.is_finite()));
        Spread::of(figures.collect::<Option<Vec<f64>>>()?)
    }

    /// A figure of each round, divided by that of `others` in the same round.
    pub fn ratio(&self, others: &[LoadResult], figure: impl Fn(&LoadResult) -> Option<f64>) -> Option<Spread> {
        let pairs = self.rounds.iter().zip(others);
        let ratios = pairs.map(|(this, other)| Some(figure(this)? / figure(other)?).filter(|ratio| ratio.is_finite()));
        Spread::of(ratios.collect::<Option<Vec<f64>>>()?)
    }

    /// The sum of all rounds.
    pub fn total(&self, figure: impl Fn(&LoadResult) -> u64) -> Option<Spread> {
        Spread::of([self.rounds.iter().map(figure).sum::<u64>() as f64])
    }
}

impl Column {
    pub fn new(
        key: &'static str,
        heading: &'static str,
        shown: fn(f64) -> String,
        figure: impl Fn(Cell) -> Option<Spread> + 'static,
    ) -> Column {
        Column { key, heading, figure: Box::new(figure), shown }
    }

    /// Packets that did not arrive, over all rounds.
    pub fn lost() -> Column {
        Column::new("lost_packets", "lost", whole, |cell| cell.total(LoadResult::lost_packets))
    }

    /// Inner packets for each outer datagram: what stands behind every cost of a packet.
    pub fn batch() -> Column {
        Column::new("batch", "batch", two_digits, |cell| cell.each(|result| result.batch))
    }

    /// The share of the time that the gateway's CPU was busy, whoever was billed for it.
    pub fn busy() -> Column {
        Column::new("cpu_busy", "CPU busy", percent, |cell| cell.each(|result| Some(result.gateway_cpus_busy)))
    }
}

pub fn whole(figure: f64) -> String {
    count(figure.round().max(0.0) as u64)
}

pub fn two_digits(figure: f64) -> String {
    format!("{figure:.2}")
}

/// Results for tests of what is made of them.
#[cfg(test)]
pub mod fixture {
    use super::*;
    use crate::load::result::{FlowFigures, GroupResult, Ramp, ShardFigures, Usage};
    use crate::load::sink::FlowCounts;

    /// A load of ten seconds that carried so much each way in packets of 1,000 bytes, at the cost of 5 CPU seconds of the gateway.
    pub fn load_result(bits_per_second: f64) -> LoadResult {
        let received_packets = (bits_per_second * 10.0 / 8000.0) as u64;
        let counts = FlowCounts { received_packets, ..FlowCounts::default() };
        let figures = FlowFigures { bits_per_second, counts, ..FlowFigures::default() };
        let name = "load".to_owned();
        LoadResult {
            ramp: Ramp { wanted: 1, connected: 1, seconds: 1.0, gateway_cpu_seconds: 0.1 },
            seconds: 10.0,
            groups: vec![GroupResult { name, connections: 1, up: figures, down: figures, round_trip: None }],
            gateway_usage: Usage { cpu_seconds: 5.0, cpu_share: 0.5 },
            shards: Some(ShardFigures { shards: 1, crossed: 25, arrived: 100, ..ShardFigures::default() }),
            ..LoadResult::default()
        }
    }

    /// Figures of `columns` of one gateway's cells, by point; each point has the first for its measure.
    pub fn figures(columns: &[Column], loads: Vec<Vec<LoadResult>>) -> Vec<Vec<Option<f64>>> {
        let scenario = Scenario::new("s", 1, std::time::Duration::from_secs(1));
        let points = loads.iter().map(|_| Point::new("point", scenario.clone())).collect();
        let results =
            Results { points, gateways: vec!["x"], loads: loads.into_iter().map(|rounds| vec![rounds]).collect() };
        let of = |cell| columns.iter().map(|column| (column.figure)(cell).map(|spread| spread.median)).collect();
        results.cells().map(of).collect()
    }
}
