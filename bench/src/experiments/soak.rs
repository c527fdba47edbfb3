//! `soak`: hours of connections that come and go at a fixed rate, under traffic. Memory, descriptors, addresses and sessions of the gateway
//! must not grow with them.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::load::experiment::Experiment;
use crate::load::result::{LoadResult, Sample};
use crate::load::scenario::{CONNECTIONS_MAX, Scenario, Size, SizeName, TrafficKind, TrafficPlan, parse_duration};
use crate::load::verdict::{bytes_per_connection, warm};
use crate::measure::record::{Output, table};
use crate::measure::units::{bytes, count, signed};
use crate::programs::Gateway;

/// How often the JSON file is written meanwhile.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// Growth of memory for each connection that came and went, in bytes, from which on it is a leak.
const GROWTH_BYTES_MAX: f64 = 512.0;
/// So many connections must have come and gone for it to be told from the noise of the allocator.
const CHURNED_MIN: u64 = 5_000;
/// Growth of the number of descriptors that is none: files that happen to be open.
const DESCRIPTORS_GROWTH_MAX: i64 = 8;
/// Packets a second of each connection with traffic, each way.
const PACKETS_PER_SECOND: f64 = 5.0;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long, for example "8 h".
    #[arg(long, value_name = "TIME", default_value = "1 h", value_parser = parse_duration)]
    duration: Duration,
    /// The gateway: `tollgate`, `quincy-server`, or the path of either.
    #[arg(long, value_name = "NAME|PATH", default_value = "tollgate")]
    gateway: String,
    /// How many users, with one connection each. Half of them have traffic.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(2..=i64::from(CONNECTIONS_MAX)))]
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

/// What a soak came to.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    load: LoadResult,
    /// Connections that came and went after the warm-up.
    churned: u64,
    /// Growth of the gateway's memory for each of them: slope of the samples.
    bytes_per_churned_connection: f64,
    /// Growth of the gateway's open descriptors over the same time.
    descriptors_growth: i64,
    /// Addresses held, and sessions, at the end beyond the connections there were; `None` of a peer.
    addresses_left: Option<i64>,
    sessions_left: Option<i64>,
}

pub fn run(options: &Options) -> Result<()> {
    let scenario = options.scenario();
    let gateway = Gateway::named(&options.gateway)?;
    let plan = format!(
        "{} connections of as many users, {} of which come and go a second, for {} s",
        count(scenario.users.count.into()),
        scenario.trouble.churn_per_second,
        count(scenario.duration.as_secs())
    );
    let mut experiment = Experiment::start(&options.output, vec![gateway.clone()], &plan)?;
    let mut recorded_at = Instant::now();
    let load = experiment.load("soak", &scenario, &gateway, &mut |recording, so_far| {
        if recorded_at.elapsed() < RECORD_INTERVAL {
            return Ok(());
        }
        recorded_at = Instant::now();
        recording.write("soak", &Figures::of(so_far.clone()))
    })?;
    let figures = Figures::of(load);
    experiment.failures.extend(figures.failures());
    experiment.finish("soak", &figures.table(), &figures)
}

impl Options {
    fn scenario(&self) -> Scenario {
        let (duration, users, churn) =
            if self.quick { (Duration::from_secs(3), 40, 5) } else { (self.duration, self.users, self.churn) };
        let mut scenario = Scenario::new("soak", users, duration);
        scenario.trouble.churn_per_second = churn.into();
        let (size, rate) = (Size::Named(SizeName::Imix), PACKETS_PER_SECOND);
        let calls = TrafficPlan::new("calls", users / 2, TrafficKind::Constant);
        scenario.traffic = vec![TrafficPlan { size, rate, ..calls }];
        // Some are always in between.
        scenario.demand.all_connected = false;
        scenario
    }
}

