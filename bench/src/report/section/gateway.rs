//! Throughput and CPU per gigabyte, against peers and the floor. Results against several peers are shown in one plot for each figure.

use super::{Block, Body, Found, Grade, Notice, pool, times};
use crate::cpus;
use crate::report::chart::{Axis, Bar, BarGroup, Bars, Chart, Drawing, Reference, Scale};
use crate::report::number::{Unit, count, plural, ratio};
use crate::report::palette::Palette;
use crate::report::table::{NONE, Table};
use crate::results::{Compared, Floor, GatewayResult, Spread, Transfer, Work, WorkSummary};

const WORKS: [Work; 3] = [Work::Up, Work::Down, Work::Both];
/// How far the floor may be beyond the fastest gateway to be drawn: further away it would leave the bars no room.
const FLOOR_DRAWN_MAX: f64 = 1.8;

type Results<'a> = [Found<'a, GatewayResult>];
type Figure = fn(&WorkSummary) -> Compared;

pub(super) fn body(found: &Results<'_>, palette: &Palette) -> Option<Body> {
    if found.iter().all(|found| found.result.summaries.is_empty()) {
        return None;
    }
    let mut blocks: Vec<Block> = corruption(found).map(Block::Notice).into_iter().collect();
    blocks.push(Block::List(verdicts(found)));
    let charts = vec![cpu(found, palette), ratios(found, palette), throughput(found, palette), share(found, palette)];
    blocks.push(Block::Figures(charts, vec![summary(found)]));
    blocks.push(Block::Folded(transfers(found)));
    Some(Body {
        title: "CPU and throughput against peers".to_owned(),
        measured: "Bulk TCP of the kernel through the tunnel, every byte checked. The gateways run in turn (A B A B …), each pinned to \
                   the same CPUs. CPU is that of the gateway's process in user and kernel mode; a gigabyte is 10⁹ bytes of payload."
            .to_owned(),
        uncertainty: "Bars are medians, whiskers reach from the lowest to the highest run. On a shared machine absolute figures drift \
                      by tens of per cent, and those of different runs more so: the figure to trust is the ratio, taken pair by pair."
            .to_owned(),
        blocks,
    })
}

fn name(work: Work) -> &'static str {
    match work {
        Work::Up => "Up: client to network",
        Work::Down => "Down: network to client",
        Work::Both => "Both ways at once",
    }
}

fn short(work: Work) -> &'static str {
    match work {
        Work::Up => "up",
        Work::Down => "down",
        Work::Both => "both ways",
    }
}

/// Every gateway once, ours first.
fn gateways<'a>(found: &Results<'a>) -> Vec<&'a str> {
    let ours = found.iter().map(|found| found.result.ours.as_str());
    let mut names: Vec<&str> = Vec::new();
    for name in ours.chain(found.iter().map(|found| found.result.peer.as_str())) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn summaries<'a>(found: &Results<'a>, work: Work) -> impl Iterator<Item = (&'a GatewayResult, &'a WorkSummary)> {
    found.iter().flat_map(move |found| {
        let of_work = found.result.summaries.iter().filter(move |summary| summary.work == work);
        of_work.map(move |summary| (found.result, summary))
    })
}

fn groups(
    found: &Results<'_>,
    palette: &Palette,
    figure: Figure,
    reference: impl Fn(Work, f64) -> Option<Reference>,
) -> Vec<BarGroup> {
    let groups = WORKS.into_iter().map(|work| {
        let bars = gateways(found).into_iter().filter_map(|gateway| {
            let spreads = summaries(found, work).flat_map(|(result, summary)| {
                let compared = figure(summary);
                let sides = [(result.ours.as_str(), compared.ours), (result.peer.as_str(), compared.peer)];
                sides.into_iter().filter(|(name, _)| *name == gateway).map(|(_, spread)| spread)
            });
            Some(Bar::spread(gateway, palette.colour(gateway), pool(spreads)?))
        });
        let bars: Vec<Bar> = bars.collect();
        let longest = bars.iter().filter_map(|bar| bar.value).fold(0.0, f64::max);
        BarGroup { title: name(work).to_owned(), reference: reference(work, longest), bars }
    });
    groups.filter(|group| !group.bars.is_empty()).collect()
}

/// CPU seconds per gigabyte that the floor of `work` is, over all measurements.
fn floor(found: &Results<'_>, work: Work) -> Option<f64> {
    let floors = found.iter().filter_map(|found| found.result.floor.as_ref()).map(|floor| of_work(floor, work));
    Spread::of(floors).map(|floor| floor.median).filter(|floor| *floor > 0.0)
}

fn of_work(floor: &Floor, work: Work) -> f64 {
    let Floor { up_cpu_seconds_per_gigabyte: up, down_cpu_seconds_per_gigabyte: down, .. } = *floor;
    match work {
        Work::Up => up,
        Work::Down => down,
        Work::Both => (up + down) / 2.0,
    }
}

