//! `shaping`: how usable the tunnel of a limited user stays while bulk traffic fills it.
//!
//! A user is held at a rate by its `bandwidth_limit`. TCP of the kernel sends as much as it can, one connection, through the tunnel; pings go
//! through the same tunnel. What they wait is what the gateway's queue makes them wait.

use std::panic;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tollgate::gateway::Status;
use tollgate_testkit::bulk::{self, BulkReport};
use tollgate_testkit::deploy::{CLIENT_TUN, GATEWAY_TUN};
use tollgate_testkit::ping::{PingPlan, PingReport, ping};
use tollgate_testkit::{SERVER_V4, Topology};

use super::tunnel::{CLIENT, Placement, Tunnel, TunnelFiles};
use crate::deploy::{counter, queue_drops};
use crate::load::scenario::Direction;
use crate::measure::cpus;
use crate::measure::progress::Progress;
use crate::measure::record::{Output, table};
use crate::measure::round_trips::{Latencies, RoundTrips};
use crate::measure::spread::Spread;
use crate::measure::units::{bits_per_second, count, nanoseconds, percent};
use crate::programs::{self, Gateway, GatewayOptions};

const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How long the last ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// For how long bulk runs before anything is measured: until the burst, a second of the rate, is used up and TCP has found its window.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long bulk goes on after the last ping.
const TAIL: Duration = Duration::from_millis(300);
/// What a limited user's ping is to be at most, 99 % of the time: of bulk that heeds losses only, and of bulk that heeds marks.
const P99_NS_MAX: [u64; 2] = [50_000_000, 10_000_000];
/// The kinds of bulk traffic, each with ECN or without, in the order in which they are measured.
const KINDS: [(Direction, bool); 4] =
    [(Direction::Down, false), (Direction::Up, false), (Direction::Down, true), (Direction::Up, true)];

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: GatewayOptions,
    /// The program of the client, quincy-client [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
    /// The user's bandwidth limit, in megabits a second.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    mbps: u16,
    /// The congestion control of bulk TCP, as the kernel names it. A namespace may use those that the machine allows; reno always.
    #[arg(long, value_name = "NAME", default_value = "reno")]
    congestion: String,
    /// For how many seconds to ping in each run.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How many times each gateway runs with each kind of bulk traffic.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// One pair of runs of a second each: whether everything works.
    #[arg(long, conflicts_with_all = ["seconds", "pairs"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
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
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Run {
    p99_ns: u64,
    pings: u64,
    lost_pings: u64,
    /// TCP payload that arrived.
    bulk_bits_per_second: f64,
    /// Inner packets that the gateway passed on, both directions together; `None` of a peer, which does not tell.
    inner_bits_per_second: Option<f64>,
    counts: Counts,
    corrupt_at_byte: Option<u64>,
}

/// What kernels and gateway counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Counts {
    /// Packets that the receiver of the bulk traffic saw marked "congestion experienced".
    ce_marks: u64,
    /// TCP segments that its sender sent again.
    resent_segments: u64,
    /// Packets for which a TUN interface's queue had no room.
    tun_queue_drops: u64,
    /// Inner packets that a gateway of ours dropped, and bytes that it passed on.
    gateway_drops: u64,
    inner_bytes: u64,
}

/// One gateway under one kind of bulk traffic.
#[derive(Debug, Serialize)]
struct Point {
    gateway: &'static str,
    direction: Direction,
    ecn: bool,
    /// The pings of all runs together.
    round_trip: Latencies,
    /// One for each pair.
    runs: Vec<Run>,
    #[serde(skip)]
    trips: RoundTrips,
}

/// Measures. Fails after all results when bytes were corrupted.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
pub fn run(options: &Options) -> Result<()> {
    let Options { mbps, seconds, pairs, quick, ref congestion, .. } = *options;
    let (seconds, pairs, warm_up) = if quick { (1, 1, Duration::from_millis(500)) } else { (seconds, pairs, WARM_UP) };
    let gateways = options.gateways.find()?;
    let client = programs::find(CLIENT, options.client.as_deref(), "--client")?;
    let mut versions: Vec<String> = gateways.iter().map(Gateway::version).collect::<Result<_>>()?;
    versions.push(programs::embedded_version(&client, CLIENT)?);
    tollgate_testkit::prepare()?;
    tollgate_testkit::require_tun()?;
    let mut recording = options.output.start(versions)?;
    recording.print(&format!(
        "a user with a bandwidth limit of {mbps} mbps: one connection of bulk TCP ({congestion}), and a ping every {} ms; {pairs} pair(s) of {seconds} s \
         for each kind of bulk traffic",
        PING_INTERVAL.as_millis()
    ))?;
    let files = TunnelFiles::write(&format!("bandwidth_limit = \"{mbps} mbps\""))?;
    let (gateway_cpus, load_cpus) = cpus::split(&[], &[])?;
    let placement = Placement { gateway_cpus, load_cpus };
    let mut points: Vec<Point> = Vec::new();
    for (direction, ecn) in KINDS {
        points.extend(gateways.iter().map(|gateway| Point::new(gateway.name, direction, ecn)));
    }
    let mut progress = Progress::new();
    let duration = Duration::from_secs(seconds.into());
    for pair in 1..=pairs {
        for (point, gateway) in points.iter_mut().zip(gateways.iter().cycle()) {
            let place = format!("pair {pair} of {pairs}: {}, {}", point.kind(), gateway.name);
            progress.step(&place);
            let bulk = Bulk { direction: point.direction, ecn: point.ecn, congestion, warm_up, duration };
            let measured = Tunnel::start(&files, gateway, &client, &placement).and_then(|tunnel| bulk.measure(tunnel));
            let (run, pings) = measured.with_context(|| place)?;
            progress.clear();
            point.trips.merge(&pings.rtt_ns);
            point.round_trip = point.trips.latencies().unwrap_or_default();
            point.runs.push(run);
        }
    }
    recording.print(&tables(&points, f64::from(mbps) * 1e6))?;
    recording.write("shaping", &points)?;
    let corrupt = points.iter().flat_map(|point| &point.runs).filter(|run| run.corrupt_at_byte.is_some()).count();
    if corrupt > 0 {
        bail!("bytes were corrupted in {corrupt} transfers");
    }
    Ok(())
}

