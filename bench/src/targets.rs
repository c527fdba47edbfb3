//! `tollgate-bench targets`: what Tollgate wants to reach, and whether results of the other benchmarks show it.
//!
//! It measures nothing. Of several results of one benchmark, a target holds where it holds in each.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::record::{self, print};
use crate::results::{Finding, Latencies, LatencyPoint, ScalePoint, Spread, StormFigures, Work, WorkSummary};

/// Ours, as results name it.
const OURS: &str = "tollgate";
/// The peer that targets speak of.
const PEER: &str = "quincy-server";

/// Which results.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Results that --json of `gateway`, `packets`, `scale`, `latency`, `idle` and `storm` wrote, with quincy-server as the peer; of several
    /// runs, all of them.
    #[arg(value_name = "RESULT.json", required = true)]
    results: Vec<PathBuf>,
}

/// A bar to pass.
struct Target {
    /// What is done.
    work: &'static str,
    /// What is measured of it.
    figure: &'static str,
    bound: Bound,
    /// The figure, in a finding of the benchmark that measures it; `None` in any other.
    pick: fn(&Finding) -> Option<Spread>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// What results say of a target.
struct Judged<'a> {
    target: &'a Target,
    /// One of each result.
    figures: Vec<Spread>,
}

/// Prints each target with its figures.
///
/// # Errors
///
/// In one line: a file that cannot be read or is no result; or, after the table, how many targets are missed or were not measured.
pub fn run(options: &Options) -> Result<()> {
    let findings: Vec<Finding> =
        options.results.iter().map(|path| Ok(record::read(path)?.finding)).collect::<Result<_>>()?;
    let targets = targets();
    let table = Table(judged(&targets, &findings));
    print(&table.to_string())?;
    match table.0.iter().filter(|row| row.holds() != Some(true)).count() {
        0 => Ok(()),
        missed => bail!("{missed} of {} targets are missed, or were not measured", table.0.len()),
    }
}

/// All targets, in the table's order.
fn targets() -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    const CPU: &str = "CPU per byte, quincy-server = 1";
    const CPU_FLOORS: &str = "CPU per byte, floor = 1";
    const CPU_GROWTH: &str = "CPU per byte, 1 client = 1";
    const PACKETS: &str = "packets per CPU s, quincy-server = 1";
    let target = |work, figure, bound, pick| Target { work, figure, bound, pick };
    vec![
        target("bulk TCP down", CPU_FLOORS, AtMost(2.5), |found| to_floor(found, Work::Down)),
        target("bulk TCP down", CPU, AtMost(1.0 / 3.0), |found| to_peer(found, Work::Down)),
        target("bulk TCP up", CPU_FLOORS, AtMost(2.5), |found| to_floor(found, Work::Up)),
        target("bulk TCP up", CPU, AtMost(0.2), |found| to_peer(found, Work::Up)),
        target("100 clients, both ways", CPU_GROWTH, AtMost(1.15), |found| {
            let Finding::Scale(scale) = found else { return None };
            scale.by_clients.iter().find(|point| point.clients == 100).map(|point| point.to_first)
        }),
        target("1300 B, one flow up", PACKETS, AtLeast(3.0), |found| packets(found, "1300 B, one flow up")),
        target("1300 B, one flow down", PACKETS, AtLeast(3.0), |found| packets(found, "1300 B, one flow down")),
        target("100 B, one flow up", PACKETS, AtLeast(3.0), |found| packets(found, "100 B, one flow up")),
        target("100 B, one flow down", PACKETS, AtLeast(3.0), |found| packets(found, "100 B, one flow down")),
        target("100 B, 64 flows", PACKETS, AtLeast(3.0), |found| packets(found, "100 B, 64 flows both ways")),
        target("IMIX, 64 flows", PACKETS, AtLeast(3.0), |found| packets(found, "IMIX, 64 flows both ways")),
        target("2 to 16 shards on a CPU", "CPU per byte, 1 shard = 1", AtMost(1.1), |found| {
            let Finding::Scale(scale) = found else { return None };
            let ratio = |point: &ScalePoint| point.to_first;
            scale.by_shards.iter().skip(1).map(ratio).max_by(|one, other| one.median.total_cmp(&other.median))
        }),
        target("100 active of 10,000 clients", CPU_GROWTH, AtMost(1.2), |found| {
            let Finding::Scale(scale) = found else { return None };
            scale.by_idle_clients.iter().find(|point| point.clients == 10_000).map(|point| point.to_first)
        }),
        target("round trip, idle", "p50, quincy-server = 1", AtMost(2.0 / 3.0), |found| {
            round_trip(found, "idle", |round_trip| round_trip.p50_ns)
        }),
        target("round trip beside bulk", "p99, quincy-server = 1", AtMost(0.25), |found| {
            round_trip(found, "saturated", |round_trip| round_trip.p99_ns)
        }),
        target("idle client", "bytes of memory", AtMost(24.0 * 1024.0), |found| {
            let Finding::Idle(idle) = found else { return None };
            idle.gateways.iter().find(|it| it.name == OURS).map(|it| single(it.bytes_per_connection))
        }),
        target("handshakes", "per CPU s, quincy-server = 1", AtLeast(1.5), |found| {
            Some(over(
                storm(found, OURS)?.handshakes_per_cpu_second,
                storm(found, PEER)?.handshakes_per_cpu_second.median,
            ))
        }),
        target("forwarding in a storm", "share lost", AtMost(0.2), |found| {
            Some(storm(found, OURS)?.forwarding_lost_share)
        }),
    ]
}

