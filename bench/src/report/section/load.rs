//! Loads: whether all went as the scenario demands, where every packet went, and what both ends used.

use std::collections::BTreeSet;

use super::latency::{cells, distributions, quantiles};
use super::{Block, Body, Found, Grade, Notice, over_time};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Scale, Series};
use crate::report::number::{Unit, count, ratio, seconds};
use crate::report::palette::Palette;
use crate::report::table::{NONE, Table};
use crate::results::{FlowFigures, Ledger, LimitedBy, LoadResult, Usage};

pub(super) fn body(found: &[Found<'_, LoadResult>], palette: &Palette) -> Option<Body> {
    Some(Body {
        title: "Loads".to_owned(),
        measured: "Many clients from one process, with inner traffic that is made and checked on both ends: every packet is numbered, and \
                   every byte compared."
            .to_owned(),
        uncertainty: "Packets are counted exactly, on both ends. Rates, CPU and memory are of one run: no spread is known.".to_owned(),
        blocks: found.iter().flat_map(|found| blocks(found, "load", palette, None)).collect(),
    })
}

/// Everything about one load. `further` comes after its verdict; names of plots begin with `prefix`.
pub(super) fn blocks(
    found: &Found<'_, LoadResult>,
    prefix: &str,
    palette: &Palette,
    further: Option<Block>,
) -> Vec<Block> {
    let load = found.result;
    let mut blocks = vec![Block::Heading(format!("{} on {} ({})", load.scenario, load.gateway, found.run_text()))];
    blocks.extend([Some(verdict(load)), limit(load)].into_iter().flatten().map(Block::Notice));
    if load.limited_by != LimitedBy::Harness {
        blocks.push(Block::List(vec![format!("Throughput was limited by {}.", limited_text(load.limited_by))]));
    }
    blocks.extend(further);
    let tables = [Some(ledger(load)), Some(connections(load)), Some(usage(load)), shards(load)];
    let rates = rates(load, prefix, palette).into_iter().collect();
    blocks.push(Block::Figures(rates, tables.into_iter().flatten().collect()));
    if !load.groups.is_empty() {
        blocks.push(Block::Figures(Vec::new(), vec![groups(load)]));
    }
    let round_trips = load.groups.iter().filter(|group| group.round_trip.is_some()).count();
    if round_trips > 0 {
        blocks.push(latencies(load, prefix, palette));
    }
    blocks.extend(over_time::block(load, prefix, palette.colour(&load.gateway)));
    blocks
}

fn verdict(load: &LoadResult) -> Notice {
    let mut lines = load.failures.clone();
    // A ledger that does not balance is a failure, whether or not the load said so itself.
    if lines.is_empty() {
        let ledgers = [("up", &load.up), ("down", &load.down)].into_iter().filter(|(_, ledger)| !ledger.is_exact());
        lines.extend(
            ledgers.map(|(way, ledger)| format!("{way}: {} packets are unaccounted for", count(ledger.unaccounted))),
        );
    }
    let (grade, title) = match lines.len() {
        0 => (Grade::Good, "All is as the scenario demands, and both ends agree to the packet.".to_owned()),
        1 => (Grade::Failed, format!("{} on {}: not as the scenario demands", load.scenario, load.gateway)),
        many => (
            Grade::Failed,
            format!("{} on {}: {many} figures are not as the scenario demands", load.scenario, load.gateway),
        ),
    };
    Notice { grade, title, lines }
}

fn limit(load: &LoadResult) -> Option<Notice> {
    (load.limited_by == LimitedBy::Harness).then(|| Notice {
        grade: Grade::Caution,
        title: "The harness was the limit: the figures say nothing of the gateway's.".to_owned(),
        lines: vec![format!("Throughput was limited by {}.", limited_text(load.limited_by))],
    })
}

fn limited_text(limited_by: LimitedBy) -> &'static str {
    match limited_by {
        LimitedBy::Scenario => "the scenario: all that was to be sent was sent",
        LimitedBy::Gateway => "the gateway: it had no CPU time left",
        LimitedBy::Harness => "the harness: it had no CPU time left, or could not keep its schedule",
        LimitedBy::Window => "neither end: windows of bulk flows, a rate limit, or the network between",
    }
}

