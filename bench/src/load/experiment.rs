//! What experiments have in common: something is measured at several points with several gateways in turn, round after round, and figures
//! are made of it. Most of them are made of loads.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Map, Value};

use super::controller;
use super::result::{LimitedBy, LoadResult};
use super::scenario::Scenario;
use crate::measure::record::{Output, Recording, table};
use crate::measure::spread::Spread;
use crate::measure::units::{count, percent};
use crate::programs::{Gateway, GatewayOptions, Kind};
use tollgate::progress::Progress;

/// Full packets of a train of bulk work: 45 kB, somewhat less than what bulk TCP hands over in one piece.
pub const BULK_TRAIN_PACKETS: u16 = 32;

/// What all experiments are asked.
#[derive(Debug, clap::Args)]
pub struct Series {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// For how many seconds each measurement lasts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many times everything is measured with each gateway.
    #[arg(long, visible_alias = "pairs", value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// In small and for seconds, once: whether everything works.
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    pub quick: bool,
    #[command(flatten)]
    output: Output,
}

pub struct Experiment {
    pub gateways: Vec<Gateway>,
    pub rounds: u32,
    recording: Recording,
    pub progress: Progress,
    /// Loads that the harness limited.
    limited: Vec<String>,
    /// What is wrong with a figure of ours.
    pub failures: Vec<String>,
    pub remarks: Vec<String>,
}

/// A load, for each gateway.
#[derive(Debug)]
pub struct Point {
    pub name: String,
    pub scenario: Scenario,
    /// The point that it is held against, by number.
    pub first: usize,
}

/// What was measured of a gateway at a point, round by round, and what it is held against.
pub struct Cell<'a, R = LoadResult> {
    pub point: &'a str,
    pub gateway: &'static str,
    pub rounds: &'a [R],
    /// Those of ours at this point, and of this gateway at the first point, in the same rounds.
    pub ours: &'a [R],
    pub first: &'a [R],
}

/// What was measured, by point, gateway and round.
#[derive(Serialize)]
pub struct Results<R = LoadResult> {
    points: Vec<String>,
    gateways: Vec<&'static str>,
    rounds: Vec<Vec<Vec<R>>>,
    /// The point that each is held against.
    #[serde(skip)]
    firsts: Vec<usize>,
}

type Figure<R> = dyn Fn(&Cell<R>) -> Option<Spread>;

/// A figure of each cell.
pub struct Column<R = LoadResult> {
    key: &'static str,
    heading: &'static str,
    figure: Box<Figure<R>>,
    shown: fn(f64) -> String,
}

impl Series {
    /// How long each measurement lasts, or `quick_seconds`.
    pub fn duration(&self, quick_seconds: u32) -> Duration {
        Duration::from_secs(if self.quick { quick_seconds } else { self.seconds }.into())
    }

    pub fn start(&self, plan: &str) -> Result<Experiment> {
        self.start_with(None, plan)
    }

    /// The experiment begins: prints what takes part, with the version of a client if it is a program of its own, and `plan`.
    ///
    /// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
    pub fn start_with(&self, client: Option<String>, plan: &str) -> Result<Experiment> {
        let gateways = self.gateways.find()?;
        let rounds = if self.quick { 1 } else { self.rounds };
        let versions: Vec<String> = gateways.iter().map(Gateway::version).collect::<Result<_>>()?;
        tollgate_testkit::prepare()?;
        tollgate_testkit::require_tun()?;
        let mut recording = self.output.start(versions.into_iter().chain(client))?;
        recording.print(&format!("{plan}; {rounds} round(s)"))?;
        let (limited, failures, remarks) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Experiment { gateways, rounds, recording, progress: Progress::default(), limited, failures, remarks })
    }
}

