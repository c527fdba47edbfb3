//! Address validation by Retry (RFC 9000, section 8.1.2) in front of the endpoint: whoever has not proven an address costs one short answer,
//! without state, key derivation or allocation.
//!
//! The tokens are those that quinn-proto expects, so that its endpoint validates what comes back with the connection.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use quinn_proto::ConnectionIdGenerator;
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey};
use siphasher::sip::SipHasher24;

use crate::quic::connection_id::SteeringIds;

/// How long a token proves an address (RFC 9000, section 8.1.3).
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(15);
pub const VERSION: u32 = 1;
/// Smallest UDP payload of an Initial, in bytes (RFC 9000, section 14.1).
pub const INITIAL_BYTES_MIN: usize = 1200;
/// Shortest connection ID that a client may choose for a server, in bytes (RFC 9000, section 7.2).
pub const CHOSEN_ID_BYTES_MIN: usize = 8;

const ID_BYTES_MAX: usize = 20;
const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Of a token's nonce, what the cipher takes as such; the rest is authenticated beside.
const CIPHER_NONCE_BYTES: usize = 12;
/// Kind, family, IPv6 address, port, length of the ID, ID, time.
const CLAIM_BYTES_MAX: usize = 1 + 1 + 16 + 2 + 1 + ID_BYTES_MAX + 8;
const KIND_RETRY: u8 = 0;

/// RFC 9001, section 5.8.
const INTEGRITY_KEY: [u8; 16] =
    [0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8, 0x4e];
const INTEGRITY_NONCE: [u8; 12] = [0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb];

/// The key of the Retry tokens: one for all shards, kept across restarts. No key is derived for a token; the cipher bears repeated nonces
/// (RFC 8452).
#[derive(Clone)]
pub struct TokenKey(Arc<LessSafeKey>);

impl TokenKey {
    /// The key made of `secret`.
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM_SIV, secret).expect("32 bytes are a key");
        TokenKey(Arc::new(LessSafeKey::new(key)))
    }

    fn seal(&self, nonce: &[u8; NONCE_BYTES], claim: &mut [u8]) -> Tag {
        let (nonce, beside) = split(nonce);
        self.0.seal_in_place_separate_tag(nonce, Aad::from(beside), claim).expect("a claim is short")
    }

    fn open<'a>(&self, nonce: &[u8; NONCE_BYTES], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (nonce, beside) = split(nonce);
        self.0.open_in_place(nonce, Aad::from(beside), sealed).ok()
    }

    /// What `token` says, if it is one of ours.
    fn read(&self, token: &[u8]) -> Option<Claim> {
        let (sealed, nonce) = token.split_last_chunk::<NONCE_BYTES>()?;
        let mut room = [0; CLAIM_BYTES_MAX + TAG_BYTES];
        let room = room.get_mut(..sealed.len())?;
        room.copy_from_slice(sealed);
        Claim::parse(self.open(nonce, room)?)
    }
}

fn split(nonce: &[u8; NONCE_BYTES]) -> (Nonce, [u8; NONCE_BYTES - CIPHER_NONCE_BYTES]) {
    let (cipher, beside) = nonce.split_at(CIPHER_NONCE_BYTES);
    let cipher: [u8; CIPHER_NONCE_BYTES] = cipher.try_into().expect("12 of 16 bytes");
    (Nonce::assume_unique_for_key(cipher), beside.try_into().expect("4 of 16 bytes"))
}

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        let mut nonce = [0; NONCE_BYTES];
        let length = random_bytes.len().min(NONCE_BYTES);
        nonce[..length].copy_from_slice(&random_bytes[..length]);
        Box::new(OneToken { key: self.clone(), nonce })
    }
}

/// The key as the endpoint wants it: for one token.
struct OneToken {
    key: TokenKey,
    nonce: [u8; NONCE_BYTES],
}

