//! `tollgate-bench soak`: hours of connections that come and go at a fixed rate, under traffic. Memory, descriptors, addresses and sessions
//! of the gateway must not grow with them.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::contenders;
use crate::experiment::{Experiment, scenario, traffic};
use crate::load::verdict::bytes_per_connection;
use crate::record::{Output, print};
use crate::results::{Finding, LoadResult, Sample, SoakResult};
use crate::scenario::{ADDRESSES_MAX, DURATION, Scenario, Sizes, TrafficKind, TrafficPlan, parse_duration};
use crate::units::{bytes, count, signed};

/// How often the JSON file is written meanwhile.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// The share of the time at whose end a gateway has allocated what it needs.
const WARM_UP: f64 = 0.25;
/// Growth of memory for each connection that came and went, in bytes, from which on it is a leak.
const GROWTH_BYTES_MAX: f64 = 512.0;
/// So many connections must have come and gone for it to be told from the noise of the allocator.
const CHURNED_MIN: u64 = 5_000;
/// Growth of the number of descriptors that is none: files that happen to be open.
const DESCRIPTORS_GROWTH_MAX: i64 = 8;
/// Packets a second of each connection with traffic, each way.
const PACKETS_PER_SECOND: f64 = 5.0;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long, for example "8 h": 1 s to 6 d.
    #[arg(long, value_name = "TIME", default_value = "1 h", value_parser = duration)]
    duration: Duration,
    /// The gateway: `tollgate`, `quincy-server`, or the path of either.
    #[arg(long, value_name = "NAME|PATH", default_value = "tollgate")]
    gateway: String,
    /// How many users, with one connection each. Half of them have traffic.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(2..=i64::from(ADDRESSES_MAX)))]
    users: u32,
    /// How many connections end and are made anew, a second.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    churn: u32,
    /// Forty users, for three seconds: whether everything works.
    #[arg(long, conflicts_with_all = ["duration", "users", "churn"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// What came of the gateway's resources.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Growth {
    /// Connections that came and went after the warm-up.
    churned: u64,
    /// Bytes for each of them.
    bytes_per_churned_connection: f64,
    /// Descriptors meanwhile.
    descriptors: i64,
}

/// Runs, prints the table, and writes the JSON file, every minute and at the end.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, what has grown.
pub fn run(options: &Options) -> Result<()> {
    let scenario = options.scenario();
    let gateway = contenders::named(&options.gateway)?;
    let mut experiment = Experiment::start(&options.output, std::slice::from_ref(&gateway))?;
    print(&format!(
        "{} connections of as many users, {} of which come and go a second, for {} s\n",
        count(scenario.users.count.into()),
        scenario.trouble.churn_per_second,
        count(scenario.duration.as_secs())
    ))?;
    let mut recorded_at = Instant::now();
    let load = experiment.observed_load("soak", &scenario, &gateway, &mut |recording, so_far| {
        if recorded_at.elapsed() < RECORD_INTERVAL {
            return Ok(());
        }
        recorded_at = Instant::now();
        recording.write(Finding::Soak(result(so_far.clone()).0))
    })?;
    let (result, growth) = result(load);
    for failure in failures(&result, growth) {
        experiment.fail(failure);
    }
    experiment.finish(&Table { result: &result, growth }.to_string(), Finding::Soak(result))
}

