//! Reading `[[traffic]]`: what each group of connections sends.

use tollgate_config::reading::{Report, Setting, Table};

use super::{CONNECTIONS_MAX, Direction, Sizes, TrafficKind, TrafficPlan};
use crate::load::sizes::{INNER_BYTES_MIN, SizeCycle};
use crate::load::source::TRAIN_PACKETS_MAX;

/// Most groups.
pub const GROUPS_MAX: usize = 32;
/// Most flows of all connections together: both ends keep some kilobytes for each.
pub const FLOWS_MAX: u64 = 120_000;

const FLOWS_OF_A_CONNECTION_MAX: u64 = 64;
const NAME_CHARS_MAX: usize = 24;
const WINDOW_BYTES_MIN: u64 = 65_536;
const WINDOW_BYTES_MAX: u64 = 1 << 30;
const WINDOW_BYTES_DEFAULT: u64 = 262_144;
const WEIGHT_MAX: u64 = 1000;

const KIND_EXPECTED: &str = "write \"bulk\", \"constant\" or \"request\"";
const SIZE_EXPECTED: &str =
    "write \"imix\", a number of bytes, or numbers of bytes with their weights: [[100, 7], [1400, 1]]";

/// What the rest of the file allows traffic to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrafficBounds {
    /// Connections in all.
    pub(super) connections: u32,
    /// Inner MTU.
    pub(super) mtu_bytes: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KindName {
    Bulk,
    Constant,
    Request,
}

/// Reads all groups.
pub(super) fn read(tables: Vec<Table<'_>>, bounds: TrafficBounds, report: &mut Report<'_>) -> Vec<TrafficPlan> {
    let mut plans: Vec<TrafficPlan> = Vec::new();
    let (mut connections_left, mut flows) = (bounds.connections, 0);
    for (index, mut table) in tables.into_iter().enumerate() {
        let path = format!("traffic[{index}]");
        if index == GROUPS_MAX {
            report.wrong(table.place(), &path, "is one group too many", format!("at most {GROUPS_MAX} are possible"));
        }
        let (place, name_place) = (table.place_of("connections"), table.place_of("name"));
        let plan = group(&path, &mut table, bounds.mtu_bytes, connections_left, report);
        table.finish(report);
        let Some(plan) = plan else { continue };
        if plan.connections > connections_left || plan.connections == 0 {
            let what =
                format!("asks for {} connections, of which {connections_left} are left", plan.connections.max(1));
            let remedy = "each connection has one kind of traffic: have more users, or fewer connections in each group";
            report.wrong(place.clone(), &format!("{path}.connections"), what, remedy);
            // Told once.
            connections_left = CONNECTIONS_MAX;
            continue;
        }
        connections_left -= plan.connections;
        flows += u64::from(plan.connections) * u64::from(plan.flows);
        if flows > FLOWS_MAX {
            let what = format!("makes it {flows} flows in all");
            report.wrong(place, &path, what, format!("have at most {FLOWS_MAX}: fewer connections or `flows`"));
        }
        if plans.iter().any(|other| other.name == plan.name) {
            let what = format!("is {:?}, as another group's is", plan.name);
            report.wrong(name_place, &format!("{path}.name"), what, "give each group a name of its own");
        }
        plans.push(plan);
    }
    plans
}

/// A group; `None` after a mistake that leaves unclear what it is.
fn group(
    path: &str,
    table: &mut Table<'_>,
    mtu_bytes: u16,
    connections_left: u32,
    report: &mut Report<'_>,
) -> Option<TrafficPlan> {
    table.require(report, "kind", KIND_EXPECTED);
    let name = table.parsed(report, "name", "write 1 to 24 characters", |text| {
        let is_name = (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        if is_name { Ok(text.to_owned()) } else { Err("which is no name".to_owned()) }
    });
    let kind = table.parsed(report, "kind", KIND_EXPECTED, |text| match text {
        "bulk" => Ok(KindName::Bulk),
        "constant" => Ok(KindName::Constant),
        "request" => Ok(KindName::Request),
        "idle" => Err("which is what connections are that no group asks for".to_owned()),
        _ => Err("which is no kind of traffic".to_owned()),
    });
    let connections = table.integer(report, "connections", 1..=u64::from(u32::MAX), "connections");
    let flows = table.integer(report, "flows", 1..=FLOWS_OF_A_CONNECTION_MAX, "flows of each connection");
    let sizes = table.take(report, "size").and_then(|setting| sizes(setting, mtu_bytes, report));
    let place = table.place_of("direction");
    let direction = direction(table, report);
    if kind == Some(KindName::Request) && direction.is_some_and(|direction| direction != Direction::Both) {
        let what = "is one way, but requests go up and answers down";
        report.wrong(place, &format!("{path}.direction"), what, "remove it, or use kind = \"constant\"");
    }
    let Some(kind) = kind else {
        // What the other keys mean is not known.
        ["rate", "train", "window_bytes", "answer_bytes"].iter().for_each(|key| drop(table.take(report, key)));
        return None;
    };
    Some(TrafficPlan {
        name: name.unwrap_or_else(|| kind.name().to_owned()),
        connections: connections.map_or(connections_left, |connections| connections as u32),
        flows: flows.map_or(1, |flows| flows as u16),
        kind: timing(kind, table, mtu_bytes, report),
        direction: direction.unwrap_or(Direction::Both),
        sizes: sizes.unwrap_or_else(|| Sizes::fixed(mtu_bytes)),
    })
}

impl KindName {
    fn name(self) -> &'static str {
        match self {
            KindName::Bulk => "bulk",
            KindName::Constant => "constant",
            KindName::Request => "request",
        }
    }
}