/// What one core would carry at the floor, in gigabits a second.
fn floor_gigabits(found: &Results<'_>, work: Work) -> Option<f64> {
    ratio(8.0, floor(found, work)?)
}

fn cpu(found: &Results<'_>, palette: &Palette) -> Chart {
    let reference = |work, _| {
        floor(found, work).map(|value| Reference { label: format!("floor {}", Unit::Plain.text(value)), value })
    };
    let has_floor = WORKS.iter().any(|work| floor(found, *work).is_some());
    let floor = if has_floor { " Dashed: the floor, what kernel and cipher alone cost." } else { "" };
    Chart {
        name: "cpu_per_gigabyte".to_owned(),
        title: "CPU time of the gateway per gigabyte".to_owned(),
        note: format!("Less is better.{floor}"),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("CPU seconds per gigabyte of payload", Unit::Plain, Scale::Linear),
            groups: groups(found, palette, |summary| summary.cpu_seconds_per_gigabyte, reference),
        }),
    }
}

fn throughput(found: &Results<'_>, palette: &Palette) -> Chart {
    let within = |longest: f64, floor: &f64| *floor <= longest * FLOOR_DRAWN_MAX;
    let groups = groups(
        found,
        palette,
        |summary| summary.gigabits_per_second,
        |work, longest| {
            let value = floor_gigabits(found, work).filter(|floor| within(longest, floor))?;
            Some(Reference { label: format!("a core at the floor {}", Unit::Plain.text(value)), value })
        },
    );
    let beyond =
        WORKS.iter().filter(|work| groups.iter().any(|group| group.title == name(**work) && group.reference.is_none()));
    let beyond: Vec<String> = beyond
        .filter_map(|work| Some(format!("{} Gb/s {}", Unit::Plain.text(floor_gigabits(found, *work)?), short(*work))))
        .collect();
    let floor = match beyond.is_empty() {
        true => String::new(),
        false => format!(" A core at the floor would carry {}: beyond this axis.", beyond.join(", ")),
    };
    Chart {
        name: "throughput".to_owned(),
        title: "Throughput".to_owned(),
        note: format!(
            "More is better, but clients and kernel share the other CPUs: where the gateway did not use all of its own (see the table), \
             they were the limit.{floor}"
        ),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("Gigabits of payload per second", Unit::Plain, Scale::Linear),
            groups,
        }),
    }
}

fn ratios(found: &Results<'_>, palette: &Palette) -> Chart {
    let mut pairings: Vec<(&str, &str)> =
        found.iter().map(|f| (f.result.ours.as_str(), f.result.peer.as_str())).collect();
    let mut seen = std::collections::BTreeSet::new();
    pairings.retain(|pairing| seen.insert(*pairing));
    let groups = WORKS.into_iter().map(|work| {
        let bars = pairings.iter().filter_map(|(ours, peer)| {
            let same = summaries(found, work).filter(|(result, _)| result.ours == *ours && result.peer == *peer);
            let spread = pool(same.map(|(_, summary)| summary.cpu_seconds_per_gigabyte.ratio))?;
            Some(Bar::spread(format!("{ours} ÷ {peer}"), palette.colour(peer), spread))
        });
        let reference = Some(Reference { label: "equal".to_owned(), value: 1.0 });
        BarGroup { title: name(work).to_owned(), bars: bars.collect(), reference }
    });
    Chart {
        name: "cpu_ratio".to_owned(),
        title: "CPU per gigabyte as a multiple of the peer's".to_owned(),
        note:
            "Ratios of runs next to each other, which drift hardly touches. Left of the dashed line, ours needs less."
                .to_owned(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("CPU per gigabyte, ours ÷ peer's", Unit::Plain, Scale::Linear),
            groups: groups.filter(|group| !group.bars.is_empty()).collect(),
        }),
    }
}

fn share(found: &Results<'_>, palette: &Palette) -> Chart {
    Chart {
        name: "cpu_share".to_owned(),
        title: "How much of its CPUs the gateway used".to_owned(),
        note: "At 100 % the gateway was the limit of its throughput.".to_owned(),
        drawing: Drawing::Bars(Bars {
            axis: Axis::new("Share of the CPUs that the gateway may use", Unit::Share, Scale::Linear),
            groups: groups(found, palette, |summary| summary.cpu_share, |_, _| None),
        }),
    }
}