fn rates(load: &LoadResult, prefix: &str, palette: &Palette) -> Option<Chart> {
    let colour = palette.colour(&load.gateway);
    let groups = load.groups.iter().map(|group| {
        let ways = [("up", group.up), ("down", group.down)].into_iter().filter(|(_, flows)| flows.sent_packets > 0);
        let bars = ways.map(|(way, flows)| Bar::of(way, colour, flows.bits_per_second)).collect();
        BarGroup { title: format!("{}, {}", group.name, connections_text(group.connections)), bars, reference: None }
    });
    let groups: Vec<BarGroup> = groups.filter(|group| !group.bars.is_empty()).collect();
    (!groups.is_empty()).then(|| Chart {
        name: format!("{prefix}_rates"),
        title: "Throughput of each group".to_owned(),
        note: String::new(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("Inner traffic received", Unit::BitsPerSecond, Scale::Linear),
            groups,
        }),
    })
}

fn connections_text(connections: u32) -> String {
    format!("{} connection{}", count(connections), if connections == 1 { "" } else { "s" })
}

fn ledger(load: &LoadResult) -> Table {
    let mut table = Table::new("Where every inner packet went", &["Packets", "Up", "Down"]);
    let mut row = |name: &str, pick: &dyn Fn(&Ledger) -> String, is_bad: bool| {
        table.judged_row([name.to_owned(), pick(&load.up), pick(&load.down)], is_bad);
    };
    row("Sent", &|ledger| count(ledger.sent), false);
    row("Received", &|ledger| count(ledger.received), false);
    let reasons: BTreeSet<&String> = load.up.drops.keys().chain(load.down.drops.keys()).collect();
    for reason in reasons {
        row(
            &format!("Dropped, {reason}"),
            &|ledger| ledger.drops.get(reason).map_or(NONE.to_owned(), |drops| count(*drops)),
            false,
        );
    }
    let is_exact = load.up.is_exact() && load.down.is_exact();
    row("Unaccounted for", &|ledger| count(ledger.unaccounted), !is_exact);
    table
}

fn connections(load: &LoadResult) -> Table {
    let (ramp, churn) = (load.ramp, load.churn);
    let mut table = Table::new("Connections", &["Figure", "Value"]);
    let mut row = |name: &str, value: String, is_bad: bool| table.judged_row([name.to_owned(), value], is_bad);
    row("Users", count(load.users), false);
    row("Connections wanted", count(ramp.wanted), false);
    row("Connected", count(ramp.connected), ramp.connected != ramp.wanted);
    row("Time to connect all", seconds(ramp.seconds), false);
    if let Some(cpu) = ramp.gateway_cpu_seconds {
        row("CPU seconds of the gateway meanwhile", Unit::Plain.text(cpu), false);
    }
    row("Traffic measured for", seconds(load.seconds), false);
    row("Connected again while traffic ran", count(churn.connected), false);
    row("Closed on purpose", count(churn.closed), false);
    row("Handshakes that failed", count(churn.failed), churn.failed > 0);
    row("Connections lost", count(churn.lost), churn.lost > 0);
    row("Outer addresses changed", count(churn.rebound), false);
    table
}

fn groups(load: &LoadResult) -> Table {
    let mut table = Table::new(
        "Groups of traffic",
        &[
            "Group",
            "Connections",
            "Way",
            "Sent",
            "Received",
            "Bytes",
            "Lost",
            "Reordered",
            "Duplicated",
            "Corrupted",
            "Rate",
            "Peak of a user",
        ],
    );
    for group in &load.groups {
        for (way, flows) in [("up", group.up), ("down", group.down)] {
            let FlowFigures { sent_packets, received_packets, received_bytes, lost_packets, .. } = flows;
            let FlowFigures { reordered_packets, duplicated_packets, corrupted_packets, .. } = flows;
            let peak = flows.user_peak_bits_per_second;
            let cells = [
                group.name.clone(),
                count(group.connections),
                way.to_owned(),
                count(sent_packets),
                count(received_packets),
                count(received_bytes),
                count(lost_packets),
                count(reordered_packets),
                count(duplicated_packets),
                count(corrupted_packets),
                Unit::BitsPerSecond.text(flows.bits_per_second),
                if peak == 0.0 { NONE.to_owned() } else { Unit::BitsPerSecond.text(peak) },
            ];
            table.judged_row(cells, reordered_packets + duplicated_packets + corrupted_packets > 0);
        }
    }
    table
}

