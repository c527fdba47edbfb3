//! `shaping`: how usable the tunnel of a limited user stays while bulk traffic fills it.
//!
//! A user is held at a rate by its `bandwidth_limit`. TCP of the kernel sends as much as it can, one connection, through the tunnel; pings go
//! through the same tunnel. What they wait is what the gateway's queue makes them wait.

use std::collections::BTreeMap;
use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tollgate_testkit::SERVER_V4;
use tollgate_testkit::bulk::{self, BulkReport};
use tollgate_testkit::deploy::{CLIENT_TUN, GATEWAY_TUN};
use tollgate_testkit::ping::{PingPlan, PingReport, ping};

use super::tunnel::{Tunnel, TunnelOptions};
use crate::deploy::{counter, queue_drops};
use crate::load::experiment::{Cell, Column, three_digits, whole};
use crate::load::scenario::Direction;
use crate::measure::cpus;
use crate::measure::round_trips::{Latencies, RoundTrips};
use crate::measure::spread::Spread;
use crate::measure::units::{nanoseconds, percent};

const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How long the last ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// For how long bulk runs before anything is measured: until the burst, a second of the rate, is used up and TCP has found its window.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long bulk goes on after the last ping.
const TAIL: Duration = Duration::from_millis(300);
/// The kinds of bulk traffic, each with ECN or without, in the order in which they are measured.
const KINDS: [(Direction, bool); 4] =
    [(Direction::Down, false), (Direction::Up, false), (Direction::Down, true), (Direction::Up, true)];

#[derive(Debug, clap::Args)]
#[command(mut_arg("seconds", |arg| arg.default_value("10")))]
pub struct Options {
    #[command(flatten)]
    tunnel: TunnelOptions,
    /// The user's bandwidth limit, in megabits a second.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    mbps: u16,
    /// The congestion control of bulk TCP, as the kernel names it. A namespace may use those that the machine allows; reno always.
    #[arg(long, value_name = "NAME", default_value = "reno")]
    congestion: String,
}

/// Bulk traffic, and how long there are pings beside it.
struct Bulk<'a> {
    direction: Direction,
    ecn: bool,
    congestion: &'a str,
    warm_up: Duration,
    duration: Duration,
}

/// One run: bulk traffic and pings through the same tunnel. All but the transfer's end is of the time in which it pinged.
#[derive(Debug, Clone, Default, Serialize)]
struct Run {
    seconds: f64,
    p99_ns: u64,
    pings: u64,
    lost_pings: u64,
    /// TCP payload that arrived.
    bulk_bits_per_second: f64,
    counts: Counts,
    corrupt_at_byte: Option<u64>,
    #[serde(skip)]
    trips: RoundTrips,
}

/// What kernels and gateway counted, by name. A peer counts nothing.
type Counts = BTreeMap<&'static str, u64>;

/// Measures. Fails after all results when bytes were corrupted.
pub fn run(Options { tunnel: options, mbps, congestion }: &Options) -> Result<()> {
    let warm_up = if options.series.quick { Duration::from_millis(500) } else { WARM_UP };
    let duration = options.series.duration(1);
    let plan = format!(
        "a user with a bandwidth limit of {mbps} mbps: one connection of bulk TCP ({congestion}), and a ping every {} ms for {} s",
        PING_INTERVAL.as_millis(),
        duration.as_secs()
    );
    let limit = format!("bandwidth_limit = \"{mbps} mbps\"");
    let (mut experiment, tunnels) = options.start(&plan, &limit, cpus::split(&[], &[])?)?;
    let name =
        |(direction, ecn): (Direction, bool)| format!("{}, {}ECN", direction.name(), if ecn { "" } else { "no " });
    let results = experiment.rounds(KINDS.map(|kind| (name(kind), 0)), |experiment, point, gateway, place| {
        let (direction, ecn) = KINDS[point];
        let run = Bulk { direction, ecn, congestion, warm_up, duration }.measure(tunnels.start(gateway)?)?;
        if run.corrupt_at_byte.is_some() {
            experiment.failures.push(format!("{place}: bytes were corrupted"));
        }
        Ok(run)
    })?;
    let (table, figures) = results.table(&columns(f64::from(*mbps) * 1e6))?;
    experiment.finish("shaping", &table, &serde_json::json!({ "figures": figures, "runs": results }))
}

