//! Token buckets: a user's, at the user's home, where a token is a byte of inner IP packet; and a small one for whatever else is to be bounded
//! in time.
//!
//! A user's bucket counts in bits times nanoseconds, in which a rate times a time is a whole number: nothing is ever rounded, from 1 kbps to
//! 100 gbps and beyond.

use std::time::{Duration, Instant};

use crate::limit::rate::Limit;

/// Units of a byte: 8 bits times the nanoseconds of a second.
pub const UNITS_PER_BYTE: u128 = 8 * 1_000_000_000;

/// A user's tokens.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    limit: Limit,
    level_units: u128,
    minted_units: u128,
    at: Instant,
}

impl TokenBucket {
    /// A bucket that holds a burst.
    pub fn full(limit: Limit, now: Instant) -> Self {
        let level_units = units(limit.burst_bytes);
        TokenBucket { limit, level_units, minted_units: level_units, at: now }
    }

    /// A bucket that holds nothing, and mints from `since` on, which may lie ahead.
    pub fn empty(limit: Limit, since: Instant) -> Self {
        TokenBucket { limit, level_units: 0, minted_units: 0, at: since }
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Mints what has come by `now`, as far as bucket and `outstanding_bytes`, which have left it and may yet be spent, stay within a burst
    /// together.
    pub fn mint(&mut self, now: Instant, outstanding_bytes: u64) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let room = units(self.limit.burst_bytes).saturating_sub(units(outstanding_bytes) + self.level_units);
        let fresh = u128::from(self.limit.rate.bits_per_s()).saturating_mul(elapsed.as_nanos()).min(room);
        self.level_units += fresh;
        self.minted_units += fresh;
    }

    /// Whole tokens in the bucket, in bytes, as of the last [`TokenBucket::mint`].
    pub fn level_bytes(&self) -> u64 {
        (self.level_units / UNITS_PER_BYTE) as u64
    }

    /// Takes tokens out.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn take(&mut self, bytes: u64) {
        self.level_units = self.level_units.checked_sub(units(bytes)).expect("more tokens taken than there are");
    }

    pub fn put_back(&mut self, bytes: u64) {
        self.level_units += units(bytes);
    }

    /// When there will be `bytes`, if nothing is taken out; `None` while there is no room for so many beside `outstanding_bytes`.
    pub fn ready_at(&self, bytes: u64, outstanding_bytes: u64) -> Option<Instant> {
        if bytes.saturating_add(outstanding_bytes) > self.limit.burst_bytes {
            return None;
        }
        let lacking = units(bytes).saturating_sub(self.level_units);
        let ns = lacking.div_ceil(u128::from(self.limit.rate.bits_per_s()));
        Some(self.at + Duration::from_nanos(u64::try_from(ns).ok()?))
    }

    /// Another limit holds from now on. Returns what the new burst has no room for, in units.
    #[must_use]
    pub fn set_limit(&mut self, limit: Limit, outstanding_bytes: u64) -> u128 {
        self.limit = limit;
        let room = units(limit.burst_bytes).saturating_sub(units(outstanding_bytes));
        let excess = self.level_units.saturating_sub(room);
        self.level_units -= excess;
        excess
    }

    pub fn minted_units(&self) -> u128 {
        self.minted_units
    }

    /// What the bucket holds, in units.
    pub fn level_units(&self) -> u128 {
        self.level_units
    }
}

pub fn units(bytes: u64) -> u128 {
    u128::from(bytes) * UNITS_PER_BYTE
}

/// How often something may happen: a leaky bucket, empty at the start. The crate `ratelimit` is made for threads and has a clock of its own; here the
/// time is told.
pub struct RateLimiter {
    pause: Duration,
    burst: Duration,
    /// When everything that has happened will have leaked.
    empty_at: Instant,
}

impl RateLimiter {
    /// So many a second, and `burst` at once; neither is 0.
    pub fn new(per_s: u32, burst: u32, now: Instant) -> Self {
        let pause = Duration::from_secs(1) / per_s;
        RateLimiter { pause, burst: pause * burst, empty_at: now }
    }

