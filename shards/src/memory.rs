//! What a shard holds for others, and how much it may hold.
//!
//! Each connection's queue has a bound of its own, but thousands of them together would not fit any machine. So all that grows with what others
//! send is counted here, and beyond the shard's bound the longest queue loses its oldest packets (as FQ-CoDel does, RFC 8290, section 4.1).

use serde::{Deserialize, Serialize};

use crate::backlogs::Backlogs;
use crate::counters::Counters;

/// What a connection costs without anything in its queues, in bytes: its state and that of TLS.
pub const CONNECTION_BYTES: usize = 40 * 1024;
/// Queues may have one part in so many of the limit, however much all else takes: many connections are no reason to carry nothing for any.
const QUEUES_SHARE: usize = 4;
/// What quinn-proto is handed of a connection at most, in bytes: four full sends, so that few packets wait in a second queue.
pub const HANDED_BYTES_MAX: usize = 256 << 10;
/// What quinn-proto has been handed to send cannot be taken back, so it may be one part in so many of the limit: half of what queues have in
/// any case. Else clients who read nothing would keep all of it, and nobody who reads would get anything.
const HANDED_SHARE: usize = 2 * QUEUES_SHARE;
/// Beyond that, each connection may have been handed so much, in bytes, or one packet.
const HANDED_BYTES_MIN: usize = 4 * 1024;
/// What a packet in memory of its own costs beside its bytes and its place in a queue, in bytes.
pub const PACKET_BYTES: usize = 64;

/// What a shard holds, in bytes, by kind. Each is an upper bound of the memory behind it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Held {
    /// What it may hold in all.
    pub limit_bytes: u64,
    /// Receive buffers, those in use and those of which a part was kept.
    pub receive_buffers_bytes: u64,
    /// Memory that packets under way share.
    pub packet_chunks_bytes: u64,
    pub queued_bytes: u64,
    pub waiting_bytes: u64,
    /// Connections and handshakes, with what those may have sent out of order.
    pub connections_bytes: u64,
    /// Records of packets that clients have not acknowledged.
    pub unacknowledged_bytes: u64,
}

impl Held {
    pub fn total_bytes(&self) -> u64 {
        self.receive_buffers_bytes
            + self.packet_chunks_bytes
            + self.queued_bytes
            + self.waiting_bytes
            + self.connections_bytes
            + self.unacknowledged_bytes
    }
}

/// What a shard has done, and what it holds.
pub struct Accounts {
    pub counters: Counters,
    pub memory: Memory,
}

/// What a shard holds.
#[derive(Debug, Default)]
pub struct Memory {
    pub limit_bytes: usize,
    pub queued_bytes: usize,
    pub waiting_bytes: usize,
    /// Packets of those accounts.
    pub queued_packets: usize,
    pub waiting_packets: usize,
    pub receive_buffers_bytes: usize,
    /// What quinn-proto has been handed of `queued_bytes`, for all connections.
    pub handed_bytes: usize,
    /// Who has packets queued that can be taken back.
    pub backlogs: Backlogs,
    /// What queues may hold, after all else.
    queues_bytes_max: usize,
}

impl Memory {
    pub fn new(limit_bytes: usize) -> Self {
        Memory { limit_bytes, queues_bytes_max: limit_bytes, ..Memory::default() }
    }

    /// Takes note of what is held outside of queues, in bytes.
    pub fn set_others(&mut self, bytes: usize) {
        self.queues_bytes_max = self.limit_bytes.saturating_sub(bytes).max(self.limit_bytes / QUEUES_SHARE);
    }

    /// What quinn-proto may have of a connection for which it has been handed `handed_bytes`; without a bound where its own one is enough.
    #[inline]
    pub fn handed_bytes_max(&self, handed_bytes: usize) -> usize {
        let handed_of_all_max = self.limit_bytes / HANDED_SHARE;
        if self.handed_bytes + HANDED_BYTES_MAX <= handed_of_all_max {
            return usize::MAX;
        }
        (handed_bytes + handed_of_all_max.saturating_sub(self.handed_bytes)).max(HANDED_BYTES_MIN)
    }

    /// Whether a packet of so many bytes may be queued.
    #[inline]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.queued_bytes + self.waiting_bytes + bytes <= self.queues_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_on_is_an_eighth_and_a_little_for_each_connection() {
        let mut memory = Memory::new(HANDED_SHARE * (HANDED_BYTES_MAX + 1000));
        memory.handed_bytes = 1000;
        assert_eq!(memory.handed_bytes_max(300), usize::MAX);
        memory.handed_bytes = HANDED_BYTES_MAX;
        assert_eq!(memory.handed_bytes_max(100_000), 101_000);
        assert_eq!(memory.handed_bytes_max(0), HANDED_BYTES_MIN);
        memory.handed_bytes = 2 * HANDED_BYTES_MAX;
        assert_eq!(memory.handed_bytes_max(100_000), 100_000);
        assert_eq!(memory.handed_bytes_max(10), HANDED_BYTES_MIN);
    }

    #[test]
    fn queues_have_what_all_else_leaves_and_never_nothing() {
        let mut memory = Memory::new(1000);
        memory.set_others(600);
        assert!(memory.has_room(400) && !memory.has_room(401));
        (memory.queued_bytes, memory.waiting_bytes) = (300, 50);
        assert!(memory.has_room(50) && !memory.has_room(51));
        memory.set_others(2000);
        assert!(!memory.has_room(1), "they lose what they have too much");
        (memory.queued_bytes, memory.waiting_bytes) = (200, 0);
        assert!(memory.has_room(50) && !memory.has_room(51));
    }
}
