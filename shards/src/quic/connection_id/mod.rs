//! Connection IDs: the only place that knows how they are laid out, which of them are ours, and to which shard one steers.
//!
//! One byte of each ID [steers](Steering): kernel and shards read off it who owns the connection. It is drawn, not written, so that it looks like the
//! rest of the ID. Around it the [layout](IdLayout) is a setting. Two bytes are a tag, a keyed hash of all others, so that a foreign ID is told from
//! ours without a look-up (RFC 9000, section 5.2: what matches no connection is discarded).
//!
//! The nonce is long for a reason: quinn-proto does not look whether the ID in a Retry is in use, and a client that is given a live
//! connection's ID gets no answer until it gives up. With 3 bytes that befell one handshake in 50,000 beside 10,000 connections.

mod cipher;
mod layout;
mod retry_ids;
mod steering;

use std::hash::Hasher;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use siphasher::sip::SipHasher24;

use crate::ids::{ShardIndex, Shards};
use crate::quic::initial::ID_BYTES_MAX;

pub use layout::{IdLayout, IdLayoutError, QuicLb};
pub use retry_ids::RetryIds;
pub use steering::Steering;

/// Shortest and longest connection ID of ours, in bytes: byte 7 steers, and RFC 9000, section 17.2 bounds the other end.
pub const ID_LENGTHS: std::ops::RangeInclusive<usize> = 8..=ID_BYTES_MAX;

/// The key of the tags; the same for all shards of a gateway, and kept across its restarts.
#[derive(Clone, zeroize::ZeroizeOnDrop)]
pub struct ConnectionIdKey(pub [u8; 16]);

/// Whose packets bear some connection ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This shard's.
    Here,
    /// Another shard's of this process, or of the one beside it.
    Shard(ShardIndex),
    /// Those of a process before this one, or after it, that is no more: this one does not know of it.
    OtherGeneration,
    /// Another gateway's behind the same balancer.
    OtherNode,
    /// Nobody's that we know.
    Foreign,
}

impl Whose {
    /// Whether this shard answers for it: nobody else does.
    pub fn is_answered(self) -> bool {
        matches!(self, Whose::Here | Whose::OtherGeneration)
    }
}

/// The layout as one shard uses it.
#[derive(Clone)]
pub struct IdScheme {
    layout: IdLayout,
    shards: Shards,
    here: ShardIndex,
    /// Those of the process beside.
    sibling: Option<Shards>,
}

impl IdScheme {
    /// IDs that steer to `here`, which is one of `shards`.
    pub fn new(layout: IdLayout, shards: Shards, here: ShardIndex) -> Self {
        IdScheme { layout, shards, here, sibling: None }
    }

    /// There is a process beside this one, or there is none any more.
    pub fn set_sibling(&mut self, sibling: Option<Shards>) {
        self.sibling = sibling;
    }

    pub fn whose(&self, id: &[u8]) -> Whose {
        let shard =
            [Some(self.shards), self.sibling].into_iter().flatten().find_map(|shards| self.shard_among(shards, id));
        match (self.layout.read(id), shard) {
            (None, _) => Whose::Foreign,
            (Some(false), _) => Whose::OtherNode,
            (Some(true), None) => Whose::OtherGeneration,
            (Some(true), Some(shard)) if shard == self.here => Whose::Here,
            (Some(true), Some(shard)) => Whose::Shard(shard),
        }
    }

    /// The shard that an ID steers to, if it is one of this generation.
    fn shard_of(&self, id: &[u8]) -> Option<ShardIndex> {
        self.shard_among(self.shards, id)
    }

    fn shard_among(&self, shards: Shards, id: &[u8]) -> Option<ShardIndex> {
        let steering = self.layout.steering();
        if steering.generation(id) == Some(shards.generation) { steering.shard(id, shards) } else { None }
    }

