//! The sending half of a flow: which packet is next, and when.
//!
//! A [`Source`] numbers packets, knows their lengths, keeps an even rate, a window, or both, and begins a window anew that the network
//! has swallowed. It sends nothing and reads no clock.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::sizes::SizeCycle;
use super::wire::SendSpec;

/// The most packets that [`Source::poll`] gives for the same `now`: others are to have their turn.
pub const PASS_PACKETS_MAX: u16 = 64;

/// The most packets of a train: those that one super-packet can have (the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9).
pub const TRAIN_PACKETS_MAX: u16 = 64;

/// When nothing was heard for this long of a window that is full, all that was on the way is taken as lost.
pub const STALL_AFTER: Duration = Duration::from_millis(200);

/// Packets a second, at most.
pub const RATE_MAX: f64 = 1e7;

/// Packets a second, at least: one in a day.
pub const RATE_MIN: f64 = 1.0 / 86_400.0;

/// A packet that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Its number in the flow.
    pub sequence: u64,
    /// Its length as an inner packet, in bytes.
    pub inner_bytes: u16,
    /// When it was due: at an even rate, its train's place in the schedule, however late it is; without a rate, now.
    pub due: Instant,
}

/// The sending half of a flow.
///
/// Whoever drives it calls [`Source::poll`] until `None` while there is room for the longest packet, and again at [`Source::next_at`],
/// with another `now`. What was polled counts as sent.
#[derive(Debug, Clone)]
pub struct Source {
    sizes: SizeCycle,
    start: Instant,
    /// Between packets, in nanoseconds.
    interval_ns: Option<f64>,
    train_packets: u16,
    window_bytes: Option<u64>,
    /// The next number.
    sequence: u64,
    /// Numbers that others took.
    taken: u64,
    /// All numbers before this one have arrived or are lost.
    settled: u64,
    /// What is on the way, in bytes. Only with a window.
    pending_bytes: u64,
    /// When the other side was last heard, or else the first packet on the way was sent.
    heard_at: Instant,
    /// When the window last let more through.
    opened_at: Instant,
    /// The last `now` of a poll, and the packets given for it.
    pass: (Instant, u16),
    stalls: u64,
    is_stopped: bool,
}

impl Source {
    /// A source whose first packet is due at `start`. See [`phase`] for where there are many.
    pub fn new(spec: &SendSpec, start: Instant) -> Result<Source> {
        let SendSpec { sizes, packets_per_second, window_bytes, train_packets } = spec;
        let sizes = SizeCycle::new(sizes)?;
        let longest = sizes.longest();
        if let Some(rate) = packets_per_second {
            ensure!(
                (RATE_MIN..=RATE_MAX).contains(rate),
                "{rate} packets a second are impossible: 0.0000116 to 10,000,000 are right"
            );
        }
        ensure!(
            packets_per_second.is_some() || window_bytes.is_some(),
            "neither packets a second nor a window is given"
        );
        ensure!(
            (1..=TRAIN_PACKETS_MAX).contains(train_packets),
            "a train of {train_packets} packets is impossible: 1 to {TRAIN_PACKETS_MAX} are right"
        );
        ensure!(
            window_bytes.is_none_or(|bytes| bytes >= u32::from(longest)),
            "a window of {} bytes is smaller than a packet of {longest} bytes",
            window_bytes.unwrap_or(0)
        );
        Ok(Source {
            sizes,
            start,
            interval_ns: spec.packets_per_second.map(|rate| 1e9 / rate),
            train_packets: spec.train_packets,
            window_bytes: spec.window_bytes.map(u64::from),
            sequence: 0,
            taken: 0,
            settled: 0,
            pending_bytes: 0,
            heard_at: start,
            opened_at: start,
            pass: (start, 0),
            stalls: 0,
            is_stopped: false,
        })
    }

    /// The next packet, if it may be sent now. At most [`PASS_PACKETS_MAX`] for the same `now`: a source that was not asked for a while
    /// catches up in several turns. What a schedule demands is never skipped.
    #[inline]
    pub fn poll(&mut self, now: Instant) -> Option<Next> {
        let next = self.peek(now)?;
        self.pass = if self.pass.0 == now { (now, self.pass.1 + 1) } else { (now, 1) };
        self.number();
        if self.pending_bytes == u64::from(next.inner_bytes) {
            self.heard_at = now;
        }
        Some(next)
    }

    /// What [`Source::poll`] would give.
    #[inline]
    pub fn peek(&mut self, now: Instant) -> Option<Next> {
        if self.is_stopped || now < self.start || self.pass == (now, PASS_PACKETS_MAX) {
            return None;
        }
        let due = self.due();
        if due.is_some_and(|due| due > now) {
            return None;
        }
        let inner_bytes = self.sizes.length(self.sequence);
        if self.is_blocked() {
            if now < self.heard_at + STALL_AFTER {
                return None;
            }
            self.settle(self.sequence);
            self.stalls += 1;
            self.heard_at = now;
            self.opened_at = now;
        }
        Some(Next { sequence: self.sequence, inner_bytes, due: due.unwrap_or(now) })
    }

