//! Colours: which gateway has which, in the light and in the dark. Tollgate has the same in every plot.
//!
//! The colours are those of Okabe and Ito, made a little darker or lighter to stand out from the background; people who see fewer colours
//! tell them apart. No plot relies on them: bars are labelled, lines have marks of different shapes.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::results::{Finding, Record};

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// Tollgate.
    Ours,
    /// Another gateway: below [`PEERS_MAX`].
    Peer(u8),
    /// No gateway: the machine.
    Neutral,
    /// What is not as it should be.
    Bad,
}

/// How many peers have a colour of their own. Beyond these, colours are used again.
pub const PEERS_MAX: u8 = 6;

/// Peers whose colour is always the same, by the start of their names.
const KNOWN_PEERS: [&str; 4] = ["quincy", "wireguard", "boringtun", "gotatun"];

struct Theme {
    ink: &'static str,
    muted: &'static str,
    grid: &'static str,
    paper: &'static str,
    ours: &'static str,
    peers: [&'static str; PEERS_MAX as usize],
    neutral: &'static str,
    bad: &'static str,
}

const LIGHT: Theme = Theme {
    ink: "#1d232a",
    muted: "#55606c",
    grid: "#dde2e7",
    paper: "#ffffff",
    ours: "#0072b2",
    peers: ["#d55e00", "#00875f", "#b3588f", "#a67600", "#5b4ba8", "#3a8a9c"],
    neutral: "#7b8794",
    bad: "#b3261e",
};

const DARK: Theme = Theme {
    ink: "#e6eaee",
    muted: "#a3adb8",
    grid: "#333b44",
    paper: "#171b20",
    ours: "#56b4e9",
    peers: ["#ff8c4a", "#3fc79a", "#e391c2", "#e8b23a", "#a99bf0", "#7fd0de"],
    neutral: "#8d99a6",
    bad: "#ff7b72",
};

impl Colour {
    /// The class that elements of this colour have.
    pub fn class(self) -> &'static str {
        const PEERS: [&str; PEERS_MAX as usize] = ["peer0", "peer1", "peer2", "peer3", "peer4", "peer5"];
        match self {
            Colour::Ours => "ours",
            Colour::Peer(index) => PEERS[usize::from(index % PEERS_MAX)],
            Colour::Neutral => "neutral",
            Colour::Bad => "bad",
        }
    }
}

/// The colours of the gateways in some records.
#[derive(Debug, Clone, Default)]
pub struct Palette {
    colours: BTreeMap<String, Colour>,
}

impl Palette {
    /// Gives every gateway in `records` its colour.
    pub fn of(records: &[Record]) -> Self {
        let mut palette = Palette::default();
        let ours = records.iter().filter_map(|record| match &record.finding {
            Finding::Gateway(result) => Some(result.ours.clone()),
            _ => None,
        });
        palette.colours.extend(ours.map(|name| (name, Colour::Ours)));
        let mut free = KNOWN_PEERS.len() as u8;
        for name in records.iter().flat_map(|record| gateways(&record.finding)) {
            if palette.colours.contains_key(name) {
                continue;
            }
            let known = KNOWN_PEERS.iter().position(|known| name.starts_with(known));
            let colour = match known {
                _ if name.is_empty() || name.starts_with("tollgate") => Colour::Ours,
                Some(index) => Colour::Peer(index as u8),
                None => {
                    free += 1;
                    Colour::Peer((free - 1) % PEERS_MAX)
                }
            };
            palette.colours.insert(name.to_owned(), colour);
        }
        palette
    }

    /// The colour of the gateway `name`.
    pub fn colour(&self, name: &str) -> Colour {
        self.colours.get(name).copied().unwrap_or(Colour::Neutral)
    }
}

/// The names of the gateways that `finding` speaks of.
fn gateways(finding: &Finding) -> Vec<&str> {
    match finding {
        Finding::Gateway(result) => vec![&result.ours, &result.peer],
        Finding::Load(load) => vec![&load.gateway],
        Finding::Soak(soak) => vec![&soak.load.gateway],
        Finding::Packets(packets) => {
            packets.points.iter().flat_map(|point| &point.gateways).map(|figures| figures.name.as_str()).collect()
        }
        Finding::Scale(scale) => vec![&scale.gateway],
        Finding::Storm(storm) => storm.gateways.iter().map(|figures| figures.name.as_str()).collect(),
        Finding::Idle(idle) => idle.gateways.iter().map(|figures| figures.name.as_str()).collect(),
        Finding::Latency(latency) => latency.points.iter().map(|point| point.gateway.as_str()).collect(),
        Finding::Shaping(shaping) => shaping.points.iter().map(|point| point.gateway.as_str()).collect(),
        Finding::Floor(_) | Finding::Engine(_) => Vec::new(),
    }
}

