//! How things were over time, from the samples of a load.

use super::Block;
use crate::report::chart::{Axis, Chart, Drawing, Lines, Point, Scale, Series};
use crate::report::number::{Unit, count, ratio, seconds};
use crate::report::palette::Colour;
use crate::report::table::{NONE, Table};
use crate::results::{LoadResult, Sample};

/// A figure of a sample.
struct Shown {
    name: &'static str,
    title: &'static str,
    axis: &'static str,
    unit: Unit,
    pick: fn(&Sample) -> f64,
}

const SHOWN: [Shown; 5] = [
    Shown {
        name: "throughput",
        title: "Throughput over time",
        axis: "Inner traffic received, both ends together",
        unit: Unit::BitsPerSecond,
        pick: |sample| sample.bits_per_second,
    },
    Shown {
        name: "memory",
        title: "Memory over time",
        axis: "Resident memory of the gateway",
        unit: Unit::Bytes,
        pick: |sample| sample.gateway_memory_bytes as f64,
    },
    Shown {
        name: "connections",
        title: "Connections over time",
        axis: "Connections up",
        unit: Unit::Plain,
        pick: |sample| sample.connections as f64,
    },
    Shown {
        name: "descriptors",
        title: "Descriptors over time",
        axis: "Open descriptors of the gateway",
        unit: Unit::Plain,
        pick: |sample| sample.gateway_descriptors as f64,
    },
    Shown {
        name: "addresses",
        title: "Addresses held over time",
        axis: "Inner addresses held",
        unit: Unit::Plain,
        pick: |sample| sample.addresses_held as f64,
    },
];

/// Plots of all figures that the samples of `load` have, with `prefix` before their names, and a table; `None` without samples.
pub(super) fn block(load: &LoadResult, prefix: &str, colour: Colour) -> Option<Block> {
    let last = load.samples.last()?;
    let (divisor, unit) = match last.seconds {
        seconds if seconds >= 7200.0 => (3600.0, "hours"),
        seconds if seconds >= 300.0 => (60.0, "minutes"),
        _ => (1.0, "seconds"),
    };
    // What is zero throughout was not seen: a gateway elsewhere has no memory that can be read.
    let seen = SHOWN.iter().filter(|shown| load.samples.iter().any(|sample| (shown.pick)(sample) != 0.0));
    let mut charts: Vec<Chart> = Vec::new();
    for shown in seen {
        let points = load.samples.iter().map(|sample| Point::of(sample.seconds / divisor, (shown.pick)(sample)));
        charts.push(chart(prefix, shown, unit, colour, points.collect()));
    }
    let cpu = Shown {
        name: "cpu",
        title: "CPU of the gateway over time",
        axis: "CPU seconds per second since the sample before",
        unit: Unit::Plain,
        pick: |sample| sample.gateway_cpu_seconds,
    };
    if last.gateway_cpu_seconds > 0.0 && load.samples.len() > 1 {
        let points = load.samples.windows(2).filter_map(|pair| {
            let used = pair[1].gateway_cpu_seconds - pair[0].gateway_cpu_seconds;
            Some(Point::of(pair[1].seconds / divisor, ratio(used, pair[1].seconds - pair[0].seconds)?))
        });
        charts.push(chart(prefix, &cpu, unit, colour, points.collect()));
    }
    Some(Block::Figures(charts, vec![table(load)]))
}

fn chart(prefix: &str, shown: &Shown, time_unit: &str, colour: Colour, points: Vec<Point>) -> Chart {
    Chart {
        name: format!("{prefix}_{}", shown.name),
        title: shown.title.to_owned(),
        note: String::new(),
        drawing: Drawing::Lines(Lines {
            x: Axis::new(format!("Time since traffic began, {time_unit}"), Unit::Plain, Scale::Linear),
            y: Axis::new(shown.axis, shown.unit, Scale::Linear),
            series: vec![Series { label: String::new(), colour, dash: 0, points }],
            references: Vec::new(),
        }),
    }
}

fn table(load: &LoadResult) -> Table {
    let caption = format!("{} samples over time", count(load.samples.len() as u64));
    let mut table = Table::new(caption, &["Figure", "First", "Lowest", "Highest", "Last"]);
    let whole = |value: f64| if value < 1e15 { count(value as i64) } else { Unit::Plain.text(value) };
    let mut row = |name: &str, written: &dyn Fn(f64) -> String, pick: fn(&Sample) -> f64| {
        let figures = || load.samples.iter().map(pick);
        let lowest = figures().min_by(f64::total_cmp);
        let highest = figures().max_by(f64::total_cmp);
        let [first, lowest, highest, last] = [figures().next(), lowest, highest, figures().next_back()]
            .map(|figure| figure.map_or(NONE.to_owned(), written));
        table.row([name.to_owned(), first, lowest, highest, last]);
    };
    row("Time", &seconds, |sample| sample.seconds);
    for shown in &SHOWN {
        let written = |value| if shown.unit == Unit::Plain { whole(value) } else { shown.unit.text(value) };
        row(shown.axis, &written, shown.pick);
    }
    row("Handshakes so far", &whole, |sample| sample.handshakes as f64);
    row("Inner packets received so far", &whole, |sample| sample.received_packets as f64);
    row("CPU seconds of the gateway so far", &|value| Unit::Plain.text(value), |sample| sample.gateway_cpu_seconds);
    table
}
