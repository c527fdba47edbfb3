//! What connection IDs look like.

use tollgate_shards::{ConnectionIdKey, Generation, IdLayout, QuicLb};

use crate::random::Stream;

/// The layout of a run's connection IDs. What the simulated kernel and the oracles read of it is written down here once more, beside the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutPlan {
    pub id_bytes: usize,
    /// Of a balancer's server ID; 0 for none.
    pub server_id_bytes: usize,
    pub is_encrypted: bool,
}

impl LayoutPlan {
    pub const PLAIN: LayoutPlan = LayoutPlan { id_bytes: 8, server_id_bytes: 0, is_encrypted: false };

    pub(super) fn draw(random: &mut Stream) -> Self {
        let server_id_bytes = random.pick(&[0, 1, 3, 6, 7, 8, 11]);
        let id_bytes_min = if server_id_bytes == 0 { 8 } else { server_id_bytes as u64 + 9 };
        let id_bytes = random.between(id_bytes_min, 21) as usize;
        LayoutPlan { id_bytes, server_id_bytes, is_encrypted: server_id_bytes > 0 && random.permille(500) }
    }

    pub(crate) fn layout(&self) -> IdLayout {
        let tag_key = ConnectionIdKey([5; 16]);
        let config = QuicLb {
            rotation: 2,
            server_id: vec![0x5a; self.server_id_bytes],
            key: self.is_encrypted.then_some([6; 16]),
        };
        let layout = match self.server_id_bytes {
            0 => IdLayout::plain(self.id_bytes, tag_key),
            _ => IdLayout::quic_lb(self.id_bytes, &config, tag_key),
        };
        layout.expect("what was drawn fits")
    }

    /// The place of the shard that an ID steers to, in a process of so many.
    pub fn shard_of(&self, id: &[u8], shards: u16) -> Option<u16> {
        let (at, mask) = self.steers();
        Some(u16::from(id.get(at)? & mask) % shards)
    }

    /// The process that an ID steers to.
    pub fn generation_of(&self, id: &[u8]) -> Option<Generation> {
        let (at, mask) = self.steers();
        Some(if id.get(at)? & (mask + 1) == 0 { Generation::Even } else { Generation::Odd })
    }

    /// The byte that steers, and which of its bits tell the shard. The next one tells the generation.
    fn steers(&self) -> (usize, u8) {
        if self.server_id_bytes >= 7 && !self.is_encrypted { (0, 0x0f) } else { (7, 0x7f) }
    }
}