fn single(figure: f64) -> Spread {
    Spread { median: figure, min: figure, max: figure }
}

fn over(spread: Spread, divisor: f64) -> Spread {
    Spread { median: spread.median / divisor, min: spread.min / divisor, max: spread.max / divisor }
}

fn bulk(found: &Finding, work: Work) -> Option<&WorkSummary> {
    let Finding::Gateway(result) = found else { return None };
    result.summaries.iter().find(|summary| summary.work == work && result.peer == PEER)
}

fn to_floor(found: &Finding, work: Work) -> Option<Spread> {
    bulk(found, work)?.ours_to_floor
}

fn to_peer(found: &Finding, work: Work) -> Option<Spread> {
    Some(bulk(found, work)?.cpu_seconds_per_gigabyte.ratio)
}

/// How many times as many packets of this kind ours passes in a CPU second.
fn packets(found: &Finding, traffic: &str) -> Option<Spread> {
    let Finding::Packets(result) = found else { return None };
    let point = result.points.iter().find(|point| point.traffic == traffic)?;
    point.gateways.iter().find(|gateway| gateway.name == PEER).map(|gateway| gateway.ours_to_this)
}

fn round_trip(found: &Finding, load: &str, figure: fn(&Latencies) -> u64) -> Option<Spread> {
    let Finding::Latency(result) = found else { return None };
    let of = |gateway: &str| {
        let is_it = |point: &&LatencyPoint| point.gateway == gateway && point.load == load;
        result.points.iter().find(is_it).map(|point| figure(&point.round_trip) as f64)
    };
    Some(single(of(OURS)? / of(PEER)?))
}

fn storm<'a>(found: &'a Finding, gateway: &str) -> Option<&'a StormFigures> {
    let Finding::Storm(result) = found else { return None };
    result.gateways.iter().find(|figures| figures.name == gateway)
}

fn judged<'a>(targets: &'a [Target], findings: &[Finding]) -> Vec<Judged<'a>> {
    let figures = |target: &Target| findings.iter().filter_map(target.pick).collect();
    targets.iter().map(|target| Judged { target, figures: figures(target) }).collect()
}

impl Bound {
    fn is_kept(self, figure: f64) -> bool {
        match self {
            Bound::AtMost(bound) => figure <= bound,
            Bound::AtLeast(bound) => figure >= bound,
        }
    }
}

impl Judged<'_> {
    /// Whether the median keeps the bound in every result; `None` without one.
    fn holds(&self) -> Option<bool> {
        let keeps = |figure: &Spread| self.target.bound.is_kept(figure.median);
        (!self.figures.is_empty()).then(|| self.figures.iter().all(keeps))
    }
}

/// All targets, for people.
struct Table<'a>(Vec<Judged<'a>>);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<30}{:<38}{:>9}  {:<14}figure (min - max), of each result", "work", "measured", "target", "")?;
        for row in &self.0 {
            let Target { work, figure, bound, .. } = row.target;
            let bound = match bound {
                Bound::AtMost(bound) => format!("<= {}", shown(*bound)),
                Bound::AtLeast(bound) => format!(">= {}", shown(*bound)),
            };
            let verdict = match row.holds() {
                Some(true) => "holds",
                Some(false) => "MISSED",
                None => "not measured",
            };
            let one = |it: &Spread| match it.min < it.max {
                true => format!("{} ({} - {})", shown(it.median), shown(it.min), shown(it.max)),
                false => shown(it.median),
            };
            let figures: Vec<String> = row.figures.iter().map(one).collect();
            writeln!(
                f,
                "{}",
                format!("{work:<30}{figure:<38}{bound:>9}  {verdict:<14}{}", figures.join(", ")).trim_end()
            )?;
        }
        Ok(())
    }
}

