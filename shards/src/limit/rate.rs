//! How much a user may send and receive.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A rate in bits per second, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// A rate of `bits_per_s`; `None` for 0.
    pub const fn from_bits_per_s(bits_per_s: u64) -> Option<Self> {
        match NonZeroU64::new(bits_per_s) {
            Some(rate) => Some(Rate(rate)),
            None => None,
        }
    }

    pub const fn bits_per_s(self) -> u64 {
        self.0.get()
    }
}

/// Smallest burst by default, in bytes: one super-packet.
pub const BURST_BYTES_MIN: u64 = 64 * 1024;

/// What a limited user may send and receive, all connections and both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// In the long run.
    pub rate: Rate,
    /// At once, after a silence, in bytes.
    pub burst_bytes: u64,
}

impl Limit {
    /// `rate`, with a burst of a second's worth, or of one super-packet where that is more.
    pub fn new(rate: Rate) -> Self {
        Limit::with_burst(rate, Duration::from_secs(1), BURST_BYTES_MIN)
    }

    /// `rate`, with a burst that takes `burst` to come back, and of `burst_bytes_min` at least.
    pub fn with_burst(rate: Rate, burst: Duration, burst_bytes_min: u64) -> Self {
        let bits = u128::from(rate.bits_per_s()) * burst.as_nanos() / 1_000_000_000;
        let burst_bytes = u64::try_from(bits / 8).unwrap_or(u64::MAX).max(burst_bytes_min);
        Limit { rate, burst_bytes }
    }
}