impl Options {
    fn scenario(&self) -> Scenario {
        let (duration, users, churn) =
            if self.quick { (Duration::from_secs(3), 40, 5) } else { (self.duration, self.users, self.churn) };
        let mut scenario = scenario("soak", users, duration);
        scenario.trouble.churn_per_second = churn.into();
        let kind = TrafficKind::Constant { packets_per_second: PACKETS_PER_SECOND, train_packets: 1 };
        let sizes = Sizes::imix(scenario.mtu_bytes());
        scenario.traffic = vec![TrafficPlan { sizes, ..traffic(&scenario, "calls", users / 2, kind) }];
        // Some are always on the way.
        scenario.demands.all_connected = false;
        scenario
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if DURATION.contains(&duration) { Ok(duration) } else { Err("which is out of range".to_owned()) }
}

/// The figures of a soak, so far or in the end.
fn result(load: LoadResult) -> (SoakResult, Growth) {
    let growth = Growth::of(&load.samples);
    let left = |held: u64, wanted: u64| held as i64 - wanted as i64;
    let (addresses_left, sessions_left) = load.shards.map_or((None, None), |shards| {
        let addresses = left(shards.addresses_held, shards.connections);
        (Some(addresses), Some(left(shards.sessions, shards.connections)))
    });
    let result = SoakResult {
        bytes_per_churned_connection: growth.bytes_per_churned_connection,
        descriptors_growth: growth.descriptors,
        addresses_left,
        sessions_left,
        load,
    };
    (result, growth)
}

impl Growth {
    /// From the end of the warm-up on; nothing, of too few samples.
    fn of(samples: &[Sample]) -> Self {
        let end = samples.last().map_or(0.0, |sample| sample.seconds);
        let warm: Vec<&Sample> = samples.iter().filter(|sample| sample.seconds >= end * WARM_UP).collect();
        let (Some(first), Some(last)) = (warm.first(), warm.last()) else {
            return Growth { churned: 0, bytes_per_churned_connection: 0.0, descriptors: 0 };
        };
        Growth {
            churned: last.handshakes - first.handshakes,
            bytes_per_churned_connection: bytes_per_connection(samples).unwrap_or(0.0),
            descriptors: last.gateway_descriptors as i64 - first.gateway_descriptors as i64,
        }
    }
}

/// What has grown that must not.
fn failures(result: &SoakResult, growth: Growth) -> Vec<String> {
    let mut failures = Vec::new();
    if growth.churned >= CHURNED_MIN && growth.bytes_per_churned_connection > GROWTH_BYTES_MAX {
        failures.push(format!(
            "memory grew by {} for each connection that came and went: up to {} may be noise",
            bytes(growth.bytes_per_churned_connection),
            bytes(GROWTH_BYTES_MAX)
        ));
    }
    if growth.descriptors > DESCRIPTORS_GROWTH_MAX {
        failures.push(format!("{} descriptors more are open than after the warm-up", growth.descriptors));
    }
    for (left, what) in [(result.addresses_left, "addresses"), (result.sessions_left, "sessions")] {
        if let Some(left) = left.filter(|left| *left > 0) {
            failures.push(format!("{} {what} are held beyond the connections there are", count(left as u64)));
        }
    }
    failures
}

/// What a soak came to, for people.
struct Table<'a> {
    result: &'a SoakResult,
    growth: Growth,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table { result, growth } = self;
        let load = &result.load;
        let mut line = |label: &str, figure: String| writeln!(f, "{label:<52}{figure:>14}");
        line("seconds", count(load.seconds as u64))?;
        line("connections that came and went", count(load.churn.closed))?;
        line("handshakes that failed", count(load.churn.failed))?;
        line("connections that were lost", count(load.churn.lost))?;
        line("packets unaccounted for, up", signed(load.up.unaccounted))?;
        line("packets unaccounted for, down", signed(load.down.unaccounted))?;
        let memory = load.samples.last().map_or(0, |sample| sample.gateway_memory_bytes);
        line("memory of the gateway at the end", bytes(memory as f64))?;
        if growth.churned < CHURNED_MIN {
            line("growth of memory", "not judged".to_owned())?;
            writeln!(
                f,
                "  only {} connections came and went after the warm-up: {} are needed",
                count(growth.churned),
                count(CHURNED_MIN)
            )?;
        } else {
            line("growth of memory for each of them, after warm-up", bytes(growth.bytes_per_churned_connection))?;
        }
        let mut line = |label: &str, figure: String| writeln!(f, "{label:<52}{figure:>14}");
        line("growth of descriptors, after warm-up", signed(growth.descriptors))?;
        for (label, left) in
            [("addresses held too many", result.addresses_left), ("sessions too many", result.sessions_left)]
        {
            line(label, left.map_or_else(|| "not told".to_owned(), signed))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::fixture::load_result;
    use crate::results::ShardFigures;

    /// A hundred samples of a gateway that keeps `leak_bytes` of each of 1,000 connections a second, after a warm-up that costs 5 MB.
    fn samples(leak_bytes: u64) -> Vec<Sample> {
        let sample = |second: u64| Sample {
            seconds: second as f64,
            handshakes: second * 1_000,
            // The allocator's noise.
            gateway_memory_bytes: 20_000_000
                + second.min(20) * 250_000
                + second * 1_000 * leak_bytes
                + second % 3 * 50_000,
            gateway_descriptors: 20 + second % 2,
            ..Sample::default()
        };
        (0..100).map(sample).collect()
    }

    fn soaked(samples: Vec<Sample>) -> (SoakResult, Growth) {
        let shards = ShardFigures { addresses_held: 40, connections: 40, sessions: 40, ..ShardFigures::default() };
        result(LoadResult { samples, shards: Some(shards), ..load_result(1e6) })
    }

    #[test]
    fn a_kilobyte_for_each_connection_is_a_leak_and_noise_is_none() {
        let (result, growth) = soaked(samples(1_024));
        assert!((1_000.0..1_050.0).contains(&result.bytes_per_churned_connection), "{growth:?}");
        let told = failures(&result, growth);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("memory grew by 1.02 kB for each connection"), "{told:?}");
        let (result, growth) = soaked(samples(0));
        assert!(growth.bytes_per_churned_connection.abs() < 10.0 && failures(&result, growth).is_empty(), "{growth:?}");
    }

    #[test]
    fn memory_is_not_judged_by_a_few_connections() {
        let (result, growth) = soaked(samples(1_024).into_iter().take(5).collect());
        assert!(growth.churned < CHURNED_MIN && failures(&result, growth).is_empty());
        assert!(Table { result: &result, growth }.to_string().contains("not judged"));
        assert_eq!(Growth::of(&[]).churned, 0);
    }

    #[test]
    fn what_else_is_left_over_fails() {
        let leaking = |sample: Sample| Sample { gateway_descriptors: sample.handshakes / 1_000, ..sample };
        let (mut result, growth) = soaked(samples(0).into_iter().map(leaking).collect());
        (result.addresses_left, result.sessions_left) = (Some(3), Some(1));
        let told = failures(&result, growth);
        assert_eq!(
            told,
            [
                "74 descriptors more are open than after the warm-up",
                "3 addresses are held beyond the connections there are",
                "1 sessions are held beyond the connections there are"
            ]
        );
    }

    #[test]
    fn the_duration_is_read_as_in_a_scenario() {
        assert_eq!(duration("8 h"), Ok(Duration::from_secs(28_800)));
        assert!(duration("8").is_err() && duration("9 d").is_err());
    }
}
