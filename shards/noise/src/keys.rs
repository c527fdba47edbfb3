//! Static keys of servers and clients, in the spelling of `quincy-identity noise`: standard base64 on one line.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::hash::Hash;
use crate::kind::Kind;
use crate::random::{NoRandomness, Randomness};
use crate::{dh, kem};

/// Sets digests of keys apart from those of anything else.
const DIGEST_LABEL: &[u8] = b"tollgate noise key\0";

/// Knows which clients may come in.
pub trait Listed: Send + Sync {
    #[allow(missing_docs, reason = "the name says it")]
    fn is_listed(&self, key: &PublicKey) -> bool;
}

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[allow(missing_docs, reason = "its message says it")]
    #[error("not in standard base64 with padding")]
    NotBase64,
    #[allow(missing_docs, reason = "its message says it")]
    #[error(
        "{0} bytes; a private key has {standard} (standard), {post_quantum} (post_quantum) or {hybrid} (hybrid)",
        standard = Kind::Standard.private_key_bytes(),
        post_quantum = Kind::PostQuantum.private_key_bytes(),
        hybrid = Kind::Hybrid.private_key_bytes()
    )]
    PrivateLength(usize),
    #[allow(missing_docs, reason = "its message says it")]
    #[error(
        "{0} bytes; a public key has {standard} (standard), {post_quantum} (post_quantum) or {hybrid} (hybrid)",
        standard = Kind::Standard.public_key_bytes(),
        post_quantum = Kind::PostQuantum.public_key_bytes(),
        hybrid = Kind::Hybrid.public_key_bytes()
    )]
    PublicLength(usize),
}

/// A secret that stands for a server or a client. It is wiped from memory when it goes.
#[derive(Clone)]
pub struct PrivateKey {
    kind: Kind,
    bytes: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A new key out of `source`.
    ///
    /// # Errors
    ///
    /// When `source` gives nothing.
    pub fn generate(kind: Kind, source: &dyn Randomness) -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new(vec![0; kind.private_key_bytes()]);
        source.fill(&mut bytes)?;
        Ok(PrivateKey { kind, bytes })
    }

    /// The key that `text` spells; its length tells the kind.
    ///
    /// # Errors
    ///
    /// When `text` is no base64, or of no key's length.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(decode(text)?)
    }

    pub(crate) fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.private_key_bytes() == bytes.len());
        Ok(PrivateKey { kind: kind.ok_or(KeyError::PrivateLength(bytes.len()))?, bytes })
    }

    /// Which handshake it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The key in base64, as [`PrivateKey::parse`] takes it.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&*self.bytes))
    }

    /// The key that belongs to it and may be known to everybody.
    pub fn public(&self) -> PublicKey {
        self.pair().public
    }

    pub(crate) fn pair(&self) -> Pair {
        const LENGTH: &str = "a key is made with its kind's length";
        let mut rest = &self.bytes[..];
        let mut public = Vec::with_capacity(self.kind.public_key_bytes());
        let dh = self.kind.has_dh().then(|| {
            let secret = dh::Secret::new(rest.split_off(..dh::KEY_BYTES).and_then(<[u8]>::first_chunk).expect(LENGTH));
            public.extend_from_slice(secret.public());
            secret
        });
        let kem = self.kind.has_kem().then(|| {
            let seed = rest.split_off(..kem::SEED_BYTES).and_then(<[u8]>::first_chunk).expect(LENGTH);
            let (secret, key) = kem::Secret::new(seed);
            public.extend_from_slice(&key);
            PairKem { secret, coins_secret: Zeroizing::new(rest.try_into().expect(LENGTH)) }
        });
        Pair { public: PublicKey::of(self.kind, &public), dh, kem }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, ...)", self.kind)
    }
}

/// A private key and its public one as handshakes use them: all that can be computed once is.
pub(crate) struct Pair {
    pub public: PublicKey,
    pub dh: Option<dh::Secret>,
    pub kem: Option<PairKem>,
}

