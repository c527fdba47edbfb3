//! How long things took, in a few classes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest time of each class but the last, in milliseconds.
const BOUNDS_MS: [u64; 9] = [1, 5, 20, 50, 100, 200, 500, 1000, 2000];

/// A histogram of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    counts: [u64; BOUNDS_MS.len() + 1],
    sum_us: u64,
}

impl Durations {
    #[inline]
    pub fn add(&mut self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let class = BOUNDS_MS.iter().position(|ms| us <= ms * 1000).unwrap_or(BOUNDS_MS.len());
        self.counts[class] += 1;
        self.sum_us += us;
    }

    /// All together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// Each class: the longest time, `None` in the last, and how many there were.
    pub fn classes(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS_MS.map(|ms| Some(Duration::from_millis(ms)));
        bounds.into_iter().chain([None]).zip(self.counts)
    }

    /// These, and those counted `earlier`.
    #[must_use]
    pub fn beside(mut self, earlier: &Durations) -> Self {
        self.counts.iter_mut().zip(earlier.counts).for_each(|(count, earlier)| *count += earlier);
        self.sum_us += earlier.sum_us;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_class_that_is_not_shorter_and_what_is_longer_than_all_in_the_last() {
        let mut durations = Durations::default();
        for us in [0, 1000, 1001, 2_000_000, 2_000_001, 60_000_000] {
            durations.add(Duration::from_micros(us));
        }
        let counts: Vec<u64> = durations.classes().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(durations.sum(), Duration::from_micros(64_002_002));
        let twice = durations.beside(&durations);
        assert_eq!((twice.classes().nth(1).unwrap().1, twice.sum()), (2, 2 * durations.sum()));
        assert_eq!(durations.classes().nth(1).unwrap().0, Some(Duration::from_millis(5)));
        assert_eq!(durations.classes().last().unwrap().0, None);
    }
}