/// The style of plots on the page: light, and dark where that is preferred and the page is not printed.
pub fn page_style() -> String {
    format!("{}@media screen and (prefers-color-scheme:dark){{{}}}", style(&LIGHT), style(&DARK))
}

/// The style of a plot that stands alone: it brings its own light background, and so is legible on any.
pub fn standalone_style() -> String {
    style(&LIGHT)
}

fn style(theme: &Theme) -> String {
    let Theme { ink, muted, grid, paper, ours, peers, neutral, bad } = theme;
    let mut css = format!(
        ".chart text{{font:12.5px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:{ink}}}\
         .chart .muted{{fill:{muted}}}.chart .strong{{font-weight:600}}.chart .name{{font-size:14.5px}}\
         .chart .small{{font-size:10.5px}}\
         .chart .halo{{paint-order:stroke;stroke:{paper};stroke-width:3px;stroke-linejoin:round}}\
         .chart .paper{{fill:{paper}}}.chart .grid{{stroke:{grid};stroke-width:1}}\
         .chart .axis{{stroke:{muted};stroke-width:1}}.chart .whisker{{stroke:{ink};stroke-width:1.4;fill:none}}\
         .chart .reference{{stroke:{ink};stroke-width:1.6;stroke-dasharray:5 3}}\
         .chart .line{{fill:none;stroke-width:2;stroke-linejoin:round}}\
         .chart .mark{{stroke:{paper};stroke-width:1}}.chart .hollow{{fill:{paper};stroke-width:1.6}}"
    );
    let classes = (0..PEERS_MAX).map(|index| (Colour::Peer(index), peers[usize::from(index)]));
    let all = [(Colour::Ours, *ours), (Colour::Neutral, *neutral), (Colour::Bad, *bad)].into_iter().chain(classes);
    for (colour, value) in all {
        let class = colour.class();
        // Writing to a string cannot fail.
        let _ = write!(
            css,
            ".chart .fill.{class},.chart .mark.{class}{{fill:{value}}}\
             .chart .line.{class},.chart .hollow.{class},.chart .spread.{class}{{stroke:{value}}}"
        );
    }
    css
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::machine::Machine;
    use crate::results::{FORMAT, LatencyPoint, LatencyResult, Provenance};

    /// A record that speaks of these gateways.
    fn record(names: &[&str]) -> Record {
        let machine = Machine { cpu: None, cpus: None, memory_bytes: None, kernel: None };
        let point = |name: &&str| LatencyPoint {
            gateway: (*name).to_owned(),
            load: String::new(),
            carried_bits_per_second: 0.0,
            round_trip: Default::default(),
            lost: 0,
            harness_limited: false,
        };
        let provenance = Provenance {
            machine,
            commit: None,
            versions: Vec::new(),
            command_line: Vec::new(),
            started_unix_seconds: 0,
            debug_build: false,
        };
        let points = names.iter().map(point).collect();
        Record { format: FORMAT, provenance, finding: Finding::Latency(LatencyResult { points }) }
    }

    fn all() -> impl Iterator<Item = Colour> {
        (0..PEERS_MAX).map(Colour::Peer).chain([Colour::Ours, Colour::Neutral, Colour::Bad])
    }

    #[test]
    fn known_gateways_have_the_same_colour_whatever_else_is_shown() {
        let few = Palette::of(&[record(&["quincy-server"])]);
        let many = Palette::of(&[record(&["other", "wireguard-go", "tollgate", "quincy-server", "another"])]);
        assert_eq!(few.colour("quincy-server"), many.colour("quincy-server"));
        assert_eq!(many.colour("tollgate"), Colour::Ours);
        let names = ["other", "wireguard-go", "tollgate", "quincy-server", "another"];
        let colours: BTreeSet<Colour> = names.iter().map(|name| many.colour(name)).collect();
        assert_eq!(colours.len(), names.len(), "each has its own");
        assert_eq!(few.colour("never heard of"), Colour::Neutral);
    }

    #[test]
    fn every_colour_has_its_rule_in_both_themes() {
        assert_eq!(all().map(Colour::class).collect::<BTreeSet<_>>().len(), all().count());
        for style in [style(&LIGHT), style(&DARK)] {
            assert!(all().all(|colour| style.contains(&format!(".fill.{}", colour.class()))));
        }
    }
}
