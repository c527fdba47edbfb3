//! The receiving half of a flow: what came, what came late, and what came twice.
//!
//! A [`Sink`] keeps a window of [`WINDOW_SEQUENCES`] numbers. It cannot tell a repetition of a message that lies further back from one
//! that came that late: both count as received and reordered. Of messages with wrong bytes it believes no number: they count as
//! received and corrupted, and neither as reordered nor as duplicated. How many were lost only the sender's count tells.

use std::time::{Duration, Instant};

use super::wire::FlowCounts;

/// How far back numbers are remembered.
pub const WINDOW_SEQUENCES: u64 = 4096;

/// After this many messages the sender is told.
pub const CREDIT_PACKETS: u32 = 32;

/// This long after a message the sender is told at the latest.
pub const CREDIT_AFTER: Duration = Duration::from_millis(1);

const WORDS: usize = WINDOW_SEQUENCES as usize / 64;

/// What the sender of a window is to be told: see [`Kind::Credit`](super::wire::Kind::Credit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Messages received so far.
    pub received: u64,
    /// The highest number received, plus 1.
    pub highest_plus_1: u64,
}

/// The receiving half of a flow.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    /// The highest number received, plus 1.
    next: u64,
    /// Which of the last [`WINDOW_SEQUENCES`] numbers came, each at its place modulo that. `None` as long as all came.
    seen: Option<Box<[u64; WORDS]>>,
    received_packets: u64,
    received_bytes: u64,
    reordered_packets: u64,
    duplicated_packets: u64,
    corrupted_packets: u64,
    /// Messages that the sender was not told of yet, and when the first of them came.
    untold: u32,
    untold_since: Option<Instant>,
}

impl Sink {
    /// A flow of which nothing came yet.
    pub fn new() -> Sink {
        Sink::default()
    }

    /// Counts data, a request or an answer with number `sequence`, which was `inner_bytes` long as an inner packet. `is_intact` says
    /// whether all of its bytes are right. Returns whether they are and it came for the first time.
    #[inline]
    pub fn take(&mut self, now: Instant, sequence: u64, inner_bytes: usize, is_intact: bool) -> bool {
        self.untold = self.untold.saturating_add(1);
        self.untold_since.get_or_insert(now);
        if is_intact && !self.note(sequence) {
            self.duplicated_packets += 1;
            return false;
        }
        self.corrupted_packets += u64::from(!is_intact);
        self.received_packets += 1;
        self.received_bytes += inner_bytes as u64;
        is_intact
    }

    /// What the sender is to be told now, which it then counts as told: after [`CREDIT_PACKETS`] or [`CREDIT_AFTER`].
    #[inline]
    pub fn credit_due(&mut self, now: Instant) -> Option<Credit> {
        let since = self.untold_since?;
        if self.untold < CREDIT_PACKETS && now < since + CREDIT_AFTER {
            return None;
        }
        self.untold = 0;
        self.untold_since = None;
        Some(Credit { received: self.received_packets, highest_plus_1: self.next })
    }

    /// When the sender is to be told even if nothing more comes.
    pub fn credit_at(&self) -> Option<Instant> {
        self.untold_since.map(|since| since + CREDIT_AFTER)
    }

    /// What came so far, beside the `sent_packets` of the same end in the other direction.
    pub fn counts(&self, sent_packets: u64) -> FlowCounts {
        FlowCounts {
            sent_packets,
            received_packets: self.received_packets,
            received_bytes: self.received_bytes,
            reordered_packets: self.reordered_packets,
            duplicated_packets: self.duplicated_packets,
            corrupted_packets: self.corrupted_packets,
        }
    }

    /// Enters a number, and says whether it is new.
    #[inline]
    fn note(&mut self, sequence: u64) -> bool {
        if sequence == self.next && self.seen.is_none() {
            self.next += 1;
            return true;
        }
        self.note_in_window(sequence)
    }

    fn note_in_window(&mut self, sequence: u64) -> bool {
        if sequence < self.next {
            if self.next - sequence > WINDOW_SEQUENCES {
                self.reordered_packets += 1;
                return true;
            }
            let Some(seen) = &mut self.seen else { return false };
            let is_new = seen[word(sequence)] & bit(sequence) == 0;
            seen[word(sequence)] |= bit(sequence);
            self.reordered_packets += u64::from(is_new);
            return is_new;
        }
        // So far all came, or so it shall look like to what is older than the flow.
        let seen = self.seen.get_or_insert_with(|| Box::new([u64::MAX; WORDS]));
        let gap_end = sequence.min(self.next.saturating_add(WINDOW_SEQUENCES));
        for missing in self.next..gap_end {
            seen[word(missing)] &= !bit(missing);
        }
        seen[word(sequence)] |= bit(sequence);
        self.next = sequence.saturating_add(1);
        true
    }
}

