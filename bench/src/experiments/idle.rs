//! `idle`: what a gateway keeps in memory for each idle connection and for each user, and what thousands of idle connections cost it in CPU
//! time.
//!
//! Memory is what the kernel counts as resident. All loads have the same number of users but those that tell what a user costs.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::experiment::{Cell, Column, Point, Results, Series};
use crate::load::result::LoadResult;
use crate::load::scenario::{CONNECTIONS_MAX, Scenario};
use crate::measure::spread::slope;
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

/// What a round tells of a gateway: resident memory with one user and one connection, for each known user without a connection, and for each idle
/// connection; the share of one CPU that it used while all were idle.
type Costs = [f64; 4];

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
    let mut found = Results::new([(format!("{} connections", count(connections.into())), 0)], &experiment.gateways);
    for (gateway, (_, loads)) in results.by_gateway().enumerate() {
        for round in 0..experiment.rounds as usize {
            let loads: Vec<_> = loads.iter().map(|rounds| &rounds[round]).collect();
            found.push(0, gateway, costs(&loads).context("all loads had the same number of connections")?);
        }
    }
    let (table, figures) = found.table(&columns())?;
    experiment.finish("idle", &table, &figures)
}

fn columns() -> [Column<Costs>; 4] {
    let of = |at: usize| move |cell: &Cell<Costs>| cell.each(|costs| Some(costs[at]));
    [
        Column::new("least_bytes", "one connection", bytes, of(0)),
        Column::new("bytes_per_user", "for each user", bytes, of(1)),
        Column::new("bytes_per_connection", "for each idle connection", bytes, of(2)),
        Column::new("cpu_share", "share of a CPU", percent, of(3)),
    ]
}

/// Of loads with one user, with more users, and with more and more connections.
fn costs(loads: &[&LoadResult]) -> Option<Costs> {
    let bytes = |load: &LoadResult| load.gateway_memory_bytes as f64;
    let [least, users, steps @ ..] = loads else { return None };
    let steps = steps.iter().map(|load| (f64::from(load.ramp.connected), bytes(load)));
    let most = loads.last()?;
    Some([
        bytes(least),
        (bytes(users) - bytes(least)) / f64::from(USERS),
        slope(&steps.collect::<Vec<_>>())?,
        most.gateway_usage.cpu_seconds / most.seconds,
    ])
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
            load
        };
        let loads = [load(1, 1_000), load(1, 61_000), load(10, 5_000), load(20, 7_000), load(40, 11_000)];
        let loads = loads.each_ref();
        assert_eq!(costs(&loads), Some([1_000.0, 3.0, 200.0, 0.5]));
        assert_eq!(costs(&loads[..3]), None);
    }
}
