//! What a crowd waits for. This module reads no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tollgate_shards::TimerQueue;

/// Constant traffic falls due at multiples of this only: thousands of slow flows would otherwise wake the thread for each packet, and an
/// eighth of what counts as late is no harm.
const GRID_NS: u64 = 125_000;

/// Events of a [`Pacer`] in one pass, at most.
const BURST_MAX: u32 = 64;

/// Entries that all wait equally long, so that they fall due in the order they came. Whoever takes one out decides whether it still means
/// anything; nothing is removed before.
#[derive(Debug)]
pub(super) struct Delay<T> {
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
        if self.next_at()? > now {
            return None;
        }
        self.entries.pop_front().map(|(_, entry)| entry)
    }

    fn next_at(&self) -> Option<Instant> {
        self.entries.front().map(|(at, _)| *at)
    }
}

/// Events at an even rate. What a busy thread missed is made up for, but of no more than a second.
#[derive(Debug)]
pub(super) struct Pacer {
    interval: Duration,
    next_at: Option<Instant>,
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

    pub fn next_at(&self) -> Option<Instant> {
        self.next_at
    }
}

/// A flow that may be gone by the time it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowName {
    /// The client's slot.
    pub client: u32,
    /// The flow's number in the run.
    pub flow: u32,
}

/// How long everything waits that waits equally long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intervals {
    pub question: Duration,
    pub credit: Duration,
    pub handshake: Duration,
    pub farewell: Duration,
    pub closing: Duration,
}

/// All times that a crowd waits for, but for paced events.
#[derive(Debug)]
pub(super) struct Timers {
    /// Of clients' tunnels, by client.
    pub tunnels: TimerQueue,
    /// When sources are to be asked, by [`source_slot`].
    pub sources: TimerQueue,
    /// Questions to the far end that are to be repeated.
    pub questions: Delay<FlowName>,
    /// Acknowledgements that are due although few packets came.
    pub credits: Delay<FlowName>,
    /// Clients, each with the number of its attempt, whose handshake has to be over.
    pub handshakes: Delay<(u32, u64)>,
    /// Clients that are to be closed once nothing comes any more.
    pub farewells: Delay<(u32, u64)>,
    /// Clients whose connection was closed a while ago.
    pub closings: Delay<(u32, u64)>,
}

impl Timers {
    pub fn new(after: &Intervals) -> Timers {
        Timers {
            tunnels: TimerQueue::default(),
            sources: TimerQueue::default(),
            questions: Delay::new(after.question),
            credits: Delay::new(after.credit),
            handshakes: Delay::new(after.handshake),
            farewells: Delay::new(after.farewell),
            closings: Delay::new(after.closing),
        }
    }

    pub fn next_at(&self) -> Option<Instant> {
        let deadlines = [self.tunnels.next(), self.sources.next()];
        let flows = [self.questions.next_at(), self.credits.next_at()];
        let clients = [self.handshakes.next_at(), self.farewells.next_at(), self.closings.next_at()];
        deadlines.into_iter().flatten().map(|(at, _)| at).chain(flows.into_iter().chain(clients).flatten()).min()
    }
}

/// The slot of a client's flow in [`Timers::sources`].
pub(super) fn source_slot(client: u32, flow: usize) -> u32 {
    client * super::CLIENT_FLOWS_MAX as u32 + flow as u32
}

/// The client and the flow with this slot.
pub(super) fn client_and_flow(slot: u32) -> (u32, usize) {
    (slot / super::CLIENT_FLOWS_MAX as u32, slot as usize % super::CLIENT_FLOWS_MAX)
}

/// `at`, or up to an eighth of a millisecond later.
pub(super) fn on_grid(origin: Instant, at: Instant) -> Instant {
    let since_origin_ns = at.saturating_duration_since(origin).as_nanos() as u64;
    origin + Duration::from_nanos(since_origin_ns.next_multiple_of(GRID_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_waits_equally_long_falls_due_in_order_and_not_before() {
        let now = Instant::now();
        let mut delay = Delay::new(10 * MS);
        delay.push(now, 'a');
        delay.push(now + MS, 'b');
        assert_eq!(delay.next_at(), Some(now + 10 * MS));
        assert_eq!(delay.pop_due(now + 9 * MS), None);
        assert_eq!(delay.pop_due(now + 10 * MS), Some('a'));
        assert_eq!(delay.pop_due(now + 10 * MS), None);
        assert_eq!(delay.pop_due(now + 99 * MS), Some('b'));
        assert_eq!(delay.next_at(), None);
    }

    #[test]
    fn a_pacer_keeps_its_rate_whatever_the_passes_are() {
        let now = Instant::now();
        let mut pacer = Pacer::new(100.0);
        assert_eq!(pacer.take(now, 9), 0, "not started");
        pacer.start(now);
        let passes = [1u32, 7, 2, 60, 3, 27].into_iter().cycle();
        let mut elapsed = 0;
        let mut events = 0;
        for ms in passes.take(600) {
            elapsed += ms;
            events += pacer.take(now + elapsed * MS, u32::MAX);
        }
        assert_eq!(events, elapsed / 10);
        pacer.stop();
        assert_eq!((pacer.next_at(), pacer.take(now + 3_600_000 * MS, 9)), (None, 0));
    }

    #[test]
    fn a_pacer_that_was_held_up_makes_up_for_a_second_at_most() {
        let now = Instant::now();
        let mut pacer = Pacer::new(10.0);
        pacer.start(now);
        let late = now + 100_000 * MS;
        let events: u32 = (0..100).map(|_| pacer.take(late, 3)).sum();
        assert!((10..=12).contains(&events), "{events}");
        assert!(pacer.next_at().is_some_and(|at| at > late));
        let mut never = Pacer::new(0.0);
        never.start(now);
        assert_eq!(never.take(late, 9), 0);
    }

    #[test]
    fn a_flows_slot_leads_back_to_it() {
        for (client, flow) in [(0, 0), (0, 63), (59_999, 63), (17, 5)] {
            assert_eq!(client_and_flow(source_slot(client, flow)), (client, flow));
        }
    }

    #[test]
    fn the_grid_makes_nothing_early_and_little_late() {
        let origin = Instant::now();
        for ns in [0, 1, 124_999, 125_000, 125_001, 987_654_321] {
            let at = origin + Duration::from_nanos(ns);
            let later = on_grid(origin, at) - at;
            assert!(later < Duration::from_nanos(GRID_NS), "{later:?}");
        }
    }
}