fn word(sequence: u64) -> usize {
    (sequence / 64) as usize % WORDS
}

fn bit(sequence: u64) -> u64 {
    1 << (sequence % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn taken(numbers: impl IntoIterator<Item = u64>) -> FlowCounts {
        let (mut sink, now) = (Sink::new(), Instant::now());
        for number in numbers {
            sink.take(now, number, 100, true);
        }
        sink.counts(0)
    }

    fn counts(received: u64, reordered: u64, duplicated: u64) -> FlowCounts {
        FlowCounts {
            sent_packets: 0,
            received_packets: received,
            received_bytes: 100 * received,
            reordered_packets: reordered,
            duplicated_packets: duplicated,
            corrupted_packets: 0,
        }
    }

    #[test]
    fn order_loss_delay_and_repetition_are_told_apart() {
        assert_eq!(taken([]), counts(0, 0, 0));
        assert_eq!(taken(0..10_000), counts(10_000, 0, 0));
        assert_eq!(
            taken((0..10_000).filter(|number| number % 100 != 50)),
            counts(9_900, 0, 0),
            "a lost one is no late one"
        );
        assert_eq!(taken([0, 2, 1, 3]), counts(4, 1, 0));
        assert_eq!(taken([0, 2, 3, 4, 1]), counts(5, 1, 0), "one was late, not three early");
        assert_eq!(taken([0, 1, 1, 2]), counts(3, 0, 1));
        assert_eq!(taken([0, 2, 1, 1, 2, 0]), counts(3, 1, 3));
        assert_eq!(taken([5, 4]), counts(2, 1, 0), "the first is not always the first");
        assert_eq!(taken([3, 2, 1, 0, 0]), counts(4, 3, 1));
    }

    #[test]
    fn numbers_are_remembered_as_far_back_as_the_window_goes() {
        let jump = WINDOW_SEQUENCES + 10;
        // 11 is the oldest in the window once `jump` has come; 10 is not.
        assert_eq!(taken([0, jump, 11, 11]), counts(3, 1, 1));
        assert_eq!(taken([0, jump, 10, 10]), counts(4, 2, 0), "cannot be told from two late ones");
        assert_eq!(taken([0, 1 << 40, 5, (1 << 40) - 1]), counts(4, 2, 0));
        assert_eq!(taken([0, u64::MAX, u64::MAX - 1, 1]), counts(4, 2, 0));
    }

    #[test]
    fn the_sender_is_told_after_enough_messages_or_enough_time() {
        let (mut sink, now) = (Sink::new(), Instant::now());
        assert_eq!((sink.credit_due(now), sink.credit_at()), (None, None));
        sink.take(now, 1, 100, true);
        sink.take(now + CREDIT_AFTER / 2, 2, 100, true);
        assert_eq!((sink.credit_due(now + CREDIT_AFTER / 2), sink.credit_at()), (None, Some(now + CREDIT_AFTER)));
        assert_eq!(sink.credit_due(now + CREDIT_AFTER), Some(Credit { received: 2, highest_plus_1: 3 }));
        assert_eq!((sink.credit_due(now + 2 * CREDIT_AFTER), sink.credit_at()), (None, None), "nothing new");
        for number in 3..3 + u64::from(CREDIT_PACKETS) {
            assert_eq!(sink.credit_due(now), None);
            sink.take(now, number, 100, true);
        }
        assert_eq!(sink.credit_due(now), Some(Credit { received: 34, highest_plus_1: 35 }));
    }

    /// Numbers as a network may deliver them: each lost, or delivered once or twice, with delays that reorder. The step between numbers
    /// is above 1 at times, so that delays reach out of the window.
    fn deliveries() -> impl Strategy<Value = Vec<u64>> {
        let packet = (prop::collection::vec(0u64..40, 0..=2), prop_oneof![9 => Just(1u64), 1 => 1u64..600]);
        prop::collection::vec(packet, 0..600).prop_map(|packets| {
            let (mut number, mut events) = (0, Vec::new());
            for (place, (delays, step)) in packets.into_iter().enumerate() {
                events.extend(delays.into_iter().map(|delay| (place as u64 + delay, number)));
                number += step;
            }
            events.sort_by_key(|(at, _)| *at);
            events.into_iter().map(|(_, number)| number).collect()
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_model_that_remembers_everything(numbers in deliveries()) {
            let (mut seen, mut next, mut expected) = (BTreeSet::new(), 0, counts(0, 0, 0));
            for number in &numbers {
                let is_older = number + WINDOW_SEQUENCES < next;
                if !seen.insert(*number) && !is_older {
                    expected.duplicated_packets += 1;
                    continue;
                }
                expected.received_packets += 1;
                expected.received_bytes += 100;
                expected.reordered_packets += u64::from(*number < next);
                next = next.max(number + 1);
            }
            prop_assert_eq!(taken(numbers), expected);
        }
    }
}
