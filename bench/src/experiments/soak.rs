//! `soak`: hours of connections that come and go at a fixed rate, under traffic. Memory, descriptors, addresses and sessions of the gateway
//! must not grow with them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::load::experiment::Experiment;
use crate::load::result::{LoadResult, Sample};
use crate::load::scenario::{CONNECTIONS_MAX, Scenario, Size, SizeName, TrafficKind, TrafficPlan, parse_duration};
use crate::load::verdict::{bytes_per_connection, warm};
use crate::measure::record::Output;
use crate::measure::units::{bytes, count};
use crate::programs::Gateway;

/// How often the JSON file is written meanwhile.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);
/// Growth of memory for each connection that came and went, in bytes, from which on it is a leak.
const GROWTH_BYTES_MAX: f64 = 512.0;
/// So many connections must have come and gone for it to be told from the noise of the allocator.
const CHURNED_MIN: u64 = 5_000;
/// Growth of the number of descriptors that is none: files that happen to be open.
const DESCRIPTORS_GROWTH_MAX: u64 = 8;
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

pub fn run(options: &Options) -> Result<()> {
    let Options { duration, users, churn, .. } = *options;
    let (duration, users, churn) =
        if options.quick { (Duration::from_secs(3), 40, 5) } else { (duration, users, churn) };
    let mut scenario = Scenario::new("soak", users, duration);
    scenario.trouble.churn_per_second = churn.into();
    let (size, rate) = (Size::Named(SizeName::Imix), PACKETS_PER_SECOND);
    let calls = TrafficPlan::new("calls", users / 2, TrafficKind::Constant);
    scenario.traffic = vec![TrafficPlan { size, rate, ..calls }];
    // Some are always in between.
    scenario.demand.all_connected = false;
    let gateway = Gateway::named(&options.gateway)?;
    let plan = format!(
        "{} connections of as many users, {churn} of which come and go a second, for {} s",
        count(users.into()),
        count(duration.as_secs())
    );
    let mut experiment = Experiment::start(&options.output, vec![gateway.clone()], &plan)?;
    let mut recorded_at = Instant::now();
    let load = experiment.load("soak", &scenario, &gateway, &mut |recording, so_far| {
        if recorded_at.elapsed() < RECORD_INTERVAL {
            return Ok(());
        }
        recorded_at = Instant::now();
        recording.write("soak", so_far)
    })?;
    experiment.failures.extend(failures(&load));
    let (churned, memory, descriptors) = growth(&load.samples);
    let memory =
        memory.map_or("cannot be judged of so few".to_owned(), |grown| format!("grew by {} for each", bytes(grown)));
    let churned = count(churned);
    let text = format!(
        "{load}\n\nafter the warm-up, {churned} connections came and went; memory {memory}, descriptors grew by {descriptors}"
    );
    experiment.finish("soak", &text, &load)
}

/// After the warm-up: connections that came and went, growth of memory for each in bytes, growth of descriptors.
fn growth(samples: &[Sample]) -> (u64, Option<f64>, u64) {
    let warm = warm(samples);
    let growth = |figure: fn(&Sample) -> u64| match (warm.first(), warm.last()) {
        (Some(first), Some(last)) => figure(last).saturating_sub(figure(first)),
        _ => 0,
    };
    let churned = growth(|sample| sample.handshakes);
    let memory = bytes_per_connection(samples).filter(|_| churned >= CHURNED_MIN);
    (churned, memory, growth(|sample| sample.gateway_descriptors))
}

/// What has grown that must not.
fn failures(load: &LoadResult) -> Vec<String> {
    let (_, memory, descriptors) = growth(&load.samples);
    let mut failures = Vec::new();
    if let Some(grown) = memory.filter(|grown| *grown > GROWTH_BYTES_MAX) {
        let [grown, noise] = [grown, GROWTH_BYTES_MAX].map(bytes);
        failures
            .push(format!("memory grew by {grown} for each connection that came and went: up to {noise} may be noise"));
    }
    if descriptors > DESCRIPTORS_GROWTH_MAX {
        failures.push(format!("{descriptors} descriptors more are open than after the warm-up"));
    }
    let shards = load.shards.unwrap_or_default();
    for (held, what) in [(shards.addresses_held, "addresses"), (shards.sessions, "sessions")] {
        if held > shards.connections {
            let (held, connections) = (count(held), count(shards.connections));
            failures.push(format!("{held} {what} are held, but there are {connections} connections"));
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::load_result;

    #[test]
    fn only_what_grows_after_the_warm_up_is_a_leak() {
        let soak = |bytes: u64, descriptors: u64, seconds: u64| {
            let sample = |second: u64| Sample {
                seconds: second as f64,
                handshakes: second * 1000,
                gateway_memory_bytes: 9_000_000 + second * 1000 * bytes,
                gateway_descriptors: 20 + second * descriptors,
                ..Sample::default()
            };
            LoadResult { samples: (0..seconds).map(sample).collect(), ..load_result(1.0) }
        };
        assert_eq!(failures(&soak(100, 0, 20)), Vec::<String>::new());
        assert!(failures(&soak(1024, 0, 20))[0].starts_with("memory grew by 1.02 kB"));
        assert_eq!(failures(&soak(1024, 0, 5)), Vec::<String>::new(), "too few to tell");
        assert_eq!(failures(&soak(0, 1, 20)), ["14 descriptors more are open than after the warm-up"]);
        let mut held = soak(0, 0, 20);
        held.shards.iter_mut().for_each(|shards| shards.sessions = 3);
        assert_eq!(failures(&held), ["3 sessions are held, but there are 0 connections"]);
    }
}
