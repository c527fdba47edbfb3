//! What a connection ID is made of. In bytes, where `random` may be empty:
//!
//! | layout | first byte | then |
//! |---|---|---|
//! | plain | random | random (4), tag (2), steering, random |
//! | QUIC-LB, server ID of up to 6 bytes | rotation (3 bits), random (5 bits) | server ID, nonce with byte 7 steering, tag (2) |
//! | QUIC-LB, server ID of 7 bytes and more | rotation (3 bits), steering (5 bits) | server ID, nonce, tag (2) |
//! | QUIC-LB with a key | rotation (3 bits), random (5 bits) | server ID, nonce, tag (2), encrypted together so that byte 7 steers |
//!
//! QUIC-LB is draft-ietf-quic-load-balancers; to a balancer the tag is a part of the nonce.

use std::hash::Hasher;
use std::sync::Arc;

use quinn_proto::ConnectionId;
use siphasher::sip::SipHasher24;

use super::cipher::Cipher;
use super::steering::Steering;
use super::{ConnectionIdKey, ID_LENGTHS};
use crate::ids::{ShardIndex, Shards};
use crate::quic::initial::ID_BYTES_MAX;

const TAG_BYTES: usize = 2;
/// Where the tag begins in a plain ID.
const PLAIN_TAG: usize = 5;
/// What is random in every ID, at least.
const RANDOM_BYTES_MIN: usize = 5;
/// Highest rotation codepoint: 7 is for servers without a configuration.
const ROTATION_MAX: u8 = 6;
const ROTATION_SHIFT: u32 = 5;

/// The layout of a gateway's connection IDs; the same for all of its shards and generations.
#[derive(Clone)]
pub struct IdLayout {
    id_bytes: usize,
    tag_key: ConnectionIdKey,
    quic_lb: Option<Encoding>,
}

/// What a balancer is told that reads QUIC-LB.
#[derive(Clone, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
pub struct QuicLb {
    /// Which of the balancer's configurations this is, from 0 to 6.
    pub rotation: u8,
    /// What the balancer calls this gateway.
    pub server_id: Vec<u8>,
    /// The key that hides the server ID.
    pub key: Option<[u8; 16]>,
}

/// Why there is no such layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdLayoutError {
    #[error("a connection ID has from {} to {} bytes, not {bytes}", ID_LENGTHS.start(), ID_LENGTHS.end())]
    Length { bytes: usize },
    #[error("a rotation codepoint is from 0 to {ROTATION_MAX}, not {rotation}")]
    Rotation { rotation: u8 },
    #[error("a server ID has at least one byte")]
    NoServerId,
    #[error(
        "with a server ID of {server_id_bytes} bytes a connection ID has at least {bytes_min} bytes, not {bytes}, so that no two are the same"
    )]
    TooShort { server_id_bytes: usize, bytes: usize, bytes_min: usize },
    #[error("a server ID of {server_id_bytes} bytes leaves no room in {ID_BYTES_MAX} bytes: shorten it")]
    NoRoom { server_id_bytes: usize },
}

#[derive(Clone)]
struct Encoding {
    rotation: u8,
    server_id: Vec<u8>,
    cipher: Option<Arc<Cipher>>,
}

impl IdLayout {
    /// IDs of `id_bytes` that say nothing to a balancer.
    pub fn plain(id_bytes: usize, tag_key: ConnectionIdKey) -> Result<Self, IdLayoutError> {
        if !ID_LENGTHS.contains(&id_bytes) {
            return Err(IdLayoutError::Length { bytes: id_bytes });
        }
        Ok(IdLayout { id_bytes, tag_key, quic_lb: None })
    }

