//! Connection IDs that steer: the first byte tells every kernel and every shard who owns the connection.
//!
//! Layout of the 8 bytes: `steer | nonce (5) | tag (2)`. `steer` is drawn among the bytes congruent to the owner's index modulo the number of
//! shards; the tag is a keyed hash of the six bytes in front of it, so that a foreign ID is told from ours without a look-up (RFC 9000,
//! section 5.2: what matches no connection is discarded). A server ID for a fleet's balancer (QUIC-LB) would go in front.
//!
//! The nonce is long for a reason: quinn-proto does not look whether the ID in a Retry is in use, and a client that is given a live
//! connection's ID gets no answer until it gives up. With 3 bytes that befell one handshake in 50,000 beside 10,000 connections.

use std::hash::Hasher;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use siphasher::sip::SipHasher24;

use crate::ids::ShardIndex;

/// Most shards of one gateway: each owns at least two values of a connection ID's first byte.
pub const SHARDS_MAX: u16 = 128;

/// Length of every connection ID of ours, in bytes.
pub const CONNECTION_ID_BYTES: usize = 8;

const TAGGED_BYTES: usize = 6;
const TAG_BYTES: usize = CONNECTION_ID_BYTES - TAGGED_BYTES;

/// The key of the tags; the same for all shards of a gateway, and kept across its restarts.
#[derive(Clone, zeroize::ZeroizeOnDrop)]
pub struct ConnectionIdKey(pub [u8; 16]);

impl ConnectionIdKey {
    fn tag(&self, tagged: &[u8]) -> [u8; TAG_BYTES] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(tagged);
        let hash = hasher.finish().to_le_bytes();
        [hash[0], hash[1]]
    }

    pub fn is_ours(&self, id: &[u8]) -> bool {
        id.len() == CONNECTION_ID_BYTES && self.tag(&id[..TAGGED_BYTES]) == id[TAGGED_BYTES..]
    }
}

/// Issues the connection IDs of one shard.
pub struct SteeringIds {
    key: ConnectionIdKey,
    shards: u16,
    index: ShardIndex,
    nonce_key: [u8; 16],
    issued: u64,
}

impl SteeringIds {
    /// IDs that steer to `index` among `shards`. `nonce_key` must differ from shard to shard and from start to start.
    pub fn new(key: ConnectionIdKey, shards: u16, index: ShardIndex, nonce_key: [u8; 16]) -> Self {
        SteeringIds { key, shards, index, nonce_key, issued: 0 }
    }
}

