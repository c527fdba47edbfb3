//! One end of a flow: which message it sends next and when, and what it makes of those that come. Both ends are the same machine. It has no
//! socket and reads no clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{self, Header, INNER_BYTES_MIN, Kind, OVERHEAD_BYTES, stamp_ns};
use super::sink::{FlowCounts, Sink};

/// The most packets of a train: those that one super-packet can have (the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9).
pub const TRAIN_PACKETS_MAX: u16 = 64;
/// The most packets that a source gives for the same `now`: others are to have their turn.
const PASS_PACKETS_MAX: u16 = 64;
/// When nothing was heard for this long of a window that is full, all that was in flight is taken as lost.
const STALL_AFTER: Duration = Duration::from_millis(200);
/// The receiver of a window's data gives credit after this many messages, or this long after one.
const CREDIT_PACKETS: u32 = 32;
const CREDIT_AFTER: Duration = Duration::from_millis(1);
/// Answers of a flow that wait to be sent. Requests that find so many are not answered.
const ANSWERS_MAX: usize = 4096;
/// Bytes of a run: what the kernel takes in one piece, with room to spare.
const RUN_BYTES_MAX: usize = 64_000;

/// What one end of a group's flows does.
#[derive(Debug, Default)]
pub struct EndPlan {
    pub send: Option<Arc<SendPlan>>,
    /// Whether the other end has a window, and wants credit.
    pub gives_credit: bool,
    /// Length of an answer as an inner packet; as long as the request if it is `None`.
    pub answer_bytes: Option<u16>,
}

/// What one end sends of its own accord.
#[derive(Debug, Clone, PartialEq)]
pub struct SendPlan {
    pub kind: Kind,
    /// Lengths of inner packets in bytes, in turn; at least one.
    pub sizes: Vec<u16>,
    pub schedule: Schedule,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// So many packets a second, `train` of which fall due together.
    Even { per_second: f64, train: u16 },
    /// As many as have room among so many bytes in flight.
    Window { bytes: u32 },
}

impl SendPlan {
    pub fn longest(&self) -> u16 {
        self.sizes.iter().copied().max().unwrap_or(INNER_BYTES_MIN)
    }

    /// Packets that go to the kernel in one piece.
    pub fn train(&self) -> u16 {
        if let Schedule::Even { train, .. } = self.schedule { train } else { TRAIN_PACKETS_MAX }
    }

    /// How long after a common start flow `flow` is to begin, so that the packets of many flows of one rate come evenly: a part of the time
    /// between two trains.
    pub fn phase(&self, flow: u32) -> Duration {
        let Schedule::Even { per_second, train } = self.schedule else { return Duration::ZERO };
        // Multiples of the golden ratio: however many flows there are, their fractions lie evenly.
        let fraction = f64::from(flow.wrapping_mul(0x9e37_79b9)) / 2f64.powi(32);
        Duration::from_secs_f64(fraction / per_second * f64::from(train))
    }
}

/// Numbers packets and keeps the schedule.
#[derive(Debug)]
struct Source {
    plan: Arc<SendPlan>,
    start: Instant,
    /// The next number.
    sequence: u64,
    /// All numbers before this one have arrived or are lost.
    settled: u64,
    /// When the other side was last heard, or else the first packet in flight was sent.
    heard_at: Instant,
    /// The last `now` of a poll, and the packets given for it.
    pass: (Instant, u16),
    is_stopped: bool,
}

impl Source {
    /// The next packet, if it is due at `now` and no longer than `bytes_max`: its number, its length, and when it was due.
    #[inline]
    fn poll(&mut self, now: Instant, bytes_max: u16) -> Option<(u64, u16, Instant)> {
        let due = self.next_at().filter(|at| *at <= now && self.pass != (now, PASS_PACKETS_MAX))?;
        let bytes = Some(self.length()).filter(|bytes| *bytes <= bytes_max)?;
        if self.is_blocked() {
            self.settled = self.sequence;
        }
        if self.settled == self.sequence {
            self.heard_at = now;
        }
        self.pass = if self.pass.0 == now { (now, self.pass.1 + 1) } else { (now, 1) };
        self.sequence += 1;
        let is_even = matches!(self.plan.schedule, Schedule::Even { .. });
        Some((self.sequence - 1, bytes, if is_even { due } else { now }))
    }