fn latencies(load: &LoadResult, prefix: &str, palette: &Palette) -> Block {
    let answered = || load.groups.iter().filter_map(|group| Some((group, group.round_trip.as_ref()?)));
    let colour = palette.colour(&load.gateway);
    let series = answered().enumerate().map(|(dash, (group, round_trip))| {
        let label = group.name.clone();
        Series { label, colour, dash, points: quantiles(round_trip) }
    });
    let series = series.filter(|series| !series.points.is_empty()).collect();
    // One column a group: as many as fit stand beside the plot.
    let columns: Vec<&str> =
        ["Round trips"].into_iter().chain(answered().map(|(group, _)| group.name.as_str())).collect();
    let mut table = Table::new("Round trips, counted from when each request was due", &columns);
    let figures: Vec<[String; 7]> = answered().map(|(_, round_trip)| cells(round_trip)).collect();
    let names = ["Number", "Shortest", "50 % no longer than", "90 %", "99 %", "99.9 %", "Longest"];
    for (index, name) in names.into_iter().enumerate() {
        let row: Vec<String> =
            [name.to_owned()].into_iter().chain(figures.iter().map(|cells| cells[index].clone())).collect();
        table.row(row);
    }
    let chart = Chart {
        name: format!("{prefix}_round_trips"),
        title: "Round trips".to_owned(),
        note: "The further right, the rarer: each step is ten times as rare.".to_owned(),
        drawing: distributions(series),
    };
    Block::Figures(vec![chart], vec![table])
}

fn usage(load: &LoadResult) -> Table {
    let mut table = Table::new("What both ends used while traffic was measured", &["Figure", "Gateway", "Harness"]);
    let mut row = |name: &str, pick: &dyn Fn(&Usage) -> String| {
        let gateway = load.gateway_usage.as_ref().map_or(NONE.to_owned(), pick);
        table.row([name.to_owned(), gateway, pick(&load.harness_usage)]);
    };
    row("CPU seconds", &|usage| Unit::Plain.text(usage.cpu_seconds));
    row("Share of its CPUs", &|usage| Unit::Share.text(usage.cpu_share));
    let packets = (load.up.received + load.down.received) as f64;
    row("CPU per inner packet received", &|usage| {
        ratio(usage.cpu_seconds * 1e9, packets)
            .map_or(NONE.to_owned(), |nanoseconds| Unit::Nanoseconds.text(nanoseconds))
    });
    row("Resident memory at the end", &|usage| Unit::Bytes.text(usage.memory_bytes as f64));
    row("Open descriptors at the end", &|usage| count(usage.descriptors));
    let far_end = Unit::Plain.text(load.far_end_cpu_seconds);
    table.row(["CPU seconds of the far end, of the harness's".to_owned(), NONE.to_owned(), far_end]);
    table
}

fn shards(load: &LoadResult) -> Option<Table> {
    let figures = load.shards?;
    let mut table = Table::new("What the gateway says of itself", &["Figure", "Value"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("Shards", figures.shards.to_string());
    row("Frames and datagrams that arrived", count(figures.arrived));
    row("Of these at the wrong shard", count(figures.crossed));
    if let Some(share) = ratio(figures.crossed as f64, figures.arrived as f64) {
        row("Share at the wrong shard", Unit::Share.text(share));
    }
    row("Messages between shards", count(figures.messages));
    row("Connections at the end", count(figures.connections));
    row("Sessions at the end", count(figures.sessions));
    row("Addresses held at the end", count(figures.addresses_held));
    Some(table)
}
