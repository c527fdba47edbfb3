//! What arrived of each flow: counts of unique, repeated, reordered and corrupted datagrams, and how long they took.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::message::{Message, now_ns};

/// Sequence numbers from here on are not tracked; 8 MiB for a flow that uses them all.
pub(super) const SEQUENCES_MAX: u64 = 1 << 26;

/// Flows beyond these are counted as foreign.
pub(super) const FLOWS_MAX: usize = 1024;

/// The longest latency that is told apart from longer ones.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// What has arrived of one flow.
#[derive(Debug, Clone)]
pub struct FlowCounts {
    /// Datagrams, repeated ones included.
    pub received: u64,
    /// Different datagrams.
    pub unique: u64,
    /// Datagrams that had come before.
    pub duplicated: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams whose length or content was not the one sent.
    pub corrupted: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// The highest number so far.
    pub highest_sequence: u64,
    /// The time from sending to receiving in nanoseconds; for echoes, the round-trip time.
    pub latency_ns: Histogram<u64>,
}

impl FlowCounts {
    /// How many of `sent` datagrams have not arrived.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.unique)
    }
}

/// The flows that have been seen, at most [`FLOWS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    flows: BTreeMap<u32, Flow>,
    /// Datagrams that belong to no flow.
    foreign: u64,
}

#[derive(Debug)]
struct Flow {
    counts: FlowCounts,
    /// One bit for each sequence number that has been seen.
    seen: Vec<u64>,
}

impl Tally {
    /// Counts an aggregate of datagrams of `segment` bytes each, but for a shorter last one.
    pub(super) fn take(&mut self, bytes: &[u8], segment: usize) {
        let now_ns = now_ns();
        for datagram in bytes.chunks(segment.max(1)) {
            match Message::read(datagram) {
                Some((message, is_intact)) => self.count(&message, is_intact, datagram.len(), now_ns),
                None => self.foreign += 1,
            }
        }
    }

    pub(super) fn counts(&self) -> BTreeMap<u32, FlowCounts> {
        self.flows.iter().map(|(flow, state)| (*flow, state.counts.clone())).collect()
    }

    pub(super) fn foreign(&self) -> u64 {
        self.foreign
    }

    pub(super) fn unique(&self, flow: u32) -> u64 {
        self.flows.get(&flow).map_or(0, |flow| flow.counts.unique)
    }

    pub(super) fn remove(&mut self, flow: u32) -> FlowCounts {
        self.flows.remove(&flow).unwrap_or_else(Flow::new).counts
    }

    fn count(&mut self, message: &Message, is_intact: bool, length: usize, now_ns: u64) {
        let is_known = self.flows.contains_key(&message.flow) || self.flows.len() < FLOWS_MAX;
        if !is_known || message.sequence >= SEQUENCES_MAX {
            self.foreign += 1;
            return;
        }
        let flow = self.flows.entry(message.flow).or_insert_with(Flow::new);
        let is_new = flow.mark(message.sequence);
        let counts = &mut flow.counts;
        counts.reordered += u64::from(is_new && counts.unique > 0 && message.sequence < counts.highest_sequence);
        counts.received += 1;
        counts.unique += u64::from(is_new);
        counts.duplicated += u64::from(!is_new);
        counts.corrupted += u64::from(!is_intact);
        counts.bytes += length as u64;
        counts.highest_sequence = counts.highest_sequence.max(message.sequence);
        counts.latency_ns.saturating_record(now_ns.saturating_sub(message.sent_ns).max(1));
    }
}

impl Flow {
    fn new() -> Self {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 2).expect("the bounds are in order");
        let counts = FlowCounts {
            received: 0,
            unique: 0,
            duplicated: 0,
            reordered: 0,
            corrupted: 0,
            bytes: 0,
            highest_sequence: 0,
            latency_ns,
        };
        Self { counts, seen: Vec::new() }
    }

    /// True when the sequence number had not been seen.
    fn mark(&mut self, sequence: u64) -> bool {
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(sequences: &[u64]) -> FlowCounts {
        let mut tally = Tally::default();
        for sequence in sequences {
            let mut bytes = [0; 64];
            Message { flow: 3, sequence: *sequence, sent_ns: now_ns() }.write(&mut bytes);
            tally.take(&bytes, 64);
        }
        tally.counts().remove(&3).unwrap()
    }

    #[test]
    fn losses_repetitions_and_reorderings_are_told_apart() {
        let counts = taken(&[0, 1, 4, 2, 4, 5]);
        assert_eq!((counts.received, counts.unique, counts.duplicated, counts.reordered), (6, 5, 1, 1));
        assert_eq!((counts.lost(7), counts.highest_sequence, counts.corrupted), (2, 5, 0));
        assert_eq!(counts.latency_ns.len(), 6);
    }

    #[test]
    fn an_aggregate_is_counted_by_its_datagrams() {
        let mut bytes = [0; 150];
        for (sequence, datagram) in bytes.chunks_mut(64).take(2).enumerate() {
            Message { flow: 9, sequence: sequence as u64, sent_ns: 0 }.write(datagram);
        }
        bytes[70] ^= 1;
        bytes[100] ^= 1;
        let mut tally = Tally::default();
        tally.take(&bytes, 64);
        assert_eq!((tally.unique(9), tally.foreign()), (1, 2));
        assert_eq!(tally.remove(9).unique, 1);
        assert_eq!(tally.remove(9).received, 0);
    }

    #[test]
    fn what_exceeds_the_bounds_is_foreign() {
        let mut tally = Tally::default();
        for flow in 0..FLOWS_MAX as u32 + 2 {
            let mut bytes = [0; 32];
            Message { flow, sequence: 0, sent_ns: 0 }.write(&mut bytes);
            tally.take(&bytes, 32);
        }
        let mut bytes = [0; 32];
        Message { flow: 0, sequence: SEQUENCES_MAX, sent_ns: 0 }.write(&mut bytes);
        tally.take(&bytes, 32);
        assert_eq!((tally.counts().len(), tally.foreign()), (FLOWS_MAX, 3));
    }
}
