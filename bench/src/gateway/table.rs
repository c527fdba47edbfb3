//! A comparison as tables for people. This module measures nothing.

use std::fmt::{self, Display, Formatter, Write};

use super::summary::{corrupt_transfers, cpu_ratios, floor_of};
use crate::results::{Compared, GatewayResult, Interval95, Spread, Transfer, Work, WorkSummary};

/// The figure that the floor is one of.
const CPU: &str = "CPU s/GB";

/// A gateway that uses less of its CPU than this was never the limit.
const SATURATED_SHARE: f64 = 0.9;

/// The name of a kind of work.
pub(super) fn name(work: Work) -> &'static str {
    match work {
        Work::Up => "up",
        Work::Down => "down",
        Work::Both => "both ways",
    }
}

/// The heading of a table of runs, a line for each run.
pub(super) fn run_heading() -> String {
    let columns = |work| format!("{:>10}{:>9}{:>6}  ", format!("{} s/GB", short(work)), "Gb/s", "CPU");
    let all: String = super::summary::WORKS.into_iter().map(columns).collect();
    format!("{:>4}  {:<14}{}", "pair", "gateway", all.trim_end())
}

/// A line of the table of runs.
pub(super) fn run_line(pair: u16, name: &str, run: &[Transfer]) -> String {
    let figures = run.iter().fold(String::new(), |mut text, transfer| {
        let _ = write!(
            text,
            "{:>10.2}{:>9.2}{:>4.0} %  ",
            transfer.cpu_seconds_per_gigabyte(),
            transfer.gigabits_per_second(),
            transfer.cpu_share() * 100.0
        );
        text
    });
    let corrupt = if corrupt_transfers(run).next().is_some() { "  CORRUPT" } else { "" };
    format!("{pair:>4}  {name:<14}{}{corrupt}", figures.trim_end())
}

fn short(work: Work) -> &'static str {
    if work == Work::Both { "both" } else { name(work) }
}

/// Displays a comparison: medians, extremes, ratios, and what they say in words.
pub(super) struct Table<'a>(pub(super) &'a GatewayResult);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let GatewayResult { summaries, ours, peer, .. } = self.0;
        let headings = |f: &mut Formatter<'_>, text: &dyn Fn(&WorkSummary) -> String| {
            write!(f, "{:33}", "")?;
            summaries.iter().try_for_each(|summary| write!(f, "{:>24}", text(summary)))?;
            writeln!(f)
        };
        headings(f, &|summary| name(summary.work).to_owned())?;
        headings(f, &|_| format!("{:>8}  {:>14}", "median", "min - max"))?;
        type Figure = fn(&WorkSummary) -> Compared;
        let figures: [(&str, f64, Figure); 3] = [
            (CPU, 1.0, |summary| summary.cpu_seconds_per_gigabyte),
            ("Gb/s", 1.0, |summary| summary.gigabits_per_second),
            ("% of its CPU", 100.0, |summary| summary.cpu_share),
        ];
        for (label, scale, figure) in figures {
            line(f, label, ours, scale, summaries, |summary| Some(figure(summary).ours))?;
            line(f, "", peer, scale, summaries, |summary| Some(figure(summary).peer))?;
            line(f, "", "ratio", 1.0, summaries, |summary| Some(figure(summary).ratio))?;
            if label == CPU {
                self.floor_lines(f)?;
            }
        }
        write!(f, "\n{}", self.verdicts())?;
        let highest = |summary: &WorkSummary| summary.cpu_share.ours.max.max(summary.cpu_share.peer.max);
        let highest = summaries.iter().map(highest).fold(0.0, f64::max);
        if highest < SATURATED_SHARE {
            let percent = highest * 100.0;
            writeln!(f, "neither gateway used more than {percent:.0} % of its CPU: the load, not they, limited Gb/s")?;
        }
        Ok(())
    }
}

impl Table<'_> {
    fn floor_lines(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let GatewayResult { summaries, ours, floor, .. } = self.0;
        let Some(floor) = floor else { return Ok(()) };
        let (up, down) = (floor.up_cpu_seconds_per_gigabyte, floor.down_cpu_seconds_per_gigabyte);
        let floors = summaries.iter().map(|summary| format!("{:>8.2}{:16}", floor_of(up, down, summary.work), ""));
        writeln!(f, "{}", format!("{:14}{:<19}{}", "", "floor", floors.collect::<String>()).trim_end())?;
        line(f, "", &format!("{ours} / floor"), 1.0, summaries, |summary| summary.ours_to_floor)
    }

    /// A line for each kind of work: the ratio of CPU per gigabyte in words, with its uncertainty.
    fn verdicts(&self) -> String {
        let GatewayResult { summaries, ours, peer, pairs, .. } = self.0;
        let count = format!("{} pair{}", pairs.len(), if pairs.len() == 1 { "" } else { "s" });
        let verdict = |summary: &WorkSummary| {
            let Spread { median, min, max } = summary.cpu_seconds_per_gigabyte.ratio;
            let judgement = match () {
                () if max < 1.0 => "less in every pair",
                () if min > 1.0 => "more in every pair",
                () => "undecided: the pairs disagree",
            };
            let interval = Interval95::of_median(cpu_ratios(pairs, summary.work))
                .map(|Interval95 { low, high }| format!("; 95 % interval of the median {low:.3} to {high:.3}"))
                .unwrap_or_default();
            format!(
                "{:<11}{ours} needs {median:.2} times the CPU per GB of {peer} ({min:.2} to {max:.2} over {count}; {judgement}{interval})\n",
                format!("{}:", name(summary.work))
            )
        };
        summaries.iter().map(verdict).collect()
    }
}

