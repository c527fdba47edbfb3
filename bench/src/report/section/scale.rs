//! How CPU per gigabyte changes with shards, clients and idle clients at the same offered load.

use super::{Block, Body, Found, has_doubles};
use crate::report::chart::{Axis, Chart, Drawing, Lines, Point, Reference, Scale, Series};
use crate::report::number::{Unit, count, ratio, yes_or_no};
use crate::report::palette::Palette;
use crate::report::table::{NONE, Table};
use crate::results::{ScalePoint, ScaleResult, Spread};

type Results<'a> = [Found<'a, ScaleResult>];

/// One of the ways that a gateway is scaled.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    unit: &'static str,
    points: fn(&ScaleResult) -> &[ScalePoint],
    count: fn(&ScalePoint) -> f64,
}

const WAYS: [Way; 3] = [
    Way { name: "shards", unit: "Shards", points: |result| &result.by_shards, count: |point| f64::from(point.shards) },
    Way {
        name: "clients",
        unit: "Clients",
        points: |result| &result.by_clients,
        count: |point| f64::from(point.clients),
    },
    Way {
        name: "idle_clients",
        unit: "Clients, most of them idle",
        points: |result| &result.by_idle_clients,
        count: |point| f64::from(point.clients),
    },
];

impl Way {
    fn spoken(self) -> String {
        self.unit.to_lowercase()
    }
}

pub(super) fn body(found: &Results<'_>, palette: &Palette) -> Option<Body> {
    let has_points = |way: &Way| found.iter().any(|found| !(way.points)(found.result).is_empty());
    let ways: Vec<Way> = WAYS.into_iter().filter(has_points).collect();
    let mut charts: Vec<Chart> = Vec::new();
    for way in &ways {
        charts.extend([cpu(found, palette, *way), growth(found, palette, *way)]);
    }
    charts.extend(ways.iter().filter_map(|way| crossed(found, palette, *way)));
    let tables: Vec<Table> = ways.iter().map(|way| table(found, *way)).collect();
    let mut offered: Vec<String> = found.iter().map(|found| load(found.result)).collect();
    offered.dedup();
    (!tables.is_empty()).then(|| Body {
        title: "Scaling by shards and by clients".to_owned(),
        measured: format!(
            "The same load ({}; inner packets, both directions together) offered to more and more shards on the same CPUs, from \
             more and more clients, and from 100 of more and more clients. CPU per gigabyte should not grow.",
            offered.join("; ")
        ),
        uncertainty: "Points are medians over rounds, whiskers reach from the lowest to the highest. Growth is taken round by round \
                      against the first point of the same round, so that a machine that becomes slower does not look like growth."
            .to_owned(),
        blocks: vec![Block::Figures(charts, tables)],
    })
}

fn load(result: &ScaleResult) -> String {
    let rate = Unit::BitsPerSecond.text(result.offered_bits_per_second);
    match result.train_packets {
        0 => rate,
        1 => format!("{rate} in single packets"),
        packets => format!("{rate} in trains of {packets} packets"),
    }
}

fn lines(
    found: &Results<'_>,
    palette: &Palette,
    way: Way,
    y: Axis,
    references: Vec<Reference>,
    point: impl Fn(f64, &ScalePoint) -> Option<Point>,
) -> Drawing {
    let many = has_doubles(found.iter().map(|found| found.result.gateway.as_str()));
    let series = found.iter().map(|found| {
        let mut points: Vec<Point> =
            (way.points)(found.result).iter().filter_map(|it| point((way.count)(it), it)).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let gateway = &found.result.gateway;
        let label = found.named(gateway, many);
        Series { label, colour: palette.colour(gateway), dash: 0, points }
    });
    let series = series.filter(|series| !series.points.is_empty()).collect();
    Drawing::Lines(Lines { x: Axis::new(way.unit, Unit::Plain, Scale::Log), y, series, references })
}

fn cpu(found: &Results<'_>, palette: &Palette, way: Way) -> Chart {
    let y = Axis::new("CPU seconds of the gateway per gigabyte of inner packets", Unit::Plain, Scale::Linear);
    Chart {
        name: format!("cpu_by_{}", way.name),
        title: format!("CPU per gigabyte by number of {}", way.spoken()),
        note: "Flat is good.".to_owned(),
        drawing: lines(found, palette, way, y, Vec::new(), |x, point| {
            Some(Point::spread(x, point.cpu_seconds_per_gigabyte))
        }),
    }
}

fn growth(found: &Results<'_>, palette: &Palette, way: Way) -> Chart {
    let y = Axis::new("Change of CPU per gigabyte against the first point", Unit::Change, Scale::Linear);
    let same = Reference { label: "no growth".to_owned(), value: 0.0 };
    Chart {
        name: format!("growth_by_{}", way.name),
        title: format!("Growth of CPU per gigabyte by number of {}", way.spoken()),
        note: String::new(),
        drawing: lines(found, palette, way, y, vec![same], |x, point| {
            let Spread { median, min, max } = point.to_first;
            Some(Point::spread(x, Spread { median: median - 1.0, min: min - 1.0, max: max - 1.0 }))
        }),
    }
}

fn crossed(found: &Results<'_>, palette: &Palette, way: Way) -> Option<Chart> {
    let mut points = found.iter().flat_map(|found| (way.points)(found.result));
    points.any(|point| point.crossed_share.is_some()).then(|| {
        let y = Axis::new("Share of inner packets and datagrams", Unit::Share, Scale::Linear);
        Chart {
            name: format!("crossed_by_{}", way.name),
            title: format!("Packets that crossed shards, by number of {}", way.spoken()),
            note: String::new(),
            drawing: lines(found, palette, way, y, Vec::new(), |x, point| Some(Point::of(x, point.crossed_share?))),
        }
    })
}

fn table(found: &Results<'_>, way: Way) -> Table {
    let mut table = Table::new(
        format!("By number of {}: medians, and the lowest and highest round in brackets", way.spoken()),
        &[
            "Shards",
            "Clients",
            "Active",
            "Gateway",
            "Run",
            "CPU s/GB",
            "× first",
            "Crossed",
            "Carried",
            "Of offered",
            "Packets lost",
            "Limited by the harness",
        ],
    );
    for found in found {
        for point in (way.points)(found.result) {
            let offered = ratio(point.carried_bits_per_second.median, found.result.offered_bits_per_second);
            table.row([
                point.shards.to_string(),
                count(point.clients),
                if point.active_clients == 0 { NONE.to_owned() } else { count(point.active_clients) },
                found.result.gateway.clone(),
                (found.run + 1).to_string(),
                Unit::Plain.spread(point.cpu_seconds_per_gigabyte),
                Unit::Plain.spread(point.to_first),
                point.crossed_share.map_or(NONE.to_owned(), |share| Unit::Share.text(share)),
                Unit::BitsPerSecond.spread(point.carried_bits_per_second),
                offered.map_or(NONE.to_owned(), |share| Unit::Share.text(share)),
                count(point.lost_packets),
                yes_or_no(point.harness_limited).to_owned(),
            ]);
        }
    }
    table.without_constant("Run")
}
