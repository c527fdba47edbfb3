//! Figures of a comparison, their statistics, and the tables that show them. This module measures and prints nothing.

use std::fmt::{self, Write};

use serde::Serialize;

/// Bytes of a gigabyte.
const GIGABYTE: f64 = 1e9;

/// Bytes moved one way through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Transfer {
    /// Bytes of TCP payload inside the tunnel that arrived.
    pub bytes: u64,
    /// From the connection's start to the last byte's verification.
    pub seconds: f64,
    /// CPU time that the gateway's process used meanwhile, in user and kernel mode.
    pub gateway_cpu_seconds: f64,
    /// The offset of the first byte that was not the one sent; `None` when all were.
    pub corrupt_at_byte: Option<u64>,
}

/// A gateway's run: a transfer up, from client to server, then one down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    /// From the client to the network behind the gateway.
    pub up: Transfer,
    /// From the network behind the gateway to the client.
    pub down: Transfer,
}

/// A run of each gateway, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pair {
    /// Our gateway's.
    pub ours: Run,
    /// The peer's.
    pub peer: Run,
}

/// Median and extremes of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A figure of both gateways, and their ratio pair by pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Compared {
    /// Ours.
    pub ours: Spread,
    /// The peer's.
    pub peer: Spread,
    /// Ours divided by the peer's of the same pair.
    pub ratio: Spread,
}

/// What a direction came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// CPU seconds of the gateway for each gigabyte of payload.
    pub cpu_seconds_per_gigabyte: Compared,
    /// Payload in gigabits a second.
    pub gigabits_per_second: Compared,
    /// The share of its CPU that the gateway used, 0 to 1.
    pub cpu_share: Compared,
}

/// What a comparison came to. Displayed as a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// The name of our gateway.
    pub ours: &'static str,
    /// The name of the peer.
    pub peer: &'static str,
    /// How many pairs there were.
    pub pairs: usize,
    /// From client to server.
    pub up: Summary,
    /// From server to client.
    pub down: Summary,
}

impl Transfer {
    /// CPU seconds of the gateway for each gigabyte of payload.
    pub fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.gateway_cpu_seconds * GIGABYTE / self.bytes as f64
    }

    /// Payload in gigabits a second.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / GIGABYTE / self.seconds
    }

    /// The share of one CPU that the gateway used.
    pub fn cpu_share(&self) -> f64 {
        self.gateway_cpu_seconds / self.seconds
    }
}

impl Spread {
    /// Of at least one figure; `None` of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

impl Compared {
    fn of(pairs: &[Pair], figure: impl Fn(&Run) -> f64) -> Option<Self> {
        Some(Compared {
            ours: Spread::of(pairs.iter().map(|pair| figure(&pair.ours)))?,
            peer: Spread::of(pairs.iter().map(|pair| figure(&pair.peer)))?,
            ratio: Spread::of(pairs.iter().map(|pair| figure(&pair.ours) / figure(&pair.peer)))?,
        })
    }
}

impl Summary {
    fn of(pairs: &[Pair], direction: impl Fn(&Run) -> Transfer) -> Option<Self> {
        Some(Summary {
            cpu_seconds_per_gigabyte: Compared::of(pairs, |run| direction(run).cpu_seconds_per_gigabyte())?,
            gigabits_per_second: Compared::of(pairs, |run| direction(run).gigabits_per_second())?,
            cpu_share: Compared::of(pairs, |run| direction(run).cpu_share())?,
        })
    }
}

impl Comparison {
    /// Of at least one pair; `None` of none.
    pub fn of(ours: &'static str, peer: &'static str, pairs: &[Pair]) -> Option<Self> {
        let (up, down) = (Summary::of(pairs, |run| run.up)?, Summary::of(pairs, |run| run.down)?);
        Some(Comparison { ours, peer, pairs: pairs.len(), up, down })
    }

    /// A line for each direction: the ratio of CPU per gigabyte in words, with its uncertainty.
    fn verdicts(&self) -> String {
        let mut text = String::new();
        for (direction, summary) in [("up:  ", self.up), ("down:", self.down)] {
            let Spread { median, min, max } = summary.cpu_seconds_per_gigabyte.ratio;
            let judgement = match () {
                () if max < 1.0 => "less in every pair",
                () if min > 1.0 => "more in every pair",
                () => "undecided: the pairs disagree",
            };
            let pairs = if self.pairs == 1 { "1 pair".to_owned() } else { format!("{} pairs", self.pairs) };
            let _ = writeln!(
                text,
                "{direction} {} needs {median:.2} times the CPU per GB of {} ({min:.2} to {max:.2} over {pairs}; {judgement})",
                self.ours, self.peer
            );
        }
        text
    }
}

/// The heading of a table of runs.
pub fn run_heading() -> String {
    format!(
        "{:>4}  {:<14}{:>10}{:>10}{:>8}{:>12}{:>10}{:>8}",
        "pair", "gateway", "up s/GB", "Gb/s", "CPU", "down s/GB", "Gb/s", "CPU"
    )
}

/// A line of a table of runs: `pair` counts from 1.
pub fn run_line(pair: u16, name: &str, run: &Run) -> String {
    let figures = |transfer: &Transfer, width: usize| {
        format!(
            "{:>width$.2}{:>10.2}{:>6.0} %",
            transfer.cpu_seconds_per_gigabyte(),
            transfer.gigabits_per_second(),
            transfer.cpu_share() * 100.0
        )
    };
    let corrupt = if corrupt_transfers(run).is_empty() { "" } else { "  CORRUPT" };
    format!("{pair:>4}  {name:<14}{}{}{corrupt}", figures(&run.up, 10), figures(&run.down, 12))
}

/// Directions of `run` that delivered a wrong byte, with its offset.
pub fn corrupt_transfers(run: &Run) -> Vec<(&'static str, u64)> {
    let transfers = [("up", run.up), ("down", run.down)];
    transfers.into_iter().filter_map(|(direction, transfer)| Some((direction, transfer.corrupt_at_byte?))).collect()
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:32}{:>24}{:>26}", "", "up", "down")?;
        writeln!(f, "{:32}{:>8}  {:>14}{:>10}  {:>14}", "", "median", "min - max", "median", "min - max")?;
        type Figure = fn(&Summary) -> Compared;
        let figures: [(&str, f64, Figure); 3] = [
            ("CPU s/GB", 1.0, |summary| summary.cpu_seconds_per_gigabyte),
            ("Gb/s", 1.0, |summary| summary.gigabits_per_second),
            ("% of its CPU", 100.0, |summary| summary.cpu_share),
        ];
        for (label, scale, figure) in figures {
            let (up, down) = (figure(&self.up), figure(&self.down));
            line(f, label, self.ours, up.ours, down.ours, scale)?;
            line(f, "", self.peer, up.peer, down.peer, scale)?;
            line(f, "", "ratio", up.ratio, down.ratio, 1.0)?;
        }
        write!(f, "\n{}", self.verdicts())
    }
}

