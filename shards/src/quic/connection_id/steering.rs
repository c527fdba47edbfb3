//! The byte of a connection ID by which kernel and shards steer: the one place that says which it is, and what it says.

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, ShardIndex, Shards};

/// The byte that steers: one bit of it is the generation, and bits below it are congruent to the owner's index modulo the number of its generation's
/// shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Which of `shards` an ID steers to, if it is one of their generation.
    pub(super) fn shard(self, id: &[u8], shards: Shards) -> Option<ShardIndex> {
        let byte = id.get(self.offset)?;
        Some(shards.at(u16::from(byte & self.shard_mask) % shards.count))
    }

    pub(super) fn generation(self, id: &[u8]) -> Option<Generation> {
        let byte = id.get(self.offset)?;
        Some(if byte & self.generation_mask == 0 { Generation::Even } else { Generation::Odd })
    }

    /// One of the values that steer to `shard` of `shards`, by chance.
    pub(super) fn value(self, shard: ShardIndex, shards: Shards, random: u8) -> u8 {
        let place = shard.place() as u16;
        let choices = (self.shards_max() - place).div_ceil(shards.count);
        let value = u16::from(random) % choices * shards.count + place;
        match shards.generation {
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
