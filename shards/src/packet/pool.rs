//! Memory for packets that are built or copied: chunks that many packets share, used again once all of theirs are gone.
//!
//! A packet that stays keeps its whole chunk. Of chunks that are kept there are `CHUNKS_MAX` at most: beyond, whatever is built takes exactly
//! the memory that it needs. So what packets keep beyond their own length is bounded, whoever keeps them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Length of a chunk, in bytes: two super-packets. A packet that stays queued keeps its whole chunk alive.
const CHUNK_BYTES: usize = 128 * 1024;
/// Used chunks that may be kept by their packets at the same time: 4 MiB.
const CHUNKS_MAX: usize = 32;
/// Length of the pieces in which packets that wait share memory, in bytes, unless one is longer: the last packet keeps it all.
pub const WAITING_CHUNK_BYTES: usize = 16 * 1024;

/// Chunks, of which one is being filled. Packets are references into them. A new one has none, and costs nothing.
pub struct PacketPool {
    /// Length of a chunk, in bytes, unless more is wanted in one piece. 0 where nothing is used again.
    chunk_bytes: usize,
    /// What is free at the end of the chunk that is being filled: its length is 0.
    filling: BytesMut,
    /// Whether that is a chunk to use again, and not memory for one purpose.
    is_chunk: bool,
    /// Those that are full, in the order in which they were.
    used: VecDeque<BytesMut>,
}

impl Default for PacketPool {
    fn default() -> Self {
        PacketPool::of_chunks(CHUNK_BYTES)
    }
}

impl PacketPool {
    /// Memory of the chunks there are, in bytes.
    pub fn held_bytes(&self) -> usize {
        (self.used.len() + 1) * self.chunk_bytes
    }

    /// Frees the chunks that no packet keeps.
    pub fn free(&mut self) {
        self.used.retain_mut(|chunk| !chunk.try_reclaim(self.chunk_bytes));
    }

    /// How many packets of `bytes` are to share one piece of memory.
    pub(super) fn packets_in_piece(&self, bytes: usize) -> usize {
        if self.chunk_bytes > 0 { usize::MAX } else { (WAITING_CHUNK_BYTES / bytes.max(1)).max(1) }
    }

    /// For one frame whose packets are to wait: takes no more memory than they need, in small pieces, and shares it with nothing else.
    pub fn for_one_frame() -> Self {
        PacketPool::of_chunks(0)
    }

    fn of_chunks(chunk_bytes: usize) -> Self {
        PacketPool { chunk_bytes, filling: BytesMut::new(), is_chunk: false, used: VecDeque::new() }
    }

    /// Free memory of at least `bytes` in one piece. Whoever fills it splits off what it has filled.
    #[inline]
    pub(super) fn room(&mut self, bytes: usize) -> &mut BytesMut {
        self.filling.clear();
        if self.filling.capacity() < bytes {
            self.next_chunk(bytes);
        }
        &mut self.filling
    }

    /// A copy of `packet`, for where it would otherwise pin a receive buffer of 64 KiB for as long as it is queued.
    pub fn copy(&mut self, packet: &[u8]) -> Bytes {
        let room = self.room(packet.len());
        room.extend_from_slice(packet);
        room.split().freeze()
    }

    fn next_chunk(&mut self, bytes: usize) {
        if self.chunk_bytes == 0 {
            self.filling = BytesMut::with_capacity(bytes);
            return;
        }
        if std::mem::take(&mut self.is_chunk) {
            self.used.push_back(std::mem::take(&mut self.filling));
        }
        // The one that was filled last is the warmest.
        let free = self.used.iter_mut().rposition(|chunk| chunk.try_reclaim(self.chunk_bytes));
        self.is_chunk = bytes <= self.chunk_bytes && (free.is_some() || self.used.len() < CHUNKS_MAX);
        self.filling = match free.filter(|_| self.is_chunk).and_then(|at| self.used.remove(at)) {
            Some(chunk) => chunk,
            None => BytesMut::with_capacity(if self.is_chunk { self.chunk_bytes } else { bytes }),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Copies until `chunks` chunks are full, keeping the last `kept` copies, and returns in how many places they were.
    fn places(pool: &mut PacketPool, chunks: usize, kept: usize) -> usize {
        let packet = [7; CHUNK_BYTES / 8];
        let (mut queue, mut places) = (VecDeque::new(), BTreeSet::new());
        for _ in 0..chunks * 8 {
            let copy = pool.copy(&packet);
            assert_eq!(copy, packet[..]);
            places.insert(copy.as_ptr() as usize);
            queue.push_back(copy);
            if queue.len() > kept {
                queue.pop_front();
            }
        }
        places.len()
    }

    #[test]
    fn a_chunk_is_used_again_once_its_packets_are_gone() {
        assert_eq!(places(&mut PacketPool::default(), 100, 0), 8, "one chunk");
        let chunks = places(&mut PacketPool::default(), 100, 20) / 8;
        assert!((3..=5).contains(&chunks), "20 packets, 8 of them to a chunk: {chunks} chunks");
    }

    #[test]
    fn a_packet_that_stays_costs_its_own_chunk_and_no_other() {
        let mut pool = PacketPool::default();
        let stays = pool.copy(b"stays");
        places(&mut pool, 1, 0);
        assert_eq!(places(&mut pool, 100, 0), 8, "one chunk");
        assert_eq!(stays, b"stays"[..]);
    }

    #[test]
    fn beyond_the_bound_packets_that_stay_keep_their_own_length() {
        let mut pool = PacketPool::default();
        let kept: Vec<Bytes> = (0..400).map(|index| pool.copy(&[index as u8; CHUNK_BYTES / 8])).collect();
        assert_eq!(pool.used.len(), CHUNKS_MAX);
        assert_eq!(pool.room(1).capacity(), 1, "no chunk for one byte");
        assert!(kept.iter().enumerate().all(|(index, packet)| packet.iter().all(|byte| *byte == index as u8)));
        drop(kept);
        assert_eq!(places(&mut pool, 100, 0), 8, "one chunk, once they are gone");
    }

    #[test]
    fn what_is_longer_than_a_chunk_has_one_of_its_own() {
        let long = vec![3; 3 * CHUNK_BYTES];
        assert_eq!(PacketPool::default().copy(&long), long);
    }
}
