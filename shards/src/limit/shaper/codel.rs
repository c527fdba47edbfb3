//! CoDel (RFC 8289): when a queue should tell its senders to slow down.

use std::time::{Duration, Instant};

use super::LARGEST_PACKET_BYTES;
use crate::limit::rate::Rate;

/// The standing delay that is put up with (RFC 8289, section 4.4), where the rate does not ask for more.
const TARGET_MIN: Duration = Duration::from_millis(5);
/// The time in which senders are expected to react (RFC 8289, section 4.3), where the target does not ask for more.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// For how many intervals the last signalling rate is worth remembering (RFC 8289, section 5.5).
const MEMORY_INTERVALS: u32 = 16;

/// What a queue's delay is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delays {
    /// A queue whose packets wait less than this is a good one.
    pub target: Duration,
    /// A queue that was not a good one for this long is a standing one.
    pub interval: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        Delays { target: TARGET_MIN, interval: INTERVAL_MIN }
    }
}

impl Delays {
    /// Delays for a queue that drains at `rate`: the target is no less than the time of one large packet (RFC 8290, section 5.2.2).
    pub fn at(rate: Rate) -> Delays {
        let target = TARGET_MIN.max(time_of_largest(rate));
        Delays { target, interval: INTERVAL_MIN.max(2 * target) }
    }

    /// For how long after its last packet a queue's [`Codel`] is worth keeping.
    pub fn memory(&self) -> Duration {
        self.interval * MEMORY_INTERVALS
    }

    /// When the signal after the `count`th in a row is due: the square root makes a sender's throughput fall linearly.
    fn after(&self, last: Instant, count: u32) -> Instant {
        last + self.interval.div_f64(f64::from(count).sqrt())
    }
}

/// How long a packet of [`LARGEST_PACKET_BYTES`] takes at `rate`.
pub(super) fn time_of_largest(rate: Rate) -> Duration {
    const BITS_NS: u64 = LARGEST_PACKET_BYTES as u64 * 8 * 1_000_000_000;
    Duration::from_nanos(BITS_NS.div_ceil(rate.bits_per_s()))
}

#[derive(Debug, Default)]
pub(super) struct Codel {
    /// When the delay will have been above the target for an interval; `None` while it is below.
    standing_at: Option<Instant>,
    /// Whether senders are being told.
    signals: bool,
    /// When they are to be told again; when they would have been, if they are no longer.
    signal_next: Option<Instant>,
    /// Signals since they began, or what it takes to go on at an earlier pace.
    count: u32,
    /// What `count` was when they began.
    count_at_first: u32,
}

impl Codel {
    /// Looks at a packet that leaves the queue after it `waited`, with `behind_bytes` behind it. Returns whether it must carry the
    /// signal, by being marked or dropped; if it was dropped, the next packet is to be looked at in the same way.
    ///
    /// This is `deque` of RFC 8289, section 5.5, taken apart into packets. It differs where a queue turns good right behind a dropped
    /// packet: the time of the next signal, which only the memory of an earlier pace looks at then, has already moved on.
    pub fn must_signal(&mut self, now: Instant, delays: &Delays, waited: Duration, behind_bytes: usize) -> bool {
        if !self.is_standing(now, delays, waited, behind_bytes) {
            self.signals = false;
            return false;
        }
        if !self.signals {
            self.begin(now, delays);
            return true;
        }
        match self.signal_next {
            Some(due) if now >= due => {
                self.count = self.count.saturating_add(1);
                self.signal_next = Some(delays.after(due, self.count));
                true
            }
            _ => false,
        }
    }

    pub fn emptied(&mut self) {
        self.standing_at = None;
        self.signals = false;
    }

    /// `dodeque` of RFC 8289, section 5.6. A packet with less than another behind it makes no standing queue.
    fn is_standing(&mut self, now: Instant, delays: &Delays, waited: Duration, behind_bytes: usize) -> bool {
        if waited < delays.target || behind_bytes <= LARGEST_PACKET_BYTES {
            self.standing_at = None;
            return false;
        }
        now >= *self.standing_at.get_or_insert(now + delays.interval)
    }