impl Figures {
    /// So far or in the end.
    fn of(load: LoadResult) -> Self {
        let warm = warm(&load.samples);
        let growth = |figure: fn(&Sample) -> u64| match (warm.first(), warm.last()) {
            (Some(first), Some(last)) => figure(last) as i64 - figure(first) as i64,
            _ => 0,
        };
        let left = |held: u64, wanted: u64| held as i64 - wanted as i64;
        Figures {
            churned: growth(|sample| sample.handshakes) as u64,
            bytes_per_churned_connection: bytes_per_connection(&load.samples).unwrap_or(0.0),
            descriptors_growth: growth(|sample| sample.gateway_descriptors),
            addresses_left: load.shards.map(|shards| left(shards.addresses_held, shards.connections)),
            sessions_left: load.shards.map(|shards| left(shards.sessions, shards.connections)),
            load,
        }
    }

    /// What has grown that must not.
    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.churned >= CHURNED_MIN && self.bytes_per_churned_connection > GROWTH_BYTES_MAX {
            failures.push(format!(
                "memory grew by {} for each connection that came and went: up to {} may be noise",
                bytes(self.bytes_per_churned_connection),
                bytes(GROWTH_BYTES_MAX)
            ));
        }
        if self.descriptors_growth > DESCRIPTORS_GROWTH_MAX {
            failures.push(format!("{} descriptors more are open than after the warm-up", self.descriptors_growth));
        }
        for (left, what) in [(self.addresses_left, "addresses"), (self.sessions_left, "sessions")] {
            if let Some(left) = left.filter(|left| *left > 0) {
                failures.push(format!("{} {what} are held beyond the connections there are", count(left as u64)));
            }
        }
        failures
    }

    fn table(&self) -> comfy_table::Table {
        let load = &self.load;
        let memory = load.samples.last().map_or(0, |sample| sample.gateway_memory_bytes);
        let growth = match self.churned {
            churned if churned < CHURNED_MIN => {
                format!("not judged: only {} came and went, {} are needed", count(churned), count(CHURNED_MIN))
            }
            _ => bytes(self.bytes_per_churned_connection),
        };
        let told = |left: Option<i64>| left.map_or_else(|| "not told".to_owned(), signed);
        let rows = [
            ("seconds", count(load.seconds as u64)),
            ("connections that came and went", count(load.churn.closed)),
            ("handshakes that failed", count(load.churn.failed)),
            ("connections that were lost", count(load.churn.lost)),
            ("packets unaccounted for, up", signed(load.up.unaccounted)),
            ("packets unaccounted for, down", signed(load.down.unaccounted)),
            ("memory of the gateway at the end", bytes(memory as f64)),
            ("growth of memory for each connection, after warm-up", growth),
            ("growth of descriptors, after warm-up", signed(self.descriptors_growth)),
            ("addresses held too many", told(self.addresses_left)),
            ("sessions too many", told(self.sessions_left)),
        ];
        table(1, &["what", ""], rows.map(|(what, figure)| [what.to_owned(), figure]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::load_result;

    #[test]
    fn only_what_grows_after_the_warm_up_is_a_leak() {
        let samples = |bytes: u64, descriptors: u64| {
            let sample = |second: u64| Sample {
                seconds: second as f64,
                handshakes: second * 1000,
                gateway_memory_bytes: 9_000_000 + second * 1000 * bytes,
                gateway_descriptors: 20 + second * descriptors,
                ..Sample::default()
            };
            (0..20).map(sample).collect()
        };
        let soak =
            |bytes, descriptors| Figures::of(LoadResult { samples: samples(bytes, descriptors), ..load_result(1.0) });
        assert_eq!(soak(100, 0).failures(), Vec::<String>::new());
        assert!(soak(1024, 0).failures()[0].starts_with("memory grew by 1.02 kB"), "{:?}", soak(1024, 0).failures());
        assert_eq!(soak(0, 1).failures(), ["14 descriptors more are open than after the warm-up"]);
        let mut held = soak(0, 0);
        held.sessions_left = Some(3);
        assert_eq!(held.failures(), ["3 sessions are held beyond the connections there are"]);
        assert!(Figures::of(load_result(1.0)).table().to_string().contains("not judged"));
    }
}