    /// Reads off a datagram's first packet which shard owns its connection (RFC 8999, section 5: these bytes are the same in every version).
    ///
    /// This shard gets whatever has no readable ID, for its endpoint to refuse.
    pub fn steer(&self, datagram: &[u8]) -> Steered {
        let Some(&first) = datagram.first() else { return Steered::Foreign };
        let long = first & 0x80 != 0;
        let (id_length, id_start) = match (long, datagram.get(5)) {
            (true, Some(&length)) => (usize::from(length), 6),
            (true, None) => return Steered::Foreign,
            (false, _) => (self.layout.id_bytes(), 1),
        };
        let Some(id) = datagram.get(id_start..id_start + id_length) else { return Steered::Foreign };
        // A long header may carry the random ID that a client chose for its Initial, for which no tag can vouch.
        if long {
            if let Some(sibling) = self.sibling
                && let Whose::Shard(owner) = self.whose(id)
                && sibling.contains(owner)
            {
                return Steered::To(owner);
            }
            return Steered::To(self.layout.steering().shard(id, self.shards).unwrap_or(self.here));
        }
        if self.shard_of(id) == Some(self.here) {
            return Steered::To(self.here);
        }
        match self.whose(id) {
            Whose::Here | Whose::OtherGeneration => Steered::To(self.here),
            Whose::Shard(owner) => Steered::To(owner),
            Whose::OtherNode | Whose::Foreign => Steered::Foreign,
        }
    }
}

/// Issues the connection IDs of one shard.
pub struct SteeringIds {
    scheme: IdScheme,
    nonce_key: [u8; 16],
    drawn: u64,
}

impl SteeringIds {
    /// `nonce_key` must differ from shard to shard and from start to start.
    pub fn new(scheme: IdScheme, nonce_key: [u8; 16]) -> Self {
        SteeringIds { scheme, nonce_key, drawn: 0 }
    }

    fn random(&mut self) -> [u8; ID_BYTES_MAX] {
        let mut random = [0; ID_BYTES_MAX];
        for part in random[..self.scheme.layout.id_bytes()].chunks_mut(8) {
            let mut hasher = SipHasher24::new_with_key(&self.nonce_key);
            hasher.write_u64(self.drawn);
            self.drawn += 1;
            part.copy_from_slice(&hasher.finish().to_le_bytes()[..part.len()]);
        }
        random
    }

    /// IDs for `owner`, or by chance for another shard or generation, where they must be encrypted first.
    fn make<const IDS: usize>(&mut self, owner: ShardIndex) -> [ConnectionId; IDS] {
        let random = std::array::from_fn(|_| self.random());
        self.scheme.layout.make(random, (self.scheme.shards, owner))
    }

    fn draw<const IDS: usize>(&mut self) -> [ConnectionId; IDS] {
        self.make(self.scheme.here)
    }

    fn draw_for(&mut self, owner: ShardIndex) -> ConnectionId {
        loop {
            let [id] = self.make(owner);
            if self.scheme.shard_of(&id) == Some(owner) {
                return id;
            }
        }
    }
}

impl ConnectionIdGenerator for SteeringIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.draw_for(self.scheme.here)
    }

    /// Refuses the IDs of other shards and nodes as well as foreign ones: the endpoint answers a packet of an ID that it accepts here, and does not
    /// know, with a stateless reset, which would kill a live connection of another one. Of another generation, connections whose packets are
    /// [steered](IdScheme::steer) here are dead, and their clients are to know.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.scheme.whose(id).is_answered() { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.scheme.layout.id_bytes()
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Where a UDP datagram belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// To a shard of this process, or of the one beside; whether the connection ID is ours is not said.
    To(ShardIndex),
    /// Nowhere: no connection ID of this gateway, and no client's Initial.
    Foreign,
}

/// Whether a datagram begins with a packet of the handshake (RFC 8999, section 5.1).
pub fn has_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

#[cfg(test)]
mod tests;
