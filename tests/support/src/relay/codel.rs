//! CoDel (RFC 8289), for the narrow places of paths.

use std::time::{Duration, Instant};

const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);

/// When the datagrams of one queue are to be marked or dropped.
#[derive(Debug, Default)]
pub(super) struct Codel {
    /// When the delay will have been too long for an interval.
    standing_at: Option<Instant>,
    next: Option<Instant>,
    count: u32,
}

impl Codel {
    /// Whether a datagram that leaves the queue at `now`, after it `waited`, is to be marked or dropped.
    pub(super) fn signals(&mut self, now: Instant, waited: Duration) -> bool {
        if waited < TARGET {
            (self.standing_at, self.next) = (None, None);
            return false;
        }
        if now < *self.standing_at.get_or_insert(now + INTERVAL) {
            return false;
        }
        match self.next {
            None => self.count = if self.count > 2 { self.count - 2 } else { 1 },
            Some(next) if now >= next => self.count += 1,
            Some(_) => return false,
        }
        self.next = Some(self.next.unwrap_or(now) + INTERVAL.div_f64(f64::from(self.count).sqrt()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_queue_is_signalled_ever_faster_and_a_short_one_never() {
        let start = Instant::now();
        let signals = |waited: Duration, from_ms: u64, to_ms: u64| {
            let mut codel = Codel::default();
            let at = |ms: u64| start + Duration::from_millis(ms);
            (0..to_ms).filter(|&ms| codel.signals(at(ms), waited) && ms >= from_ms).count()
        };
        assert_eq!(signals(Duration::from_millis(4), 0, 5000), 0);
        let long = Duration::from_millis(50);
        assert_eq!(signals(long, 0, 100), 0);
        assert!(signals(long, 4000, 5000) > 2 * signals(long, 0, 1000));
    }
}