impl AeadKey for OneToken {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        if !additional_data.is_empty() {
            return Err(CryptoError);
        }
        let tag = self.key.seal(&self.nonce, data);
        data.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open<'a>(&self, data: &'a mut [u8], additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        if !additional_data.is_empty() {
            return Err(CryptoError);
        }
        self.key.open(&self.nonce, data).ok_or(CryptoError)
    }
}

/// What a token of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Who proved to be there.
    pub address: SocketAddr,
    /// When the token was issued, in seconds since 1970.
    pub issued_s: u64,
}

impl Claim {
    fn parse(claim: &[u8]) -> Option<Claim> {
        let rest = &mut &claim[..];
        if *rest.split_off_first()? != KIND_RETRY {
            return None;
        }
        let ip: IpAddr = match rest.split_off_first()? {
            0 => array::<4>(rest)?.into(),
            1 => array::<16>(rest)?.into(),
            _ => return None,
        };
        let address = SocketAddr::new(ip, u16::from_be_bytes(array(rest)?));
        id(rest)?;
        let issued_s = u64::from_be_bytes(array(rest)?);
        rest.is_empty().then_some(Claim { address, issued_s })
    }

    /// Whether the token proves that `remote` is where it says, at `now`.
    pub fn holds(&self, remote: SocketAddr, now: SystemTime) -> bool {
        self.address == remote && seconds(now) <= self.issued_s + TOKEN_LIFETIME.as_secs()
    }
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The header of an Initial of QUIC version 1 (RFC 9000, section 17.2.2), as far as it is readable without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initial<'a> {
    pub destination: &'a [u8],
    pub source: &'a [u8],
    /// Token; empty for none.
    pub token: &'a [u8],
}

impl<'a> Initial<'a> {
    /// Reads the first packet of a datagram, if it is one.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let rest = &mut &datagram[..];
        // Long header, type 0; the fixed bit may be greased (RFC 9287).
        if *rest.split_off_first()? & 0b1011_0000 != 0b1000_0000 || u32::from_be_bytes(array(rest)?) != VERSION {
            return None;
        }
        let (destination, source) = (id(rest)?, id(rest)?);
        let token_bytes = usize::try_from(varint(rest)?).ok()?;
        let token = rest.split_off(..token_bytes)?;
        let length = varint(rest)?;
        (length <= rest.len() as u64).then_some(Initial { destination, source, token })
    }
}

fn array<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
    rest.split_off(..BYTES)?.try_into().ok()
}

/// A connection ID behind its length.
fn id<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(*rest.split_off_first()?);
    if length > ID_BYTES_MAX { None } else { rest.split_off(..length) }
}

/// RFC 9000, section 16.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = *rest.split_off_first()?;
    let mut value = u64::from(first & 0x3f);
    for _ in 1..1usize << (first >> 6) {
        value = value << 8 | u64::from(*rest.split_off_first()?);
    }
    Some(value)
}

/// Makes the Retries of one shard.
pub struct Retries {
    key: TokenKey,
    integrity: LessSafeKey,
    ids: SteeringIds,
    nonce_key: [u8; 16],
    issued: u64,
    /// The last Retry, behind what its integrity tag covers beside it.
    packet: Vec<u8>,
}

impl Retries {
    /// Retries with tokens under `key` and IDs out of `ids`. `nonce_key` must differ from shard to shard and from start to start.
    pub fn new(key: TokenKey, ids: SteeringIds, nonce_key: [u8; 16]) -> Self {
        let integrity = UnboundKey::new(&AES_128_GCM, &INTEGRITY_KEY).expect("16 bytes are a key");
        Retries { key, integrity: LessSafeKey::new(integrity), ids, nonce_key, issued: 0, packet: Vec::new() }
    }

    /// What `token` says, if it is one of ours.
    pub fn read(&self, token: &[u8]) -> Option<Claim> {
        self.key.read(token)
    }

