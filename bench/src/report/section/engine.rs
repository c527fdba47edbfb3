//! Instruction counts of the engine, against those that are recorded.

use super::{Block, Body, Found, Grade, Notice, has_doubles};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Scale};
use crate::report::number::{Unit, plural, ratio};
use crate::report::palette::{Colour, Palette};
use crate::report::table::{NONE, Table};
use crate::results::{EngineFigure, EngineResult};

type Results<'a> = [Found<'a, EngineResult>];

pub(super) fn body(found: &Results<'_>, _: &Palette) -> Option<Body> {
    if found.iter().all(|found| found.result.benchmarks.is_empty()) {
        return None;
    }
    let mut compilers: Vec<&str> = found.iter().map(|found| found.result.compiler.as_str()).collect();
    compilers.dedup();
    let mut blocks: Vec<Block> = failures(found).map(Block::Notice).into_iter().collect();
    blocks.push(Block::Figures(vec![chart(found)], vec![table(found)]));
    Some(Body {
        title: "Instructions of the engine".to_owned(),
        measured: format!(
            "The engine without input and output: instructions for each unit of work, counted and not timed. Compiler: {}.",
            compilers.join("; ")
        ),
        uncertainty: "Counts of the same program are the same on every machine, up to a few in a thousand where hash tables are seeded by \
                      chance; a compiler of another version makes another program. They do not tell time: a miss of the cache counts \
                      nothing."
            .to_owned(),
        blocks,
    })
}

fn change(figure: &EngineFigure) -> Option<f64> {
    ratio(figure.instructions - figure.recorded?, figure.recorded?)
}

fn failures(found: &Results<'_>) -> Option<Notice> {
    let exceeding = found.iter().flat_map(|found| &found.result.benchmarks).filter(|figure| figure.exceeds);
    let lines: Vec<String> = exceeding
        .map(|figure| {
            let change = change(figure).map_or(NONE.to_owned(), |change| Unit::Change.text(change));
            format!("{}: {change} instructions per {}", figure.name, figure.unit)
        })
        .collect();
    let title = format!(
        "{} more than is allowed",
        plural(lines.len(), "benchmark") + if lines.len() == 1 { " costs" } else { " cost" }
    );
    (!lines.is_empty()).then_some(Notice { grade: Grade::Failed, title, lines })
}

fn chart(found: &Results<'_>) -> Chart {
    let names = || found.iter().flat_map(|found| found.result.benchmarks.iter().map(|figure| figure.name.as_str()));
    let many = has_doubles(names());
    let bars = found.iter().flat_map(|found| {
        found.result.benchmarks.iter().map(move |figure| {
            let change = change(figure);
            let text = match (change, figure.exceeds) {
                (Some(change), true) => format!("{} ▲ too many", Unit::Change.text(change)),
                (Some(change), false) => Unit::Change.text(change),
                (None, _) => "not recorded".to_owned(),
            };
            Bar {
                label: found.named(&figure.name, many),
                colour: if figure.exceeds { Colour::Bad } else { Colour::Ours },
                is_hollow: false,
                value: change,
                range: None,
                text: Some(text),
            }
        })
    });
    Chart {
        name: "engine_instructions".to_owned(),
        title: "Instructions, against those recorded".to_owned(),
        note: "To the left: fewer than recorded.".to_owned(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("Change of instructions per unit", Unit::Change, Scale::Linear),
            groups: vec![BarGroup { title: String::new(), bars: bars.collect(), reference: None }],
        }),
    }
}

fn table(found: &Results<'_>) -> Table {
    let mut table =
        Table::new("Instructions", &["Benchmark", "Run", "Unit", "Instructions", "Recorded", "Change", "Verdict"]);
    for found in found {
        for figure in &found.result.benchmarks {
            let cells = [
                figure.name.clone(),
                (found.run + 1).to_string(),
                figure.unit.clone(),
                Unit::Plain.text(figure.instructions),
                figure.recorded.map_or(NONE.to_owned(), |recorded| Unit::Plain.text(recorded)),
                change(figure).map_or(NONE.to_owned(), |change| Unit::Change.text(change)),
                if figure.exceeds { "too many" } else { "within bounds" }.to_owned(),
            ];
            table.judged_row(cells, figure.exceeds);
        }
    }
    table.without_constant("Run")
}
