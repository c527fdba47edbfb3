//! What a generator waits for. Nothing here reads a clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// Slow flows of many fall due at multiples of this only: thousands of them would otherwise wake the thread for each packet, and an eighth
/// of what counts as late is no harm.
const GRID_NS: u64 = 125_000;

/// Events of a [`Pacer`] in one pass, at most.
const BURST_MAX: u32 = 64;

/// When slots are to be looked at. One may be looked at too early, after its timer was moved, and never too late.
#[derive(Debug, Default)]
pub struct TimerQueue(BinaryHeap<Reverse<(Instant, u32)>>);

impl TimerQueue {
    /// Has `slot` looked at by `at`. `armed` belongs to the slot: when it is to be looked at already.
    #[inline]
    pub fn arm(&mut self, slot: u32, armed: &mut Option<Instant>, at: Instant) {
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.0.push(Reverse((at, slot)));
        }
    }

    /// A slot that is due. Whoever owns it calls [`fired`].
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        self.next_at().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse((_, slot))| slot)
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }
}

/// Takes note that a slot was looked at.
pub fn fired(armed: &mut Option<Instant>, now: Instant) {
    *armed = armed.filter(|at| *at > now);
}

/// Entries that all wait equally long, so that they fall due in the order they came. Whoever takes one out decides whether it still means
/// anything; nothing is removed before.
#[derive(Debug)]
pub struct Delay<T> {
    after: Duration,
    entries: VecDeque<(Instant, T)>,
}

impl<T> Delay<T> {
    pub fn new(after: Duration) -> Delay<T> {
        Delay { after, entries: VecDeque::new() }
    }

    pub fn push(&mut self, now: Instant, entry: T) {
        self.entries.push_back((now + self.after, entry));
    }

    pub fn pop_due(&mut self, now: Instant) -> Option<T> {
        self.next_at().filter(|at| *at <= now)?;
        self.entries.pop_front().map(|(_, entry)| entry)
    }

    pub fn next_at(&self) -> Option<Instant> {
        self.entries.front().map(|(at, _)| *at)
    }
}

/// Events at an even rate. What a busy thread missed is made up for, but of no more than a second.
#[derive(Debug)]
pub struct Pacer {
    interval: Duration,
    pub next_at: Option<Instant>,
}

impl Pacer {
    /// `per_second` events; none for 0.
    pub fn new(per_second: f64) -> Pacer {
        let interval = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX);
        Pacer { interval, next_at: None }
    }

    /// Begins; the first event is due after an interval.
    pub fn start(&mut self, now: Instant) {
        self.next_at = now.checked_add(self.interval);
    }

    pub fn stop(&mut self) {
        self.next_at = None;
    }

    /// How many events are due, at most `max`, which then count as done.
    pub fn take(&mut self, now: Instant, max: u32) -> u32 {
        let mut events = 0;
        while events < max.min(BURST_MAX)
            && let Some(at) = self.next_at.filter(|at| *at <= now)
        {
            events += 1;
            let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(at);
            self.next_at = at.max(earliest).checked_add(self.interval);
        }
        events
    }
}

/// `at`, or up to an eighth of a millisecond later.
pub fn on_grid(origin: Instant, at: Instant) -> Instant {
    let since_origin_ns = at.saturating_duration_since(origin).as_nanos() as u64;
    origin + Duration::from_nanos(since_origin_ns.next_multiple_of(GRID_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slot_is_looked_at_when_it_is_due_and_not_before() {
        let (now, mut queue, mut armed) = (Instant::now(), TimerQueue::default(), None);
        queue.arm(7, &mut armed, now + 9 * MS);
        queue.arm(7, &mut armed, now + 5 * MS);
        assert_eq!((queue.pop_due(now + 4 * MS), queue.next_at()), (None, Some(now + 5 * MS)));
        assert_eq!(queue.pop_due(now + 5 * MS), Some(7));
        fired(&mut armed, now + 5 * MS);
        assert_eq!(armed, None);
        assert_eq!(queue.pop_due(now + 9 * MS), Some(7), "once too often does no harm");
        let mut delay = Delay::new(10 * MS);
        delay.push(now, 'a');
        delay.push(now + MS, 'b');
        assert_eq!((delay.pop_due(now + 9 * MS), delay.pop_due(now + 10 * MS)), (None, Some('a')));
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
            events += pacer.take(now + elapsed * MS, u32::MAX);
        }
        assert_eq!(events, elapsed / 10);
        let late: u32 = (0..100).map(|_| pacer.take(now + 1_000_000 * MS, 3)).sum();
        assert!((100..=102).contains(&late), "{late}");
        pacer.stop();
        assert_eq!(pacer.take(now + 3_600_000 * MS, 9), 0);
        let mut never = Pacer::new(0.0);
        never.start(now);
        assert_eq!(never.take(now + 3_600_000 * MS, 9), 0);
    }
}
