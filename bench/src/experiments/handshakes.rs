//! `handshakes`: how many full handshakes a core takes, alone and while it forwards, and what forwarding loses meanwhile.
//!
//! A handshake here is a whole mutual TLS 1.3 handshake of a new connection with an identity of its own, up to the inner address; the end
//! of the connection before is part of its cost.

use anyhow::Result;

use crate::load::experiment::{Cell, Column, Point, Series, whole};
use crate::load::result::LoadResult;
use crate::load::scenario::Scenario;
use crate::measure::units::{bits_per_second, count, percent};

/// More than a core takes: as soon as a handshake is done, the next begins.
pub const CHURN_PER_SECOND: f64 = 10_000.0;
/// Connections that forward.
const FORWARDING: u32 = 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// How many connections come and go.
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// How many handshakes are in progress at once.
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    handshakes: u32,
    /// What other connections forward, in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 200, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
}

pub fn run(Options { series, clients, handshakes, mbps }: &Options) -> Result<()> {
    let (clients, handshakes_max, mbps) = if series.quick { (20, 4, 5) } else { (*clients, *handshakes, *mbps) };
    let forwarded_bits_per_second = f64::from(mbps) * 1e6;
    let mut experiment = series.start(&format!(
        "{} connections come and go, {handshakes_max} handshakes at once; {} forwarded beside them",
        count(clients.into()),
        bits_per_second(forwarded_bits_per_second),
    ))?;
    let point = |name, has_handshakes: bool, forwarding: u32| {
        let mut scenario = Scenario::new("handshakes", clients + forwarding, series.duration(3));
        scenario.ramp.handshakes_max = handshakes_max;
        // Some are always in progress.
        scenario.demand.all_connected = !has_handshakes;
        if has_handshakes {
            scenario.trouble.churn_per_second = CHURN_PER_SECOND;
            scenario.trouble.churn_idle_only = true;
        }
        if forwarding > 0 {
            scenario.add_constant("forwarded", forwarding, forwarded_bits_per_second, 1);
        }
        Point::new(name, scenario)
    };
    let points = vec![
        point("forwarding alone", false, FORWARDING),
        point("handshakes alone", true, 0),
        point("both", true, FORWARDING),
    ];
    let results = experiment.loads(&points)?;
    let ours = results.cells().filter(|cell| cell.gateway == "tollgate");
    let failed: u64 = ours.flat_map(|cell| cell.rounds).map(|result| result.clients.failed_handshakes).sum();
    if failed > 0 {
        experiment.failures.push(format!("{} handshakes failed", count(failed)));
    }
    experiment.finish_loads("handshakes", &results, &columns())
}

fn columns() -> [Column; 5] {
    let carried = |result: &LoadResult| Some(result.carried_bits_per_second()).filter(|bits| *bits > 0.0);
    [
        Column::new("handshakes_per_cpu_second", "handshakes per CPU second", whole, |cell| {
            cell.each(|result| handshakes(result).map(|(number, _, cpu)| number / cpu))
        }),
        Column::new("handshakes_per_second", "a second", whole, |cell| {
            cell.each(|result| handshakes(result).map(|(number, seconds, _)| number / seconds))
        }),
        Column::new("forwarded_bits_per_second", "forwarded", bits_per_second, move |cell| cell.each(carried)),
        Column::new("forwarded_to_alone", "of alone", percent, move |cell| cell.ratio(cell.first, carried)),
        Column::new("failed", "failed", whole, |cell: &Cell| cell.total(|result| result.clients.failed_handshakes)),
    ]
}

/// Handshakes from the first sample to the last, in how many seconds, and how many CPU seconds of the gateway: neither ramp nor end.
pub fn handshakes(result: &LoadResult) -> Option<(f64, f64, f64)> {
    let (first, last) = (result.samples.first()?, result.samples.last()?);
    let number = (last.handshakes - first.handshakes) as f64;
    let cpu = last.gateway_cpu_seconds - first.gateway_cpu_seconds;
    Some((number, last.seconds - first.seconds, cpu)).filter(|_| number > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::experiment::fixture::{figures, load_result};
    use crate::load::result::Sample;

    #[test]
    fn handshakes_are_counted_between_the_samples_and_forwarding_against_calm() {
        let sample = |seconds, handshakes, gateway_cpu_seconds| Sample {
            seconds,
            handshakes,
            gateway_cpu_seconds,
            ..Sample::default()
        };
        let samples = vec![sample(1.0, 500, 3.0), sample(5.0, 2500, 4.0)];
        let load = |bits, samples: &[Sample]| vec![LoadResult { samples: samples.to_vec(), ..load_result(bits) }];
        let figures = figures(&columns(), vec![load(4e6, &[]), load(0.0, &samples), load(3e6, &samples)]);
        assert_eq!(figures[0][..4], [None, None, Some(8e6), Some(1.0)]);
        assert_eq!(figures[1][..4], [Some(2000.0), Some(500.0), None, None]);
        assert_eq!(figures[2][3], Some(0.75));
    }
}
