//! What a generator has to look at, now and later. Nothing here reads a clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// Slots that are to be looked at: at once, each at most once, and when their timers are due. One may be looked at too early, after its timer
/// was moved, and never too late.
#[derive(Debug, Default)]
pub struct Agenda {
    touched: VecDeque<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
}

/// A slot's own part of its agenda.
#[derive(Debug, Default)]
pub struct Entry {
    is_touched: bool,
    armed: Option<Instant>,
}

impl Agenda {
    /// Has `slot` looked at in this pass, or in the next if it had its turn.
    #[inline]
    pub fn touch(&mut self, slot: u32, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.is_touched, true) {
            self.touched.push_back(slot);
        }
    }

    /// How many slots have been touched.
    pub fn touched(&self) -> usize {
        self.touched.len()
    }

    /// The next of them, whose owner calls [`Entry::begin`].
    pub fn pop_touched(&mut self) -> Option<u32> {
        self.touched.pop_front()
    }

    /// Has `slot` looked at by `at`.
    #[inline]
    pub fn arm(&mut self, slot: u32, entry: &mut Entry, at: Instant) {
        if entry.armed.is_none_or(|armed| at < armed) {
            entry.armed = Some(at);
            self.timers.push(Reverse((at, slot)));
        }
    }

    /// A slot that is due, whose owner calls [`Entry::expire`].
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        self.timers.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.timers.pop().map(|Reverse((_, slot))| slot)
    }

    /// When there is something to look at.
    pub fn next_at(&self, now: Instant) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        if self.touched.is_empty() { timer } else { Some(now) }
    }
}

impl Entry {
    /// The slot is being looked at.
    #[inline]
    pub fn begin(&mut self) {
        self.is_touched = false;
    }

    /// A timer of the slot was due.
    pub fn expire(&mut self, now: Instant) {
        self.armed = self.armed.filter(|at| *at > now);
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
    fn a_slot_is_looked_at_when_it_is_due_or_touched_and_not_before() {
        let (now, mut agenda, mut entry) = (Instant::now(), Agenda::default(), Entry::default());
        for ms in [9, 5, 6] {
            agenda.arm(7, &mut entry, now + ms * MS);
        }
        assert_eq!((agenda.pop_due(now + 4 * MS), agenda.next_at(now)), (None, Some(now + 5 * MS)));
        assert_eq!(agenda.pop_due(now + 5 * MS), Some(7));
        assert_eq!((agenda.pop_due(now + 8 * MS), agenda.pop_due(now + 9 * MS)), (None, Some(7)), "once too often");
        agenda.touch(7, &mut entry);
        agenda.touch(7, &mut entry);
        assert_eq!((agenda.touched(), agenda.next_at(now), agenda.pop_touched()), (1, Some(now), Some(7)));
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
