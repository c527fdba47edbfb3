//! Handshakes: how many a core can take, and what forwarding loses meanwhile.

use super::{Block, Body, Found, Grade, Notice, has_doubles};
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Scale};
use crate::report::number::{Unit, count};
use crate::report::palette::Palette;
use crate::report::table::Table;
use crate::results::{Spread, StormFigures, StormResult};

type Figures<'a> = [(String, &'a StormFigures, usize)];
/// The title of a group of bars, and the figure that it shows.
type Group = (&'static str, fn(&StormFigures) -> Spread);

/// A plot of bars.
struct Shown {
    name: &'static str,
    title: &'static str,
    note: &'static str,
    axis: &'static str,
    unit: Unit,
    groups: &'static [Group],
}

const SHOWN: [Shown; 4] = [
    Shown {
        name: "handshakes_per_cpu_second",
        title: "Handshakes that a second of CPU is enough for",
        note: "More is better.",
        axis: "Full mTLS handshakes per CPU second",
        unit: Unit::Plain,
        groups: &[("", |it| it.handshakes_per_cpu_second)],
    },
    Shown {
        name: "handshakes_per_second",
        title: "Handshakes reached",
        note: "More is better.",
        axis: "Full mTLS handshakes per second",
        unit: Unit::Plain,
        groups: &[
            ("With nothing else to do", |it| it.handshakes_per_second),
            ("While forwarding", |it| it.handshakes_per_second_forwarding),
        ],
    },
    Shown {
        name: "forwarding_in_a_storm",
        title: "Forwarding before and during the storm",
        note: "More is better.",
        axis: "Inner traffic forwarded",
        unit: Unit::BitsPerSecond,
        groups: &[("Before", |it| it.forwarded_bits_per_second[0]), ("During", |it| it.forwarded_bits_per_second[1])],
    },
    Shown {
        name: "forwarding_lost",
        title: "What forwarding loses to the storm",
        note: "Less is better.",
        axis: "Share of forwarding lost: 1 − during ÷ before",
        unit: Unit::Share,
        groups: &[("", |it| it.forwarding_lost_share)],
    },
];

pub(super) fn body(found: &[Found<'_, StormResult>], palette: &Palette) -> Option<Body> {
    let many =
        has_doubles(found.iter().flat_map(|found| found.result.gateways.iter().map(|figures| figures.name.as_str())));
    let figures: Vec<(String, &StormFigures, usize)> = found
        .iter()
        .flat_map(|found| found.result.gateways.iter().map(move |it| (found.named(&it.name, many), it, found.run)))
        .collect();
    if figures.is_empty() {
        return None;
    }
    let charts = SHOWN.iter().map(|shown| chart(shown, &figures, palette)).collect();
    let mut blocks: Vec<Block> = failures(&figures).map(Block::Notice).into_iter().collect();
    blocks.push(Block::Figures(charts, vec![table(&figures)]));
    Some(Body {
        title: "Storm of handshakes".to_owned(),
        measured: "Full handshakes with mutual TLS 1.3, up to the inner address, as fast as they come: first alone, then while bulk traffic \
                   is forwarded."
            .to_owned(),
        uncertainty: "Bars are medians over rounds, whiskers reach from the lowest to the highest.".to_owned(),
        blocks,
    })
}

fn chart(shown: &Shown, figures: &Figures<'_>, palette: &Palette) -> Chart {
    let group = |(title, pick): &Group| {
        let bars = figures.iter().map(|(label, it, _)| Bar::spread(label, palette.colour(&it.name), pick(it)));
        BarGroup { title: (*title).to_owned(), bars: bars.collect(), reference: None }
    };
    let axis = Axis::new(shown.axis, shown.unit, Scale::Linear);
    Chart {
        name: shown.name.to_owned(),
        title: shown.title.to_owned(),
        note: shown.note.to_owned(),
        drawing: Drawing::Bars(Bars { axis, groups: shown.groups.iter().map(group).collect() }),
    }
}

fn failures(figures: &Figures<'_>) -> Option<Notice> {
    let failed = figures.iter().filter(|(_, it, _)| it.failed > 0);
    let lines: Vec<String> = failed.map(|(label, it, _)| format!("{label}: {}", count(it.failed))).collect();
    let title =
        format!("{} handshakes failed", count(figures.iter().map(|(_, it, _)| i128::from(it.failed)).sum::<i128>()));
    (!lines.is_empty()).then_some(Notice { grade: Grade::Failed, title, lines })
}

fn table(figures: &Figures<'_>) -> Table {
    let mut table = Table::new(
        "Medians, and the lowest and highest round in brackets",
        &[
            "Gateway",
            "Run",
            "Per CPU second",
            "Per second, alone",
            "Per second, forwarding",
            "Forwarded before",
            "During",
            "Lost",
            "Failed",
        ],
    );
    for (_, it, run) in figures {
        let cells = [
            it.name.clone(),
            (run + 1).to_string(),
            Unit::Plain.spread(it.handshakes_per_cpu_second),
            Unit::Plain.spread(it.handshakes_per_second),
            Unit::Plain.spread(it.handshakes_per_second_forwarding),
            Unit::BitsPerSecond.spread(it.forwarded_bits_per_second[0]),
            Unit::BitsPerSecond.spread(it.forwarded_bits_per_second[1]),
            Unit::Share.spread(it.forwarding_lost_share),
            count(it.failed),
        ];
        table.judged_row(cells, it.failed > 0);
    }
    table.without_constant("Run")
}
