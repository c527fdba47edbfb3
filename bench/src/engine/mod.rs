//! The engine by itself: what a core of the gateway does, without input and output, deterministic and under virtual time.
//!
//! Callgrind counts the instructions of each [`fixture`]. Time drifts with the machine; a count repeats, so that two builds compare.

mod callgrind;
pub mod fixture;
mod wire;

use std::env;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use crate::measure::record::{Output, table};
use callgrind::Callgrind;
use fixture::{CASES, Case};
use tollgate::progress::Progress;

/// How much more than in the other build a benchmark may cost.
const EXCESS_MAX: f64 = 0.02;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run this benchmark alone. May be given several times.
    #[arg(long, value_name = "NAME", value_parser = names())]
    only: Vec<String>,
    /// Another build of this program, to count beside this one.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
    /// Do the work of one benchmark, for callgrind to count.
    #[arg(long, value_name = "NAME", value_parser = names(), hide = true)]
    measure: Option<String>,
}

/// Instructions for each unit of a benchmark's work.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    what: &'static str,
    instructions: f64,
    /// Those of the other build, where it has that benchmark.
    against: Option<f64>,
    /// Whether it is more than allowed above the other build's.
    exceeds: bool,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(name) = &options.measure {
        return callgrind::measure(fixture::find(name).context("there is no such benchmark")?);
    }
    let callgrind = Callgrind::find()?;
    let own = env::current_exe().context("this program's own path is not known")?;
    let mut recording = options.output.start([callgrind.version.clone()])?;
    let mut progress = Progress::default();
    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| options.only.is_empty() || options.only.iter().any(|name| name == case.name))
    {
        progress.step(&format!("counting instructions: {}", case.name));
        figures.push(count(&callgrind, case, &own, options.against.as_deref())?);
    }
    progress.clear();
    recording.print(&shown(&figures))?;
    recording.write("engine", &figures)?;
    let dearer: Vec<_> = figures.iter().filter(|figure| figure.exceeds).map(|figure| figure.name).collect();
    ensure!(dearer.is_empty(), "more than {} % above the other build: {}", EXCESS_MAX * 100.0, dearer.join(", "));
    Ok(())
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(CASES.iter().map(|case| case.name))
}

/// Counts both builds at once.
fn count(callgrind: &Callgrind, case: &'static Case, own: &Path, against: Option<&Path>) -> Result<Figure> {
    let (ours, theirs) = thread::scope(|scope| {
        let theirs = against.map(|program| scope.spawn(|| callgrind.count(program, case)));
        let ours = callgrind.count(own, case);
        let theirs = theirs.map(|thread| thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)));
        (ours, theirs.transpose())
    });
    Ok(Figure::new(case, ours?.context("this build does not know its own benchmark")?, theirs?.flatten()))
}

impl Figure {
    fn new(&Case { name, unit, what, .. }: &Case, instructions: f64, against: Option<f64>) -> Self {
        let exceeds = against.is_some_and(|then| instructions > then * (1.0 + EXCESS_MAX));
        Figure { name, unit, what, instructions, against, exceeds }
    }
}

fn shown(figures: &[Figure]) -> comfy_table::Table {
    let rows = figures.iter().map(|&Figure { name, unit, what, instructions, against, exceeds }| {
        let (then, change) = match against {
            Some(then) => (format!("{then:.1}"), format!("{:+.2} %", (instructions / then - 1.0) * 100.0)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let mark = if exceeds { " TOO MUCH" } else { "" };
        [name.to_owned(), format!("a {unit}: {what}"), format!("{instructions:.1}"), then, format!("{change}{mark}")]
    });
    table(2, &["benchmark", "", "instructions", "other build", "change"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_costs_more_than_allowed_exceeds() {
        let figures = [(1019.0, Some(1000.0)), (1021.0, Some(1000.0)), (5000.0, None)]
            .map(|(count, against)| Figure::new(&CASES[0], count, against));
        assert_eq!(figures.each_ref().map(|figure| figure.exceeds), [false, true, false]);
        let text = shown(&figures).to_string();
        assert!(text.contains("+1.90 % |") && text.contains("+2.10 % TOO MUCH"), "{text}");
    }
}