    /// When the next packet is due if nothing is heard. What a schedule demands is never skipped, however late it is.
    #[inline]
    fn next_at(&self) -> Option<Instant> {
        if self.is_stopped {
            return None;
        }
        let due = match self.plan.schedule {
            // Reckoned from the start, so that errors do not add up.
            Schedule::Even { per_second, train } => {
                let first_of_train = self.sequence - self.sequence % u64::from(train);
                self.start + Duration::from_nanos((first_of_train as f64 * (1e9 / per_second)) as u64)
            }
            Schedule::Window { .. } if self.is_blocked() => self.heard_at + STALL_AFTER,
            Schedule::Window { .. } => self.start,
        };
        Some(due)
    }

    #[inline]
    fn length(&self) -> u16 {
        self.plan.sizes[(self.sequence % self.plan.sizes.len() as u64) as usize]
    }

    /// Whether the window has no room for the next packet. All in flight are taken to be as long as the longest.
    #[inline]
    fn is_blocked(&self) -> bool {
        let Schedule::Window { bytes } = self.plan.schedule else { return false };
        (self.sequence - self.settled + 1) * u64::from(self.plan.longest()) > u64::from(bytes)
    }

    /// The other side has received all that it will ever receive of the numbers before `settled`.
    fn handle_credit(&mut self, now: Instant, settled: u64) {
        if settled <= self.sequence {
            self.heard_at = now;
            self.settled = self.settled.max(settled);
        }
    }
}

/// A message to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    pub header: Header,
    pub inner_bytes: u16,
    /// When it was due by a schedule.
    pub due: Option<Instant>,
}

/// One end of a flow.
#[derive(Debug)]
pub struct End {
    /// The flow's, unique in the run.
    pub number: u32,
    source: Option<Source>,
    sink: Sink,
    /// Stamps of requests to be answered, and the lengths of the answers.
    answers: VecDeque<(u64, u16)>,
    answered: u64,
    gives_credit: bool,
    answer_bytes: Option<u16>,
    /// Messages that came since the last credit, and when the first of them did.
    untold: u32,
    untold_since: Option<Instant>,
}

impl End {
    /// Whoever sends begins at `now`, its first packet at its place between those of all other flows.
    pub fn new(number: u32, plan: &EndPlan, now: Instant) -> End {
        let source = plan.send.as_ref().map(|plan| {
            let (plan, start) = (Arc::clone(plan), now + plan.phase(number));
            Source { plan, start, sequence: 0, settled: 0, heard_at: start, pass: (start, 0), is_stopped: false }
        });
        End {
            number,
            source,
            sink: Sink::default(),
            answers: VecDeque::new(),
            answered: 0,
            gives_credit: plan.gives_credit,
            answer_bytes: plan.answer_bytes,
            untold: 0,
            untold_since: None,
        }
    }

    /// Takes what came. Returns whether it is a message that is counted, intact, and came for the first time.
    #[inline]
    pub fn take(&mut self, now: Instant, header: &Header, inner_bytes: u16, is_intact: bool) -> bool {
        if header.kind == Kind::Credit {
            self.source.iter_mut().filter(|_| is_intact).for_each(|source| source.handle_credit(now, header.sequence));
            return false;
        }
        if self.gives_credit {
            self.untold += 1;
            self.untold_since.get_or_insert(now);
        }
        let is_new = self.sink.take(header.sequence, inner_bytes.into(), is_intact);
        if is_new && header.kind == Kind::Request && self.answers.len() < ANSWERS_MAX {
            self.answers.push_back((header.stamp_ns, self.answer_bytes.unwrap_or(inner_bytes)));
        }
        is_new
    }

    /// The next message, if one no longer than `bytes_max` is due. Stamps count from `origin`. At most [`PASS_PACKETS_MAX`] of the source for
    /// the same `now`.
    #[inline]
    pub fn poll(&mut self, now: Instant, origin: Instant, bytes_max: u16) -> Option<Outgoing> {
        let header = |kind, sequence, stamp_ns| Header { kind, flow: self.number, sequence, stamp_ns };
        if self.credit_at(now).is_some_and(|at| at <= now) {
            if bytes_max < INNER_BYTES_MIN {
                return None;
            }
            let header = header(Kind::Credit, self.sink.next(), 0);
            (self.untold, self.untold_since) = (0, None);
            return Some(Outgoing { header, inner_bytes: INNER_BYTES_MIN, due: None });
        }
        if let Some((stamp_ns, inner_bytes)) = self.answers.front().copied() {
            let header = header(Kind::Answer, self.answered, stamp_ns);
            if inner_bytes > bytes_max {
                return None;
            }
            self.answers.pop_front();
            self.answered += 1;
            return Some(Outgoing { header, inner_bytes, due: None });
        }
        let source = self.source.as_mut()?;
        let (sequence, inner_bytes, due) = source.poll(now, bytes_max)?;
        let header = header(source.plan.kind, sequence, stamp_ns(origin, due));
        let due = matches!(source.plan.schedule, Schedule::Even { .. }).then_some(due);
        Some(Outgoing { header, inner_bytes, due })
    }

