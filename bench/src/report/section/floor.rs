//! The floor: what this machine's kernel and ciphers cost by themselves.

use super::{Block, Body, Found, pool};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Scale};
use crate::report::number::{Unit, plural};
use crate::report::palette::Colour;
use crate::report::table::{NONE, Table};
use crate::results::{Floor, Spread, Stage};

pub(super) fn body(found: &[Found<'_, Floor>]) -> Option<Body> {
    if found.iter().all(|found| found.result.stages.is_empty()) {
        return None;
    }
    let tables = vec![sums(found), stages(found)];
    let times = match found.len() {
        1 => String::new(),
        several => format!(" It was measured in {}; bars show the median of their medians.", plural(several, "run")),
    };
    Some(Body {
        title: "Floor of this machine".to_owned(),
        measured: format!(
            "Each stage that a gateway's core cannot do without, by itself in a loop: the kernel's TUN and UDP calls, and the cipher. Their \
             sum is what no gateway of this kind can go below on this machine.{times}"
        ),
        uncertainty: "Bars are medians over repetitions, whiskers reach from the lowest to the highest. The sums add medians: they have \
                      the drift of all stages. Caches are warmer in a loop than in a gateway, so the floor is rather too low than too high."
            .to_owned(),
        blocks: vec![Block::Figures(vec![chart(found)], tables)],
    })
}

/// Names of all stages, each once.
fn names<'a>(found: &[Found<'a, Floor>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for stage in found.iter().flat_map(|found| &found.result.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    names
}

fn chart(found: &[Found<'_, Floor>]) -> Chart {
    let bars = |belongs: fn(&Stage) -> bool| -> Vec<Bar> {
        let of_name = |name: &str| {
            let stages = found.iter().flat_map(|found| &found.result.stages);
            let stages = stages.filter(|stage| stage.name == name && belongs(stage));
            pool(stages.map(|stage| stage.cpu_seconds_per_gigabyte))
        };
        names(found).into_iter().filter_map(|name| Some(Bar::spread(name, Colour::Neutral, of_name(name)?))).collect()
    };
    let sum = |pick: fn(&Floor) -> f64| Spread::of(found.iter().map(|found| pick(found.result)));
    let sums = [
        ("client to network", sum(|floor| floor.up_cpu_seconds_per_gigabyte)),
        ("network to client", sum(|floor| floor.down_cpu_seconds_per_gigabyte)),
    ];
    let sums = sums.into_iter().filter_map(|(label, sum)| {
        let mut bar = Bar::spread(label, Colour::Neutral, sum?);
        bar.range = bar.range.filter(|(min, max)| min < max);
        Some(bar)
    });
    let mut beside = bars(|stage| !stage.counts_up && !stage.counts_down);
    beside.iter_mut().for_each(|bar| bar.is_hollow = true);
    let groups = [
        ("Floor of a gateway's core", sums.collect()),
        ("Stages upwards: client to network", bars(|stage| stage.counts_up)),
        ("Stages downwards: network to client", bars(|stage| stage.counts_down)),
        ("Measured beside these", beside),
    ];
    let groups = groups.into_iter().filter(|(_, bars): &(_, Vec<Bar>)| !bars.is_empty());
    Chart {
        name: "floor".to_owned(),
        title: "What kernel and cipher cost per gigabyte".to_owned(),
        note: String::new(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("CPU seconds per gigabyte of payload", Unit::Plain, Scale::Linear),
            groups: groups.map(|(title, bars)| BarGroup { title: title.to_owned(), bars, reference: None }).collect(),
        }),
    }
}

fn sums(found: &[Found<'_, Floor>]) -> Table {
    let mut table = Table::new("Sums for a gateway's core, CPU seconds per gigabyte", &["Run", "Up", "Down"]);
    for found in found {
        let Floor { up_cpu_seconds_per_gigabyte: up, down_cpu_seconds_per_gigabyte: down, .. } = found.result;
        table.row([(found.run + 1).to_string(), Unit::Plain.text(*up), Unit::Plain.text(*down)]);
    }
    table
}

fn stages(found: &[Found<'_, Floor>]) -> Table {
    let mut table = Table::new("Stages", &["Stage", "Run", "CPU s/GB", "Cycles per byte", "Part of"]);
    for name in names(found) {
        for found in found {
            for stage in found.result.stages.iter().filter(|stage| stage.name == name) {
                let part = match (stage.counts_up, stage.counts_down) {
                    (true, true) => "up, down",
                    (true, false) => "up",
                    (false, true) => "down",
                    (false, false) => "neither",
                };
                table.row([
                    name.to_owned(),
                    (found.run + 1).to_string(),
                    Unit::Plain.spread(stage.cpu_seconds_per_gigabyte),
                    stage.cycles_per_byte.map_or(NONE.to_owned(), |cycles| Unit::Plain.text(cycles)),
                    part.to_owned(),
                ]);
            }
        }
    }
    table.without_constant("Run")
}
