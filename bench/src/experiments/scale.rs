//! `scale`: one offered load, over more and more shards on one CPU, over more and more clients, and over more and more of which few send.

use anyhow::Result;

use crate::load::experiment::{BULK_TRAIN_PACKETS, Cell, Column, Point, Series, two_digits};
use crate::load::flow::TRAIN_PACKETS_MAX;
use crate::load::result::LoadResult;
use crate::load::scenario::{CONNECTIONS_MAX, Scenario};
use crate::measure::units::{bits_per_second, count, percent};

/// Clients while shards change.
const CLIENTS: u32 = 100;
/// Clients that send while others, which are idle, become more.
const ACTIVE_MAX: u32 = 100;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// Numbers of shards, all on one CPU.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,2,4,8,16", conflicts_with = "quick",
        value_parser = clap::value_parser!(u16).range(1..=128))]
    shards: Vec<u16>,
    /// Numbers of clients.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,10,100,1000,10000",
        conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    clients: Vec<u32>,
    /// Numbers of clients of which at most 100 send anything.
    #[arg(long, value_name = "N,N...", value_delimiter = ',', default_value = "1,100,10000",
        conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    mostly_idle: Vec<u32>,
    /// The load in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 400, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
    /// Packets that come together, as from senders that leave segmentation to their kernel; 1: each alone.
    #[arg(long, value_name = "N", default_value_t = BULK_TRAIN_PACKETS,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(TRAIN_PACKETS_MAX)))]
    train: u16,
}

pub fn run(Options { series, shards, clients, mostly_idle, mbps, train }: &Options) -> Result<()> {
    let (shards, clients, mostly_idle, mbps) = if series.quick {
        (&[1, 2][..], &[1, 10][..], &[1, 200][..], 20)
    } else {
        (&shards[..], &clients[..], &mostly_idle[..], *mbps)
    };
    let bits = f64::from(mbps) * 1e6;
    let plan = format!("{} offered in trains of {train} packets; all shards share one CPU", bits_per_second(bits));
    let mut experiment = series.start(&plan)?;
    let mut points = Vec::new();
    let mut add = |of: &mut dyn Iterator<Item = (u16, u32, u32)>| {
        let first = points.len();
        for (shards, clients, active) in of {
            let name =
                format!("{shards} shard(s), {} of {} clients active", count(active.into()), count(clients.into()));
            let mut scenario = Scenario::new("scale", clients, series.duration(1));
            scenario.gateway.shards = shards;
            scenario.add_constant("load", active, bits, *train);
            points.push(Point { name, scenario, first });
        }
    };
    add(&mut shards.iter().map(|&shards| (shards, CLIENTS, CLIENTS)));
    add(&mut clients.iter().map(|&clients| (1, clients, clients)));
    add(&mut mostly_idle.iter().map(|&clients| (1, clients, clients.min(ACTIVE_MAX))));
    let results = experiment.loads(&points)?;
    experiment.finish_loads("scale", &results, &columns())
}

fn columns() -> [Column; 5] {
    let cost = |result: &LoadResult| result.cpu_seconds_per_gigabyte(result.gateway_usage);
    let crossed =
        |result: &LoadResult| result.shards.map(|shards| shards.crossed as f64 / shards.arrived.max(1) as f64);
    [
        Column::new("cpu_seconds_per_gigabyte", "CPU s/GB", two_digits, move |cell| cell.each(cost)),
        Column::new("to_first", "to first of series", two_digits, move |cell| cell.ratio(cell.first, cost)),
        Column::new("crossed_share", "crossed", percent, move |cell| cell.each(crossed)),
        Column::new("carried_bits_per_second", "carried", bits_per_second, |cell: &Cell| {
            cell.each(|result| Some(result.carried_bits_per_second()))
        }),
        Column::lost(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::{figures, load_result};

    #[test]
    fn each_point_is_held_against_the_first_of_its_series_in_the_same_round() {
        // The machine becomes twice as slow, which makes no difference.
        let rounds = |factor: f64| [1e9, 5e8].map(|bits| load_result(bits * factor)).to_vec();
        let figures = figures(&columns(), vec![rounds(1.0), rounds(2.0), rounds(0.0)]);
        assert_eq!([0, 1, 2].map(|point: usize| figures[point][1]), [Some(1.0), Some(0.5), None]);
        assert_eq!((figures[0][2], figures[2][0]), (Some(0.25), None));
    }
}
