//! So many of something a second, and a burst of them: a bucket of the oracles' own.

use crate::schedule::Time;

const WHOLE: u64 = 1_000_000_000;

#[derive(Debug)]
pub struct Budget {
    per_s: u64,
    burst: u64,
    /// In parts of a billion.
    left: u64,
    since: Time,
}

impl Budget {
    pub fn full(per_s: u64, burst: u64, now: Time) -> Self {
        Budget { per_s, burst, left: burst * WHOLE, since: now }
    }

    /// Takes so many, if there are as many.
    #[must_use]
    pub fn take(&mut self, now: Time, count: u64) -> bool {
        let come = (now - self.since).as_nanos() as u64 * self.per_s;
        self.since = now;
        self.left = (self.left + come).min(self.burst * WHOLE);
        let left = self.left.checked_sub(count * WHOLE);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let at = |ms| Time::default() + Duration::from_millis(ms);
        let mut budget = Budget::full(1000, 100, at(0));
        assert!(budget.take(at(0), 100) && !budget.take(at(0), 1));
        assert!(budget.take(at(7), 7) && !budget.take(at(7), 1));
        assert!(budget.take(at(60_000), 100) && !budget.take(at(60_000), 1));
    }
}
