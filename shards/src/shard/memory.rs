//! A shard's account of what it holds for others: what is counted where, and who loses when it is too much.
//!
//! Never counts what a pass has given back at its end.

use super::Shard;
use super::connections::Owned;
use super::outer::HANDSHAKE_BYTES_MAX;
use crate::drops::{DropReason, Drops};
use crate::memory::{CONNECTION_BYTES, Held, Memory, PACKET_BYTES};

/// The longest queue loses half of what can be taken from it, and so many bytes at least.
const TAKEN_BYTES_MIN: usize = 64 * 1024;

impl Shard {
    /// What is held now.
    pub fn held(&self) -> Held {
        let memory = &self.memory;
        let [limit, buffers, chunks, queued, waiting, connections, unacknowledged] = [
            memory.limit_bytes(),
            memory.receive_buffers_bytes,
            self.arena.held_bytes(),
            memory.queued_bytes,
            memory.waiting_bytes,
            self.connections_bytes(),
            self.unacknowledged_bytes(),
        ]
        .map(|bytes| bytes as u64);
        Held {
            limit_bytes: limit,
            receive_buffers_bytes: buffers,
            packet_chunks_bytes: chunks,
            queued_bytes: queued,
            waiting_bytes: waiting,
            connections_bytes: connections,
            unacknowledged_bytes: unacknowledged,
        }
    }

    /// Takes note of the driver's receive buffers, in bytes, with those of which the shard has kept a part.
    pub fn handle_receive_buffers(&mut self, bytes: usize) {
        self.memory.receive_buffers_bytes = bytes;
    }

    /// Frees what is only kept to be used again.
    pub fn give_back(&mut self) {
        self.arena.free();
    }

    /// Sets what queues may hold, once a pass.
    pub(super) fn weigh(&mut self) {
        let others = self.memory.receive_buffers_bytes
            + self.arena.held_bytes()
            + self.connections_bytes()
            + self.unacknowledged_bytes();
        self.memory.set_others(others);
    }

    fn connections_bytes(&self) -> usize {
        self.connections.len() * CONNECTION_BYTES + self.admission.pending() * HANDSHAKE_BYTES_MAX
    }

    fn unacknowledged_bytes(&self) -> usize {
        self.in_flight.bytes()
    }

    /// Makes room for a packet of so many bytes to `owned`, at the cost of whoever has the longest queue. Returns whether there is.
    #[cold]
    pub(super) fn make_queue_room(&mut self, owned: &mut Owned, bytes: usize) -> bool {
        let longest = self.connections.iter().max_by_key(|other| other.link.backlog_bytes());
        let longest = longest.filter(|other| other.link.backlog_bytes() > owned.link.backlog_bytes());
        match longest.map(|other| other.key.slot).and_then(|slot| self.connections.at(slot)) {
            Some(other) => shorten(other, &mut self.memory, &mut self.counters.drops),
            None => shorten(owned, &mut self.memory, &mut self.counters.drops),
        }
        self.memory.has_room(bytes)
    }
}

/// Takes the oldest packets of a queue back.
fn shorten(owned: &mut Owned, memory: &mut Memory, drops: &mut Drops) {
    let packets = owned.link.take_back((owned.link.backlog_bytes() / 2).max(TAKEN_BYTES_MIN));
    drops.add(DropReason::MemoryLimit, packets);
    owned.account(memory);
}

impl Owned {
    /// Brings the account up to date with the queue.
    pub fn account(&mut self, memory: &mut Memory) {
        let bytes = self.link.held_bytes();
        memory.queued_bytes = memory.queued_bytes + bytes - self.queued_bytes;
        self.queued_bytes = bytes;
    }

    /// Adds a packet of so many bytes to the account, until [`Owned::account`] knows better.
    #[inline]
    pub fn account_packet(&mut self, memory: &mut Memory, bytes: usize) {
        memory.queued_bytes += bytes + PACKET_BYTES;
        self.queued_bytes += bytes + PACKET_BYTES;
    }
}
