//! What the pairs of a comparison come to: ratios pair by pair, with their spread and the interval of their median.

use std::fmt::Write as _;

use serde::Serialize;

use super::Comparison;
use crate::experiments::floor::Round;
use crate::measure::record::table;
use crate::measure::spread::{Compared, Interval95, Spread};

/// A gateway that uses less of its CPU than this was never the limit.
const SATURATED_SHARE: f64 = 0.9;

/// The kinds of work of every run, in their order.
pub const WORKS: [Work; 3] = [Work::Up, Work::Down, Work::Both];

/// A kind of bulk work: from client to network, from network to client, both at once (bytes are the sum).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Up,
    Down,
    Both,
}

/// A run of each gateway, one after the other: one transfer for each kind of work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    pub ours: Vec<Transfer>,
    pub peer: Vec<Transfer>,
}

/// Bytes moved through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Transfer {
    pub work: Work,
    /// Bytes of TCP payload inside the tunnel that arrived.
    pub bytes: u64,
    /// From the connection's start to the last byte's verification.
    pub seconds: f64,
    /// CPU time that the gateway's process used meanwhile, in user and kernel mode.
    pub gateway_cpu_seconds: f64,
    /// The offset of the first byte that was not the one sent.
    pub corrupt_at_byte: Option<u64>,
}

/// What a kind of work came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub work: Work,
    pub cpu_seconds_per_gigabyte: Compared,
    /// Where the median of the ratio lies; of fewer than six pairs it cannot be told.
    pub ratio_interval_95: Option<Interval95>,
    pub gigabits_per_second: Compared,
    /// The share of its CPU that the gateway used.
    pub cpu_share: Compared,
    /// Ours as a multiple of the floor of the same pair. Both ways at once are held against the mean of both directions.
    pub ours_to_floor: Spread,
}

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Work::Up => "up",
            Work::Down => "down",
            Work::Both => "both ways",
        }
    }

    fn floor(self, Round { up, down }: Round) -> f64 {
        match self {
            Work::Up => up,
            Work::Down => down,
            Work::Both => (up + down) / 2.0,
        }
    }
}

impl Transfer {
    fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.gateway_cpu_seconds * 1e9 / self.bytes as f64
    }
}

/// One for each kind of work; `floors` are those measured with the pairs, in their order. `None` of no pair.
pub fn summaries(pairs: &[Pair], floors: &[Round]) -> Option<Vec<Summary>> {
    let summary = |(index, work): (usize, Work)| {
        let compared = |figure: fn(&Transfer) -> f64| {
            Compared::of(
                &pairs.iter().map(|pair| (figure(&pair.ours[index]), figure(&pair.peer[index]))).collect::<Vec<_>>(),
            )
        };
        let cost = Transfer::cpu_seconds_per_gigabyte;
        let ratios = pairs.iter().map(|pair| cost(&pair.ours[index]) / cost(&pair.peer[index]));
        let to_floor = pairs.iter().zip(floors).map(|(pair, round)| cost(&pair.ours[index]) / work.floor(*round));
        Some(Summary {
            work,
            cpu_seconds_per_gigabyte: compared(cost)?,
            ratio_interval_95: Interval95::of_median(ratios),
            gigabits_per_second: compared(|transfer| transfer.bytes as f64 * 8e-9 / transfer.seconds)?,
            cpu_share: compared(|transfer| transfer.gateway_cpu_seconds / transfer.seconds)?,
            ours_to_floor: Spread::of(to_floor)?,
        })
    };
    WORKS.into_iter().enumerate().map(summary).collect()
}

/// The kinds of work whose 95 % interval of the ratio lies above `ratio_max` as a whole, in words.
pub fn dearer(summaries: &[Summary], ratio_max: f64) -> Vec<String> {
    let told = summaries.iter().filter_map(|summary| Some((summary.work, summary.ratio_interval_95?)));
    let dearer = told.filter(|(_, interval)| interval.low > ratio_max);
    dearer
        .map(|(work, Interval95 { low, high })| {
            format!("{}: {low:.3} to {high:.3}, and {ratio_max} is allowed", work.name())
        })
        .collect()
}

