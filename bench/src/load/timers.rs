//! What the harness's threads wait for. Nothing here reads a clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// When slots are to be looked at. One may be looked at too early, after its timer was moved, and never too late.
#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<(Instant, u32)>>);

impl Timers {
    /// Has `slot` looked at by `at`. `armed` belongs to the slot: when it is to be looked at already.
    #[inline]
    pub fn arm(&mut self, slot: u32, armed: &mut Option<Instant>, at: Instant) {
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.0.push(Reverse((at, slot)));
        }
    }

    /// A slot that is due. Its owner drops what it had `armed`, if that is over.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        self.next_at().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse((_, slot))| slot)
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }
}

/// Events at an even rate from its start on. What a busy thread missed is made up for.
#[derive(Debug, Default)]
pub struct Pacer {
    per_second: f64,
    start: Option<Instant>,
    events: u32,
}

impl Pacer {
    /// None for 0. It does not start before [`Pacer::start`].
    pub fn new(per_second: f64) -> Pacer {
        Pacer { per_second, ..Pacer::default() }
    }

    pub fn start(&mut self, now: Instant) {
        self.start = Some(now);
    }

    pub fn stop(&mut self) {
        self.start = None;
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Instant> {
        let since = Duration::try_from_secs_f64(f64::from(self.events + 1) / self.per_second).ok()?;
        self.start?.checked_add(since)
    }

    /// How many events are due, at most `max`, which then count as done.
    pub fn take(&mut self, now: Instant, max: u32) -> u32 {
        let before = self.events;
        while self.events - before < max && self.next_at().is_some_and(|at| at <= now) {
            self.events += 1;
        }
        self.events - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slot_is_looked_at_when_it_is_due_and_not_before() {
        let (now, mut timers, mut armed) = (Instant::now(), Timers::default(), None);
        timers.arm(7, &mut armed, now + 9 * MS);
        timers.arm(7, &mut armed, now + 5 * MS);
        timers.arm(7, &mut armed, now + 6 * MS);
        assert_eq!((timers.pop_due(now + 4 * MS), timers.next_at()), (None, Some(now + 5 * MS)));
        assert_eq!(timers.pop_due(now + 5 * MS), Some(7));
        assert_eq!((timers.pop_due(now + 8 * MS), timers.pop_due(now + 9 * MS)), (None, Some(7)), "once too often");
    }

    #[test]
    fn a_pacer_keeps_its_rate_whatever_the_passes_are() {
        let (now, mut pacer, mut never) = (Instant::now(), Pacer::new(100.0), Pacer::new(0.0));
        assert_eq!((pacer.take(now, 9), pacer.next_at()), (0, None), "not started");
        pacer.start(now);
        never.start(now);
        let (mut elapsed, mut events) = (0, 0);
        for ms in [1u32, 7, 2, 60, 3, 27].into_iter().cycle().take(600) {
            elapsed += ms;
            events += pacer.take(now + elapsed * MS, 99);
        }
        assert_eq!((events, never.take(now + elapsed * MS, 9)), (elapsed / 10, 0));
        assert_eq!(pacer.take(now + 2 * elapsed * MS, 3), 3, "no more than are wanted");
        pacer.stop();
        assert_eq!(pacer.take(now + 3_600_000 * MS, 9), 0);
    }
}