    /// IDs of `id_bytes` out of which a balancer reads whose they are.
    pub fn quic_lb(id_bytes: usize, config: &QuicLb, tag_key: ConnectionIdKey) -> Result<Self, IdLayoutError> {
        let plain = IdLayout::plain(id_bytes, tag_key)?;
        let server_id_bytes = config.server_id.len();
        if config.rotation > ROTATION_MAX {
            return Err(IdLayoutError::Rotation { rotation: config.rotation });
        }
        if server_id_bytes == 0 {
            return Err(IdLayoutError::NoServerId);
        }
        let cipher = config.key.as_ref().map(|key| Arc::new(Cipher::new(key)));
        let encoding = Encoding { rotation: config.rotation, server_id: config.server_id.clone(), cipher };
        let layout = IdLayout { quic_lb: Some(encoding), ..plain };
        // Where the nonce has the byte that steers, or is drawn until that fits, it has less to vary.
        let steering_bytes = usize::from(layout.steering() == Steering::BYTE_7);
        let bytes_min = 1 + server_id_bytes + RANDOM_BYTES_MIN + steering_bytes + TAG_BYTES;
        if bytes_min > ID_BYTES_MAX {
            return Err(IdLayoutError::NoRoom { server_id_bytes });
        }
        if id_bytes < bytes_min {
            return Err(IdLayoutError::TooShort { server_id_bytes, bytes: id_bytes, bytes_min });
        }
        Ok(layout)
    }

    /// Length of every ID, in bytes.
    pub fn id_bytes(&self) -> usize {
        self.id_bytes
    }

    pub fn steering(&self) -> Steering {
        match &self.quic_lb {
            Some(Encoding { server_id, cipher: None, .. }) if server_id.len() >= Steering::BYTE_7.offset => {
                Steering::BYTE_0
            }
            _ => Steering::BYTE_7,
        }
    }

    /// Whether the byte that steers can be written before an ID is made, so that the first draw fits.
    pub(super) fn is_direct(&self) -> bool {
        !matches!(self.quic_lb, Some(Encoding { cipher: Some(_), .. }))
    }

    fn tag_at(&self) -> usize {
        if self.quic_lb.is_some() { self.id_bytes - TAG_BYTES } else { PLAIN_TAG }
    }

    fn tag(&self, id: &[u8]) -> [u8; TAG_BYTES] {
        let at = self.tag_at();
        let mut hasher = SipHasher24::new_with_key(&self.tag_key.0);
        hasher.write(&id[..at]);
        hasher.write(&id[at + TAG_BYTES..]);
        let hash = hasher.finish().to_le_bytes();
        [hash[0], hash[1]]
    }

    /// The IDs that `random` makes, one each. In a direct layout they steer there.
    pub(super) fn make<const IDS: usize>(
        &self,
        mut random: [[u8; ID_BYTES_MAX]; IDS],
        to: (Shards, ShardIndex),
    ) -> [ConnectionId; IDS] {
        random.iter_mut().for_each(|room| self.lay_out(&mut room[..self.id_bytes], to));
        if let Some(Encoding { cipher: Some(cipher), .. }) = &self.quic_lb {
            cipher.encrypt(random.each_mut().map(|room| &mut room[1..self.id_bytes]));
        }
        random.map(|room| ConnectionId::new(&room[..self.id_bytes]))
    }

    /// Writes all that is not random into a random ID.
    fn lay_out(&self, id: &mut [u8], (shards, shard): (Shards, ShardIndex)) {
        if self.is_direct() {
            let Steering { offset, .. } = self.steering();
            id[offset] = self.steering().value(shard, shards, id[offset]);
        }
        if let Some(Encoding { rotation, server_id, .. }) = &self.quic_lb {
            id[0] = id[0] & ((1 << ROTATION_SHIFT) - 1) | rotation << ROTATION_SHIFT;
            id[1..=server_id.len()].copy_from_slice(server_id);
        }
        let tag = self.tag(id);
        id[self.tag_at()..][..TAG_BYTES].copy_from_slice(&tag);
    }

    /// Whether an ID is of this node; `None` if it is of none that has this layout.
    pub(super) fn read(&self, id: &[u8]) -> Option<bool> {
        let mut room = [0; ID_BYTES_MAX];
        let room = room.get_mut(..id.len()).filter(|room| room.len() == self.id_bytes)?;
        room.copy_from_slice(id);
        if let Some(Encoding { rotation, cipher, .. }) = &self.quic_lb {
            if id[0] >> ROTATION_SHIFT != *rotation {
                return None;
            }
            cipher.iter().for_each(|cipher| cipher.decrypt(&mut room[1..]));
        }
        if room[self.tag_at()..][..TAG_BYTES] != self.tag(room) {
            return None;
        }
        Some(self.quic_lb.as_ref().is_none_or(|encoding| room[1..].starts_with(&encoding.server_id)))
    }
}