    /// The answer to `initial` from `remote` at `now` (RFC 9000, section 17.2.5).
    pub fn answer(&mut self, initial: &Initial<'_>, remote: SocketAddr, now: SystemTime) -> &[u8] {
        let nonce = self.nonce();
        let id = self.ids.generate_cid();
        let packet = &mut self.packet;
        packet.clear();
        put_id(packet, initial.destination);
        let start = packet.len();
        // The four bits that mean nothing are to be arbitrary.
        packet.push(0xf0 | nonce[0] & 0x0f);
        packet.extend_from_slice(&VERSION.to_be_bytes());
        put_id(packet, initial.source);
        put_id(packet, &id);
        let claim = packet.len();
        put_claim(packet, remote, initial.destination, now);
        let tag = self.key.seal(&nonce, &mut packet[claim..]);
        packet.extend_from_slice(tag.as_ref());
        packet.extend_from_slice(&nonce);
        let tag = integrity_tag(&self.integrity, packet);
        packet.extend_from_slice(tag.as_ref());
        &packet[start..]
    }

    fn nonce(&mut self) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        for half in nonce.chunks_mut(8) {
            let mut hasher = SipHasher24::new_with_key(&self.nonce_key);
            hasher.write_u64(self.issued);
            self.issued += 1;
            half.copy_from_slice(&hasher.finish().to_le_bytes());
        }
        nonce
    }
}

fn put_id(packet: &mut Vec<u8>, id: &[u8]) {
    packet.push(id.len() as u8);
    packet.extend_from_slice(id);
}

fn put_claim(packet: &mut Vec<u8>, remote: SocketAddr, original: &[u8], now: SystemTime) {
    packet.push(KIND_RETRY);
    match remote.ip() {
        IpAddr::V4(v4) => {
            packet.push(0);
            packet.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            packet.push(1);
            packet.extend_from_slice(&v6.octets());
        }
    }
    packet.extend_from_slice(&remote.port().to_be_bytes());
    put_id(packet, original);
    packet.extend_from_slice(&seconds(now).to_be_bytes());
}

/// RFC 9001, section 5.8. `packet` begins with the original destination ID behind its length.
fn integrity_tag(key: &LessSafeKey, packet: &[u8]) -> Tag {
    let nonce = Nonce::assume_unique_for_key(INTEGRITY_NONCE);
    key.seal_in_place_separate_tag(nonce, Aad::from(packet), &mut []).expect("a Retry is short")
}

