//! Distributions of round trips.

use hdrhistogram::Histogram;
use serde::Serialize;

const NS_MAX: u64 = 60_000_000_000;

/// Round trips as they are counted, with an error of 0.1 % at most. What is longer than a minute counts as a minute.
#[derive(Debug, Clone)]
pub struct RoundTrips(Histogram<u64>);

/// What they come to, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latencies {
    pub count: u64,
    pub min_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

impl Default for RoundTrips {
    fn default() -> Self {
        RoundTrips(Histogram::new_with_bounds(1, NS_MAX, 3).expect("the bounds are in order, and the digits at most 5"))
    }
}

impl RoundTrips {
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub fn merge(&mut self, other: &Histogram<u64>) {
        for step in other.iter_recorded() {
            let _ = self.0.record_n(step.value_iterated_to().clamp(1, NS_MAX), step.count_at_value());
        }
    }

    pub fn add(&mut self, other: &RoundTrips) {
        self.merge(&other.0);
    }

    /// `None` of none.
    pub fn latencies(&self) -> Option<Latencies> {
        let at = |quantile| self.0.value_at_quantile(quantile);
        (!self.0.is_empty()).then(|| Latencies {
            count: self.0.len(),
            min_ns: self.0.min(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.0.max(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded_and_merged() {
        let (mut one, mut other) = (RoundTrips::default(), RoundTrips::default());
        assert_eq!(one.latencies(), None);
        (1..=500).for_each(|micros| one.record(micros * 1000));
        (501..=1000).for_each(|micros| other.record(micros * 1000));
        one.add(&other);
        let latencies = one.latencies().unwrap();
        assert_eq!(latencies.count, 1000);
        for (ns, expected) in [(latencies.min_ns, 1_000), (latencies.p50_ns, 500_000), (latencies.p999_ns, 999_000)] {
            assert!(ns.abs_diff(expected) * 500 <= expected, "{ns} is not {expected}");
        }
    }
}
