//! Virtual time, and what is to happen when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment of a run: time since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub ns: u64,
}

impl Time {
    /// The first multiple of `tick` that is not before this moment. Nothing changes without ticks.
    pub fn round_up(self, tick: Duration) -> Time {
        let tick_ns = (tick.as_nanos() as u64).max(1);
        Time { ns: self.ns.div_ceil(tick_ns) * tick_ns }
    }

    pub fn since_start(self) -> Duration {
        Duration::from_nanos(self.ns)
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, later: Duration) -> Time {
        Time { ns: self.ns + later.as_nanos() as u64 }
    }
}

impl Sub<Time> for Time {
    type Output = Duration;

    /// Nothing if `earlier` is later.
    fn sub(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.ns.saturating_sub(earlier.ns))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.ns / 1_000_000_000, self.ns % 1_000_000_000)
    }
}

/// Everything still to happen, by time; at the same time, in the order in which it was scheduled.
#[derive(Debug)]
pub struct Schedule<T> {
    heap: BinaryHeap<Entry<T>>,
    scheduled: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Time,
    sequence: u64,
    what: T,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Schedule { heap: BinaryHeap::new(), scheduled: 0 }
    }
}

impl<T> Schedule<T> {
    /// Lets `what` happen at `at`.
    pub fn at(&mut self, at: Time, what: T) {
        self.scheduled += 1;
        self.heap.push(Entry { at, sequence: self.scheduled, what });
    }

    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// What happens at `now` or before, one by one.
    pub fn pop_due(&mut self, now: Time) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|entry| entry.what)
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_by_time_and_then_in_order() {
        let mut schedule = Schedule::default();
        for (at, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            schedule.at(Time { ns: at }, what);
        }
        let due: String = std::iter::from_fn(|| schedule.pop_due(Time { ns: 5 })).collect();
        assert_eq!(due, "abcd");
        assert_eq!(schedule.next(), Some(Time { ns: 9 }));
    }

    #[test]
    fn ticks_round_up() {
        let tick = Duration::from_nanos(10);
        assert_eq!([0, 1, 10, 11].map(|ns| Time { ns }.round_up(tick).ns), [0, 10, 10, 20]);
        assert_eq!(Time { ns: 7 }.round_up(Duration::ZERO).ns, 7);
    }
}