impl Bulk<'_> {
    /// Runs bulk traffic, and pings meanwhile. Stops client and gateway.
    fn measure(&self, tunnel: Tunnel) -> Result<Run> {
        for namespace in [tunnel.inside(), &tunnel.topology.network] {
            // Set, not left alone: by default a kernel accepts ECN and does not ask for it, and a namespace has the machine's congestion
            // control. BBR neither fills queues nor heeds marks.
            namespace.sysctl("net/ipv4/tcp_ecn", if self.ecn { "1" } else { "0" })?;
            namespace.sysctl("net/ipv4/tcp_congestion_control", self.congestion)?;
        }
        let moving = thread::scope(|scope| -> Result<_> {
            let (transferring, pinging) = (&tunnel, &tunnel);
            let transfer = scope.spawn(move || self.transfer(transferring));
            thread::sleep(self.warm_up);
            let (before, from) = (self.counts(pinging)?, Instant::now());
            let pings = self.ping(pinging)?;
            let (mut counts, until) = (self.counts(pinging)?, Instant::now());
            counts.iter_mut().for_each(|(name, count)| *count -= before[name]);
            let (report, arrivals) = transfer.join().unwrap_or_else(|payload| panic::resume_unwind(payload))?;
            Ok((pings, counts, from, until, report, arrivals))
        });
        let (pings, counts, from, until, report, arrivals) = moving?;
        ensure!(pings.received > 0, "none of {} pings was answered while bulk traffic ran", pings.sent);
        tunnel.stop()?;
        let mut trips = RoundTrips::default();
        trips.merge(&pings.rtt_ns);
        Ok(Run {
            seconds: (until - from).as_secs_f64(),
            p99_ns: pings.rtt_percentile_ns(99.0),
            pings: pings.sent.into(),
            lost_pings: pings.lost().into(),
            bulk_bits_per_second: rate(&arrivals, from, until).context("no bulk traffic arrived")?,
            counts,
            corrupt_at_byte: report.corrupt_at.map(|(_, offset)| offset),
            trips,
        })
    }

    /// Moves bytes until all pings are done, and notes how many had arrived when.
    fn transfer(&self, tunnel: &Tunnel) -> Result<(BulkReport, Vec<(Instant, u64)>)> {
        let is_up = self.direction == Direction::Up;
        let direction = if is_up { bulk::Direction::Upload } else { bulk::Direction::Download };
        let mut arrivals = Vec::new();
        let report = tunnel.bulk(direction, self.warm_up + self.duration + TAIL, |state| {
            // Of an upload this end knows only what it has sent.
            let arrived = if is_up { tunnel.server.moved_bytes() } else { state.bytes };
            arrivals.push((Instant::now(), arrived));
        })?;
        Ok((report, arrivals))
    }

    fn ping(&self, tunnel: &Tunnel) -> Result<PingReport> {
        let count = u32::try_from(self.duration.as_nanos() / PING_INTERVAL.as_nanos())?;
        let (interval, timeout) = (PING_INTERVAL, PING_TIMEOUT);
        let plan = PingPlan { count, interval, timeout, ..PingPlan::new(SERVER_V4.into()) };
        tunnel.run(|| Ok(ping(&plan)?))
    }

    fn counts(&self, tunnel: &Tunnel) -> Result<Counts> {
        let (client, network) = (tunnel.inside(), &tunnel.topology.network);
        let (sender, receiver) = if self.direction == Direction::Up { (client, network) } else { (network, client) };
        let tun_queues = [(client, CLIENT_TUN), (&tunnel.topology.gateway, GATEWAY_TUN)];
        let tun_queue_drops: Result<Vec<u64>> = tun_queues.iter().map(|(at, name)| queue_drops(at, name)).collect();
        let mut counts = Counts::from([
            // Packets that the receiver saw marked "congestion experienced", each one of an aggregate (ip_rcv_core of the kernel).
            ("ce_marks", counter(receiver, "netstat", "IpExt InCEPkts")?),
            ("resent_segments", counter(sender, "snmp", "Tcp RetransSegs")?),
            ("tun_queue_drops", tun_queue_drops?.iter().sum()),
        ]);
        if let Some(status) = tunnel.gateway.status()? {
            let shards = || status.shards.iter().map(|report| &report.counters);
            // Of inner packets: what it dropped, and the bytes that it passed on.
            counts.insert("gateway_drops", shards().map(|counters| counters.drops.total()).sum());
            counts.insert("inner_bytes", shards().map(|counters| counters.up_bytes + counters.down_bytes).sum());
        }
        Ok(counts)
    }
}

