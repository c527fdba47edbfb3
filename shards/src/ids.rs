//! What shards, connections, users and commands are called: plain values that every part of the engine passes on.

use std::fmt;

use sha2::{Digest, Sha256};
use tollgate_noise::{Kind, PublicKey};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardIndex(pub u16);

/// Of the two processes of one gateway that may live at a time, which one. A process after another one is odd if that one is even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Generation {
    #[default]
    Even,
    Odd,
}

/// A connection, from any shard's view. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// The shard that the connection's IDs steer to.
    pub owner: ShardIndex,
    /// Its place at the owner.
    pub slot: u32,
    /// Tells successive connections in one place apart, across restarts of the shard too.
    pub generation: u64,
}

/// The upper half of a generation is the owner's incarnation.
pub(crate) const INCARNATION_SHIFT: u32 = 32;

impl ConnectionKey {
    /// How often its owner had been started anew.
    pub(crate) fn incarnation(self) -> u32 {
        (self.generation >> INCARNATION_SHIFT) as u32
    }
}

/// Index of a user in a [`Users`](crate::Users).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserIndex(pub u32);

/// How a client is known: SHA-256 of its certificate's DER, or the digest of its Noise key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    pub fn of(certificate_der: &[u8]) -> Self {
        Fingerprint(Sha256::digest(certificate_der).into())
    }

    pub fn of_key(key: &PublicKey) -> Self {
        Fingerprint(key.digest())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What kind of thing a client has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialKind {
    Certificate,
    NoiseKey(Kind),
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialKind::Certificate => f.write_str("certificate"),
            CredentialKind::NoiseKey(kind) => write!(f, "Noise key ({kind})"),
        }
    }
}

/// What a client has shown, and has proved to hold the secret of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    pub kind: CredentialKind,
    pub fingerprint: Fingerprint,
}

/// The number of an order that every shard gets, ascending. See [`Shard::completed`](crate::Shard::completed).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);