impl Bulk<'_> {
    /// Runs bulk traffic, and pings meanwhile. Stops client and gateway.
    fn measure(&self, tunnel: Tunnel) -> Result<(Run, PingReport)> {
        for namespace in [&tunnel.topology.clients[0].namespace, &tunnel.topology.network] {
            // Set, not left alone: by default a kernel accepts ECN and does not ask for it, and a namespace has the machine's congestion
            // control. BBR neither fills queues nor heeds marks.
            namespace.sysctl("net/ipv4/tcp_ecn", if self.ecn { "1" } else { "0" })?;
            namespace.sysctl("net/ipv4/tcp_congestion_control", self.congestion)?;
        }
        let read = |tunnel: &Tunnel| Counts::read(&tunnel.topology, self.direction, tunnel.gateway.status()?.as_ref());
        let moving = thread::scope(|scope| -> Result<_> {
            let (transferring, pinging) = (&tunnel, &tunnel);
            let transfer = scope.spawn(move || self.transfer(transferring));
            thread::sleep(self.warm_up);
            let (before, from) = (read(pinging)?, Instant::now());
            let pings = self.ping(pinging)?;
            let (after, until) = (read(pinging)?, Instant::now());
            let (report, arrivals) = transfer.join().unwrap_or_else(|payload| panic::resume_unwind(payload))?;
            Ok((pings, after.since(&before), from, until, report, arrivals))
        });
        let (pings, counts, from, until, report, arrivals) = moving?;
        if pings.received == 0 {
            bail!("none of {} pings was answered while bulk traffic ran", pings.sent);
        }
        let (seconds, is_ours) = ((until - from).as_secs_f64(), tunnel.gateway.status()?.is_some());
        let run = Run {
            p99_ns: pings.rtt_percentile_ns(99.0),
            pings: pings.sent.into(),
            lost_pings: pings.lost().into(),
            bulk_bits_per_second: rate(&arrivals, from, until).context("no bulk traffic arrived")?,
            inner_bits_per_second: is_ours.then(|| counts.inner_bytes as f64 * 8.0 / seconds),
            counts,
            corrupt_at_byte: report.corrupt_at.map(|(_, offset)| offset),
        };
        tunnel.stop()?;
        Ok((run, pings))
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
        let count = self.duration.as_nanos() / PING_INTERVAL.as_nanos();
        let (interval, timeout) = (PING_INTERVAL, PING_TIMEOUT);
        let plan = PingPlan { count: u32::try_from(count)?, interval, timeout, ..PingPlan::new(SERVER_V4.into()) };
        tunnel.topology.clients[0].namespace.run(|| {
            cpus::pin(&tunnel.load_cpus)?;
            Ok(ping(&plan)?)
        })
    }
}

/// Bits a second that arrived between two moments: from the first arrival after `from` to the last before `until`.
fn rate(arrivals: &[(Instant, u64)], from: Instant, until: Instant) -> Option<f64> {
    let mut inside = arrivals.iter().filter(|(at, _)| (from..=until).contains(at));
    let (first, last) = (inside.next()?, inside.next_back()?);
    let seconds = (last.0 - first.0).as_secs_f64();
    (seconds > 0.0).then(|| (last.1 - first.1) as f64 * 8.0 / seconds)
}

impl Counts {
    /// Of one run with bulk traffic in `direction`, so far.
    fn read(topology: &Topology, direction: Direction, status: Option<&Status>) -> Result<Self> {
        let (client, network) = (&topology.clients[0].namespace, &topology.network);
        let (sender, receiver) = if direction == Direction::Up { (client, network) } else { (network, client) };
        let mut counts = Counts {
            // Each packet of an aggregate counts (ip_rcv_core of the kernel).
            ce_marks: counter(receiver, "netstat", "IpExt InCEPkts")?,
            resent_segments: counter(sender, "snmp", "Tcp RetransSegs")?,
            tun_queue_drops: queue_drops(client, CLIENT_TUN)? + queue_drops(&topology.gateway, GATEWAY_TUN)?,
            ..Counts::default()
        };
        for report in status.into_iter().flat_map(|status| &status.shards) {
            counts.inner_bytes += report.counters.up_bytes + report.counters.down_bytes;
            counts.gateway_drops += report.counters.drops.total();
        }
        Ok(counts)
    }

    fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            ce_marks: self.ce_marks - earlier.ce_marks,
            resent_segments: self.resent_segments - earlier.resent_segments,
            tun_queue_drops: self.tun_queue_drops - earlier.tun_queue_drops,
            gateway_drops: self.gateway_drops - earlier.gateway_drops,
            inner_bytes: self.inner_bytes - earlier.inner_bytes,
        }
    }
}

impl Point {
    fn new(gateway: &'static str, direction: Direction, ecn: bool) -> Self {
        let (round_trip, trips) = (Latencies::default(), RoundTrips::default());
        Point { gateway, direction, ecn, round_trip, runs: Vec::new(), trips }
    }

    /// `down, ECN`.
    fn kind(&self) -> String {
        format!("{}, {}", self.direction.name(), if self.ecn { "ECN" } else { "no ECN" })
    }

    fn sum(&self, count: impl Fn(&Run) -> u64) -> u64 {
        self.runs.iter().map(count).sum()
    }

    fn median(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        Spread::of(self.runs.iter().map(figure)).map_or(0.0, |spread| spread.median)
    }
}

/// All points, and how the first gateway's stand beside what is asked of them and beside the others.
fn tables(points: &[Point], limit: f64) -> String {
    let rows = points.iter().map(|point| {
        let trips = &point.round_trip;
        let bulk = point.median(|run| run.bulk_bits_per_second);
        let is_ours = point.runs.iter().all(|run| run.inner_bits_per_second.is_some());
        let told = |text: String| if is_ours { text } else { "-".to_owned() };
        let each = Spread::of(point.runs.iter().map(|run| run.p99_ns as f64));
        [
            point.kind(),
            point.gateway.to_owned(),
            nanoseconds(trips.p50_ns),
            nanoseconds(trips.p99_ns),
            nanoseconds(trips.p999_ns),
            each.map_or(String::new(), |each| each.shown(|ns| nanoseconds(ns as u64))),
            count(point.sum(|run| run.lost_pings)),
            bits_per_second(bulk),
            percent(bulk / limit),
            told(percent(point.median(|run| run.inner_bits_per_second.unwrap_or(0.0)) / limit)),
            count(point.sum(|run| run.counts.ce_marks)),
            told(count(point.sum(|run| run.counts.gateway_drops))),
            count(point.sum(|run| run.counts.resent_segments)),
        ]
    });
    let heading =
        "bulk, gateway, p50, p99, p99.9, p99 of each pair, lost, carried, of limit, passed, CE, dropped, resent";
    let heading: Vec<_> = heading.split(", ").collect();
    let mut text = format!("{}\n", table(2, &heading, rows));
    for ours in points.iter().filter(|point| point.gateway == points[0].gateway) {
        let (p99_ns, max_ns) = (ours.round_trip.p99_ns, P99_NS_MAX[usize::from(ours.ecn)]);
        let verb = if p99_ns < max_ns { "is" } else { "is NOT" };
        text += &format!(
            "\n{}: p99 of {} {verb} under {}: {}",
            ours.kind(),
            ours.gateway,
            nanoseconds(max_ns),
            nanoseconds(p99_ns)
        );
        for other in points.iter().filter(|other| other.kind() == ours.kind() && other.gateway != ours.gateway) {
            let pairs = ours.runs.iter().zip(&other.runs);
            let ratio = Spread::of(pairs.map(|(ours, other)| ours.p99_ns as f64 / other.p99_ns.max(1) as f64));
            let ratio = ratio.map_or(String::new(), |ratio| ratio.shown(|ratio| format!("{ratio:.3}")));
            text += &format!(", {ratio} times that of {}", other.gateway);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn ours_is_held_against_what_is_asked_and_against_the_peer_pair_by_pair() {
        let point = |gateway, ecn, p99_ms: u64| {
            let run = Run { p99_ns: p99_ms * 1_000_000, ..Run::default() };
            let round_trip = Latencies { p99_ns: run.p99_ns, ..Latencies::default() };
            Point { round_trip, runs: vec![run], ..Point::new(gateway, Direction::Down, ecn) }
        };
        let text = tables(
            &[point("tollgate", false, 40), point("quincy-server", false, 200), point("tollgate", true, 11)],
            2e7,
        );
        assert!(
            text.contains(
                "\ndown, no ECN: p99 of tollgate is under 50.0 ms: 40.0 ms, 0.200 times that of quincy-server"
            ),
            "{text}"
        );
        assert!(text.ends_with("\ndown, ECN: p99 of tollgate is NOT under 10.0 ms: 11.0 ms"), "{text}");
    }
}
