//! The receiving half of a flow: what came, what came late, and what came twice.

use std::collections::BTreeSet;

/// How far back numbers are remembered.
const WINDOW_SEQUENCES: u64 = 4096;

super::counts! {
    /// What an end counted of data, requests and answers, of one flow or many.
    FlowCounts {
        sent_packets,
        /// Each counted once.
        received_packets,
        /// As inner packets.
        received_bytes,
        /// Received after a later one.
        reordered_packets,
        /// Received more than once.
        duplicated_packets,
        /// Received with wrong bytes.
        corrupted_packets,
    }
}

/// Remembers which of the last [`WINDOW_SEQUENCES`] numbers are missing. It cannot tell a repetition of a message that lies further back from
/// one that came that late: both count as received and reordered. Of messages with wrong bytes it believes no number: they count as received
/// and corrupted, and neither as reordered nor as duplicated. How many were lost only the sender's count tells.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    /// The highest number received, plus 1.
    next: u64,
    /// Numbers below it that did not come.
    missing: BTreeSet<u64>,
    counts: FlowCounts,
}

impl Sink {
    /// Counts the message with number `sequence`, which was `inner_bytes` long as an inner packet. `is_intact` says whether all of its bytes
    /// are right. Returns whether they are and it came for the first time.
    #[inline]
    pub fn take(&mut self, sequence: u64, inner_bytes: u64, is_intact: bool) -> bool {
        if is_intact && !self.note(sequence) {
            self.counts.duplicated_packets += 1;
            return false;
        }
        self.counts.corrupted_packets += u64::from(!is_intact);
        self.counts.received_packets += 1;
        self.counts.received_bytes += inner_bytes;
        is_intact
    }

    /// The highest number received, plus 1.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// What came so far.
    pub fn counts(&self) -> FlowCounts {
        self.counts
    }

    /// Enters a number, and says whether it is new.
    #[inline]
    fn note(&mut self, sequence: u64) -> bool {
        if sequence < self.next {
            let is_new = self.missing.remove(&sequence) || self.next - sequence > WINDOW_SEQUENCES;
            self.counts.reordered_packets += u64::from(is_new);
            return is_new;
        }
        if sequence > self.next {
            self.missing.extend(self.next.max(sequence.saturating_sub(WINDOW_SEQUENCES))..sequence);
            self.missing = self.missing.split_off(&sequence.saturating_sub(WINDOW_SEQUENCES));
        }
        self.next = sequence.saturating_add(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packets received, reordered and duplicated.
    fn taken(numbers: impl IntoIterator<Item = u64>) -> (u64, u64, u64) {
        let mut sink = Sink::default();
        for number in numbers {
            sink.take(number, 100, true);
        }
        let counts = sink.counts();
        assert_eq!(counts.received_bytes, 100 * counts.received_packets);
        (counts.received_packets, counts.reordered_packets, counts.duplicated_packets)
    }

    #[test]
    fn order_loss_delay_and_repetition_are_told_apart() {
        assert_eq!(taken(0..10_000), (10_000, 0, 0));
        assert_eq!(taken((0..10_000).filter(|number| number % 100 != 50)), (9_900, 0, 0), "a lost one is no late one");
        assert_eq!(taken([0, 2, 3, 4, 1]), (5, 1, 0), "one was late, not three early");
        assert_eq!(taken([0, 2, 1, 1, 2, 0]), (3, 1, 3));
        assert_eq!(taken([5, 4]), (2, 1, 0), "the first is not always the first");
        let jump = WINDOW_SEQUENCES + 10;
        // 11 is the oldest in the window once `jump` has come; 10 is not.
        assert_eq!(taken([0, jump, 11, 11]), (3, 1, 1));
        assert_eq!(taken([0, jump, 10, 10]), (4, 2, 0), "cannot be told from two late ones");
        assert_eq!(taken([0, u64::MAX, u64::MAX - 1, 1]), (4, 2, 0));
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
            let (mut seen, mut next, mut expected) = (BTreeSet::new(), 0, (0, 0, 0));
            for number in &numbers {
                let is_older = number + WINDOW_SEQUENCES < next;
                if !seen.insert(*number) && !is_older {
                    expected.2 += 1;
                    continue;
                }
                expected.0 += 1;
                expected.1 += u64::from(*number < next);
                next = next.max(number + 1);
            }
            prop_assert_eq!(taken(numbers), expected);
        }
    }
}