    /// Writes as many messages as go in one run, all equally long but for the last, and returns the length of the first in bytes; `None` for
    /// none.
    pub fn write_run(&mut self, now: Instant, origin: Instant, buf: &mut Vec<u8>) -> Option<usize> {
        let train = self.source.as_ref().map_or(TRAIN_PACKETS_MAX, |source| source.plan.train());
        let (mut first_bytes, mut last_bytes) = (None, u16::MAX);
        for _ in 0..train {
            let is_full =
                first_bytes.is_some_and(|first| last_bytes < first || buf.len() + usize::from(first) > RUN_BYTES_MAX);
            if is_full {
                break;
            }
            let Some(next) = self.poll(now, origin, first_bytes.unwrap_or(u16::MAX)) else { break };
            last_bytes = next.inner_bytes;
            first_bytes.get_or_insert(last_bytes);
            buf.extend_from_slice(&next.header.to_bytes());
            buf.extend_from_slice(message::body(&next.header, last_bytes));
        }
        first_bytes.map(|bytes| usize::from(bytes) - OVERHEAD_BYTES)
    }

    /// When there may be a message no longer than `bytes_max` if nothing comes; a time that has passed means at once.
    pub fn next_at(&self, now: Instant, bytes_max: u16) -> Option<Instant> {
        let source = self.source.as_ref().filter(|source| source.length() <= bytes_max);
        let answer = (!self.answers.is_empty()).then_some(now);
        [self.credit_at(now), answer, source.and_then(Source::next_at)].into_iter().flatten().min()
    }

    /// Ends what it sends of its own accord. Answers and credit still go out.
    pub fn stop(&mut self) {
        self.source.iter_mut().for_each(|source| source.is_stopped = true);
    }

    /// What it counted so far.
    pub fn counts(&self) -> FlowCounts {
        let sent_packets = self.source.as_ref().map_or(self.answered, |source| source.sequence);
        FlowCounts { sent_packets, ..self.sink.counts() }
    }