impl Experiment {
    /// Runs one load; `place` says in a few words which one.
    ///
    /// What is wrong with its figures fails the experiment at its end, if the gateway is ours. A peer counts no drops, so not all its packets
    /// can be accounted for: what is wrong there is a remark.
    fn load(&mut self, place: &str, scenario: &Scenario, gateway: &Gateway) -> Result<LoadResult> {
        let result = controller::run(scenario, gateway, &mut self.progress, &mut |_| Ok(()))?;
        if result.limited_by == LimitedBy::Harness {
            self.limited.push(place.to_owned());
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

    /// Measures all points, each named with the one that it is held against, with all gateways in turn, round after round: a machine that
    /// becomes slower makes no difference between them.
    pub fn rounds<R>(
        &mut self,
        points: impl IntoIterator<Item = (String, usize)>,
        mut measure: impl FnMut(&mut Self, usize, &Gateway, &str) -> Result<R>,
    ) -> Result<Results<R>> {
        let (gateways, rounds) = (self.gateways.clone(), self.rounds);
        let mut results = Results::new(points, &gateways);
        for round in 1..=rounds {
            for point in 0..results.points.len() {
                for (at, gateway) in gateways.iter().enumerate() {
                    let place = format!("{}, round {round} of {rounds}, {}", results.points[point], gateway.name);
                    self.progress.step(&place);
                    let measured = measure(self, point, gateway, &place);
                    self.progress.clear();
                    results.push(point, at, measured.with_context(|| place)?);
                }
            }
        }
        Ok(results)
    }

    /// Runs all loads.
    pub fn loads(&mut self, points: &[Point]) -> Result<Results> {
        self.rounds(points.iter().map(|point| (point.name.clone(), point.first)), |this, point, gateway, place| {
            this.load(place, &points[point].scenario, gateway)
        })
    }

    /// The end of an experiment of loads: a row for each cell, and for each in JSON an object with all figures.
    pub fn finish_loads(self, name: &str, results: &Results, columns: &[Column]) -> Result<()> {
        let (table, mut figures) = results.table(columns)?;
        for (cell, object) in results.cells().zip(&mut figures) {
            let limited = cell.rounds.iter().any(|result| result.limited_by == LimitedBy::Harness);
            object.insert("harness_limited".to_owned(), limited.into());
        }
        self.finish(name, &table, &figures)
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

impl<R> Results<R> {
    /// Nothing yet of points, each with the one that it is held against.
    pub fn new(points: impl IntoIterator<Item = (String, usize)>, gateways: &[Gateway]) -> Self {
        let (points, firsts): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        let rounds = points.iter().map(|_| gateways.iter().map(|_| Vec::new()).collect()).collect();
        Results { points, gateways: gateways.iter().map(|gateway| gateway.name).collect(), rounds, firsts }
    }

    /// Adds what was measured with a gateway in the next round.
    pub fn push(&mut self, point: usize, gateway: usize, measured: R) {
        self.rounds[point][gateway].push(measured);
    }

    /// By point, then by gateway.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'_, R>> {
        let numbers = (0..self.points.len()).flat_map(|point| (0..self.gateways.len()).map(move |at| (point, at)));
        numbers.map(|(point, at)| Cell {
            point: &self.points[point],
            gateway: self.gateways[at],
            rounds: &self.rounds[point][at],
            ours: &self.rounds[point][0],
            first: &self.rounds[self.firsts[point]][at],
        })
    }

    /// What was measured of each gateway by point, each round by round.
    pub fn by_gateway(&self) -> impl Iterator<Item = (&'static str, Vec<&[R]>)> {
        let of =
            |(at, gateway): (usize, &&'static str)| (*gateway, self.rounds.iter().map(|rounds| &*rounds[at]).collect());
        self.gateways.iter().enumerate().map(of)
    }

    /// Adds points of another series against the same gateways.
    pub fn extend(&mut self, other: Results<R>) {
        let moved = self.points.len();
        self.points.extend(other.points);
        self.firsts.extend(other.firsts.into_iter().map(|first| first + moved));
        self.rounds.extend(other.rounds);
    }

    /// A row for each cell, and for each an object with all figures.
    pub fn table(&self, columns: &[Column<R>]) -> Result<(Table, Vec<Map<String, Value>>)> {
        let (mut rows, mut objects) = (Vec::new(), Vec::new());
        for cell in self.cells() {
            let mut row = vec![cell.point.to_owned(), cell.gateway.to_owned()];
            let mut object = Map::new();
            object.insert("point".to_owned(), cell.point.into());
            object.insert("gateway".to_owned(), cell.gateway.into());
            for column in columns {
                let figure = column.of(&cell);
                row.push(figure.map_or("-".to_owned(), |figure| figure.shown(column.shown)));
                object.insert(column.key.to_owned(), serde_json::to_value(figure)?);
            }
            rows.push(row);
            objects.push(object);
        }
        let heading: Vec<_> = ["", "gateway"].into_iter().chain(columns.iter().map(|column| column.heading)).collect();
        Ok((table(2, &heading, rows), objects))
    }
}

impl Point {
    /// A point that is held against itself.
    pub fn new(name: &str, scenario: Scenario) -> Point {
        Point { name: name.to_owned(), scenario, first: 0 }
    }
}

impl<R> Cell<'_, R> {
    /// A figure of each round; `None` if one of them has none.
    pub fn each(&self, figure: impl Fn(&R) -> Option<f64>) -> Option<Spread> {
        let figures = self.rounds.iter().map(|result| figure(result).filter(|figure| figure.is_finite()));
        Spread::of(figures.collect::<Option<Vec<f64>>>()?)
    }

    /// A figure of each round, divided by that of `others` in the same round.
    pub fn ratio(&self, others: &[R], figure: impl Fn(&R) -> Option<f64>) -> Option<Spread> {
        let pairs = self.rounds.iter().zip(others);
        let ratios = pairs.map(|(this, other)| Some(figure(this)? / figure(other)?).filter(|ratio| ratio.is_finite()));
        Spread::of(ratios.collect::<Option<Vec<f64>>>()?)
    }

    /// The sum of all rounds.
    pub fn total(&self, figure: impl Fn(&R) -> u64) -> Option<Spread> {
        Spread::of([self.rounds.iter().map(figure).sum::<u64>() as f64])
    }
}

impl<R> Column<R> {
    pub fn new(
        key: &'static str,
        heading: &'static str,
        shown: fn(f64) -> String,
        figure: impl Fn(&Cell<R>) -> Option<Spread> + 'static,
    ) -> Self {
        Column { key, heading, figure: Box::new(figure), shown }
    }

    pub fn of(&self, cell: &Cell<R>) -> Option<Spread> {
        (self.figure)(cell)
    }
}

impl Column {
    /// Packets that did not arrive, over all rounds.
    pub fn lost() -> Column {
        Column::new("lost_packets", "lost", whole, |cell| cell.total(LoadResult::lost_packets))
    }

    /// Inner packets for each outer datagram: what stands behind every cost of a packet.
    pub fn batch() -> Column {
        Column::new("batch", "batch", two_digits, |cell: &Cell| cell.each(|result| result.batch))
    }

    /// The share of the time that the gateway's CPU was busy, whoever was billed for it.
    pub fn busy() -> Column {
        Column::new("cpu_busy", "CPU busy", percent, |cell: &Cell| cell.each(|result| Some(result.gateway_cpus_busy)))
    }
}

pub fn whole(figure: f64) -> String {
    count(figure.round().max(0.0) as u64)
}

pub fn two_digits(figure: f64) -> String {
    format!("{figure:.2}")
}

pub fn three_digits(figure: f64) -> String {
    format!("{figure:.3}")
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
    pub fn figures<R>(columns: &[Column<R>], rounds: Vec<Vec<R>>) -> Vec<Vec<Option<f64>>> {
        let (points, firsts) = rounds.iter().map(|_| (String::new(), 0)).unzip();
        let rounds = rounds.into_iter().map(|rounds| vec![rounds]).collect();
        let results = Results { points, gateways: vec!["x"], rounds, firsts };
        let of = |cell| columns.iter().map(|column| column.of(&cell).map(|spread| spread.median)).collect();
        results.cells().map(of).collect()
    }
}