pub(crate) struct PairKem {
    pub secret: kem::Secret,
    /// Mixed into what is drawn.
    pub coins_secret: Zeroizing<Hash>,
}

/// How a server or a client is known to the other side.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey {
    kind: Kind,
    bytes: Box<[u8]>,
}

impl PublicKey {
    /// The key that `text` spells; its length tells the kind.
    ///
    /// # Errors
    ///
    /// When `text` is no base64, or of no key's length.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let bytes = decode(text)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.public_key_bytes() == bytes.len());
        Ok(PublicKey::of(kind.ok_or(KeyError::PublicLength(bytes.len()))?, &bytes))
    }

    /// `bytes` are as many as a key of `kind` has.
    pub(crate) fn of(kind: Kind, bytes: &[u8]) -> Self {
        debug_assert_eq!(bytes.len(), kind.public_key_bytes());
        PublicKey { kind, bytes: bytes.into() }
    }

    /// Which handshake it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The key as handshakes carry it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn dh(&self) -> Option<&dh::Public> {
        self.bytes.first_chunk().filter(|_| self.kind.has_dh())
    }

    pub(crate) fn kem(&self) -> Option<&kem::Public> {
        self.bytes.last_chunk().filter(|_| self.kind.has_kem())
    }

    /// SHA-256 over a label, the kind and the key.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(DIGEST_LABEL);
        context.update(&self.kind.quic_version().to_be_bytes());
        context.update(&self.bytes);
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// In base64, as [`PublicKey::parse`] takes it.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&base64::display::Base64Display::new(&self.bytes, &STANDARD), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {self})", self.kind)
    }
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    STANDARD.decode(text.trim()).map(Zeroizing::new).map_err(|_| KeyError::NotBase64)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;

    use super::*;

    struct Broken;

    impl Randomness for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }

    #[test]
    fn a_key_is_what_its_text_says_and_its_length_tells_the_kind() {
        for kind in Kind::ALL {
            let key = PrivateKey::generate(kind, &SystemRandom::new()).unwrap();
            let same = PrivateKey::parse(&format!(" {}\n", *key.to_base64())).unwrap();
            assert_eq!((same.kind(), &*same.bytes), (kind, &*key.bytes));
            let public = key.public();
            assert_eq!(PublicKey::parse(&format!("\t{public}\r\n")).unwrap(), public);
            assert_eq!((public.kind(), public.as_bytes().len()), (kind, kind.public_key_bytes()));
            assert_ne!(PrivateKey::generate(kind, &SystemRandom::new()).unwrap().public(), public);
            assert!(PrivateKey::generate(kind, &Broken).is_err());
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_would_be_one() {
        assert_eq!(PrivateKey::parse("not a key").unwrap_err(), KeyError::NotBase64);
        assert_eq!(PrivateKey::parse("AAAA").unwrap_err(), KeyError::PrivateLength(3));
        assert_eq!(PublicKey::parse("").unwrap_err(), KeyError::PublicLength(0));
        let unpadded = STANDARD.encode([7; 32]).trim_end_matches('=').to_owned();
        assert_eq!(PublicKey::parse(&unpadded).unwrap_err(), KeyError::NotBase64);
        assert_eq!(
            KeyError::PublicLength(33).to_string(),
            "33 bytes; a public key has 32 (standard), 1184 (post_quantum) or 1216 (hybrid)"
        );
    }

    #[test]
    fn a_private_key_does_not_show_itself() {
        let key = PrivateKey::parse(&STANDARD.encode([0xab; 32])).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(standard, ...)");
    }

    #[test]
    fn digests_differ_with_kind_and_key() {
        let keys = [
            PublicKey::of(Kind::Standard, &[1; 32]),
            PublicKey::of(Kind::Standard, &[2; 32]),
            PublicKey::of(Kind::PostQuantum, &[1; 1184]),
            PublicKey::of(Kind::Hybrid, &[1; 1216]),
        ];
        let digests: std::collections::BTreeSet<[u8; 32]> = keys.iter().map(PublicKey::digest).collect();
        assert_eq!(digests.len(), keys.len());
    }
}
