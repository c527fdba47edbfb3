//! What single packets cost.

use super::{Block, Body, Found, has_doubles};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Scale};
use crate::report::number::{Unit, count, yes_or_no};
use crate::report::palette::Palette;
use crate::report::table::Table;
use crate::results::{PacketsFigures, PacketsPoint, PacketsResult};

type Results<'a> = [Found<'a, PacketsResult>];

pub(super) fn body(found: &Results<'_>, palette: &Palette) -> Option<Body> {
    if found.iter().all(|found| found.result.points.is_empty()) {
        return None;
    }
    Some(Body {
        title: "Single packets".to_owned(),
        measured: "Inner packets that no sender has put together, at an even rate that every gateway keeps up with: the gateway's CPU time for \
                   each that arrived."
            .to_owned(),
        uncertainty: "The gateways run in turn (A B A B …). Bars are medians over rounds, whiskers reach from the lowest to the highest; \
                      multiples are taken round by round."
            .to_owned(),
        blocks: vec![Block::Figures(vec![chart(found, palette)], vec![table(found)])],
    })
}

/// Each kind of traffic once, in the order of the results.
fn traffics<'a>(found: &Results<'a>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for point in found.iter().flat_map(|found| &found.result.points) {
        if !names.contains(&point.traffic.as_str()) {
            names.push(&point.traffic);
        }
    }
    names
}

/// A gateway's figures for a kind of traffic, and where they are from.
type Row<'a> = (&'a Found<'a, PacketsResult>, &'a PacketsPoint, &'a PacketsFigures);

fn rows<'a>(found: &'a Results<'a>, traffic: &'a str) -> impl Iterator<Item = Row<'a>> {
    let points = found.iter().flat_map(|found| found.result.points.iter().map(move |point| (found, point)));
    let points = points.filter(move |(_, point)| point.traffic == traffic);
    points.flat_map(|(found, point)| point.gateways.iter().map(move |gateway| (found, point, gateway)))
}

fn chart(found: &Results<'_>, palette: &Palette) -> Chart {
    let group = |traffic: &str| {
        let many = has_doubles(rows(found, traffic).map(|(_, _, gateway)| gateway.name.as_str()));
        let bar = |(found, _, gateway): Row<'_>| {
            let label = found.named(&gateway.name, many);
            Bar::spread(&label, palette.colour(&gateway.name), gateway.cpu_ns_per_packet())
        };
        BarGroup { title: traffic.to_owned(), bars: rows(found, traffic).map(bar).collect(), reference: None }
    };
    Chart {
        name: "cpu_per_packet".to_owned(),
        title: "CPU time of the gateway for a packet".to_owned(),
        note: "Less is better.".to_owned(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("CPU time for each inner packet, in nanoseconds", Unit::Plain, Scale::Linear),
            groups: traffics(found).into_iter().map(group).collect(),
        }),
    }
}

fn table(found: &Results<'_>) -> Table {
    let mut table = Table::new(
        "Medians, and the lowest and highest round in brackets",
        &[
            "Traffic",
            "Gateway",
            "Run",
            "CPU ns",
            "Packets per CPU second",
            "Ours, × as many",
            "Offered a second",
            "Arrived a second",
            "Lost",
            "Limited by the harness",
        ],
    );
    for traffic in traffics(found) {
        for (found, point, gateway) in rows(found, traffic) {
            table.row([
                traffic.to_owned(),
                gateway.name.clone(),
                (found.run + 1).to_string(),
                Unit::Plain.spread(gateway.cpu_ns_per_packet()),
                Unit::Plain.spread(gateway.packets_per_cpu_second),
                Unit::Plain.spread(gateway.ours_to_this),
                Unit::Plain.text(point.offered_packets_per_second),
                Unit::Plain.spread(gateway.packets_per_second),
                count(gateway.lost_packets),
                yes_or_no(gateway.harness_limited).to_owned(),
            ]);
        }
    }
    table.without_constant("Run")
}
