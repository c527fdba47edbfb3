//! Round trips through the tunnel: whole distributions, with their tails drawn out.

use super::{Block, Body, Found, has_doubles};
use crate::report::chart::{Axis, Chart, Drawing, Lines, Point, Scale, Series};
use crate::report::number::{Unit, count, yes_or_no};
use crate::report::palette::Palette;
use crate::report::table::Table;
use crate::results::{Latencies, LatencyPoint, LatencyResult};

type Results<'a> = [Found<'a, LatencyResult>];

/// Lines in one plot, at most; more are shown in a plot for each load.
const LINES_MAX: usize = 4;

pub(super) fn body(found: &Results<'_>, palette: &Palette) -> Option<Body> {
    let points = || found.iter().flat_map(|found| found.result.points.iter().map(move |point| (found, point)));
    points().next()?;
    let mut loads: Vec<&str> = Vec::new();
    for (_, point) in points() {
        if !loads.contains(&point.load.as_str()) {
            loads.push(&point.load);
        }
    }
    let charts = if points().count() <= LINES_MAX {
        vec![chart("latency".to_owned(), "Round trip through the tunnel".to_owned(), all(found, &loads, None, palette))]
    } else {
        let of_load = |load: &&str| {
            let name = format!("latency_{}", load.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
            chart(name, format!("Round trip through the tunnel, {load}"), all(found, &loads, Some(load), palette))
        };
        loads.iter().map(of_load).collect()
    };
    Some(Body {
        title: "Latency".to_owned(),
        measured: "Round trips of requests at an even rate through the tunnel and back, counted from when each was due and not from when it \
                   was sent: a gateway that stalls cannot hide it (coordinated omission). Load is bulk traffic beside the requests."
            .to_owned(),
        uncertainty: "Each line is one run, whole: no spread between runs is known. A quantile close to 1 rests on few round trips: \
                      99.9 % of 10,000 on ten of them. Lines end where less than one would be left."
            .to_owned(),
        blocks: vec![Block::Figures(charts, vec![table(found)])],
    })
}

fn chart(name: String, title: String, series: Vec<Series>) -> Chart {
    let note = "So many of the round trips were no longer than that. The further right, the rarer: each step is ten times as rare.";
    Chart { name, title, note: note.to_owned(), drawing: distributions(series) }
}

/// Distributions as lines: quantiles to the right, logarithmic time upwards.
pub(super) fn distributions(series: Vec<Series>) -> Drawing {
    Drawing::Lines(Lines {
        x: Axis::new("Share of round trips", Unit::Share, Scale::Tail),
        y: Axis::new("Round trip", Unit::Nanoseconds, Scale::Log),
        series,
        references: Vec::new(),
    })
}

fn all(found: &Results<'_>, loads: &[&str], only: Option<&str>, palette: &Palette) -> Vec<Series> {
    let points = || found.iter().flat_map(|found| found.result.points.iter().map(move |point| (found, point)));
    let names: Vec<String> =
        points().map(|(_, LatencyPoint { gateway, load, .. })| format!("{gateway}, {load}")).collect();
    let many = has_doubles(names.iter().map(String::as_str));
    let shown = points().zip(&names).filter(|((_, point), _)| only.is_none_or(|load| point.load == load));
    let series = shown.map(|((found, point), name)| Series {
        label: found.named(if only.is_some() { &point.gateway } else { name }, many),
        colour: palette.colour(&point.gateway),
        dash: if only.is_some() { 0 } else { loads.iter().position(|load| *load == point.load).unwrap_or(0) },
        points: quantiles(&point.round_trip),
    });
    series.filter(|series| !series.points.is_empty()).collect()
}

/// The points of a distribution's line. Of one without its whole distribution: those that are named.
pub(super) fn quantiles(round_trip: &Latencies) -> Vec<Point> {
    let Latencies { count, min_ns, p50_ns, p90_ns, p99_ns, p999_ns, .. } = *round_trip;
    if count == 0 {
        return Vec::new();
    }
    let named = [(0.0, min_ns), (0.5, p50_ns), (0.9, p90_ns), (0.99, p99_ns), (0.999, p999_ns)];
    let shares = if round_trip.quantiles.is_empty() { &named[..] } else { &round_trip.quantiles[..] };
    // Beyond, less than one round trip is left: the longest stands where it is alone.
    let last = 1.0 - 1.0 / count as f64;
    let mut points: Vec<Point> =
        shares.iter().map(|(share, nanoseconds)| Point::of(share.min(last), *nanoseconds as f64)).collect();
    points.dedup_by(|next, before| next.x == before.x && next.x < last);
    points
}

/// The cells of a distribution in a table: how many, and the quantiles.
pub(super) fn cells(round_trip: &Latencies) -> [String; 7] {
    let Latencies { count: number, min_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns, .. } = *round_trip;
    let [min, p50, p90, p99, p999, max] =
        [min_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns].map(|nanoseconds| Unit::Nanoseconds.text(nanoseconds as f64));
    [count(number), min, p50, p90, p99, p999, max]
}

fn table(found: &Results<'_>) -> Table {
    let columns = [
        "Gateway",
        "Run",
        "Load",
        "Carried",
        "Round trips",
        "Shortest",
        "50 %",
        "90 %",
        "99 %",
        "99.9 %",
        "Longest",
        "Unanswered",
        "Limited by the harness",
    ];
    let mut table = Table::new("Round trips: so many of them were no longer than …", &columns);
    for found in found {
        for point in &found.result.points {
            let [number, min, p50, p90, p99, p999, max] = cells(&point.round_trip);
            table.row([
                point.gateway.clone(),
                (found.run + 1).to_string(),
                point.load.clone(),
                Unit::BitsPerSecond.text(point.carried_bits_per_second),
                number,
                min,
                p50,
                p90,
                p99,
                p999,
                max,
                count(point.lost),
                yes_or_no(point.harness_limited).to_owned(),
            ]);
        }
    }
    table.without_constant("Run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_the_longest_round_trip_is_alone() {
        let quantiles = vec![(0.0, 10), (0.5, 20), (0.999, 30), (1.0, 40)];
        let points = super::quantiles(&Latencies { count: 100, quantiles, ..Latencies::default() });
        let last = points.last().unwrap();
        assert_eq!((last.x, last.y), (0.99, 40.0));
    }

    #[test]
    fn without_a_distribution_the_named_quantiles_are_shown_and_without_round_trips_nothing() {
        let figures = Latencies {
            count: 1_000_000,
            min_ns: 1,
            p50_ns: 2,
            p90_ns: 3,
            p99_ns: 4,
            p999_ns: 5,
            ..Latencies::default()
        };
        let shown: Vec<f64> = super::quantiles(&figures).iter().map(|point| point.y).collect();
        assert_eq!(shown, [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(super::quantiles(&Latencies::default()).is_empty());
    }
}