    fn begin(&mut self, now: Instant, delays: &Delays) {
        self.signals = true;
        let gained = self.count - self.count_at_first;
        let is_recent = self.signal_next.is_some_and(|last| now.saturating_duration_since(last) < delays.memory());
        self.count = if gained > 1 && is_recent { gained } else { 1 };
        self.count_at_first = self.count;
        self.signal_next = Some(delays.after(now, self.count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    const LONG: Duration = Duration::from_millis(20);
    const SHORT: Duration = Duration::from_millis(4);
    const MANY_BYTES: usize = 100_000;

    /// Milliseconds from `start` at which packets that leave every millisecond carry the signal.
    fn signals(codel: &mut Codel, start: Instant, ms: std::ops::Range<u64>, waited: Duration) -> Vec<u64> {
        let delays = Delays::default();
        ms.filter(|ms| codel.must_signal(start + Duration::from_millis(*ms), &delays, waited, MANY_BYTES)).collect()
    }

    #[test]
    fn a_standing_queue_is_signalled_after_an_interval_and_then_ever_more_often() {
        let mut codel = Codel::default();
        // 100 ms each divided by the square roots of 1, 2, 3 ...; a packet leaves only at whole milliseconds.
        assert_eq!(signals(&mut codel, origin(), 0..500, LONG), [100, 200, 271, 329, 379, 424, 464]);
    }

    #[test]
    fn a_burst_that_is_gone_within_an_interval_is_not_signalled() {
        let (mut codel, start) = (Codel::default(), origin());
        for burst in (0..1000).step_by(100) {
            assert!(signals(&mut codel, start, burst..burst + 99, LONG).is_empty());
            assert!(signals(&mut codel, start, burst + 99..burst + 100, SHORT).is_empty());
        }
    }

    #[test]
    fn a_queue_that_turns_bad_again_soon_is_signalled_at_the_earlier_pace() {
        for (pause_ms, second) in [(200, 58), (2000, 100)] {
            let (mut codel, start) = (Codel::default(), origin());
            // Four signals, so that the pace gained is three.
            assert_eq!(signals(&mut codel, start, 0..330, LONG).len(), 4);
            assert!(signals(&mut codel, start, 330..330 + pause_ms, SHORT).is_empty());
            let again = 330 + pause_ms + 100;
            let signalled = signals(&mut codel, start, 330 + pause_ms..again + 101, LONG);
            assert_eq!((signalled[0], signalled[1] - signalled[0]), (again, second));
        }
    }

    #[test]
    fn a_last_packet_is_never_signalled_however_late() {
        let (mut codel, start) = (Codel::default(), origin());
        for ms in 0..1000 {
            let now = start + Duration::from_millis(ms);
            assert!(!codel.must_signal(now, &Delays::default(), LONG, LARGEST_PACKET_BYTES));
        }
    }

    #[test]
    fn packets_that_leave_long_after_they_should_catch_up_one_by_one() {
        let (mut codel, start) = (Codel::default(), origin());
        assert_eq!(signals(&mut codel, start, 0..101, LONG), [100]);
        let late = start + Duration::from_millis(300);
        let caught_up = (0..10).map(|_| codel.must_signal(late, &Delays::default(), LONG, MANY_BYTES));
        assert_eq!(caught_up.filter(|signal| *signal).count(), 2, "those of 200 ms and 271 ms");
    }

    #[test]
    fn a_slow_link_is_allowed_the_time_of_its_packets() {
        let at = |bits_per_s| Delays::at(Rate::from_bits_per_s(bits_per_s).unwrap());
        assert_eq!(at(100_000_000_000), Delays::default());
        assert_eq!(at(20_000_000), Delays::default());
        assert_eq!(at(1_000_000), Delays { target: Duration::from_millis(12), ..Delays::default() });
        let slowest = Delays { target: Duration::from_secs(12), interval: Duration::from_secs(24) };
        assert_eq!(at(1_000), slowest);
    }
}