    /// When there may be a packet again if nothing is heard: a time that has passed means at once. `None` after [`Source::stop`].
    pub fn next_at(&self) -> Option<Instant> {
        if self.is_stopped {
            return None;
        }
        let open_at = if self.is_blocked() { self.heard_at + STALL_AFTER } else { self.opened_at };
        Some(self.due().map_or(open_at, |due| due.max(open_at)))
    }

    /// The other side says that it has received all that it will ever receive of the numbers before `highest_plus_1`. Returns whether
    /// this can be: not when it names a packet that was never sent.
    pub fn handle_credit(&mut self, now: Instant, highest_plus_1: u64) -> bool {
        if highest_plus_1 > self.sequence {
            return false;
        }
        self.heard_at = now;
        if highest_plus_1 > self.settled {
            self.settle(highest_plus_1);
            self.opened_at = now;
        }
        true
    }

    /// Takes the next number of the flow for a message that is not the source's own, an answer. It fills the window like one of its own.
    #[inline]
    pub fn take_number(&mut self) -> u64 {
        self.taken += 1;
        self.number()
    }

    /// Packets and numbers given so far: the next number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often a window was taken as lost.
    #[cfg(test)]
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// The most packets that are to go to the kernel in one piece.
    pub fn train_packets(&self) -> u16 {
        self.train_packets
    }

    /// The longest packet that it will ever give, in bytes.
    pub fn longest(&self) -> u16 {
        self.sizes.longest()
    }

