//! `modes`: what Noise costs a gateway beside TLS, for bulk traffic and for handshakes.
//!
//! Noise protects packets with ChaCha20-Poly1305, whatever its handshake. TLS of the same cipher is what it is compared with.

use anyhow::Result;

use super::handshakes::{CHURN_PER_SECOND, handshakes};
use crate::load::experiment::{BULK_TRAIN_PACKETS, Cell, Column, Point, Series, two_digits, whole};
use crate::load::logins::Handshake;
use crate::load::result::LoadResult;
use crate::load::scenario::Scenario;
use crate::measure::units::bits_per_second;

/// Clients that move data.
const MOVING: u32 = 8;
/// Connections that come and go.
const CHURNING: u32 = 200;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    series: Series,
    /// What the clients move, in megabits of inner packets a second, half of it each way.
    #[arg(long, value_name = "N", default_value_t = 200, conflicts_with = "quick",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    mbps: u32,
}

pub fn run(Options { series, mbps }: &Options) -> Result<()> {
    let (mbps, churning) = if series.quick { (5, 10) } else { (*mbps, CHURNING) };
    let bits = f64::from(mbps) * 1e6;
    let mut experiment =
        series.start(&format!("{} moved by {MOVING} clients; then handshakes", bits_per_second(bits)))?;
    let moved = |(name, handshake, first)| {
        let mut scenario = Scenario::new("modes", MOVING, series.duration(3));
        scenario.users.handshake = handshake;
        scenario.add_constant("moved", MOVING, bits, BULK_TRAIN_PACKETS);
        Point { name: format!("moved by {name}"), scenario, first }
    };
    let churned = |(name, handshake)| {
        let mut scenario = Scenario::new("modes", churning, series.duration(3));
        scenario.users.handshake = handshake;
        scenario.demand.all_connected = false;
        scenario.trouble.churn_per_second = CHURN_PER_SECOND;
        Point::new(&format!("handshakes of {name}"), scenario)
    };
    let of_tls = [
        ("TLS, ChaCha20-Poly1305", Handshake::TlsChacha20, 0),
        ("Noise standard", Handshake::NoiseStandard, 0),
        ("TLS, AES-256-GCM", Handshake::Tls, 0),
    ];
    let of_handshakes = [
        ("TLS hybrid", Handshake::Tls),
        ("Noise standard", Handshake::NoiseStandard),
        ("Noise hybrid", Handshake::NoiseHybrid),
        ("Noise post_quantum", Handshake::NoisePostQuantum),
    ];
    let points: Vec<Point> = of_tls.into_iter().map(moved).chain(of_handshakes.into_iter().map(churned)).collect();
    let results = experiment.loads(&points)?;
    experiment.finish_loads("modes", &results, &columns())
}

fn columns() -> [Column; 5] {
    let cost = |result: &LoadResult| {
        result.cpu_seconds_per_gigabyte(result.gateway_usage).filter(|_| handshakes(result).is_none())
    };
    let rate = |result: &LoadResult| handshakes(result).map(|(number, _, cpu)| number / cpu);
    [
        Column::new("cpu_seconds_per_gigabyte", "CPU s/GB", two_digits, move |cell| cell.each(cost)),
        Column::new("cost_to_first", "of TLS's", two_digits, move |cell| cell.ratio(cell.first, cost)),
        Column::new("cost_to_ours", "of ours", two_digits, move |cell| cell.ratio(cell.ours, cost)),
        Column::new("handshakes_per_cpu_second", "handshakes/CPU s", whole, move |cell| cell.each(rate)),
        Column::new("failed", "failed", whole, |cell: &Cell| cell.total(|result| result.clients.failed_handshakes)),
    ]
}
