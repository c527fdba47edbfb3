//! One datagram of a flow: a header that numbers it, and a body that follows from the number.

use rustix::time::{ClockId, clock_gettime};

/// The header's length, and the shortest datagram.
pub(super) const HEADER_BYTES: usize = 32;

const MAGIC: u64 = u64::from_be_bytes(*b"TGDATA01");

/// The header of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) flow: u32,
    pub(super) sequence: u64,
    /// When it was sent, on the monotonic clock that all namespaces of the machine share.
    pub(super) sent_ns: u64,
}

impl Message {
    /// Writes header and body; `bytes` is at least [`HEADER_BYTES`] long.
    pub(super) fn write(&self, bytes: &mut [u8]) {
        let length = bytes.len() as u32;
        let (header, body) = bytes.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&MAGIC.to_be_bytes());
        header[8..12].copy_from_slice(&self.flow.to_be_bytes());
        header[12..16].copy_from_slice(&length.to_be_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        header[24..32].copy_from_slice(&self.sent_ns.to_be_bytes());
        body.fill(self.filler());
    }

    /// Reads a datagram; the flag tells whether its length and body are as sent. `None` for what is not of ours.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, bool)> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| header[at..at + 8].iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        if word(0) != MAGIC {
            return None;
        }
        let message = Self { flow: (word(8) >> 32) as u32, sequence: word(16), sent_ns: word(24) };
        let is_intact = word(8) as u32 as usize == bytes.len() && body.iter().all(|byte| *byte == message.filler());
        Some((message, is_intact))
    }

    /// Neighbouring datagrams of a flow have different bodies.
    fn filler(&self) -> u8 {
        (self.sequence as u8).wrapping_mul(31).wrapping_add(self.flow as u8)
    }
}

/// The time on the monotonic clock.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_survives_the_wire_and_a_changed_or_cut_one_is_noticed() {
        let message = Message { flow: 7, sequence: 1 << 40, sent_ns: 12_345 };
        let mut bytes = [0; 100];
        message.write(&mut bytes);
        assert_eq!(Message::read(&bytes), Some((message, true)));
        assert_eq!(Message::read(&bytes[..99]), Some((message, false)));
        bytes[99] ^= 1;
        assert_eq!(Message::read(&bytes), Some((message, false)));
        assert_eq!(Message::read(&[0; 100]), None);
        assert_eq!(Message::read(&bytes[..31]), None);
    }
}