/// The keys that depend on the kind.
fn timing(kind: KindName, table: &mut Table<'_>, mtu_bytes: u16, report: &mut Report<'_>) -> TrafficKind {
    let means_nothing = format!("means nothing for {} traffic", kind.name());
    if kind == KindName::Bulk {
        table.refuse(report, "rate", &means_nothing, "remove it: bulk sends what the window lets");
    } else {
        table.refuse(report, "window_bytes", &means_nothing, "remove it: only bulk traffic has a window");
        table.require(report, "rate", "say how many a second each flow sends: rate = 10.0");
    }
    let rate = table.number(report, "rate", 0.001..=1e6, "packets or requests a second of each flow").unwrap_or(1.0);
    if kind != KindName::Constant {
        table.refuse(report, "train", &means_nothing, "remove it: only constant traffic has trains");
    }
    if kind != KindName::Request {
        table.refuse(report, "answer_bytes", &means_nothing, "remove it: only requests are answered");
    }
    match kind {
        KindName::Bulk => {
            let window = table.integer(report, "window_bytes", WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX, "bytes");
            TrafficKind::Bulk { window_bytes: window.unwrap_or(WINDOW_BYTES_DEFAULT) as u32 }
        }
        KindName::Constant => {
            let train = table.integer(report, "train", 1..=u64::from(TRAIN_PACKETS_MAX), "packets that come together");
            TrafficKind::Constant { packets_per_second: rate, train_packets: train.unwrap_or(1) as u16 }
        }
        KindName::Request => {
            let lengths = u64::from(INNER_BYTES_MIN)..=u64::from(mtu_bytes);
            let answer = table.integer(report, "answer_bytes", lengths, "bytes");
            TrafficKind::Request { requests_per_second: rate, answer_bytes: answer.map(|bytes| bytes as u16) }
        }
    }
}

fn direction(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<Direction> {
    table.parsed(report, "direction", "write \"up\", \"down\" or \"both\"", |text| match text {
        "up" => Ok(Direction::Up),
        "down" => Ok(Direction::Down),
        "both" => Ok(Direction::Both),
        _ => Err("which is no direction".to_owned()),
    })
}

fn sizes(setting: Setting<'_>, mtu_bytes: u16, report: &mut Report<'_>) -> Option<Sizes> {
    let lengths = u64::from(INNER_BYTES_MIN)..=u64::from(mtu_bytes);
    if setting.is_string() {
        return setting.parsed(report, SIZE_EXPECTED, |text| match text {
            "imix" => Ok(Sizes::imix(mtu_bytes)),
            _ => Err("which is no known mix".to_owned()),
        });
    }
    if !setting.is_array() {
        return setting.integer(report, lengths, "bytes, or \"imix\",").map(|bytes| Sizes::fixed(bytes as u16));
    }
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let mut weighted = Vec::new();
    for pair in setting.elements(report, SIZE_EXPECTED)? {
        let (place, path) = (pair.place.clone(), pair.path.clone());
        let mut numbers = pair.elements(report, SIZE_EXPECTED)?.into_iter();
        let (Some(bytes), Some(weight), None) = (numbers.next(), numbers.next(), numbers.next()) else {
            report.wrong(place, &path, "is no pair of bytes and weight", SIZE_EXPECTED);
            return None;
        };
        let bytes = bytes.integer(report, lengths.clone(), "bytes");
        weighted.push((bytes? as u16, weight.integer(report, 1..=WEIGHT_MAX, "parts")? as u32));
    }
    if let Err(error) = SizeCycle::new(&weighted) {
        report.wrong(place, &path, format!("is no usable mix: {error}"), SIZE_EXPECTED);
        return None;
    }
    Some(Sizes(weighted))
}
