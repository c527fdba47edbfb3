//! Answers outside any connection (Retry, version negotiation, stateless reset) that wait to be sent. Their bytes share one buffer.

use std::collections::VecDeque;

use crate::counters::Counters;
use crate::drops::DropReason;
use crate::io::Transmit;

/// Answers that wait.
const RESPONSES_MAX: usize = 256;
/// Bytes of them. A Retry has some 100, and none has more than what it answers.
const RESPONSE_BYTES_MAX: usize = 256 << 10;

/// A bounded queue. Nothing is allocated for a single answer.
#[derive(Debug, Default)]
pub struct Responses {
    /// What is waiting, and what has gone since the queue was empty last.
    bytes: Vec<u8>,
    /// Where the first one begins.
    start: usize,
    queue: VecDeque<Transmit>,
}

impl Responses {
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Queues an answer where there is room, and counts it or its loss. Returns whether there was.
    pub fn respond(&mut self, transmit: Transmit, bytes: &[u8], counters: &mut Counters) -> bool {
        let has_room = self.queue.len() < RESPONSES_MAX && self.bytes.len() + bytes.len() <= RESPONSE_BYTES_MAX;
        if has_room {
            self.bytes.extend_from_slice(bytes);
            self.queue.push_back(Transmit { bytes: bytes.len(), ..transmit });
            counters.stateless_responses += 1;
        } else {
            counters.drops.count(DropReason::ResponseQueueFull);
        }
        has_room
    }

    pub fn pop(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        let transmit = self.queue.pop_front()?;
        let end = self.start + transmit.bytes;
        buf.extend_from_slice(&self.bytes[self.start..end]);
        self.start = end;
        if self.queue.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
        Some(transmit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(responses: &mut Responses, bytes: &[u8]) -> bool {
        let (remote, length) = ("198.18.0.1:1".parse().unwrap(), bytes.len());
        let transmit = Transmit { remote, local_ip: None, ecn: None, bytes: length, segment_bytes: length };
        responses.respond(transmit, bytes, &mut Counters::default())
    }

    #[test]
    fn answers_come_out_whole_and_in_order() {
        let mut responses = Responses::default();
        for round in 0..3u8 {
            assert!(push(&mut responses, &[round; 3]) && push(&mut responses, &[round + 10; 5]));
            let mut buf = Vec::new();
            assert_eq!(responses.pop(&mut buf).unwrap().bytes, 3);
            assert_eq!(responses.pop(&mut buf).unwrap().bytes, 5);
            assert_eq!(buf, [[round; 3].to_vec(), [round + 10; 5].to_vec()].concat());
            assert_eq!(responses.pop(&mut buf), None);
        }
        assert!(responses.bytes.capacity() < 100, "room is used again");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_number_and_by_bytes() {
        let mut responses = Responses::default();
        assert_eq!((0..1000).filter(|_| push(&mut responses, &[1; 10])).count(), RESPONSES_MAX);
        let mut responses = Responses::default();
        assert_eq!((0..100).filter(|_| push(&mut responses, &[1; 60_000])).count(), RESPONSE_BYTES_MAX / 60_000);
    }
}
