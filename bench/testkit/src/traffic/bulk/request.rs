//! What a client asks of the bulk server at the start of a connection, and what it is told at the end of an upload.

use std::time::Duration;

use super::Direction;

/// The first bytes of every request; a connection that begins otherwise is closed.
const MAGIC: u64 = u64::from_be_bytes(*b"TGBULK01");

/// One stream of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) direction: Direction,
    pub(super) bytes: u64,
    pub(super) seed: u64,
    /// The time after which the sender ends, in milliseconds on the wire.
    pub(super) duration: Option<Duration>,
    /// The time after which either end gives up, in milliseconds on the wire.
    pub(super) deadline: Duration,
}

/// What the receiver of a stream found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) received_bytes: u64,
    pub(super) corrupt_at: Option<u64>,
}

impl Request {
    pub(super) const BYTES: usize = 48;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let duration_ms = self.duration.map_or(0, |duration| milliseconds(duration).max(1));
        let direction = u64::from(self.direction == Direction::Download);
        let mut bytes = [0; Self::BYTES];
        let words = [MAGIC, direction, self.bytes, self.seed, duration_ms, milliseconds(self.deadline)];
        put_words(&mut bytes, &words);
        bytes
    }

    /// `None` for what is not a request.
    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let direction = match word(bytes, 1) {
            0 => Direction::Upload,
            1 => Direction::Download,
            _ => return None,
        };
        let duration_ms = word(bytes, 4);
        (word(bytes, 0) == MAGIC).then(|| Self {
            direction,
            bytes: word(bytes, 2),
            seed: word(bytes, 3),
            duration: (duration_ms > 0).then(|| Duration::from_millis(duration_ms)),
            deadline: Duration::from_millis(word(bytes, 5)),
        })
    }
}

impl Outcome {
    pub(super) const BYTES: usize = 16;

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put_words(&mut bytes, &[self.received_bytes, self.corrupt_at.unwrap_or(u64::MAX)]);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let corrupt_at = word(bytes, 1);
        Self { received_bytes: word(bytes, 0), corrupt_at: (corrupt_at != u64::MAX).then_some(corrupt_at) }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn put_words(bytes: &mut [u8], words: &[u64]) {
    bytes.chunks_exact_mut(8).zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_be_bytes()));
}

fn word(bytes: &[u8], index: usize) -> u64 {
    bytes[index * 8..][..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_outcomes_survive_the_wire() {
        let request = Request {
            direction: Direction::Download,
            bytes: 12_345_678_901,
            seed: u64::MAX - 3,
            duration: Some(Duration::from_millis(1500)),
            deadline: Duration::from_secs(60),
        };
        assert_eq!(Request::decode(&request.encode()), Some(request));
        let endless = Request { duration: None, direction: Direction::Upload, ..request };
        assert_eq!(Request::decode(&endless.encode()), Some(endless));
        for outcome in
            [Outcome { received_bytes: 5, corrupt_at: None }, Outcome { received_bytes: 1 << 40, corrupt_at: Some(0) }]
        {
            assert_eq!(Outcome::decode(&outcome.encode()), outcome);
        }
        assert_eq!(Request::decode(b"GET / HTTP/1.1\r\nHost: 198.19.0.2\r\nAccept: */* \r\n"), None);
    }
}