/// Ratios with two decimals, bytes with none.
fn shown(figure: f64) -> String {
    if figure.abs() < 1000.0 { format!("{figure:.2}") } else { crate::units::count(figure.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{IdleFigures, IdleResult, LatencyResult, PacketsFigures, PacketsPoint, PacketsResult};

    fn idle(bytes_per_connection: f64) -> Finding {
        let figures = |name: &str, bytes_per_connection| IdleFigures {
            name: name.to_owned(),
            connections: 1,
            users: 1,
            empty_bytes: 0,
            bytes_per_user: 0.0,
            bytes_per_connection,
            steps: Vec::new(),
            keep_alive_seconds: 10.0,
            cpu_share: 0.0,
        };
        Finding::Idle(IdleResult { gateways: vec![figures(OURS, bytes_per_connection), figures(PEER, 1e9)] })
    }

    fn latency(p50_ns: [u64; 2]) -> Finding {
        let point = |gateway: &str, p50_ns| LatencyPoint {
            gateway: gateway.to_owned(),
            load: "idle".to_owned(),
            carried_bits_per_second: 0.0,
            round_trip: Latencies { p50_ns, ..Latencies::default() },
            lost: 0,
            harness_limited: false,
        };
        Finding::Latency(LatencyResult { points: vec![point(OURS, p50_ns[0]), point(PEER, p50_ns[1])] })
    }

    fn small_packets(times: f64) -> Finding {
        let figures = |name: &str, times| PacketsFigures {
            name: name.to_owned(),
            packets_per_cpu_second: single(1e5),
            ours_to_this: Spread { median: times, min: times - 0.5, max: times + 0.5 },
            packets_per_second: single(1e5),
            lost_packets: 0,
            harness_limited: false,
        };
        let gateways = vec![figures(OURS, 1.0), figures(PEER, times)];
        let traffic = "100 B, one flow up".to_owned();
        let points = vec![PacketsPoint { traffic, offered_packets_per_second: 1e5, gateways }];
        Finding::Packets(PacketsResult { points })
    }

    /// The table's line of `work`, of these findings.
    fn line(work: &str, findings: &[Finding]) -> String {
        let targets = targets();
        let table = Table(judged(&targets, findings)).to_string();
        table.lines().find(|line| line.starts_with(work)).unwrap().to_owned()
    }

    #[test]
    fn a_target_holds_only_where_every_result_keeps_the_bound() {
        assert!(line("idle client", &[idle(24_576.0)]).ends_with("<= 24,576  holds         24,576"));
        assert!(line("idle client", &[idle(24_000.0), idle(24_577.0)]).ends_with("MISSED        24,000, 24,577"));
        assert!(line("round trip, idle", &[latency([600, 1000])]).ends_with("<= 0.67  holds         0.60"));
        assert!(line("round trip, idle", &[latency([700, 1000])]).ends_with("MISSED        0.70"));
        let packets = line("100 B, one flow up", &[small_packets(3.1)]);
        assert!(packets.ends_with(">= 3.00  holds         3.10 (2.60 - 3.60)"), "{packets}");
        assert!(line("100 B, one flow up", &[small_packets(2.9)]).contains("MISSED"));
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert!(line("handshakes", &[idle(1.0)]).ends_with("not measured"));
        assert!(judged(&targets(), &[]).iter().all(|row| row.holds().is_none()));
    }

    #[test]
    fn every_kind_of_single_packets_has_its_target() {
        let Finding::Packets(mut result) = small_packets(3.0) else { panic!() };
        let one = result.points.remove(0);
        let of = |traffic: &str| PacketsPoint { traffic: traffic.to_owned(), ..one.clone() };
        result.points = crate::packets::names().into_iter().map(of).collect();
        let (kinds, finding) = (result.points.len(), Finding::Packets(result));
        assert_eq!(targets().iter().filter(|target| (target.pick)(&finding).is_some()).count(), kinds);
    }
}