fn line(f: &mut fmt::Formatter<'_>, label: &str, name: &str, up: Spread, down: Spread, scale: f64) -> fmt::Result {
    let digits = if scale == 1.0 { 2 } else { 0 };
    let extremes = |spread: Spread| format!("{:.digits$} - {:.digits$}", spread.min * scale, spread.max * scale);
    let (up_median, down_median) = (up.median * scale, down.median * scale);
    writeln!(
        f,
        "{label:<14}{name:<18}{up_median:>8.digits$}  {:>14}{down_median:>10.digits$}  {:>14}",
        extremes(up),
        extremes(down)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(gigabytes: u64, cpu_seconds: f64) -> Transfer {
        let bytes = gigabytes * 1_000_000_000;
        Transfer { bytes, seconds: 4.0, gateway_cpu_seconds: cpu_seconds, corrupt_at_byte: None }
    }

    fn pair(ours: f64, peer: f64) -> Pair {
        let run = |cpu_seconds| Run { up: transfer(2, cpu_seconds), down: transfer(1, cpu_seconds) };
        Pair { ours: run(ours), peer: run(peer) }
    }

    #[test]
    fn figures_are_per_gigabyte_and_second() {
        let transfer = transfer(2, 3.0);
        assert_eq!(transfer.cpu_seconds_per_gigabyte(), 1.5);
        assert_eq!(transfer.gigabits_per_second(), 4.0);
        assert_eq!(transfer.cpu_share(), 0.75);
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(Spread::of([5.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 5.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of([]), None);
        assert_eq!(Comparison::of("a", "b", &[]), None);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The machine becomes twice as slow: the ratio of medians would be 2/3, each pair's is 1/2.
        let pairs = [pair(1.0, 2.0), pair(2.0, 4.0)];
        let figure = Comparison::of("a", "b", &pairs).unwrap().up.cpu_seconds_per_gigabyte;
        assert_eq!(figure.ratio, Spread { median: 0.5, min: 0.5, max: 0.5 });
        assert_eq!(figure.ours, Spread { median: 0.75, min: 0.5, max: 1.0 });
    }

    #[test]
    fn the_table_shows_medians_extremes_and_ratios() {
        let pairs = [pair(1.0, 2.0), pair(1.2, 2.0), pair(1.1, 2.0)];
        let expected = "
                                                      up                      down
                                  median       min - max    median       min - max
CPU s/GB      tollgate              0.55     0.50 - 0.60      1.10     1.00 - 1.20
              quincy-server         1.00     1.00 - 1.00      2.00     2.00 - 2.00
              ratio                 0.55     0.50 - 0.60      0.55     0.50 - 0.60
Gb/s          tollgate              4.00     4.00 - 4.00      2.00     2.00 - 2.00
              quincy-server         4.00     4.00 - 4.00      2.00     2.00 - 2.00
              ratio                 1.00     1.00 - 1.00      1.00     1.00 - 1.00
% of its CPU  tollgate                28         25 - 30        28         25 - 30
              quincy-server           50         50 - 50        50         50 - 50
              ratio                 0.55     0.50 - 0.60      0.55     0.50 - 0.60

up:   tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pairs; less in every pair)
down: tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pairs; less in every pair)
";
        let shown = Comparison::of("tollgate", "quincy-server", &pairs).unwrap().to_string();
        assert_eq!(format!("\n{shown}"), expected);
    }

    #[test]
    fn pairs_that_disagree_decide_nothing() {
        let shown = Comparison::of("a", "b", &[pair(1.0, 2.0), pair(2.0, 1.0)]).unwrap().to_string();
        assert!(shown.contains("undecided: the pairs disagree"), "{shown}");
        let shown = Comparison::of("a", "b", &[pair(2.0, 1.0)]).unwrap().to_string();
        assert!(shown.contains("over 1 pair; more in every pair"), "{shown}");
    }

    #[test]
    fn a_corrupt_transfer_is_marked() {
        let mut run = pair(1.0, 1.0).ours;
        assert_eq!(run_line(1, "tollgate", &run).len(), run_heading().len());
        run.down.corrupt_at_byte = Some(77);
        assert_eq!(corrupt_transfers(&run), [("down", 77)]);
        assert!(run_line(1, "tollgate", &run).ends_with("CORRUPT"));
    }
}