/// A table of medians and extremes, and what they say in words.
pub fn tables(comparison: &Comparison) -> String {
    let Comparison { ours, peer, summaries, floor, .. } = comparison;
    let two = |figure: f64| format!("{figure:.2}");
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let rows = summaries.iter().flat_map(|summary| {
        let floor = summary
            .work
            .floor(Round { up: floor.up_cpu_seconds_per_gigabyte, down: floor.down_cpu_seconds_per_gigabyte });
        let row = |who: &str, pick: fn(&Compared) -> Spread, to_floor: String| {
            [
                summary.work.name().to_owned(),
                who.to_owned(),
                pick(&summary.cpu_seconds_per_gigabyte).shown(two),
                to_floor,
                pick(&summary.gigabits_per_second).shown(two),
                pick(&summary.cpu_share).shown(percent),
            ]
        };
        [
            row(ours, |it| it.ours, summary.ours_to_floor.shown(two)),
            row(peer, |it| it.peer, String::new()),
            row("ratio", |it| it.ratio, format!("floor {floor:.2}")),
        ]
    });
    let mut text = format!("{}\n", table(2, &["bulk TCP", "", "CPU s/GB", "to the floor", "Gb/s", "of its CPU"], rows));
    for summary in summaries {
        let Spread { median, min, max } = summary.cpu_seconds_per_gigabyte.ratio;
        let judgement = match (min, max) {
            (_, max) if max < 1.0 => "less in every pair",
            (min, _) if min > 1.0 => "more in every pair",
            _ => "undecided: the pairs disagree",
        };
        let interval = summary.ratio_interval_95;
        let interval = interval.map(|it| format!("; 95 % interval of the median {:.3} to {:.3}", it.low, it.high));
        let (work, interval) = (summary.work.name(), interval.unwrap_or_default());
        let count = comparison.pairs.len();
        let _ = write!(
            text,
            "\n{work}: {ours} needs {median:.2} times the CPU per GB of {peer} ({min:.2} to {max:.2} over {count} pair(s); {judgement}{interval})"
        );
    }
    let shares = summaries.iter().map(|summary| summary.cpu_share.ours.max.max(summary.cpu_share.peer.max));
    let highest = shares.fold(0.0, f64::max);
    if highest < SATURATED_SHARE {
        let _ = write!(
            text,
            "\nneither gateway used more than {} of its CPU: the load, not they, limited Gb/s",
            percent(highest)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiments::floor::Floor;

    fn pair(ours: f64, peer: f64) -> Pair {
        let run = |gateway_cpu_seconds| {
            [(Work::Up, 2), (Work::Down, 1), (Work::Both, 4)]
                .map(|(work, gigabytes)| Transfer {
                    work,
                    bytes: gigabytes * 1_000_000_000,
                    seconds: 4.0,
                    gateway_cpu_seconds,
                    corrupt_at_byte: None,
                })
                .to_vec()
        };
        Pair { ours: run(ours), peer: run(peer) }
    }

    const FLOORS: [Round; 15] = [Round { up: 0.25, down: 0.125 }; 15];

    #[test]
    fn each_pair_is_held_against_its_own_floor_and_both_ways_against_the_mean() {
        // The machine becomes twice as slow: gateways and floor alike.
        let floors = [Round { up: 0.25, down: 0.125 }, Round { up: 0.5, down: 0.25 }];
        let summaries = summaries(&[pair(1.0, 2.0), pair(2.0, 4.0)], &floors).unwrap();
        let same = |factor| Spread { median: factor, min: factor, max: factor };
        assert_eq!(
            summaries.iter().map(|it| it.ours_to_floor).collect::<Vec<_>>(),
            [same(2.0), same(8.0), same(0.25 / 0.1875)]
        );
        assert!(summaries.iter().all(|it| it.cpu_seconds_per_gigabyte.ratio == same(0.5)));
        assert_eq!(summaries[0].gigabits_per_second.ours.median, 4.0);
        assert_eq!(super::summaries(&[], &[]), None);
    }

    #[test]
    fn a_bound_is_missed_only_by_a_whole_interval() {
        let found = |ratios: &[f64]| {
            let pairs: Vec<Pair> = ratios.iter().map(|&ratio| pair(ratio, 1.0)).collect();
            dearer(&summaries(&pairs, &FLOORS).unwrap(), 1.03)
        };
        assert!(found(&[1.02, 1.04, 1.05, 1.06, 1.07, 1.08]).is_empty(), "the interval reaches down to 1.02");
        let all = found(&[1.035, 1.04, 1.05, 1.06, 1.07, 1.08]);
        assert_eq!((all.len(), all[0].as_str()), (3, "up: 1.035 to 1.080, and 1.03 is allowed"));
        assert!(found(&[2.0; 5]).is_empty(), "too few to tell");
    }

    #[test]
    fn the_tables_say_what_the_pairs_decide() {
        let shown = |pairs: &[Pair]| {
            tables(&Comparison {
                ours: "tollgate",
                peer: "quincy-server",
                gateway_cpus: vec![0],
                load_cpus: vec![1],
                seconds: 4,
                pairs: pairs.to_vec(),
                summaries: summaries(pairs, &FLOORS).unwrap(),
                floor: Floor {
                    stages: Vec::new(),
                    up_cpu_seconds_per_gigabyte: 0.25,
                    down_cpu_seconds_per_gigabyte: 0.5,
                },
            })
        };
        let text = shown(&[pair(1.0, 2.0), pair(1.2, 2.0), pair(1.1, 2.0)]);
        assert!(text.contains("up: tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pair(s); less in every pair)"), "{text}");
        assert!(text.contains("neither gateway used more than 50 % of its CPU"), "{text}");
        assert!(shown(&[pair(1.0, 2.0), pair(2.0, 1.0)]).contains("undecided: the pairs disagree"));
    }
}