/// Bits a second that arrived between two moments: from the first arrival after `from` to the last before `until`.
fn rate(arrivals: &[(Instant, u64)], from: Instant, until: Instant) -> Option<f64> {
    let mut inside = arrivals.iter().filter(|(at, _)| (from..=until).contains(at));
    let (first, last) = (inside.next()?, inside.next_back()?);
    let seconds = (last.0 - first.0).as_secs_f64();
    (seconds > 0.0).then(|| (last.1 - first.1) as f64 * 8.0 / seconds)
}

fn columns(limit: f64) -> [Column<Run>; 11] {
    let time = |ns: f64| nanoseconds(ns as u64);
    let p99 = |run: &Run| Some(run.p99_ns as f64);
    // Of the pings of all runs together.
    let trips = |cell: &Cell<Run>, figure: fn(&Latencies) -> u64| {
        let mut trips = RoundTrips::default();
        cell.rounds.iter().for_each(|run| trips.add(&run.trips));
        Spread::of([figure(&trips.latencies()?) as f64])
    };
    let counted = |name: &'static str| {
        move |cell: &Cell<Run>| {
            let counts = cell.rounds.iter().map(|run| run.counts.get(name).copied());
            Spread::of([counts.sum::<Option<u64>>()? as f64])
        }
    };
    [
        Column::new("p50_ns", "p50", time, move |cell| trips(cell, |trips| trips.p50_ns)),
        Column::new("p99_ns", "p99", time, move |cell| trips(cell, |trips| trips.p99_ns)),
        Column::new("p999_ns", "p99.9", time, move |cell| trips(cell, |trips| trips.p999_ns)),
        Column::new("p99_ns_of_each", "p99 of each", time, move |cell| cell.each(p99)),
        // The p99 of ours as a multiple of this one's, round by round.
        Column::new("ours_to_this", "ours", three_digits, |cell: &Cell<Run>| {
            cell.ratio(cell.ours, |run| Some(1.0 / run.p99_ns as f64))
        }),
        Column::new("lost_pings", "lost", whole, |cell| cell.total(|run: &Run| run.lost_pings)),
        Column::new("bulk_to_limit", "bulk of limit", percent, move |cell| {
            cell.each(|run: &Run| Some(run.bulk_bits_per_second / limit))
        }),
        // All inner packets that the gateway passed on, both directions together.
        Column::new("passed_to_limit", "passed of limit", percent, move |cell| {
            cell.each(|run: &Run| Some(*run.counts.get("inner_bytes")? as f64 * 8.0 / run.seconds / limit))
        }),
        Column::new("ce_marks", "CE", whole, counted("ce_marks")),
        Column::new("gateway_drops", "dropped", whole, counted("gateway_drops")),
        Column::new("resent_segments", "resent", whole, counted("resent_segments")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::figures;

    #[test]
    fn the_rate_is_that_of_the_time_between() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // A burst first, then 1000 bytes in 100 ms.
        let arrivals = [(at(0), 0), (at(100), 900_000), (at(200), 901_000), (at(300), 902_000), (at(400), 990_000)];
        assert_eq!(rate(&arrivals, at(50), at(350)), Some(80_000.0));
        assert_eq!(rate(&arrivals, at(150), at(250)), None);
    }

    #[test]
    fn pings_of_all_runs_count_together_and_a_peer_tells_nothing_of_itself() {
        let run = |ns: u64, counts: &[(&'static str, u64)]| {
            let mut run = Run { seconds: 2.0, p99_ns: ns, bulk_bits_per_second: 8e6, ..Run::default() };
            (0..100).for_each(|_| run.trips.record(ns));
            run.counts.extend(counts.iter().copied());
            run
        };
        let counts = [("inner_bytes", 2_000_000), ("ce_marks", 3)];
        let figures = figures(&columns(1e7), vec![vec![run(10, &counts), run(30, &counts)], vec![run(1, &[])]]);
        let of = |at: usize| [0, 1, 3, 6, 7, 8, 9].map(|column: usize| figures[at][column]);
        assert_eq!(of(0), [Some(10.0), Some(30.0), Some(20.0), Some(0.8), Some(0.8), Some(6.0), None]);
        assert_eq!(of(1)[4..], [None; 3]);
    }
}
