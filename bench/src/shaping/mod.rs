//! `tollgate-bench shaping`: how usable the tunnel of a limited user stays while bulk traffic fills it.
//!
//! A user is held at a rate by its `bandwidth_limit`. TCP of the kernel sends as much as it can, one connection, through the tunnel; pings go
//! through the same tunnel. What they wait is what the gateway's queue makes them wait. This module judges nothing: it says beside each
//! figure what it is to be.

mod counters;
mod site;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use tollgate::lab;

use self::counters::Counts;
use self::site::{Bulk, Measured, Programs, Site, SiteFiles, WARM_UP_MAX};
use self::table::Table;
use crate::contenders::{self, ContenderOptions};
use crate::deployment::{Contender, usable_cpus};
use crate::load::latencies::RoundTrips;
use crate::peers::{self, Places};
use crate::progress::Progress;
use crate::record::{Output, print};
use crate::results::{Direction, Finding, ShapingPoint, ShapingResult, ShapingRun};

const CLIENT: &str = "quincy-client";

/// The time from one ping to the next.
const PING_INTERVAL: Duration = Duration::from_millis(10);

/// The kinds of bulk traffic, in the order in which they are measured.
const KINDS: [(Direction, bool); 4] =
    [(Direction::Down, false), (Direction::Up, false), (Direction::Down, true), (Direction::Up, true)];

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    gateways: ContenderOptions,
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

/// How it is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    mbps: u16,
    congestion: String,
    seconds: u16,
    pairs: u16,
    warm_up: Duration,
}

/// Measures, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that bytes were corrupted.
pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let gateways = options.gateways.find()?;
    let client = Places::of_this_process().find(CLIENT, options.client.as_deref(), "--client")?;
    let client_version = peers::embedded_version(&client, CLIENT)?;
    let versions: Vec<String> = gateways.iter().map(contenders::version).collect::<Result<_>>()?;
    let recording = options.output.start(versions.into_iter().chain([client_version.clone()]))?;
    lab::prepare()?;
    lab::require_tun()?;
    let files = SiteFiles::write(plan.mbps)?;
    print(&format!("{}{}", recording.heading(), plan.heading(&client_version)))?;
    let programs = Programs::on(client, &usable_cpus()?)?;
    let points = plan.points(&gateways, &files, &programs)?;
    let result = plan.result(client_version, points);
    print(&format!("\n{}", Table(&result)))?;
    let corrupt =
        result.points.iter().flat_map(|point| &point.runs).filter(|run| run.corrupt_at_byte.is_some()).count();
    recording.write(Finding::Shaping(result))?;
    if corrupt > 0 {
        bail!("bytes were corrupted in {corrupt} transfers");
    }
    Ok(())
}

impl Plan {
    fn of(options: &Options) -> Self {
        let Options { mbps, seconds, pairs, quick, .. } = *options;
        let congestion = options.congestion.clone();
        match quick {
            true => Plan { mbps, congestion, seconds: 1, pairs: 1, warm_up: Duration::from_millis(500) },
            false => Plan { mbps, congestion, seconds, pairs, warm_up: WARM_UP_MAX },
        }
    }

    fn heading(&self, client: &str) -> String {
        let Plan { mbps, congestion, seconds, pairs, .. } = self;
        format!(
            "a user with a bandwidth limit of {mbps} mbps, with {client}: one connection of bulk TCP ({congestion}), and a ping every {} ms\n\
             {pairs} pair{} of {seconds} s for each kind of bulk traffic\n",
            PING_INTERVAL.as_millis(),
            if *pairs == 1 { "" } else { "s" }
        )
    }

    /// Every kind of bulk traffic with every gateway, in turn.
    fn points(&self, gateways: &[Contender], files: &SiteFiles, programs: &Programs) -> Result<Vec<ShapingPoint>> {
        let mut progress = Progress::new();
        let mut points = Points::default();
        for pair in 1..=self.pairs {
            for (direction, ecn) in KINDS {
                let congestion = self.congestion.clone();
                let bulk = Bulk { direction, ecn, congestion, warm_up: self.warm_up, seconds: self.seconds };
                for gateway in gateways {
                    let kind = points.point(gateway.name, direction, ecn).kind();
                    let place = format!("pair {pair} of {}: {kind}, {}", self.pairs, gateway.name);
                    progress.step(&place);
                    let measured = Site::start(files, gateway, programs).and_then(|site| site.measure(&bulk));
                    let measured = measured.with_context(|| place)?;
                    progress.clear();
                    points.add(gateway.name, &bulk, &measured);
                }
            }
        }
        Ok(points.finish())
    }

    fn result(&self, client: String, points: Vec<ShapingPoint>) -> ShapingResult {
        ShapingResult {
            limit_bits_per_second: f64::from(self.mbps) * 1e6,
            ping_interval_seconds: PING_INTERVAL.as_secs_f64(),
            congestion_control: self.congestion.clone(),
            seconds: self.seconds,
            client,
            points,
        }
    }
}

/// What has been measured so far.
#[derive(Debug, Default)]
struct Points(Vec<(ShapingPoint, RoundTrips)>);

impl Points {
    fn point(&mut self, gateway: &str, direction: Direction, ecn: bool) -> &ShapingPoint {
        &self.entry(gateway, direction, ecn).0
    }

