//! Sending all clients away, at an even pace.

use std::time::{Duration, Instant};

use crate::ids::ConnectionKey;

/// The clients of a shard that are still to be sent away, and when.
#[derive(Debug)]
pub struct Drain {
    began: Instant,
    /// In this time all are sent away, one after the other.
    over: Duration,
    /// By then at the latest.
    until: Instant,
    /// Those that are left, as many as there are connections at most, and how many there were.
    left: Vec<ConnectionKey>,
    count: usize,
}

impl Drain {
    pub fn new(now: Instant, over: Duration, within: Duration, clients: Vec<ConnectionKey>) -> Self {
        Drain { began: now, over, until: now + within, count: clients.len(), left: clients }
    }

    /// When the next one is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.count - self.left.len() + 1;
        (next <= self.count).then(|| self.until.min(self.began + share(self.over, next, self.count)))
    }

    /// The next one that is due.
    pub fn next(&mut self, now: Instant) -> Option<ConnectionKey> {
        if self.poll_timeout()? <= now { self.left.pop() } else { None }
    }
}

/// `part` of `whole` parts of `time`.
fn share(time: Duration, part: usize, whole: usize) -> Duration {
    let ns = time.as_nanos() * part as u128 / whole as u128;
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardIndex;
    use crate::test_time::origin;

    fn drain(over_ms: u64, within_ms: u64, clients: u32) -> Drain {
        let key = |slot| ConnectionKey { owner: ShardIndex(0), slot, generation: 0 };
        let [over, within] = [over_ms, within_ms].map(Duration::from_millis);
        Drain::new(origin(), over, within, (0..clients).map(key).collect())
    }

    /// When each client is sent away, in milliseconds.
    fn times_ms(mut drain: Drain) -> Vec<u64> {
        let began = drain.began;
        let mut times = Vec::new();
        while let Some(at) = drain.poll_timeout() {
            assert!(drain.next(at - Duration::from_nanos(1)).is_none());
            while drain.next(at).is_some() {
                times.push((at - began).as_millis() as u64);
            }
        }
        times
    }

    #[test]
    fn clients_are_sent_away_at_an_even_pace_the_last_at_the_end() {
        assert_eq!(times_ms(drain(1000, 1000, 4)), [250, 500, 750, 1000]);
        assert_eq!(times_ms(drain(1000, 5000, 2)), [500, 1000]);
        assert!(times_ms(drain(1000, 1000, 0)).is_empty());
    }

    #[test]
    fn at_the_deadline_all_who_are_left_go_at_once() {
        assert_eq!(times_ms(drain(1000, 600, 4)), [250, 500, 600, 600]);
        assert_eq!(times_ms(drain(1000, 0, 3)), [0, 0, 0]);
        assert_eq!(times_ms(drain(u64::MAX / 2, 1000, 1)), [1000]);
    }
}