    /// Ends it: there will be no packet any more.
    pub fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Whether [`Source::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    fn number(&mut self) -> u64 {
        if self.window_bytes.is_some() {
            self.pending_bytes += u64::from(self.sizes.length(self.sequence));
        }
        self.sequence += 1;
        self.sequence - 1
    }

    /// The place of the next packet in the schedule. It is reckoned from the start, so that errors do not add up.
    #[inline]
    fn due(&self) -> Option<Instant> {
        let own = self.sequence - self.taken;
        let first_of_train = own - own % u64::from(self.train_packets);
        let since_start_ns = first_of_train as f64 * self.interval_ns?;
        Some(self.start + Duration::from_nanos(since_start_ns as u64))
    }

    /// Whether the window has no room for the next packet.
    #[inline]
    fn is_blocked(&self) -> bool {
        self.window_bytes
            .is_some_and(|window_bytes| self.pending_bytes + u64::from(self.sizes.length(self.sequence)) > window_bytes)
    }

    fn settle(&mut self, settled: u64) {
        self.settled = settled;
        if self.window_bytes.is_some() {
            self.pending_bytes = self.sizes.bytes_before(self.sequence) - self.sizes.bytes_before(settled);
        }
    }
}

/// How long after a common start flow `flow` is to begin, so that the packets of many flows of one rate come evenly: a part of the time
/// between two trains. Zero without a rate.
pub fn phase(spec: &SendSpec, flow: u32) -> Duration {
    // Multiples of the golden ratio: however many flows there are, their fractions lie evenly.
    let fraction = f64::from(flow.wrapping_mul(0x9e37_79b9)) / 2f64.powi(32);
    spec.packets_per_second
        .filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate))
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(fraction / rate * f64::from(spec.train_packets)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn spec(packets_per_second: Option<f64>, window_bytes: Option<u32>) -> SendSpec {
        SendSpec { sizes: vec![(100, 1)], packets_per_second, window_bytes, train_packets: 1 }
    }

    fn source(packets_per_second: Option<f64>, window_bytes: Option<u32>) -> (Source, Instant) {
        let start = Instant::now();
        (Source::new(&spec(packets_per_second, window_bytes), start).unwrap(), start)
    }

    fn polled(source: &mut Source, now: Instant) -> Vec<Next> {
        std::iter::from_fn(|| source.poll(now)).collect()
    }

    #[test]
    fn an_even_rate_is_kept_over_hours() {
        for rate in [0.01, 0.3, 7.7, 1000.0 / 3.0] {
            let (mut source, start) = source(Some(rate), None);
            let hours = Duration::from_secs(10 * 3600);
            let (mut now, mut number) = (start, 0u64);
            // Asked whenever it wants to be, but always a little late.
            while now <= start + hours + MS {
                while let Some(next) = source.poll(now) {
                    let exact = number as f64 / rate;
                    assert!(((next.due - start).as_secs_f64() - exact).abs() < 1e-6, "{number} at {rate} a second");
                    number += 1;
                }
                now = source.next_at().unwrap() + Duration::from_micros(number * 7919 % 900);
            }
            assert_eq!(number, (36_000.0 * rate).round() as u64 + 1, "{rate} a second");
        }
    }

    #[test]
    fn packets_of_a_train_are_due_with_its_first_and_the_rate_is_the_same() {
        let start = Instant::now();
        let spec = SendSpec { train_packets: 4, ..spec(Some(1000.0), None) };
        let mut source = Source::new(&spec, start).unwrap();
        assert_eq!(polled(&mut source, start).len(), 4);
        assert_eq!((source.next_at(), polled(&mut source, start + 3 * MS).len()), (Some(start + 4 * MS), 0));
        let late = polled(&mut source, start + 9 * MS);
        let due: Vec<_> = late.iter().map(|next| next.due - start).collect();
        assert_eq!(due, [[4 * MS; 4], [8 * MS; 4]].concat());
        let latest = (0..1000).map(|flow| phase(&spec, flow)).max();
        assert!(latest.is_some_and(|latest| (3 * MS..4 * MS).contains(&latest)), "{latest:?}");
    }

    #[test]
    fn a_window_bounds_what_is_on_the_way_and_credit_opens_it() {
        let (mut source, start) = source(None, Some(1050));
        let first = polled(&mut source, start);
        assert_eq!(first.len(), 10);
        assert!(first.iter().all(|next| next.due == start && next.inner_bytes == 100));
        assert_eq!((source.peek(start + MS), source.next_at()), (None, Some(start + STALL_AFTER)));
        assert!(source.handle_credit(start + MS, 4));
        assert_eq!(source.next_at(), Some(start + MS), "at once");
        assert_eq!(
            polled(&mut source, start + MS).iter().map(|next| next.sequence).collect::<Vec<_>>(),
            [10, 11, 12, 13]
        );
        assert!(source.handle_credit(start + MS, 2), "an older one was overtaken");
        assert!(!source.handle_credit(start + MS, 15), "of what was never sent");
        assert_eq!(source.peek(start + 2 * MS), None);
        assert_eq!(source.stalls(), 0);
    }

    #[test]
    fn a_window_that_was_swallowed_begins_anew_and_is_counted() {
        let (mut source, start) = source(None, Some(1000));
        polled(&mut source, start);
        assert!(source.handle_credit(start + MS, 1));
        assert_eq!(polled(&mut source, start + MS).len(), 1);
        assert_eq!(source.peek(start + 200 * MS), None);
        let again = polled(&mut source, start + 201 * MS);
        assert_eq!((again.len(), again[0].sequence, source.stalls()), (10, 11, 1), "nothing is repeated");
        // What was thought lost was only late.
        assert!(source.handle_credit(start + 210 * MS, 8));
        assert_eq!(source.peek(start + 211 * MS), None);
        assert_eq!(source.next_at(), Some(start + 410 * MS), "but something was heard");
        assert!(source.handle_credit(start + 220 * MS, 21));
        assert_eq!(polled(&mut source, start + 220 * MS).len(), 10);
        assert_eq!(source.stalls(), 1);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_with_what_can() {
        for (refused, told) in [
            (spec(Some(0.0), None), "0 packets a second"),
            (spec(Some(-1.0), None), "-1 packets a second"),
            (spec(Some(f64::NAN), None), "NaN packets a second"),
            (spec(Some(f64::INFINITY), None), "inf packets a second"),
            (spec(None, None), "neither packets a second nor a window"),
            (spec(Some(1.0), Some(99)), "a window of 99 bytes is smaller than a packet of 100 bytes"),
            (SendSpec { sizes: vec![(51, 1)], ..spec(Some(1.0), None) }, "packet size 51"),
            (SendSpec { train_packets: 0, ..spec(Some(1.0), None) }, "a train of 0 packets"),
            (SendSpec { train_packets: 65, ..spec(Some(1.0), None) }, "a train of 65 packets"),
        ] {
            let error = Source::new(&refused, Instant::now()).unwrap_err().to_string();
            assert!(error.contains(told) && error.lines().count() == 1, "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_order_of_credits_and_time_makes_a_window_burst(
            steps in prop::collection::vec((0u64..60, 0u64..12), 1..200),
            sizes in prop::collection::vec((100u16..1500, 1u32..5), 1..4),
        ) {
            let start = Instant::now();
            let spec = SendSpec { sizes, ..spec(None, Some(6000)) };
            let mut source = Source::new(&spec, start).unwrap();
            let (mut now, mut sent, mut settled, mut stalls) = (start, Vec::<u64>::new(), 0usize, 0);
            for (pause_ms, credit) in steps {
                now += Duration::from_millis(pause_ms) + Duration::from_nanos(1);
                let highest = (settled as u64 + credit).min(sent.len() as u64);
                if credit > 0 {
                    prop_assert!(source.handle_credit(now, highest));
                    settled = settled.max(highest as usize);
                }
                let packets = polled(&mut source, now);
                if source.stalls() > stalls {
                    stalls = source.stalls();
                    settled = sent.len();
                }
                sent.extend(packets.iter().map(|next| u64::from(next.inner_bytes)));
                let on_the_way: u64 = sent[settled..].iter().sum();
                prop_assert!(on_the_way <= 6000, "{} bytes on the way", on_the_way);
                prop_assert!(source.next_at().unwrap() > now, "as much as the window lets, and no stall forgotten");
            }
        }
    }
}
