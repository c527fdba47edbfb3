//! `idle`: what a gateway keeps in memory for each idle connection and for each user, and what thousands of idle connections cost it in CPU
//! time.
//!
//! Memory is what the kernel counts as resident. All loads have the same number of users but those that tell what a user costs.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::experiment::{Point, Series};
use crate::load::result::LoadResult;
use crate::load::scenario::{CONNECTIONS_MAX, Scenario};
use crate::measure::record::table;
use crate::measure::spread::{Spread, slope};
use crate::measure::units::{bytes, count, percent};

/// How long loads last that only tell memory.
const STEP: Duration = Duration::from_secs(2);
/// Users without a connection that tell what one costs.
const USERS: u32 = 20_000;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// How many idle connections at last.
    #[arg(long, value_name = "N", default_value_t = 10_000, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(8..=i64::from(CONNECTIONS_MAX)))]
    connections: u32,
    /// How many seconds there are between keep-alives of a connection. CPU time is measured over three of them, or for --seconds.
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=29))]
    keep_alive: u32,
}

/// What a gateway's idle connections cost.
#[derive(Debug, PartialEq, Serialize)]
struct Figures {
    gateway: &'static str,
    /// Resident memory with one user and one connection.
    least_bytes: Spread,
    /// For each known user without a connection.
    bytes_per_user: Spread,
    /// For each idle connection.
    bytes_per_connection: Spread,
    /// The share of one CPU that the gateway used while all were idle.
    cpu_share: Spread,
}

pub fn run(Options { series, connections, keep_alive }: &Options) -> Result<()> {
    let (connections, keep_alive) = if series.quick { (40, 1) } else { (*connections, *keep_alive) };
    let plan = format!(
        "up to {} idle connections of as many users, with a keep-alive every {keep_alive} s",
        count(connections.into())
    );
    let mut experiment = series.start(&plan)?;
    let duration = series.duration(1).max(Duration::from_secs(3 * u64::from(keep_alive)));
    let point = |number, absent, duration| {
        let mut scenario = Scenario::new("idle", number, duration);
        scenario.users.absent = absent;
        scenario.users.keep_alive = Duration::from_secs(keep_alive.into());
        Point::new(
            &format!("{} of {} users connected", count(number.into()), count((number + absent).into())),
            scenario,
        )
    };
    let steps = [8, 4, 2, 1].map(|part| connections / part);
    let step =
        |number| point(number, connections - number, if number == connections { duration } else { STEP.min(duration) });
    let users = [0, USERS].map(|absent| point(1, absent, STEP.min(duration)));
    let results = experiment.loads(&users.into_iter().chain(steps.map(step)).collect::<Vec<_>>())?;
    let figures = results.by_gateway().map(|(gateway, loads)| figures(gateway, &loads));
    let figures = figures.collect::<Option<Vec<_>>>().context("all loads had the same number of connections")?;
    let rows = figures.iter().map(|it| {
        let [least, user, connection] = [it.least_bytes, it.bytes_per_user, it.bytes_per_connection];
        let [least, user, connection] = [least, user, connection].map(|spread| spread.shown(bytes));
        [it.gateway.to_owned(), least, user, connection, it.cpu_share.shown(percent)]
    });
    let heading = ["gateway", "one connection", "for each user", "for each idle connection", "share of a CPU"];
    experiment.finish("idle", &table(1, &heading, rows), &figures)
}

/// Of loads with one user, with more users, and with more and more connections, each round by round.
fn figures(gateway: &'static str, loads: &[&[LoadResult]]) -> Option<Figures> {
    let bytes = |point: usize, round: usize| loads[point][round].gateway_memory_bytes as f64;
    let rounds = 0..loads[0].len();
    let per_connection = rounds.clone().map(|round| {
        let point = |point: usize| (f64::from(loads[point][round].ramp.connected), bytes(point, round));
        slope(&(2..loads.len()).map(point).collect::<Vec<_>>())
    });
    let most = loads.last()?.iter().map(|load| load.gateway_usage.cpu_seconds / load.seconds);
    Some(Figures {
        gateway,
        least_bytes: Spread::of(rounds.clone().map(|round| bytes(0, round)))?,
        bytes_per_user: Spread::of(rounds.map(|round| (bytes(1, round) - bytes(0, round)) / f64::from(USERS)))?,
        bytes_per_connection: Spread::of(per_connection.collect::<Option<Vec<f64>>>()?)?,
        cpu_share: Spread::of(most)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::load_result;

    #[test]
    fn a_connection_costs_the_slope_and_a_user_the_difference() {
        let load = |connected, memory_bytes| {
            let mut load = load_result(0.0);
            load.ramp.connected = connected;
            load.gateway_memory_bytes = memory_bytes;
            vec![load]
        };
        let loads = [load(1, 1_000), load(1, 61_000), load(10, 5_000), load(20, 7_000), load(40, 11_000)];
        let loads: Vec<&[LoadResult]> = loads.iter().map(|rounds| &rounds[..]).collect();
        let figures = figures("x", &loads).unwrap();
        let spreads = [figures.least_bytes, figures.bytes_per_user, figures.bytes_per_connection, figures.cpu_share];
        assert_eq!(spreads.map(|spread| spread.median), [1_000.0, 3.0, 200.0, 0.5]);
        assert_eq!(super::figures("x", &loads[..3]), None);
    }
}