    fn add(&mut self, gateway: &str, bulk: &Bulk, measured: &Measured) {
        let (point, round_trips) = self.entry(gateway, bulk.direction, bulk.ecn);
        round_trips.merge(&round_trips_of(&measured.pings.rtt_ns));
        point.runs.push(run_of(measured));
    }

    /// The points, with the pings of all their runs.
    fn finish(self) -> Vec<ShapingPoint> {
        let finished = self.0.into_iter();
        finished
            .map(|(point, trips)| ShapingPoint { round_trip: trips.latencies().unwrap_or_default(), ..point })
            .collect()
    }

    fn entry(&mut self, gateway: &str, direction: Direction, ecn: bool) -> &mut (ShapingPoint, RoundTrips) {
        let is_it = |(point, _): &(ShapingPoint, RoundTrips)| {
            (point.gateway.as_str(), point.direction, point.ecn) == (gateway, direction, ecn)
        };
        let index = self.0.iter().position(is_it).unwrap_or_else(|| {
            let (gateway, runs) = (gateway.to_owned(), Vec::new());
            let point = ShapingPoint { gateway, direction, ecn, round_trip: Default::default(), runs };
            self.0.push((point, RoundTrips::default()));
            self.0.len() - 1
        });
        &mut self.0[index]
    }
}

fn run_of(measured: &Measured) -> ShapingRun {
    let Measured { pings, counts, bulk_bits_per_second, seconds, corrupt_at_byte } = measured;
    let Counts { ce_marks, resent_segments, tun_queue_drops, gateway } = counts;
    ShapingRun {
        p99_ns: pings.rtt_percentile_ns(99.0),
        pings: pings.sent.into(),
        lost_pings: pings.lost().into(),
        bulk_bits_per_second: *bulk_bits_per_second,
        inner_bits_per_second: gateway.as_ref().map(|counts| counts.inner_bytes as f64 * 8.0 / seconds),
        ce_marks: *ce_marks,
        resent_segments: *resent_segments,
        gateway_drops: gateway.as_ref().map(|counts| counts.drops.clone()),
        tun_queue_drops: *tun_queue_drops,
        corrupt_at_byte: *corrupt_at_byte,
    }
}

fn round_trips_of(rtt_ns: &Histogram<u64>) -> RoundTrips {
    let mut trips = RoundTrips::default();
    for step in rtt_ns.iter_recorded() {
        (0..step.count_at_value()).for_each(|_| trips.record(step.value_iterated_to()));
    }
    trips
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.options)
    }

    fn measured(rtt_ns: &[u64]) -> Measured {
        let mut pings = site::tests::no_pings();
        rtt_ns.iter().for_each(|ns| pings.rtt_ns.record(*ns).unwrap());
        (pings.sent, pings.received) = (rtt_ns.len() as u32 + 1, rtt_ns.len() as u32);
        let gateway = Some(counters::GatewayCounts { inner_bytes: 250_000, drops: [("full".to_owned(), 2)].into() });
        let counts = Counts { ce_marks: 3, resent_segments: 4, tun_queue_drops: 0, gateway };
        Measured { pings, counts, bulk_bits_per_second: 1.8e7, seconds: 0.5, corrupt_at_byte: None }
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let options = parsed("shaping --mbps 5 --seconds 2 --pairs 1").unwrap();
        let congestion = "reno".to_owned();
        assert_eq!(Plan::of(&options), Plan { mbps: 5, congestion, seconds: 2, pairs: 1, warm_up: WARM_UP_MAX });
        assert_eq!(Plan::of(&parsed("shaping --quick").unwrap()).seconds, 1);
        for wrong in ["--mbps 0", "--seconds 0", "--seconds 601", "--pairs 0", "--quick --pairs 2"] {
            assert!(parsed(&format!("shaping {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn runs_of_the_same_kind_make_one_point_with_all_their_pings() {
        let mut points = Points::default();
        let bulk = |ecn| {
            let congestion = "reno".to_owned();
            Bulk { direction: Direction::Down, ecn, congestion, warm_up: Duration::ZERO, seconds: 1 }
        };
        points.add("a", &bulk(false), &measured(&[1_000_000, 2_000_000]));
        points.add("b", &bulk(false), &measured(&[5_000_000]));
        points.add("a", &bulk(false), &measured(&[3_000_000]));
        points.add("a", &bulk(true), &measured(&[4_000_000]));
        let points = points.finish();
        let seen: Vec<_> =
            points.iter().map(|p| (p.gateway.as_str(), p.ecn, p.runs.len(), p.round_trip.count)).collect();
        assert_eq!(seen, [("a", false, 2, 3), ("b", false, 1, 1), ("a", true, 1, 1)]);
        assert!(points[0].round_trip.max_ns.abs_diff(3_000_000) < 10_000);
    }

    #[test]
    fn a_run_says_what_the_gateway_passed_on_and_what_was_lost() {
        let run = run_of(&measured(&[1_000_000]));
        assert_eq!((run.inner_bits_per_second, run.pings, run.lost_pings), (Some(4e6), 2, 1));
        assert_eq!((run.ce_marks, run.resent_segments, run.gateway_drops.unwrap()["full"]), (3, 4, 2));
    }
}