impl ConnectionIdGenerator for SteeringIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut hasher = SipHasher24::new_with_key(&self.nonce_key);
        hasher.write_u64(self.issued);
        self.issued += 1;
        let random = hasher.finish().to_le_bytes();
        let choices = (256 - self.index.0).div_ceil(self.shards);
        let choice = u16::from_le_bytes([random[0], random[1]]) % choices;
        let mut id = [0; CONNECTION_ID_BYTES];
        id[0] = (choice * self.shards + self.index.0) as u8;
        id[1..TAGGED_BYTES].copy_from_slice(&random[2..7]);
        let tag = self.key.tag(&id[..TAGGED_BYTES]);
        id[TAGGED_BYTES..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    /// Refuses the IDs of other shards as well as foreign ones: the endpoint answers a packet of an ID that it accepts here, and does not
    /// know, with a stateless reset, which would kill a live connection of another shard.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let mine = self.key.is_ours(id) && u16::from(id[0]) % self.shards == self.index.0;
        if mine { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// Where a UDP datagram belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// To this shard; whether its connection ID is ours is not said.
    To(ShardIndex),
    /// Nowhere: no connection ID of ours, and no client's Initial.
    Foreign,
}

/// Reads off a datagram's first packet which shard owns its connection (RFC 8999, section 5: these bytes are the same in every version).
///
/// `here` is the shard that holds the datagram; it gets whatever has no readable ID, for its endpoint to refuse.
pub fn steer(datagram: &[u8], key: &ConnectionIdKey, shards: u16, here: ShardIndex) -> Steered {
    let Some(&first) = datagram.first() else { return Steered::Foreign };
    let long = first & 0x80 != 0;
    let (id_length, id_start) = match (long, datagram.get(5)) {
        (true, Some(&length)) => (usize::from(length), 6),
        (true, None) => return Steered::Foreign,
        (false, _) => (CONNECTION_ID_BYTES, 1),
    };
    let Some(id) = datagram.get(id_start..id_start + id_length) else { return Steered::Foreign };
    let Some(&steering) = id.first() else { return Steered::To(here) };
    let owner = ShardIndex(u16::from(steering) % shards);
    // A long header may carry the random ID that a client chose for its Initial, which no tag can vouch for.
    if owner == here || long || key.is_ours(id) { Steered::To(owner) } else { Steered::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(shards: u16, index: u16) -> SteeringIds {
        SteeringIds::new(ConnectionIdKey([7; 16]), shards, ShardIndex(index), [index as u8 + 1; 16])
    }

    fn short_packet(id: &[u8]) -> Vec<u8> {
        [&[0x40], id, &[0; 30]].concat()
    }

    #[test]
    fn issued_ids_steer_to_their_shard_and_to_no_other() {
        for shards in [1, 2, 3, 8, 16, 128] {
            for index in 0..shards {
                let mut generator = ids(shards, index);
                for _ in 0..50 {
                    let id = generator.generate_cid();
                    assert_eq!(u16::from(id[0]) % shards, index);
                    assert!(generator.validate(&id).is_ok());
                    let next = (index + 1) % shards;
                    assert_eq!(ids(shards, next).validate(&id).is_ok(), shards == 1);
                    let steered = steer(&short_packet(&id), &generator.key, shards, ShardIndex(next));
                    assert_eq!(steered, Steered::To(ShardIndex(index)));
                }
            }
        }
    }

    #[test]
    fn every_steering_byte_of_a_shard_is_used() {
        let mut generator = ids(2, 1);
        let mut seen = [false; 256];
        (0..10_000).for_each(|_| seen[usize::from(generator.generate_cid()[0])] = true);
        assert_eq!(seen.iter().filter(|seen| **seen).count(), 128);
    }

    /// A quarter of a million is what 65,536 connections hold. Nothing looks whether the ID of a Retry is in use.
    #[test]
    fn no_id_is_issued_twice_while_it_may_be_in_use() {
        let mut generator = ids(128, 5);
        let issued: std::collections::HashSet<_> = (0..1 << 18).map(|_| generator.generate_cid()).collect();
        assert_eq!(issued.len(), 1 << 18);
    }

    #[test]
    fn a_changed_id_is_refused() {
        let mut generator = ids(4, 2);
        let id = generator.generate_cid();
        for bit in 0..64 {
            let mut changed = id.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(generator.validate(&ConnectionId::new(&changed)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_foreign_short_packet_is_not_sent_across_shards() {
        let key = ConnectionIdKey([7; 16]);
        assert_eq!(steer(&short_packet(&[1, 2, 3, 4, 5, 6, 7, 8]), &key, 2, ShardIndex(0)), Steered::Foreign);
        assert_eq!(steer(&[0x40, 1, 2], &key, 2, ShardIndex(0)), Steered::Foreign);
        assert_eq!(steer(&[], &key, 2, ShardIndex(0)), Steered::Foreign);
    }

    #[test]
    fn an_initial_belongs_to_the_shard_of_its_random_id() {
        let mut initial = vec![0xc0, 0, 0, 0, 1, 8];
        initial.extend([5, 1, 1, 1, 1, 1, 1, 1, 0]);
        let key = ConnectionIdKey([7; 16]);
        assert_eq!(steer(&initial, &key, 2, ShardIndex(0)), Steered::To(ShardIndex(1)));
        assert_eq!(steer(&initial[..9], &key, 2, ShardIndex(0)), Steered::Foreign);
    }
}
