//! The engine by itself: what a core of the gateway does, without input and output, deterministic and under virtual time.
//!
//! Callgrind counts the instructions of each [`fixture`]. Time drifts with the machine; a count repeats, so that it can be held against a
//! recorded one.

mod callgrind;
pub mod fixture;
mod recorded;
mod traffic;
mod wire;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use serde::Serialize;

use crate::measure::progress::Progress;
use crate::measure::record::{Output, print, table};
use callgrind::Callgrind;
use fixture::{CASES, Case};
use recorded::Recorded;

/// One benchmark of the engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figure {
    name: &'static str,
    /// What it does once: `packet`, `handshake` ...
    unit: &'static str,
    what: &'static str,
    instructions: f64,
    /// The recorded count that it is held against, where there is one.
    recorded: Option<f64>,
    /// Whether it is more than the allowed share above the recorded one.
    exceeds: bool,
}

/// The command line of `engine`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run this benchmark alone. May be given several times.
    #[arg(long, value_name = "NAME", value_parser = names())]
    only: Vec<String>,
    /// Write the counts to the file of recorded counts, instead of holding them against it.
    #[arg(long, conflicts_with = "only")]
    record: bool,
    /// The file of recorded counts [default: bench/instructions.toml in the sources].
    #[arg(long, value_name = "FILE")]
    recorded: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
    /// Do the work of one benchmark, for callgrind to count.
    #[arg(long, value_name = "NAME", value_parser = names(), hide = true)]
    measure: Option<String>,
}

/// Counts, prints, and compares or records.
pub fn run(options: &Options) -> Result<()> {
    if let Some(name) = &options.measure {
        return callgrind::measure(fixture::find(name).context("there is no such benchmark")?);
    }
    let path =
        options.recorded.clone().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml").into());
    let recorded = match options.record {
        true => None,
        false => Some(Recorded::read(&path)?),
    };
    recorded.as_ref().map_or(Ok(()), Recorded::require_same_conditions)?;
    let callgrind = Callgrind::find()?;
    let mut recording = options.output.start([callgrind.version.clone()])?;
    let counts = count(&callgrind, options)?;
    let figures = compare(&counts, recorded.as_ref());
    recording.print(&shown(&figures))?;
    recording.write("engine", &figures)?;
    match recorded {
        Some(recorded) => judge(&figures, &recorded, &callgrind.version),
        None => {
            Recorded::new(&callgrind.version, counts.iter().map(|&(case, count)| (case.name, count))).write(&path)?;
            print(&format!("recorded in {}\n", path.display()))
        }
    }
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(CASES.iter().map(|case| case.name))
}

/// Instructions for each unit, of every benchmark asked for.
fn count(callgrind: &Callgrind, options: &Options) -> Result<Vec<(&'static Case, f64)>> {
    let mut progress = Progress::new();
    let asked = |case: &&Case| options.only.is_empty() || options.only.iter().any(|name| name == case.name);
    let counts = CASES.iter().filter(asked).map(|case| {
        progress.step(&format!("counting instructions: {}", case.name));
        Ok((case, callgrind.count(case)?))
    });
    let counts = counts.collect::<Result<_>>();
    progress.clear();
    counts
}

fn compare(counts: &[(&'static Case, f64)], recorded: Option<&Recorded>) -> Vec<Figure> {
    let allowed = recorded.map_or(0.0, |recorded| recorded.allowed_share);
    let figure = |&(case, instructions): &(&'static Case, f64)| {
        let Case { name, unit, what, .. } = *case;
        let recorded = recorded.and_then(|recorded| recorded.instructions.get(name).copied());
        let exceeds = recorded.is_some_and(|then| instructions > then * (1.0 + allowed));
        Figure { name, unit, what, instructions, recorded, exceeds }
    };
    counts.iter().map(figure).collect()
}

fn shown(figures: &[Figure]) -> comfy_table::Table {
    let rows = figures.iter().map(|&Figure { name, unit, what, instructions, recorded, exceeds }| {
        let then = recorded.map_or("-".to_owned(), |then| format!("{then:.1}"));
        let change = recorded.map_or("-".to_owned(), |then| format!("{:+.2} %", (instructions / then - 1.0) * 100.0));
        let mark = if exceeds { " TOO MUCH" } else { "" };
        [name.to_owned(), format!("a {unit}: {what}"), format!("{instructions:.1}"), then, format!("{change}{mark}")]
    });
    table(2, &["benchmark", "", "instructions", "recorded", "change"], rows)
}

/// Whether the gate is passed.
fn judge(figures: &[Figure], recorded: &Recorded, valgrind: &str) -> Result<()> {
    if let Some(figure) = figures.iter().find(|figure| figure.recorded.is_none()) {
        bail!("{} has no recorded count: record anew with --record", figure.name);
    }
    if let Some(gone) = recorded.instructions.keys().find(|name| fixture::find(name).is_none()) {
        bail!("a count is recorded of {gone}, but there is no such benchmark: record anew with --record");
    }
    let dearer: Vec<_> = figures.iter().filter(|figure| figure.exceeds).map(|figure| figure.name).collect();
    if !dearer.is_empty() {
        let allowed = recorded.allowed_share * 100.0;
        let note = match &recorded.valgrind {
            then if then == valgrind => String::new(),
            then => format!(" (counted by {valgrind}, recorded with {then})"),
        };
        bail!("more than {allowed} % above the recorded count: {}{note}", dearer.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(share: f64) -> Recorded {
        let counts = CASES.iter().map(|case| (case.name, 1000.0));
        Recorded { allowed_share: share, ..Recorded::new("valgrind-3.19.0", counts) }
    }

    fn verdict(change: impl Fn(&mut Recorded), counts: &[f64]) -> Result<String, String> {
        let mut recorded = recorded(0.02);
        change(&mut recorded);
        let counts: Vec<_> = CASES.iter().zip(counts).map(|(case, &count)| (case, count)).collect();
        let figures = compare(&counts, Some(&recorded));
        let judged = judge(&figures, &recorded, "valgrind-3.19.0");
        judged.map(|()| shown(&figures).to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_costs_more_than_allowed_fails() {
        assert!(verdict(|_| {}, &[1019.0, 1000.0, 500.0]).unwrap().contains("+1.90 %"));
        let error = verdict(|_| {}, &[1019.0, 1021.0]).unwrap_err();
        assert_eq!(error, format!("more than 2 % above the recorded count: {}", CASES[1].name));
    }

    #[test]
    fn another_valgrind_is_told_of_when_counts_differ() {
        let error = verdict(|recorded| recorded.valgrind = "valgrind-4".into(), &[2000.0]).unwrap_err();
        assert!(error.contains("recorded with valgrind-4"), "{error}");
    }

    #[test]
    fn benchmarks_that_were_not_recorded_or_are_gone_fail() {
        let error =
            verdict(|recorded| recorded.instructions.retain(|name, _| name != CASES[0].name), &[1.0]).unwrap_err();
        assert!(error.contains(CASES[0].name) && error.contains("--record"), "{error}");
        let error = verdict(|recorded| recorded.instructions.extend([("sloth".to_owned(), 1.0)]), &[1.0]).unwrap_err();
        assert!(error.contains("sloth"), "{error}");
    }
}
