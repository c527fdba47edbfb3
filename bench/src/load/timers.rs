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

/// Events at an even rate. What a busy thread missed is made up for, but of no more than a second.
#[derive(Debug)]
pub struct Pacer {
    per_second: f64,
    pub next_at: Option<Instant>,
}

impl Pacer {
    /// None for 0.
    pub fn new(per_second: f64) -> Pacer {
        Pacer { per_second, next_at: None }
    }

    /// Begins; the first event is due after an interval.
    pub fn start(&mut self, now: Instant) {
        self.next_at = self.after(now);
    }

    pub fn stop(&mut self) {
        self.next_at = None;
    }

    /// How many events are due, at most `max`, which then count as done.
    pub fn take(&mut self, now: Instant, max: usize) -> usize {
        let mut events = 0;
        while events < max
            && let Some(at) = self.next_at.filter(|at| *at <= now)
        {
            events += 1;
            let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(at);
            self.next_at = self.after(at.max(earliest));
        }
        events
    }

    fn after(&self, at: Instant) -> Option<Instant> {
        at.checked_add(Duration::try_from_secs_f64(1.0 / self.per_second).ok()?)
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
    fn a_pacer_keeps_its_rate_whatever_the_passes_are_and_makes_up_for_a_second_at_most() {
        let now = Instant::now();
        let mut pacer = Pacer::new(100.0);
        assert_eq!(pacer.take(now, 9), 0, "not started");
        pacer.start(now);
        let (mut elapsed, mut events) = (0, 0);
        for ms in [1u32, 7, 2, 60, 3, 27].into_iter().cycle().take(600) {
            elapsed += ms;
            events += pacer.take(now + elapsed * MS, 99);
        }
        assert_eq!(events, elapsed as usize / 10);
        let late = pacer.take(now + 1_000_000 * MS, 999);
        assert!((100..=102).contains(&late), "{late}");
        pacer.stop();
        assert_eq!(pacer.take(now + 3_600_000 * MS, 9), 0);
        let mut never = Pacer::new(0.0);
        never.start(now);
        assert_eq!(never.take(now + 3_600_000 * MS, 9), 0);
    }
}
