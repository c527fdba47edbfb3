//! Distributions of round trips.

use hdrhistogram::Histogram;

use crate::results::Latencies;

/// The longest round trip that is told from longer ones, in nanoseconds: a minute.
const NS_MAX: u64 = 60_000_000_000;
/// Decimal digits that are kept of each.
const DIGITS: u8 = 3;
/// Points of the distribution for every halving of what is left above it.
const POINTS_PER_HALVING: u32 = 4;

/// Round trips as they are counted, with an error of 0.1 % at most. Empty ones take no memory, others up to 220 KiB.
#[derive(Debug, Clone, Default)]
pub struct RoundTrips(Option<Histogram<u64>>);

impl RoundTrips {
    /// Counts one of `ns` nanoseconds. What is longer than a minute counts as a minute.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        let histogram = self.0.get_or_insert_with(empty);
        histogram.saturating_record(ns.clamp(1, NS_MAX));
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &RoundTrips) {
        if let Some(other) = &other.0 {
            // Both have the same bounds, so that it cannot fail.
            let _ = self.0.get_or_insert_with(empty).add(other);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The distribution; `None` of none.
    pub fn latencies(&self) -> Option<Latencies> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let points = histogram.iter_quantiles(POINTS_PER_HALVING);
        Some(Latencies {
            count: histogram.len(),
            min_ns: histogram.min(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
            quantiles: points.map(|point| (point.quantile_iterated_to(), point.value_iterated_to())).collect(),
        })
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NS_MAX, DIGITS).expect("the bounds are in order, and the digits at most 5")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut round_trips = RoundTrips::default();
        assert_eq!(round_trips.latencies(), None);
        (1..=1000).for_each(|micros| round_trips.record(micros * 1000));
        let latencies = round_trips.latencies().unwrap();
        let near = |ns: u64, expected: u64| ns.abs_diff(expected) * 1000 <= expected;
        assert_eq!(latencies.count, 1000);
        for (ns, expected) in [
            (latencies.min_ns, 1_000),
            (latencies.p50_ns, 500_000),
            (latencies.p90_ns, 900_000),
            (latencies.p99_ns, 990_000),
            (latencies.p999_ns, 999_000),
            (latencies.max_ns, 1_000_000),
        ] {
            assert!(near(ns, expected), "{ns} is not {expected}");
        }
        assert!(latencies.quantiles.is_sorted_by(|one, next| one.0 <= next.0 && one.1 <= next.1));
        assert!(latencies.quantiles.len() < 200);
        assert!(near(latencies.quantiles.last().unwrap().1, 1_000_000));
    }

    #[test]
    fn merging_is_as_if_all_had_been_recorded_in_one() {
        let (mut one, mut other, mut all) = (RoundTrips::default(), RoundTrips::default(), RoundTrips::default());
        for ns in [3_000, 5_000_000, 70] {
            one.record(ns);
            all.record(ns);
        }
        for ns in [1, u64::MAX] {
            other.record(ns);
            all.record(ns);
        }
        one.merge(&other);
        assert_eq!(one.latencies(), all.latencies());
        assert_eq!((one.count(), all.latencies().unwrap().min_ns), (5, 1));
        one.merge(&RoundTrips::default());
        assert_eq!(one.count(), 5);
    }
}
