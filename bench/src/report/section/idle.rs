//! What idle connections and users cost: memory, and CPU for keep-alives.

use super::{Block, Body, Found, has_doubles};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Lines, Point, Scale, Series};
use crate::report::number::{Unit, count, seconds};
use crate::report::palette::Palette;
use crate::report::table::Table;
use crate::results::{IdleFigures, IdleResult};

type Figures<'a> = [(String, &'a IdleFigures, usize)];

pub(super) fn body(found: &[Found<'_, IdleResult>], palette: &Palette) -> Option<Body> {
    let many =
        has_doubles(found.iter().flat_map(|found| found.result.gateways.iter().map(|figures| figures.name.as_str())));
    let figures: Vec<(String, &IdleFigures, usize)> = found
        .iter()
        .flat_map(|found| found.result.gateways.iter().map(move |it| (found.named(&it.name, many), it, found.run)))
        .collect();
    if figures.is_empty() {
        return None;
    }
    let bars = |name: &str, title: &str, axis: &str, unit: Unit, pick: fn(&IdleFigures) -> f64| Chart {
        name: name.to_owned(),
        title: title.to_owned(),
        note: "Less is better.".to_owned(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new(axis, unit, Scale::Linear),
            groups: vec![BarGroup {
                title: String::new(),
                bars: figures.iter().map(|(label, it, _)| Bar::of(label, palette.colour(&it.name), pick(it))).collect(),
                reference: None,
            }],
        }),
    };
    let steps = steps_chart(&figures, palette).into_iter().collect();
    let charts = vec![
        bars("bytes_per_connection", "Memory of an idle connection", "Bytes per connection", Unit::Bytes, |it| {
            it.bytes_per_connection
        }),
        bars("bytes_per_user", "Memory of a user without a connection", "Bytes per user", Unit::Bytes, |it| {
            it.bytes_per_user
        }),
        bars("idle_cpu", "CPU of a gateway whose connections are all idle", "Share of one CPU", Unit::Share, |it| {
            it.cpu_share
        }),
    ];
    Some(Body {
        title: "Memory and CPU of idle connections".to_owned(),
        measured: "Resident memory of the gateway's process, as the kernel counts it, with more and more connections that only keep \
                   themselves alive, and with more and more users in its file."
            .to_owned(),
        uncertainty: "One run for each gateway. Memory comes in pages and in the allocator's steps, so a figure per connection has the \
                      uncertainty of these steps, divided by the number of connections."
            .to_owned(),
        blocks: vec![Block::Figures(steps, vec![steps_table(&figures)]), Block::Figures(charts, vec![table(&figures)])],
    })
}

fn steps_chart(figures: &Figures<'_>, palette: &Palette) -> Option<Chart> {
    let with_steps = figures.iter().filter(|(_, it, _)| !it.steps.is_empty());
    let series: Vec<Series> = with_steps
        .map(|(label, it, _)| Series {
            label: label.clone(),
            colour: palette.colour(&it.name),
            dash: 0,
            points: it.steps.iter().map(|(connections, bytes)| Point::of(*connections as f64, *bytes as f64)).collect(),
        })
        .collect();
    (!series.is_empty()).then(|| Chart {
        name: "memory_by_connections".to_owned(),
        title: "Memory by number of idle connections".to_owned(),
        note: "Less, and less steep, is better.".to_owned(),
        drawing: Drawing::Lines(Lines {
            x: Axis::new("Idle connections", Unit::Plain, Scale::Linear),
            y: Axis::new("Resident memory of the gateway", Unit::Bytes, Scale::Linear),
            series,
            references: Vec::new(),
        }),
    })
}

fn table(figures: &Figures<'_>) -> Table {
    let mut table = Table::new(
        "What idle connections cost",
        &[
            "Gateway",
            "Run",
            "Connections",
            "Users",
            "Empty",
            "Per user",
            "Per connection",
            "Keep-alive every",
            "Share of one CPU",
        ],
    );
    for (_, it, run) in figures {
        table.row([
            it.name.clone(),
            (run + 1).to_string(),
            count(it.connections),
            count(it.users),
            Unit::Bytes.text(it.empty_bytes as f64),
            Unit::Bytes.text(it.bytes_per_user),
            Unit::Bytes.text(it.bytes_per_connection),
            seconds(it.keep_alive_seconds),
            Unit::Share.text(it.cpu_share),
        ]);
    }
    table.without_constant("Run")
}

fn steps_table(figures: &Figures<'_>) -> Table {
    let mut table = Table::new("Memory on the way", &["Gateway", "Run", "Connections", "Memory"]);
    for (_, it, run) in figures {
        for (connections, bytes) in &it.steps {
            table.row([it.name.clone(), (run + 1).to_string(), count(*connections), Unit::Bytes.text(*bytes as f64)]);
        }
    }
    table.without_constant("Run")
}
