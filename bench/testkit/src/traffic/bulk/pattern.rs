//! The content of a bulk stream: blocks of a stamp and a window onto a pseudo-random pattern.
//!
//! A block's stamp is unique in the stream and its window moves with every block, so that bytes lost, repeated, swapped or changed
//! anywhere are found by comparing, at the speed of memory.

use std::io::IoSlice;

use crate::chance::{Chance, mixed};

const BLOCK_BYTES: usize = 64 * 1024;
const STAMP_BYTES: usize = 16;
const PATTERN_BYTES: usize = 1024 * 1024;
/// How many blocks go into one system call.
const BLOCKS_PER_WRITE: usize = 4;

/// The pattern of one stream.
pub(super) struct Pattern {
    seed: u64,
    bytes: Vec<u8>,
}

/// Consecutive pieces of the stream, for one vectored write.
pub(super) struct Pieces<'a> {
    stamps: [[u8; STAMP_BYTES]; BLOCKS_PER_WRITE],
    windows: [&'a [u8]; BLOCKS_PER_WRITE],
    /// Bytes of the first block that have been sent already.
    skip: usize,
    limit: u64,
}

/// Compares what arrives with what was sent.
pub(super) struct Verifier<'a> {
    pattern: &'a Pattern,
    offset: u64,
    corrupt_at: Option<u64>,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let words = (0..(PATTERN_BYTES + BLOCK_BYTES) / 8).map(|_| chance.number());
        Self { seed, bytes: words.flat_map(u64::to_le_bytes).collect() }
    }

    /// The pieces from `offset` on, at most `limit` bytes.
    pub(super) fn pieces(&self, offset: u64, limit: u64) -> Pieces<'_> {
        let first = offset / BLOCK_BYTES as u64;
        Pieces {
            stamps: std::array::from_fn(|index| self.stamp(first.wrapping_add(index as u64))),
            windows: std::array::from_fn(|index| self.window(first.wrapping_add(index as u64))),
            skip: (offset % BLOCK_BYTES as u64) as usize,
            limit,
        }
    }

    fn stamp(&self, block: u64) -> [u8; STAMP_BYTES] {
        let mut stamp = [0; STAMP_BYTES];
        let (left, right) = stamp.split_at_mut(8);
        left.copy_from_slice(&block.to_le_bytes());
        right.copy_from_slice(&mixed(self.seed ^ mixed(block)).to_le_bytes());
        stamp
    }

    /// The part of a block behind its stamp. Windows start at a multiple of 64; 40503 is odd, so that all 16384 starts take their turn.
    fn window(&self, block: u64) -> &[u8] {
        let start = (block.wrapping_mul(40_503) % (PATTERN_BYTES as u64 / 64)) as usize * 64;
        &self.bytes[start + STAMP_BYTES..start + BLOCK_BYTES]
    }
}

impl Pieces<'_> {
    /// Calls `write` with the pieces in order; empty when the limit is 0.
    pub(super) fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); 2 * BLOCKS_PER_WRITE];
        let (mut count, mut skip, mut remaining) = (0, self.skip, self.limit);
        let pieces = self.stamps.iter().zip(self.windows).flat_map(|(stamp, window)| [stamp.as_slice(), window]);
        for piece in pieces {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let length = ((piece.len() - skipped) as u64).min(remaining) as usize;
            if length > 0 {
                slices[count] = IoSlice::new(&piece[skipped..skipped + length]);
                count += 1;
            }
            remaining -= length as u64;
        }
        write(&slices[..count])
    }
}

impl<'a> Verifier<'a> {
    pub(super) fn new(pattern: &'a Pattern) -> Self {
        Self { pattern, offset: 0, corrupt_at: None }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let block = self.offset / BLOCK_BYTES as u64;
            let inside = (self.offset % BLOCK_BYTES as u64) as usize;
            let stamp = self.pattern.stamp(block);
            let expected = if inside < STAMP_BYTES {
                &stamp[inside..]
            } else {
                &self.pattern.window(block)[inside - STAMP_BYTES..]
            };
            let length = expected.len().min(bytes.len());
            let (piece, rest) = bytes.split_at(length);
            if piece != &expected[..length] && self.corrupt_at.is_none() {
                let first = piece.iter().zip(expected).position(|(came, sent)| came != sent).unwrap_or(0);
                self.corrupt_at = Some(self.offset + first as u64);
            }
            self.offset += length as u64;
            bytes = rest;
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn corrupt_at(&self) -> Option<u64> {
        self.corrupt_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first `bytes` bytes of a stream, as written in steps of `step`.
    fn content(pattern: &Pattern, bytes: u64, step: u64) -> Vec<u8> {
        let mut content = Vec::new();
        while (content.len() as u64) < bytes {
            let offset = content.len() as u64;
            let pieces = pattern.pieces(offset, step.min(bytes - offset));
            pieces.with_slices(|slices| slices.iter().for_each(|slice| content.extend_from_slice(slice)));
        }
        content
    }

    fn verified(pattern: &Pattern, content: &[u8], step: usize) -> Option<u64> {
        let mut verifier = Verifier::new(pattern);
        content.chunks(step).for_each(|chunk| verifier.take(chunk));
        assert_eq!(verifier.offset(), content.len() as u64);
        verifier.corrupt_at()
    }

    #[test]
    fn the_content_does_not_depend_on_the_sizes_of_writes_and_reads() {
        let pattern = Pattern::new(7);
        let whole = content(&pattern, 1_000_000, u64::MAX);
        assert_eq!(content(&pattern, 1_000_000, 1237), whole);
        assert_eq!(verified(&pattern, &whole, 999_999), None);
        assert_eq!(verified(&pattern, &whole, 11), None);
    }

    #[test]
    fn a_change_a_loss_a_repetition_and_a_swap_are_found() {
        let pattern = Pattern::new(7);
        let good = content(&pattern, 1_000_000, u64::MAX);
        let mut changed = good.clone();
        changed[654_321] ^= 1;
        assert_eq!(verified(&pattern, &changed, 4096), Some(654_321));
        for offset in [0, 15, 16, 70_000, 900_000] {
            let lost = [&good[..offset], &good[offset + 1448..]].concat();
            assert!(verified(&pattern, &lost, 4096).is_some_and(|at| at >= offset as u64), "{offset}");
            let repeated = [&good[..offset + 1448], &good[offset..]].concat();
            assert!(verified(&pattern, &repeated, 4096).is_some(), "{offset}");
        }
        let mut swapped = good.clone();
        let (first, second) = swapped.split_at_mut(10 * BLOCK_BYTES);
        first[3 * BLOCK_BYTES + 100..][..1448].swap_with_slice(&mut second[100..][..1448]);
        assert_eq!(verified(&pattern, &swapped, 4096), Some(3 * BLOCK_BYTES as u64 + 100));
    }

    #[test]
    fn another_seed_is_another_content() {
        let (one, other) = (Pattern::new(1), Pattern::new(2));
        assert!(verified(&one, &content(&other, 100, 100), 100).is_some());
    }
}
