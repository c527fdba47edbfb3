//! How figures are taken, compared, shown and kept.

pub mod cpus;
pub mod record;
pub mod round_trips;
pub mod spread;
pub mod units;
