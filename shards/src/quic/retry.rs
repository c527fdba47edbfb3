//! Address validation by Retry (RFC 9000, section 8.1.2) in front of the endpoint: whoever has not proven an address costs one short answer,
//! without state, key derivation or allocation.
//!
//! The tokens are those that quinn-proto expects, so that its endpoint validates what comes back with the connection.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey};
use siphasher::sip::SipHasher24;
use tollgate_noise::{RetryKey, TLS_VERSION};

use crate::ids::ShardIndex;
use crate::quic::connection_id::RetryIds;
use crate::quic::initial::{ID_BYTES_MAX, Initial, array, id};

/// How long a token proves an address (RFC 9000, section 8.1.3).
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(15);

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

/// Makes the Retries of one shard.
pub struct Retries {
    key: TokenKey,
    integrity: LessSafeKey,
    /// For all versions but that of TLS.
    noise: RetryKey,
    pub ids: RetryIds,
    nonce_key: [u8; 16],
    issued: u64,
    /// The last Retry, behind what its integrity tag covers beside it.
    packet: Vec<u8>,
}

impl Retries {
    /// Retries with tokens under `key` and IDs out of `ids`. `nonce_key` must differ from shard to shard and from start to start.
    pub fn new(key: TokenKey, ids: RetryIds, nonce_key: [u8; 16]) -> Self {
        let integrity = UnboundKey::new(&AES_128_GCM, &INTEGRITY_KEY).expect("16 bytes are a key");
        Retries {
            key,
            integrity: LessSafeKey::new(integrity),
            noise: RetryKey::new(),
            ids,
            nonce_key,
            issued: 0,
            packet: Vec::new(),
        }
    }

    /// What `token` says, if it is one of ours.
    pub fn read(&self, token: &[u8]) -> Option<Claim> {
        self.key.read(token)
    }

    /// The answer to `initial` from `remote` at `now` (RFC 9000, section 17.2.5). What comes of it is `owner`'s.
    pub fn answer(&mut self, initial: &Initial<'_>, remote: SocketAddr, now: SystemTime, owner: ShardIndex) -> &[u8] {
        let nonce = self.nonce();
        let id = self.ids.take(owner);
        let packet = &mut self.packet;
        packet.clear();
        put_id(packet, initial.destination);
        let start = packet.len();
        // The four bits that mean nothing are to be arbitrary.
        packet.push(0xf0 | nonce[0] & 0x0f);
        packet.extend_from_slice(&initial.version.to_be_bytes());
        put_id(packet, initial.source);
        put_id(packet, &id);
        let claim = packet.len();
        put_claim(packet, remote, initial.destination, now);
        let tag = self.key.seal(&nonce, &mut packet[claim..]);
        packet.extend_from_slice(tag.as_ref());
        packet.extend_from_slice(&nonce);
        match initial.version {
            TLS_VERSION => packet.extend_from_slice(integrity_tag(&self.integrity, packet).as_ref()),
            _ => packet.extend_from_slice(&self.noise.tag(packet)),
        }
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
    use tollgate_noise::Kind;

    use super::*;
    use crate::ids::Shards;
    use crate::quic::connection_id::{ConnectionIdKey, IdLayout, IdScheme, QuicLb, SteeringIds};

    const NOW: SystemTime = UNIX_EPOCH;

    const OWNER: ShardIndex = ShardIndex(1);

    fn retries() -> Retries {
        retries_with(IdLayout::plain(8, ConnectionIdKey([7; 16])).unwrap())
    }

    fn retries_with(layout: IdLayout) -> Retries {
        let ids = SteeringIds::new(IdScheme::new(layout, Shards::alone(2), ShardIndex(0)), [1; 16]);
        Retries::new(TokenKey::new(&[4; 32]), RetryIds::new(ids), [2; 16])
    }

    fn remote() -> SocketAddr {
        "198.18.0.7:4242".parse().unwrap()
    }

    const INITIAL: Initial<'static> =
        Initial { version: TLS_VERSION, destination: &[9; 8], source: &[5, 6, 7], token: &[] };

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
        let mut retries = retries();
        for _ in 0..100 {
            let retry = retries.answer(&INITIAL, remote(), NOW, OWNER);
            assert_eq!((retry[0] & 0xf0, &retry[1..9]), (0xf0, &[0, 0, 0, 1, 3, 5, 6, 7][..]));
            assert!(retry[9] == 8 && retry[10 + 7] % 2 == 1, "an ID that steers to shard 1 of 2");
            assert!(retry.len() < 150, "{} bytes", retry.len());
        }
    }

    #[test]
    fn a_token_holds_for_its_address_and_15_seconds() {
        let mut retries = retries();
        for remote in [remote(), "[fd00::7]:4242".parse().unwrap()] {
            let retry = retries.answer(&INITIAL, remote, NOW, OWNER).to_vec();
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
        let retry = retries.answer(&INITIAL, remote(), NOW, OWNER).to_vec();
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

    /// What the Noise crate's clients check, with and without memory.
    #[test]
    fn every_noise_version_has_its_retry_and_nothing_is_allocated_for_it() {
        let mut retries = retries();
        for kind in Kind::ALL {
            let initial = Initial { version: kind.quic_version(), ..INITIAL };
            retries.answer(&initial, remote(), NOW, OWNER);
            let allocations =
                allocation_counter::measure(|| assert!(!retries.answer(&initial, remote(), NOW, OWNER).is_empty()));
            assert_eq!(allocations.count_total, 0);
            let retry = retries.answer(&initial, remote(), NOW, OWNER).to_vec();
            assert_eq!(retry[1..5], kind.quic_version().to_be_bytes());
            let (packet, tag) = retry.split_last_chunk::<TAG_BYTES>().unwrap();
            assert_eq!(RetryKey::new().tag(&[&[8], &[9; 8][..], packet].concat()), *tag);
            assert!(retries.read(token(&retry)).unwrap().holds(remote(), NOW));
        }
    }

    /// However long a flood lasts, and whichever shards it is sent to.
    #[test]
    fn a_retry_with_an_encrypted_id_waits_for_nothing_and_allocates_nothing() {
        let config = QuicLb { rotation: 0, server_id: vec![1, 2], key: Some([3; 16]) };
        let mut retries = retries_with(IdLayout::quic_lb(12, &config, ConnectionIdKey([7; 16])).unwrap());
        retries.answer(&INITIAL, remote(), NOW, OWNER);
        let mut to_owner = 0;
        let allocations = allocation_counter::measure(|| {
            for _ in 0..1000 {
                let retry = retries.answer(&INITIAL, remote(), NOW, OWNER);
                assert_eq!(retry[9], 12);
                to_owner += u32::from(retry[10 + 7] & 0x7f & 1);
            }
        });
        assert_eq!(allocations.count_total, 0);
        assert!(to_owner > 400, "{to_owner}: half of what is drawn, and the stock");
        let mut apart = 0;
        for _ in 0..100 {
            (0..4).for_each(|_| retries.ids.restock());
            apart += u32::from(retries.answer(&INITIAL, remote(), NOW, OWNER)[10 + 7] & 1);
        }
        assert_eq!(apart, 100, "between passes there is what is wanted");
    }
}