/// The ratios of each result in words, with what they decide.
fn verdicts(found: &Results<'_>) -> Vec<String> {
    let verdict = |result: &GatewayResult| {
        let works = result.summaries.iter().map(|summary| {
            let ratio = summary.cpu_seconds_per_gigabyte.ratio;
            let judgement = match () {
                () if ratio.max < 1.0 => "less in every pair",
                () if ratio.min > 1.0 => "more in every pair",
                () => "undecided: the pairs disagree",
            };
            let [median, min, max] = [ratio.median, ratio.min, ratio.max].map(|figure| Unit::Plain.text(figure));
            format!("{} {median} times ({min} to {max}; {judgement})", short(summary.work))
        });
        let works: Vec<String> = works.collect();
        let clients = match &result.clients {
            [ours, peers] if ours == peers => format!("client {ours}"),
            [ours, peers] => format!("clients {ours} and {peers}"),
        };
        format!(
            "CPU per gigabyte of {} against {}: {}. {} of {} s for each work, gateways on CPU {}, their load on {}, {clients}.",
            result.ours,
            result.peer,
            works.join(", "),
            plural(result.pairs.len(), "pair"),
            result.seconds,
            result.gateway_cpu,
            cpus::list(&result.load_cpus),
        )
    };
    found.iter().map(|found| verdict(found.result)).collect()
}

fn summary(found: &Results<'_>) -> Table {
    let caption = "Medians, and the lowest and highest run in brackets; ratios are taken pair by pair";
    let mut table =
        Table::new(caption, &["Work", "Run", "Gateway", "CPU s/GB", "× floor", "Gb/s", "Share of its CPUs"]);
    for work in WORKS {
        for found in found {
            let result = found.result;
            for summary in result.summaries.iter().filter(|summary| summary.work == work) {
                let WorkSummary { cpu_seconds_per_gigabyte: cpu, gigabits_per_second: rate, cpu_share: share, .. } =
                    summary;
                let run = (found.run + 1).to_string();
                let mut row = |gateway: &str, to_floor: Option<Spread>, [cpu, rate, share]: [String; 3]| {
                    let to_floor = to_floor.map_or(NONE.to_owned(), |spread| Unit::Plain.spread(spread));
                    let work = short(work).to_owned();
                    table.row([work, run.clone(), gateway.to_owned(), cpu, to_floor, rate, share]);
                };
                let figures = |pick: fn(&Compared) -> Spread| {
                    [Unit::Plain.spread(pick(cpu)), Unit::Plain.spread(pick(rate)), Unit::Share.spread(pick(share))]
                };
                let floor = result.floor.as_ref().and_then(|floor| ratio(1.0, of_work(floor, work)));
                row(&result.ours, summary.ours_to_floor, figures(|compared| compared.ours));
                row(&result.peer, floor.map(|factor| times(cpu.peer, factor)), figures(|compared| compared.peer));
                let ratios = [cpu.ratio, rate.ratio, share.ratio].map(|spread| Unit::Plain.spread(spread));
                row(&format!("{} ÷ {}", result.ours, result.peer), None, ratios);
            }
        }
    }
    table.without_constant("Run")
}

fn transfers(found: &Results<'_>) -> Table {
    let mut table = Table::new(
        "Every transfer",
        &["Gateway", "Run", "Pair", "Work", "Bytes", "Seconds", "Gb/s", "CPU seconds", "CPU s/GB", "Bytes right"],
    );
    for found in found {
        let result = found.result;
        for (index, pair) in result.pairs.iter().enumerate() {
            for (gateway, transfers) in [(&result.ours, &pair.ours), (&result.peer, &pair.peer)] {
                for transfer in transfers {
                    let Transfer { work, bytes, seconds, gateway_cpu_seconds: cpu, corrupt_at_byte } = *transfer;
                    let quotient = |numerator, denominator| {
                        ratio(numerator, denominator).map_or(NONE.to_owned(), |figure| Unit::Plain.text(figure))
                    };
                    let cells = [
                        gateway.clone(),
                        (found.run + 1).to_string(),
                        (index + 1).to_string(),
                        short(work).to_owned(),
                        count(bytes),
                        Unit::Plain.text(seconds),
                        quotient(bytes as f64 * 8e-9, seconds),
                        Unit::Plain.text(cpu),
                        quotient(cpu, bytes as f64 * 1e-9),
                        corrupt_at_byte.map_or("all".to_owned(), |offset| format!("wrong at {}", count(offset))),
                    ];
                    table.judged_row(cells, corrupt_at_byte.is_some());
                }
            }
        }
    }
    table.without_constant("Run")
}

fn corruption(found: &Results<'_>) -> Option<Notice> {
    let mut lines = Vec::new();
    for found in found {
        for (index, pair) in found.result.pairs.iter().enumerate() {
            for (gateway, transfers) in [(&found.result.ours, &pair.ours), (&found.result.peer, &pair.peer)] {
                for transfer in transfers {
                    if let Some(offset) = transfer.corrupt_at_byte {
                        let (pair, work) = (index + 1, short(transfer.work));
                        lines.push(format!(
                            "{gateway}, pair {pair}, {work}: byte {} was not the one sent",
                            count(offset)
                        ));
                    }
                }
            }
        }
    }
    let title = format!("Bytes were corrupted in {}", plural(lines.len(), "transfer"));
    (!lines.is_empty()).then_some(Notice { grade: Grade::Failed, title, lines })
}