/// A line of the comparison: one figure of `who`, for every kind of work.
fn line(
    f: &mut Formatter<'_>,
    label: &str,
    who: &str,
    scale: f64,
    summaries: &[WorkSummary],
    figure: impl Fn(&WorkSummary) -> Option<Spread>,
) -> fmt::Result {
    let digits = if scale == 1.0 { 2 } else { 0 };
    let mut text = format!("{label:<14}{who:<19}");
    for summary in summaries {
        match figure(summary) {
            Some(Spread { median, min, max }) => {
                let extremes = format!("{:.digits$} - {:.digits$}", min * scale, max * scale);
                write!(text, "{:>8.digits$}  {extremes:>14}", median * scale)?;
            }
            None => write!(text, "{:24}", "")?,
        }
    }
    writeln!(f, "{}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::summary::summaries;
    use super::super::summary::tests::pair;
    use super::*;
    use crate::floor::Round;
    use crate::results::{Floor, Pair};

    fn result(pairs: &[Pair], floors: &[Round]) -> GatewayResult {
        let floor = |round: &Round| Floor {
            stages: Vec::new(),
            up_cpu_seconds_per_gigabyte: round.up,
            down_cpu_seconds_per_gigabyte: round.down,
        };
        GatewayResult {
            ours: "tollgate".into(),
            peer: "quincy-server".into(),
            clients: ["c".into(), "c".into()],
            gateway_cpu: 0,
            load_cpus: vec![1],
            seconds: 4,
            pairs: pairs.to_vec(),
            summaries: summaries(pairs, floors).unwrap(),
            floor: floors.first().map(floor),
        }
    }

    #[test]
    fn the_table_shows_medians_extremes_ratios_and_the_floor() {
        let pairs = [pair(1.0, 2.0), pair(1.2, 2.0), pair(1.1, 2.0)];
        let expected = "
                                                       up                    down               both ways
                                   median       min - max  median       min - max  median       min - max
CPU s/GB      tollgate               0.55     0.50 - 0.60    1.10     1.00 - 1.20    0.28     0.25 - 0.30
              quincy-server          1.00     1.00 - 1.00    2.00     2.00 - 2.00    0.50     0.50 - 0.50
              ratio                  0.55     0.50 - 0.60    0.55     0.50 - 0.60    0.55     0.50 - 0.60
              floor                  0.25                    0.50                    0.38
              tollgate / floor       2.20     2.00 - 2.40    2.20     2.00 - 2.40    0.73     0.67 - 0.80
Gb/s          tollgate               4.00     4.00 - 4.00    2.00     2.00 - 2.00    8.00     8.00 - 8.00
              quincy-server          4.00     4.00 - 4.00    2.00     2.00 - 2.00    8.00     8.00 - 8.00
              ratio                  1.00     1.00 - 1.00    1.00     1.00 - 1.00    1.00     1.00 - 1.00
% of its CPU  tollgate                 28         25 - 30      28         25 - 30      28         25 - 30
              quincy-server            50         50 - 50      50         50 - 50      50         50 - 50
              ratio                  0.55     0.50 - 0.60    0.55     0.50 - 0.60    0.55     0.50 - 0.60

up:        tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pairs; less in every pair)
down:      tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pairs; less in every pair)
both ways: tollgate needs 0.55 times the CPU per GB of quincy-server (0.50 to 0.60 over 3 pairs; less in every pair)
neither gateway used more than 50 % of its CPU: the load, not they, limited Gb/s
";
        let shown = Table(&result(&pairs, &[Round { up: 0.25, down: 0.5 }; 3])).to_string();
        assert_eq!(format!("\n{shown}"), expected);
    }

    #[test]
    fn a_table_without_a_floor_has_no_line_of_it() {
        let shown = Table(&result(&[pair(1.0, 2.0)], &[])).to_string();
        assert!(!shown.contains("floor"), "{shown}");
    }

    #[test]
    fn pairs_that_disagree_decide_nothing() {
        let shown = |pairs: &[Pair]| Table(&result(pairs, &[])).to_string();
        let disagreeing = shown(&[pair(1.0, 2.0), pair(2.0, 1.0)]);
        assert!(disagreeing.contains("undecided: the pairs disagree"), "{disagreeing}");
        assert!(disagreeing.contains("neither gateway used more than 50 % of its CPU"), "{disagreeing}");
        let busy = shown(&[pair(1.0, 3.8)]);
        assert!(!busy.contains("neither"), "{busy}");
        let dearer = shown(&[pair(2.0, 1.0)]);
        assert!(dearer.contains("over 1 pair; more in every pair"), "{dearer}");
    }

    #[test]
    fn a_run_is_a_line_under_its_heading_and_a_corrupt_one_is_marked() {
        let mut run = pair(1.0, 1.0).ours;
        assert_eq!(run_line(1, "tollgate", &run).len(), run_heading().len());
        run[1].corrupt_at_byte = Some(77);
        assert!(run_line(1, "tollgate", &run).ends_with("CORRUPT"));
    }
}
