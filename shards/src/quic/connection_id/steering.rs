//! The byte of a connection ID by which kernel and shards steer: the one place that says which it is, and what it says.

use crate::ids::{Generation, ShardIndex};

/// Most shards of one gateway: each needs a value of its own of the bits that steer.
pub const SHARDS_MAX: u16 = 128;

/// The byte that steers: one bit of it is the generation, and bits below it are congruent to the owner's index modulo the number of its generation's
/// shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    /// Which byte of the ID it is, from 0.
    pub offset: usize,
    /// Those of its bits that tell the shard: the lowest ones.
    pub shard_mask: u8,
    /// The bit that tells the generation.
    pub generation_mask: u8,
}

impl Steering {
    /// Every ID that a client chooses for its Initial has this byte (RFC 9000, section 7.2).
    pub const BYTE_7: Steering = Steering { offset: 7, shard_mask: 0x7f, generation_mask: 0x80 };
    /// Where byte 7 is a part of a server ID that is not encrypted: the bits of the first byte that QUIC-LB leaves free.
    pub const BYTE_0: Steering = Steering { offset: 0, shard_mask: 0x0f, generation_mask: 0x10 };

    pub fn shards_max(self) -> u16 {
        u16::from(self.shard_mask) + 1
    }

    pub(super) fn shard(self, id: &[u8], shards: u16) -> Option<ShardIndex> {
        let byte = id.get(self.offset)?;
        Some(ShardIndex(u16::from(byte & self.shard_mask) % shards))
    }

    pub(super) fn generation(self, id: &[u8]) -> Option<Generation> {
        let byte = id.get(self.offset)?;
        Some(if byte & self.generation_mask == 0 { Generation::Even } else { Generation::Odd })
    }

    /// One of the values that steer to `shard`, by chance.
    pub(super) fn value(self, shard: ShardIndex, shards: u16, generation: Generation, random: u8) -> u8 {
        let choices = (self.shards_max() - shard.0).div_ceil(shards);
        let value = u16::from(random) % choices * shards + shard.0;
        match generation {
            Generation::Even => value as u8,
            Generation::Odd => value as u8 | self.generation_mask,
        }
    }
}

impl Default for Steering {
    fn default() -> Self {
        Steering::BYTE_7
    }
}
