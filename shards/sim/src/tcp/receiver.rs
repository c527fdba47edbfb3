//! What a TCP endpoint has received, and when it says so: delayed acknowledgements (RFC 9293, section 3.8.6.3), a window that follows the application, and
//! the echo of ECN (RFC 3168, section 6.1.3).

use std::collections::BTreeMap;
use std::time::Duration;

use super::segment::{CWR, FIN, SYN, Segment};
use crate::packets::CE;
use crate::schedule::Time;

/// An acknowledgement waits no longer.
pub const DELAYED_ACK: Duration = Duration::from_millis(40);
/// Blocks that fit beside timestamps (RFC 2018, section 3).
const SACK_BLOCKS_MAX: usize = 3;

/// One direction of a connection, at its receiver. In the sequence space 0 is the SYN and 1 the first byte.
#[derive(Debug)]
pub struct Receiver {
    buffer_bytes: u64,
    /// The application reads at multiples of this, or at once.
    reads_every: Option<Duration>,
    pub next: u64,
    read: u64,
    /// What has arrived beyond a gap, from and to.
    beyond: BTreeMap<u64, u64>,
    pub fin_at: Option<u64>,
    unacknowledged: u32,
    pub ack_at: Option<Time>,
    pub read_at: Option<Time>,
    /// What the last acknowledgement said: the number and the window.
    said: (u64, u64),
    pub echoes: bool,
    pub ce_seen: u64,
    pub mss: u64,
    pub timestamp: u32,
}

impl Receiver {
    pub fn new(buffer_bytes: u64, reads_every: Option<Duration>, mss: u64) -> Self {
        Receiver {
            buffer_bytes,
            reads_every,
            next: 0,
            read: 0,
            beyond: BTreeMap::new(),
            fin_at: None,
            unacknowledged: 0,
            ack_at: None,
            read_at: None,
            said: (0, 0),
            echoes: false,
            ce_seen: 0,
            mss,
            timestamp: 0,
        }
    }

    /// Whether the other end has said everything.
    pub fn is_done(&self) -> bool {
        self.fin_at.is_some_and(|fin_at| self.next > fin_at)
    }

    /// What it may be sent beyond `next`.
    pub fn window(&self) -> u64 {
        self.buffer_bytes.saturating_sub(self.next.saturating_sub(self.read))
    }

    /// What it acknowledges beyond a gap, the newest number first.
    pub fn blocks(&self) -> Vec<(u64, u64)> {
        self.beyond.iter().rev().take(SACK_BLOCKS_MAX).map(|(&from, &to)| (from, to)).collect()
    }

    /// An acknowledgement goes.
    pub fn acknowledges(&mut self) {
        self.said = (self.next, self.window());
        self.unacknowledged = 0;
        self.ack_at = None;
    }

    /// Takes a segment at `at` in the sequence space that was marked with `ecn`. Returns whether it is to be acknowledged at once.
    pub fn take(&mut self, now: Time, at: u64, segment: &Segment, ecn: u8) -> bool {
        if segment.length() == 0 {
            return false;
        }
        if let Some((own, _)) = segment.timestamps.filter(|_| at <= self.said.0) {
            self.timestamp = own;
        }
        if segment.has(CWR) && !segment.has(SYN) {
            self.echoes = false;
        }
        if ecn == CE {
            self.ce_seen += 1;
            self.echoes = true;
        }
        let end = at + segment.length();
        let is_beyond_window = end > self.next + self.window().max(self.said.1) + 1;
        if end <= self.next || is_beyond_window {
            return true;
        }
        if segment.has(FIN) {
            self.fin_at = Some(end - 1);
        }
        let had_gap = !self.beyond.is_empty();
        self.keep(at, end);
        if at > self.next || had_gap || segment.has(FIN | SYN) {
            self.advance(now);
            return true;
        }
        self.advance(now);
        self.unacknowledged += u32::from(segment.payload.len() as u64 >= self.mss / 2) + 1;
        // Every other one of full length; a super-packet at once.
        let is_due = self.unacknowledged >= 4 || segment.payload.len() as u64 > self.mss || ecn == CE;
        if !is_due && self.ack_at.is_none() {
            self.ack_at = Some(now + DELAYED_ACK);
        }
        is_due
    }

    fn keep(&mut self, mut from: u64, mut to: u64) {
        while let Some((&other, &end)) = self.beyond.range(..=to).next_back().filter(|&(_, &end)| end >= from) {
            self.beyond.remove(&other);
            (from, to) = (from.min(other), to.max(end));
        }
        self.beyond.insert(from, to);
    }

    fn advance(&mut self, now: Time) {
        if let Some((&from, &to)) = self.beyond.first_key_value().filter(|&(&from, _)| from <= self.next) {
            self.beyond.remove(&from);
            self.next = self.next.max(to);
        }
        match self.reads_every {
            None => self.read = self.next,
            Some(every) => self.read_at = self.read_at.or(Some((now + Duration::from_nanos(1)).round_up(every))),
        }
    }

    /// The application reads all there is. Returns whether the other end must be told of the larger window.
    pub fn reads(&mut self) -> bool {
        self.read_at = None;
        self.read = self.next;
        let known = (self.said.0 + self.said.1).saturating_sub(self.next);
        self.window() >= known + (2 * self.mss).min(self.buffer_bytes / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::ACK;
    use super::*;

    const NOW: Time = Time { ns: 0 };

    fn data(bytes: usize) -> Segment {
        Segment { flags: ACK, payload: vec![0; bytes], ..Segment::default() }
    }

    #[test]
    fn every_other_segment_is_acknowledged_and_a_gap_at_once() {
        let mut receiver = Receiver::new(100_000, None, 1000);
        (receiver.next, receiver.said) = (1, (1, 100_000));
        assert!(!receiver.take(NOW, 1, &data(1000), 0) && receiver.ack_at.is_some());
        assert!(receiver.take(NOW, 1001, &data(1000), 0));
        receiver.acknowledges();
        assert!(receiver.take(NOW, 4001, &data(1000), 0), "a gap");
        assert!(receiver.take(NOW, 3001, &data(1000), 0));
        assert_eq!((receiver.next, receiver.blocks()), (2001, vec![(3001, 5001)]));
        assert!(receiver.take(NOW, 2001, &data(1000), 0), "it is filled");
        assert_eq!((receiver.next, receiver.blocks()), (5001, vec![]));
        assert!(receiver.take(NOW, 1, &data(1000), 0), "a repetition");
    }

    #[test]
    fn a_mark_is_echoed_until_the_sender_has_reacted() {
        let mut receiver = Receiver::new(100_000, None, 1000);
        (receiver.next, receiver.said) = (1, (1, 100_000));
        receiver.take(NOW, 1, &data(1000), CE);
        receiver.take(NOW, 1001, &data(1000), 2);
        assert!(receiver.echoes);
        receiver.take(NOW, 2001, &Segment { flags: ACK | CWR, ..data(1000) }, 2);
        assert!(!receiver.echoes);
    }

    #[test]
    fn the_window_closes_until_the_application_reads() {
        let mut receiver = Receiver::new(3000, Some(Duration::from_millis(10)), 1000);
        (receiver.next, receiver.read, receiver.said) = (1, 1, (1, 3000));
        receiver.take(NOW, 1, &data(3000), 0);
        receiver.acknowledges();
        assert_eq!((receiver.window(), receiver.read_at), (0, Some(Time { ns: 10_000_000 })));
        assert!(receiver.reads());
        assert_eq!(receiver.window(), 3000);
    }
}
