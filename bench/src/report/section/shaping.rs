//! How usable a limited user's tunnel stays while bulk traffic fills it.

use super::{Block, Body, Found, latency};
use crate::report::chart::{Chart, Series};
use crate::report::number::{Unit, count, seconds};
use crate::report::palette::Palette;
use crate::report::table::{NONE, Table};
use crate::results::{ShapingPoint, ShapingResult, ShapingRun};

type Results<'a> = [Found<'a, ShapingResult>];

pub(super) fn body(found: &Results<'_>, palette: &Palette) -> Option<Body> {
    let results: Vec<&ShapingResult> =
        found.iter().map(|found| found.result).filter(|result| !result.points.is_empty()).collect();
    let blocks: Vec<Block> = results.iter().flat_map(|result| blocks(result, palette)).collect();
    (!blocks.is_empty()).then(|| Body {
        title: "Ping of a limited user beside its own bulk traffic".to_owned(),
        measured: "A user is held at a rate by its bandwidth limit. One connection of the kernel's TCP takes what it can get through the tunnel, \
                   and pings go through the same tunnel, with the same client for every gateway. They begin when the user's burst is used up."
            .to_owned(),
        uncertainty: "The gateways run in turn (A B A B …). Distributions are of all runs together; the table of runs has each for itself."
            .to_owned(),
        blocks,
    })
}

fn blocks(result: &ShapingResult, palette: &Palette) -> [Block; 3] {
    let setting = format!(
        "Limit {}, with {}; TCP {}, a ping every {} for {} s in each run.",
        Unit::BitsPerSecond.text(result.limit_bits_per_second),
        result.client,
        result.congestion_control,
        seconds(result.ping_interval_seconds),
        result.seconds
    );
    let charts = charts(result, palette);
    [Block::List(vec![setting]), Block::Figures(charts, vec![table(result)]), Block::Folded(runs(result))]
}

/// One for each kind of bulk traffic, with a line for each gateway.
fn charts(result: &ShapingResult, palette: &Palette) -> Vec<Chart> {
    let mut kinds: Vec<String> = Vec::new();
    for kind in result.points.iter().map(ShapingPoint::kind) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let chart = |kind: &String| {
        let series = result.points.iter().filter(|point| point.kind() == *kind).map(|point| Series {
            label: point.gateway.clone(),
            colour: palette.colour(&point.gateway),
            dash: 0,
            points: latency::quantiles(&point.round_trip),
        });
        let series: Vec<Series> = series.filter(|series| !series.points.is_empty()).collect();
        (!series.is_empty()).then(|| Chart {
            name: format!("shaping_{}", kind.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
            title: format!("Ping beside bulk traffic {kind}"),
            note: "So many of the pings took no longer than that. The further right, the rarer: each step is ten times as rare."
                .to_owned(),
            drawing: latency::distributions(series),
        })
    };
    kinds.iter().filter_map(chart).collect()
}

fn table(result: &ShapingResult) -> Table {
    let columns = [
        "Bulk traffic",
        "Gateway",
        "Pings",
        "Shortest",
        "50 %",
        "90 %",
        "99 %",
        "99.9 %",
        "Longest",
        "TCP payload, of the limit",
    ];
    let mut table = Table::new("Pings: so many of them took no longer than …", &columns);
    for point in &result.points {
        let share = point.spread(|run| run.bulk_bits_per_second / result.limit_bits_per_second);
        let cells = [point.kind(), point.gateway.clone()].into_iter().chain(latency::cells(&point.round_trip));
        let share = share.map_or(NONE.to_owned(), |share| Unit::Share.spread(share));
        table.row(cells.chain([share]).collect::<Vec<_>>());
    }
    table
}

fn runs(result: &ShapingResult) -> Table {
    let columns = [
        "Bulk traffic",
        "Gateway",
        "99 % of pings",
        "Pings",
        "Unanswered",
        "TCP payload",
        "Passed by the gateway",
        "Marked (CE)",
        "Segments sent again",
        "Dropped at TUN queues",
        "Dropped by the gateway",
        "First wrong byte",
    ];
    let mut table = Table::new("Every run", &columns);
    for point in &result.points {
        for run in &point.runs {
            table.judged_row(cells(point, run), run.corrupt_at_byte.is_some());
        }
    }
    table
}

fn cells(point: &ShapingPoint, run: &ShapingRun) -> [String; 12] {
    let drops = run.gateway_drops.as_ref().map_or(NONE.to_owned(), |drops| {
        let named: Vec<String> =
            drops.iter().map(|(reason, packets)| format!("{reason} {}", count(*packets))).collect();
        if named.is_empty() { count(0) } else { named.join(", ") }
    });
    [
        point.kind(),
        point.gateway.clone(),
        Unit::Nanoseconds.text(run.p99_ns as f64),
        count(run.pings),
        count(run.lost_pings),
        Unit::BitsPerSecond.text(run.bulk_bits_per_second),
        run.inner_bits_per_second.map_or(NONE.to_owned(), |rate| Unit::BitsPerSecond.text(rate)),
        count(run.ce_marks),
        count(run.resent_segments),
        count(run.tun_queue_drops),
        drops,
        run.corrupt_at_byte.map_or(NONE.to_owned(), count),
    ]
}