/// Keys for what a shard draws for itself, out of the half of its `seed` that nobody sees.
pub fn subkey(seed: &[u8; 32], what: &[u8]) -> [u8; 16] {
    let secret: [u8; 16] = seed[16..].try_into().expect("a seed has 32 bytes");
    let mut key = [0; 16];
    for (number, half) in key.chunks_mut(8).enumerate() {
        let mut hasher = SipHasher24::new_with_key(&secret);
        hasher.write(what);
        hasher.write_u8(number as u8);
        half.copy_from_slice(&hasher.finish().to_le_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ShardIndex;
    use crate::quic::connection_id::ConnectionIdKey;

    const NOW: SystemTime = UNIX_EPOCH;

    fn retries() -> Retries {
        let ids = SteeringIds::new(ConnectionIdKey([7; 16]), 2, ShardIndex(1), [1; 16]);
        Retries::new(TokenKey::new(&[4; 32]), ids, [2; 16])
    }

    fn remote() -> SocketAddr {
        "198.18.0.7:4242".parse().unwrap()
    }

    fn initial_packet(token: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
        packet.extend([9; 8]);
        packet.extend([3, 5, 6, 7]);
        packet.extend((token.len() as u16 | 0x4000).to_be_bytes());
        packet.extend(token);
        let length = 1200 - packet.len() - 2;
        packet.extend((length as u16 | 0x4000).to_be_bytes());
        packet.resize(1200, 0);
        packet
    }

    fn token(retry: &[u8]) -> &[u8] {
        &retry[1 + 4 + 1 + 3 + 1 + 8..retry.len() - TAG_BYTES]
    }

    #[test]
    fn the_integrity_tag_is_that_of_rfc_9001_appendix_a_4() {
        let mut packet = vec![8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        packet.extend([0xff, 0, 0, 0, 1, 0, 8, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5]);
        packet.extend(b"token");
        let tag = integrity_tag(&retries().integrity, &packet);
        let right = [0x04, 0xa2, 0x65, 0xba, 0x2e, 0xff, 0x4d, 0x82, 0x90, 0x58, 0xfb, 0x3f, 0x0f, 0x24, 0x96, 0xba];
        assert_eq!(tag.as_ref(), right);
    }

    #[test]
    fn a_retry_names_both_ids_and_is_much_smaller_than_what_it_answers() {
        let packet = initial_packet(&[]);
        let initial = Initial::parse(&packet).unwrap();
        assert_eq!((initial.destination, initial.source, initial.token), (&[9; 8][..], &[5, 6, 7][..], &[][..]));
        let mut retries = retries();
        for _ in 0..100 {
            let retry = retries.answer(&initial, remote(), NOW);
            assert_eq!((retry[0] & 0xf0, &retry[1..9]), (0xf0, &[0, 0, 0, 1, 3, 5, 6, 7][..]));
            assert!(retry[9] == 8 && retry[10] % 2 == 1, "an ID that steers to shard 1 of 2");
            assert!(retry.len() < 150, "{} bytes", retry.len());
        }
    }

    #[test]
    fn a_token_holds_for_its_address_and_15_seconds() {
        let mut retries = retries();
        for remote in [remote(), "[fd00::7]:4242".parse().unwrap()] {
            let packet = initial_packet(&[]);
            let retry = retries.answer(&Initial::parse(&packet).unwrap(), remote, NOW).to_vec();
            let claim = retries.read(token(&retry)).unwrap();
            let after = |s| NOW + Duration::from_secs(s);
            assert!(claim.holds(remote, NOW) && claim.holds(remote, after(15)));
            assert!(!claim.holds(remote, after(16)));
            assert!(!claim.holds(SocketAddr::new(remote.ip(), 4243), NOW));
            assert!(!claim.holds("198.18.0.8:4242".parse().unwrap(), NOW));
        }
    }

    #[test]
    fn a_changed_token_says_nothing() {
        let mut retries = retries();
        let packet = initial_packet(&[]);
        let retry = retries.answer(&Initial::parse(&packet).unwrap(), remote(), NOW).to_vec();
        let token = token(&retry);
        for bit in 0..token.len() * 8 {
            let mut changed = token.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(retries.read(&changed), None, "bit {bit}");
        }
        for bytes in 0..token.len() {
            assert_eq!(retries.read(&token[..bytes]), None, "{bytes} bytes");
        }
        assert_eq!(retries.read(&[7; 300]), None);
    }

    #[test]
    fn what_is_no_initial_of_version_1_is_not_read_as_one() {
        let packet = initial_packet(b"token");
        assert_eq!(Initial::parse(&packet).unwrap().token, b"token");
        for bytes in 0..40 {
            assert_eq!(Initial::parse(&packet[..bytes]), None, "{bytes} bytes");
        }
        let changed = |at: usize, value: u8| {
            let mut changed = packet.clone();
            changed[at] = value;
            Initial::parse(&changed).is_some()
        };
        assert!(changed(0, 0x83), "a greased fixed bit");
        assert!(!changed(0, 0x43), "a short header");
        assert!(!changed(0, 0xd3) && !changed(0, 0xe3) && !changed(0, 0xf3), "another type");
        assert!(!changed(4, 2), "another version");
        assert!(!changed(5, 21), "too long an ID");
        assert!(!changed(18, 0x7f), "a token longer than the packet");
    }
}
