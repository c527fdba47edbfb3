//! Token buckets: a user's, at the user's home, where a token is a byte of inner IP packet; and whatever else is to be bounded in time.
//!
//! This module reads no clock: the bucket's time is what its caller last said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ratelimit::{Clock, Ratelimiter, TryWaitError};

use crate::directory::Rate;

/// Smallest burst, in bytes: one super-packet.
pub const BURST_BYTES_MIN: u64 = 64 * 1024;

/// Time as told by the caller. An atomic only because the clock is inside the limiter and its caller outside; nothing is shared.
#[derive(Clone, Default)]
struct ToldTime(Arc<AtomicU64>);

impl Clock for ToldTime {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A token bucket, full at the start.
pub struct Bucket {
    limiter: Ratelimiter<ToldTime>,
    time: ToldTime,
    created: Instant,
}

impl Bucket {
    /// A user's bucket: a token a byte, and a burst of max(1 s of rate, 64 KiB).
    pub fn for_user(rate: Rate, now: Instant) -> Self {
        Bucket::new(rate.bytes_per_s(), rate.bytes_per_s().max(BURST_BYTES_MIN), now)
    }

    /// A bucket of `tokens_per_s`, neither it nor `burst` being 0.
    pub fn new(tokens_per_s: u64, burst: u64, now: Instant) -> Self {
        let time = ToldTime::default();
        let limiter = ratelimit::Builder::with_clock(tokens_per_s, time.clone())
            .max_tokens(burst)
            .initial_available(burst)
            .build()
            .expect("the burst is positive and holds the initial tokens");
        Bucket { limiter, time, created: now }
    }

    /// Takes up to `wanted` tokens, but none if fewer than `least` are there: then it says when they will be.
    ///
    /// `least` is capped at the burst, so that every request can succeed at some time.
    pub fn take(&mut self, now: Instant, wanted: u64, least: u64) -> Result<u64, Instant> {
        self.time.0.store(now.saturating_duration_since(self.created).as_nanos() as u64, Ordering::Relaxed);
        let least = least.min(self.limiter.max_tokens()).max(1);
        self.limiter.try_wait_n(least).map_err(|error| match error {
            TryWaitError::Insufficient(wait) => now + wait,
            error => unreachable!("a request was capped at the burst: {error}"),
        })?;
        let more = wanted.saturating_sub(least).min(self.limiter.available());
        match self.limiter.try_wait_n(more) {
            Ok(()) => Ok(least + more),
            Err(_) => Ok(least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bits_per_s: u64) -> (Bucket, Instant) {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = Instant::now();
        (Bucket::for_user(Rate::from_bits_per_s(bits_per_s).unwrap(), now), now)
    }

    #[test]
    fn a_new_bucket_holds_a_burst_and_no_more() {
        let (mut bucket, now) = bucket(8_000_000);
        assert_eq!(bucket.take(now, 2_000_000, 1), Ok(1_000_000));
        assert!(bucket.take(now, 1, 1).is_err());
    }

    #[test]
    fn tokens_come_back_at_the_rate_and_not_before_the_time_told() {
        let (mut bucket, now) = bucket(8_000_000);
        bucket.take(now, u64::MAX, 1).unwrap();
        let ready = bucket.take(now, 10_000, 10_000).unwrap_err();
        assert_eq!((ready - now).as_millis(), 10);
        assert!(bucket.take(now + (ready - now) / 2, 10_000, 10_000).is_err());
        assert!(bucket.take(ready + Duration::from_micros(2), 10_000, 10_000).is_ok());
    }

    #[test]
    fn a_slow_user_still_has_a_burst_of_one_super_packet() {
        let (mut bucket, now) = bucket(1_000);
        assert_eq!(bucket.take(now, u64::MAX, 1), Ok(BURST_BYTES_MIN));
    }

    #[test]
    fn a_request_above_the_burst_is_served_with_the_burst() {
        let (mut bucket, now) = bucket(8_000);
        assert_eq!(bucket.take(now, 10_000_000, 10_000_000), Ok(BURST_BYTES_MIN));
    }
}