    fn credit_at(&self, now: Instant) -> Option<Instant> {
        let since = self.untold_since?;
        Some(if self.untold >= CREDIT_PACKETS { now } else { since + CREDIT_AFTER })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sending(sizes: Vec<u16>, schedule: Schedule) -> EndPlan {
        EndPlan { send: Some(Arc::new(SendPlan { kind: Kind::Data, sizes, schedule })), ..EndPlan::default() }
    }

    fn end(schedule: Schedule) -> (End, Instant) {
        let now = Instant::now();
        // Flow 0 begins at once.
        (End::new(0, &sending(vec![100], schedule), now), now)
    }

    fn polled(end: &mut End, now: Instant) -> Vec<Outgoing> {
        std::iter::from_fn(|| end.poll(now, now, u16::MAX)).collect()
    }

    fn credit(end: &mut End, now: Instant, settled: u64) {
        end.take(now, &Header { kind: Kind::Credit, flow: 0, sequence: settled, stamp_ns: 0 }, 52, true);
    }

    #[test]
    fn an_even_rate_is_kept_over_hours() {
        for rate in [0.01, 0.3, 7.7, 1000.0 / 3.0] {
            let (mut end, start) = end(Schedule::Even { per_second: rate, train: 1 });
            let (mut now, mut number) = (start, 0u64);
            // Asked whenever it wants to be, but always a little late.
            while now <= start + Duration::from_secs(36_000) + MS {
                while let Some(next) = end.poll(now, start, u16::MAX) {
                    let exact = number as f64 / rate;
                    assert!(
                        ((next.due.unwrap() - start).as_secs_f64() - exact).abs() < 1e-6,
                        "{number} at {rate} a second"
                    );
                    number += 1;
                }
                now = end.next_at(now, u16::MAX).unwrap() + Duration::from_micros(number * 7919 % 900);
            }
            assert_eq!(number, (36_000.0 * rate).round() as u64 + 1, "{rate} a second");
        }
    }

    #[test]
    fn packets_of_a_train_are_due_with_its_first_and_the_rate_is_the_same() {
        let schedule = Schedule::Even { per_second: 1000.0, train: 4 };
        let (mut end, start) = end(schedule);
        assert_eq!(polled(&mut end, start).len(), 4);
        assert_eq!((end.next_at(start, u16::MAX), polled(&mut end, start + 3 * MS).len()), (Some(start + 4 * MS), 0));
        let late: Vec<_> = polled(&mut end, start + 9 * MS).iter().map(|next| next.due.unwrap() - start).collect();
        assert_eq!(late, [[4 * MS; 4], [8 * MS; 4]].concat());
        let latest = (0..1000).map(|flow| sending(vec![100], schedule).send.unwrap().phase(flow)).max();
        assert!(latest.is_some_and(|latest| (3 * MS..4 * MS).contains(&latest)), "{latest:?}");
        end.stop();
        assert_eq!((end.next_at(start, u16::MAX), end.counts().sent_packets), (None, 12));
    }

    #[test]
    fn a_window_bounds_what_is_in_flight_and_a_swallowed_one_begins_anew() {
        let (mut end, start) = end(Schedule::Window { bytes: 1050 });
        assert_eq!(polled(&mut end, start).len(), 10);
        assert_eq!(end.next_at(start, u16::MAX), Some(start + STALL_AFTER));
        credit(&mut end, start + MS, 4);
        let numbers: Vec<_> = polled(&mut end, start + MS).iter().map(|next| next.header.sequence).collect();
        assert_eq!(numbers, [10, 11, 12, 13]);
        credit(&mut end, start + MS, 2);
        credit(&mut end, start + MS, 15);
        assert_eq!(polled(&mut end, start + 200 * MS), [], "an old one, and one of what was never sent");
        assert_eq!(polled(&mut end, start + 201 * MS).len(), 10, "nothing is repeated");
        // What was thought lost was only late.
        credit(&mut end, start + 210 * MS, 12);
        assert_eq!(end.next_at(start, u16::MAX), Some(start + 410 * MS), "but something was heard");
        assert_eq!(end.next_at(start, 99), None, "there is no room for it");
    }

    #[test]
    fn credit_is_given_after_enough_messages_or_enough_time() {
        let now = Instant::now();
        let mut end = End::new(7, &EndPlan { gives_credit: true, ..EndPlan::default() }, now);
        let take = |end: &mut End, at, sequence| {
            end.take(at, &Header { kind: Kind::Data, flow: 7, sequence, stamp_ns: 0 }, 100, true)
        };
        assert!(take(&mut end, now, 1) && take(&mut end, now + CREDIT_AFTER / 2, 2));
        assert_eq!(polled(&mut end, now + CREDIT_AFTER / 2), []);
        assert_eq!(end.next_at(now, u16::MAX), Some(now + CREDIT_AFTER));
        let sent = polled(&mut end, now + CREDIT_AFTER);
        assert_eq!((sent.len(), sent[0].header.kind, sent[0].header.sequence), (1, Kind::Credit, 3));
        for number in 3..3 + u64::from(CREDIT_PACKETS) {
            assert_eq!(polled(&mut end, now), []);
            take(&mut end, now, number);
        }
        assert_eq!(polled(&mut end, now)[0].header.sequence, 35);
    }

    #[test]
    fn each_request_is_answered_once_with_its_stamp_and_a_number_of_its_own() {
        let now = Instant::now();
        let mut end = End::new(7, &EndPlan { answer_bytes: Some(600), ..EndPlan::default() }, now);
        for (sequence, is_intact) in [(0, true), (1, true), (1, true), (2, false)] {
            let header = Header { kind: Kind::Request, flow: 7, sequence, stamp_ns: 100 + sequence };
            end.take(now, &header, 80, is_intact);
        }
        let answers: Vec<_> = polled(&mut end, now).iter().map(|out| (out.header, out.inner_bytes)).collect();
        let answer = |sequence| Header { kind: Kind::Answer, flow: 7, sequence, stamp_ns: 100 + sequence };
        assert_eq!(answers, [(answer(0), 600), (answer(1), 600)]);
        let counts = end.counts();
        assert_eq!((counts.sent_packets, counts.received_packets), (2, 3));
        assert_eq!((counts.duplicated_packets, counts.corrupted_packets), (1, 1));
    }

    #[test]
    fn a_run_is_of_equal_packets_but_for_a_shorter_last_one_and_of_one_train() {
        let (now, mut buf) = (Instant::now(), Vec::new());
        let mut end = End::new(0, &sending(vec![1000, 100], Schedule::Window { bytes: 5000 }), now);
        let runs: Vec<_> =
            std::iter::from_fn(|| Some((end.write_run(now, now, &mut buf)?, buf.split_off(0).len()))).collect();
        assert_eq!(runs, [(972, 972 + 72), (972, 972 + 72), (972, 972)]);
        let mut end = End::new(0, &sending(vec![100], Schedule::Even { per_second: 1000.0, train: 1 }), now);
        assert_eq!((end.write_run(now + MS, now, &mut buf), buf.len()), (Some(72), 72), "although two are due");
    }
}