    /// Whether it may happen now; if so, it counts.
    pub fn allows(&mut self, now: Instant) -> bool {
        let empty_at = self.empty_at.max(now) + self.pause;
        let is_allowed = empty_at <= now + self.burst;
        if is_allowed {
            self.empty_at = empty_at;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::rate::Rate;
    use crate::test_time::origin;

    fn limit(bits_per_s: u64) -> Limit {
        Limit::new(Rate::from_bits_per_s(bits_per_s).unwrap())
    }

    #[test]
    fn a_year_of_odd_nanosecond_steps_mints_what_a_year_mints() {
        const YEAR_NS: u64 = 365 * 86_400 * 1_000_000_000;
        for bits_per_s in [1_000, 1_001, 64_000, 999_999_937, 100_000_000_000] {
            let start = origin();
            let rate = Rate::from_bits_per_s(bits_per_s).unwrap();
            // No step fills the bucket.
            let mut bucket = TokenBucket::empty(Limit { rate, burst_bytes: u64::MAX }, start);
            let (mut elapsed_ns, mut spent_bytes, mut step_ns) = (0, 0, 1);
            while elapsed_ns < YEAR_NS {
                // From a nanosecond to an hour, each time another.
                step_ns = step_ns * 48_271 % 3_600_000_000_011;
                elapsed_ns += step_ns;
                bucket.mint(start + Duration::from_nanos(elapsed_ns), 0);
                let level_bytes = bucket.level_bytes();
                bucket.take(level_bytes);
                spent_bytes += level_bytes;
            }
            let due = u128::from(bits_per_s) * u128::from(elapsed_ns);
            assert_eq!(units(spent_bytes) + bucket.level_units(), due, "{bits_per_s}");
            assert_eq!(bucket.minted_units(), due, "{bits_per_s}");
        }
    }

    #[test]
    fn a_century_of_silence_fills_the_bucket_and_no_more() {
        for bits_per_s in [1_000, 100_000_000_000, u64::MAX] {
            let start = origin();
            let rate = Rate::from_bits_per_s(bits_per_s).unwrap();
            for burst_bytes in [1, 65_536, u64::MAX] {
                let limit = Limit { rate, burst_bytes };
                let mut bucket = TokenBucket::full(limit, start);
                bucket.take(1);
                let refilled = bucket.ready_at(burst_bytes, 0).unwrap();
                bucket.mint(refilled + Duration::from_secs(100 * 365 * 86_400), 0);
                assert_eq!(bucket.level_units(), units(burst_bytes));
                assert_eq!(bucket.minted_units(), units(burst_bytes) + UNITS_PER_BYTE);
            }
        }
    }

    #[test]
    fn time_that_goes_back_mints_nothing() {
        let start = origin() + Duration::from_secs(10);
        let mut bucket = TokenBucket::empty(limit(8_000), start);
        bucket.mint(start + Duration::from_secs(2), 0);
        bucket.mint(start, 0);
        bucket.mint(start + Duration::from_secs(3), 0);
        assert_eq!(bucket.level_bytes(), 3_000);
    }

    #[test]
    fn tokens_are_there_when_it_says_and_not_a_nanosecond_before() {
        for (rate, bytes) in [(1_000, 1500), (1_001, 1), (80_000_000, 12_345), (100_000_000_000, 65_535)] {
            let start = origin();
            let mut bucket = TokenBucket::empty(limit(rate), start);
            let ready = bucket.ready_at(bytes, 0).unwrap();
            bucket.mint(ready - Duration::from_nanos(1), 0);
            assert!(bucket.level_bytes() < bytes, "{rate}");
            bucket.mint(ready, 0);
            assert!(bucket.level_bytes() >= bytes, "{rate}");
        }
    }

    #[test]
    fn bucket_and_what_is_outstanding_stay_within_a_burst() {
        let start = origin();
        let mut bucket = TokenBucket::full(limit(8_000_000), start);
        bucket.take(600_000);
        bucket.mint(start + Duration::from_secs(100), 400_000);
        assert_eq!(bucket.level_bytes(), 600_000);
        assert_eq!(bucket.ready_at(600_001, 400_000), None);
        bucket.mint(start + Duration::from_secs(200), 0);
        assert_eq!(bucket.level_bytes(), 1_000_000);
    }

    #[test]
    fn what_a_smaller_burst_has_no_room_for_is_told() {
        let start = origin();
        let mut bucket = TokenBucket::full(limit(8_000_000), start);
        assert_eq!(bucket.set_limit(limit(1_600_000), 50_000), units(850_000));
        assert_eq!(bucket.level_bytes(), 150_000);
    }

    #[test]
    fn a_pace_allows_a_burst_and_then_its_rate() {
        let start = origin();
        let mut pace = RateLimiter::new(1_000, 3, start);
        assert_eq!((0..5).filter(|_| pace.allows(start)).count(), 3);
        assert_eq!((0..5).filter(|_| pace.allows(start + Duration::from_millis(2))).count(), 2);
    }
}
