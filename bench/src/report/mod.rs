//! `tollgate-bench report`: any number of results as one HTML page that needs nothing else, or one plot of them as an SVG file.
//!
//! It measures and judges nothing: all figures are those of the results. Text from files is escaped wherever it is shown.

mod chart;
mod number;
mod origin;
mod page;
mod palette;
mod section;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::origin::Origins;
use crate::record;
use crate::results::Record;

/// What to make of which results.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The page to write, whose name ends in .html [default: report.html, unless there is --svg].
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// The plot for --svg, by name; a wrong one is answered with the names that there are.
    #[arg(long, value_name = "NAME", requires = "svg")]
    plot: Option<String>,
    /// Write one plot to this file, whose name ends in .svg: for a README, on a background of its own.
    #[arg(long, value_name = "FILE.svg", requires = "plot")]
    svg: Option<PathBuf>,
    /// Results that --json of any benchmark wrote.
    #[arg(value_name = "RESULT.json", required = true)]
    results: Vec<PathBuf>,
}

/// Reads the results, and writes the page, or the plot, or both. Says on standard error what was written.
///
/// # Errors
///
/// In one line: a file that cannot be read, or is no result, or cannot be written; a plot that there is not. Unless writing itself fails,
/// nothing is written then.
pub fn run(options: &Options) -> Result<()> {
    let page_path = match (&options.out, &options.svg) {
        (Some(path), _) => Some(path.as_path()),
        (None, None) => Some(Path::new("report.html")),
        (None, Some(_)) => None,
    };
    // A forgotten file name must not cost a result.
    require_ending("--out", page_path, "html")?;
    require_ending("--svg", options.svg.as_deref(), "svg")?;
    let records = options.results.iter().map(|path| record::read(path)).collect::<Result<Vec<Record>>>()?;
    let mut files = Vec::new();
    if let Some(path) = page_path {
        files.push((path, page(&records)));
    }
    if let (Some(path), Some(name)) = (&options.svg, &options.plot) {
        let Some(text) = plot(&records, name) else {
            let names = plots(&records);
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            bail!("--plot is {name}, but the plots of these results are: {names}");
        };
        files.push((path, text));
    }
    for (path, text) in files {
        fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}: {} of {}", path.display(), number::Unit::Bytes.text(text.len() as f64), {
            number::plural(records.len(), "result")
        });
    }
    Ok(())
}

/// The page of `records`. The same result twice counts once.
pub fn page(records: &[Record]) -> String {
    let records = distinct(records);
    let origins = Origins::of(&records);
    page::render(&section::sections(&records, &origins), &origins, records.len())
}

/// The names of all plots of `records`, in the page's order.
pub fn plots(records: &[Record]) -> Vec<String> {
    let records = distinct(records);
    let sections = section::sections(&records, &Origins::of(&records));
    sections.iter().flat_map(|section| section.charts().map(|chart| chart.name.clone())).collect()
}

/// The plot `name` of `records` as an SVG file with a background of its own; `None` when there is no such plot.
pub fn plot(records: &[Record], name: &str) -> Option<String> {
    let records = distinct(records);
    let origins = Origins::of(&records);
    let sections = section::sections(&records, &origins);
    let mut charts = sections.iter().flat_map(|section| section.charts().map(move |chart| (section, chart)));
    let (section, chart) = charts.find(|(_, chart)| chart.name == name)?;
    Some(chart.standalone(&origins.source(section.setup, &section.runs)))
}

fn distinct(records: &[Record]) -> Vec<Record> {
    let mut distinct: Vec<Record> = Vec::new();
    for record in records {
        if !distinct.contains(record) {
            distinct.push(record.clone());
        }
    }
    distinct
}

fn require_ending(option: &str, path: Option<&Path>, ending: &str) -> Result<()> {
    match path {
        Some(path) if path.extension().is_none_or(|found| found != ending) => {
            bail!("{option} is {}: its name must end in .{ending}", path.display())
        }
        _ => Ok(()),
    }
}
