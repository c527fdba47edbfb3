//! The sections of the page: one module for each benchmark turns its results into plots, tables and sentences.

mod engine;
mod floor;
mod gateway;
mod idle;
mod latency;
mod load;
mod over_time;
mod packets;
mod scale;
mod shaping;
mod soak;
mod storm;

use super::chart::Chart;
use super::origin::Origins;
use super::palette::Palette;
use super::table::Table;
use crate::results::{Finding, Record, Spread};

/// A section: results of one benchmark from one setup.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// What links to it are made of, unique on the page.
    pub id: String,
    /// What it says.
    pub body: Body,
    /// The setup's number.
    pub setup: usize,
    /// The numbers of the runs it is made of.
    pub runs: Vec<usize>,
}

/// What a section says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Body {
    /// Its subject.
    pub title: String,
    /// What was measured, and how.
    pub measured: String,
    /// How uncertain that is.
    pub uncertainty: String,
    /// Plots, tables and sentences.
    pub blocks: Vec<Block>,
}

/// A part of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A heading within it.
    Heading(String),
    /// Sentences.
    List(Vec<String>),
    /// Something that stands out.
    Notice(Notice),
    /// Plots, with the tables of their figures beside or under them.
    Figures(Vec<Chart>, Vec<Table>),
    /// A long table, folded away.
    Folded(Table),
}

/// Something that stands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How bad it is.
    pub grade: Grade,
    /// What is said first.
    pub title: String,
    /// The rest, a line each.
    pub lines: Vec<String>,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// To be known when figures are read.
    Caution,
    /// Not as it should be.
    Failed,
}

/// A result, and the number of the run that it came from.
#[derive(Debug, Clone, Copy)]
struct Found<'a, T> {
    run: usize,
    result: &'a T,
}

impl<T> Found<'_, T> {
    /// `name` alone, or with the run's number where `many` results have that name.
    fn named(&self, name: &str, many: bool) -> String {
        match (name.is_empty(), many) {
            (_, false) => name.to_owned(),
            (true, true) => self.run_text(),
            (false, true) => format!("{name}, {}", self.run_text()),
        }
    }

    fn run_text(&self) -> String {
        format!("run {}", self.run + 1)
    }
}

impl Section {
    /// All plots of the section.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.body.blocks.iter().flat_map(|block| match block {
            Block::Figures(charts, _) => charts.as_slice(),
            _ => &[],
        })
    }

    /// All that is not as it should be.
    pub fn failures(&self) -> impl Iterator<Item = &Notice> {
        self.body.blocks.iter().filter_map(|block| match block {
            Block::Notice(notice) if notice.grade == Grade::Failed => Some(notice),
            _ => None,
        })
    }
}

/// The sections of `records`: benchmark by benchmark, setup by setup. What has no figures has no section.
pub fn sections(records: &[Record], origins: &Origins<'_>) -> Vec<Section> {
    let palette = Palette::of(records);
    let mut sections = Vec::new();
    // One line for each benchmark, in the page's order: its name, how its results are told from others, what makes a section of them.
    macro_rules! add {
        ($($id:literal, $kind:ident, $make:expr;)*) => {$(
            for setup in 0..origins.setups.len() {
                let found = found(records, origins, setup, |finding| match finding {
                    Finding::$kind(result) => Some(result),
                    _ => None,
                });
                let body = if found.is_empty() { None } else { $make(&found, &palette) };
                let runs = found.iter().map(|found| found.run);
                sections.extend(body.map(|body| section($id, body, origins, setup, runs)));
            }
        )*};
    }
    add! {
        "gateway", Gateway, gateway::body;
        "packets", Packets, packets::body;
        "scale", Scale, scale::body;
        "latency", Latency, latency::body;
        "shaping", Shaping, shaping::body;
        "storm", Storm, storm::body;
        "idle", Idle, idle::body;
        "load", Load, load::body;
        "soak", Soak, soak::body;
        "engine", Engine, engine::body;
    }
    for setup in 0..origins.setups.len() {
        // A floor is a result of its own, or was measured beside gateways.
        let found = found(records, origins, setup, |finding| match finding {
            Finding::Floor(floor) => Some(floor),
            Finding::Gateway(result) => result.floor.as_ref(),
            _ => None,
        });
        let runs = found.iter().map(|found| found.run);
        sections.extend(floor::body(&found).map(|body| section("floor", body, origins, setup, runs)));
    }
    make_names_unique(&mut sections);
    sections
}

fn found<'a, T>(
    records: &'a [Record],
    origins: &Origins<'_>,
    setup: usize,
    pick: impl Fn(&'a Finding) -> Option<&'a T>,
) -> Vec<Found<'a, T>> {
    let of_setup = records.iter().filter_map(|record| {
        let (of, run) = origins.find(record);
        (of == setup).then_some((run, record))
    });
    of_setup.filter_map(|(run, record)| Some(Found { run, result: pick(&record.finding)? })).collect()
}

fn section(
    id: &str,
    mut body: Body,
    origins: &Origins<'_>,
    setup: usize,
    runs: impl Iterator<Item = usize>,
) -> Section {
    let mut runs: Vec<usize> = runs.collect();
    runs.dedup();
    if origins.setups.len() > 1 {
        body.title = format!("{} (setup {})", body.title, super::origin::letter(setup));
    }
    if origins.setups.get(setup).is_some_and(super::origin::Setup::is_debug) {
        let notice = Notice {
            grade: Grade::Caution,
            title: "The harness was built without optimisation: these figures say nothing.".to_owned(),
            lines: Vec::new(),
        };
        body.blocks.insert(0, Block::Notice(notice));
    }
    Section { id: format!("section-{id}"), body, setup, runs }
}

/// Numbers what has the name of something before it.
fn make_names_unique(sections: &mut [Section]) {
    let mut taken = std::collections::BTreeSet::new();
    let mut unique = |name: &mut String| {
        let numbered = (2..).map(|number| format!("{name}_{number}"));
        let free = [name.clone()].into_iter().chain(numbered).find(|name| !taken.contains(name));
        *name = free.unwrap_or_default();
        taken.insert(name.clone());
    };
    for section in sections {
        unique(&mut section.id);
        for block in &mut section.body.blocks {
            if let Block::Figures(charts, _) = block {
                charts.iter_mut().for_each(|chart| unique(&mut chart.name));
            }
        }
    }
}

/// Several spreads of the same figure as one: the median of their medians, and all that they reach.
fn pool(spreads: impl IntoIterator<Item = Spread>) -> Option<Spread> {
    let spreads: Vec<Spread> = spreads.into_iter().collect();
    let median = Spread::of(spreads.iter().map(|spread| spread.median))?.median;
    let min = spreads.iter().map(|spread| spread.min).fold(f64::INFINITY, f64::min);
    let max = spreads.iter().map(|spread| spread.max).fold(f64::NEG_INFINITY, f64::max);
    Some(Spread { median, min, max })
}

/// Every figure of `spread` times `factor`.
fn times(spread: Spread, factor: f64) -> Spread {
    Spread { median: spread.median * factor, min: spread.min * factor, max: spread.max * factor }
}

/// Names of all, and whether a name is there twice, so that runs must be told apart.
fn has_doubles<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().any(|name| !seen.insert(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooled_spreads_reach_as_far_as_all_of_them() {
        let spread = |median, min, max| Spread { median, min, max };
        let pooled = pool([spread(2.0, 1.0, 3.0), spread(4.0, 3.5, 9.0), spread(3.0, 0.5, 3.0)]);
        assert_eq!(pooled, Some(spread(3.0, 0.5, 9.0)));
        assert_eq!(pool([]), None);
    }
}
