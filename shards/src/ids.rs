//! What shards, connections, users and commands are called: plain values that every part of the engine passes on.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tollgate_noise::{Kind, PublicKey};

/// Most shards of one process: each needs a value of its own of the bits that steer.
pub const SHARDS_MAX: u16 = 128;

/// A shard of either process of a gateway: its place in its process, and above that one bit for the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ShardIndex(pub u16);

impl ShardIndex {
    pub const fn new(generation: Generation, place: u16) -> Self {
        match generation {
            Generation::Even => ShardIndex(place),
            Generation::Odd => ShardIndex(SHARDS_MAX + place),
        }
    }

    /// Its place among the shards of its process, from 0.
    pub const fn place(self) -> usize {
        (self.0 % SHARDS_MAX) as usize
    }

    pub const fn generation(self) -> Generation {
        if self.0 < SHARDS_MAX { Generation::Even } else { Generation::Odd }
    }
}

/// Of the two processes of one gateway that may live at a time, which one. A process after another one is odd if that one is even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Generation {
    #[default]
    Even,
    Odd,
}

/// All shards of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards {
    pub generation: Generation,
    /// From 1 to [`SHARDS_MAX`].
    pub count: u16,
}

impl Shards {
    /// Those of a gateway that has no process beside this one.
    pub const fn alone(count: u16) -> Self {
        Shards { generation: Generation::Even, count }
    }

    /// The one at a place, which is below [`count`](Shards::count).
    pub const fn at(self, place: u16) -> ShardIndex {
        ShardIndex::new(self.generation, place)
    }

    pub fn iter(self) -> impl Iterator<Item = ShardIndex> {
        (0..self.count).map(move |place| self.at(place))
    }

    pub fn contains(self, shard: ShardIndex) -> bool {
        shard.generation() == self.generation && shard.place() < usize::from(self.count)
    }
}

/// A connection, from any shard's view. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    pub fn incarnation(self) -> u32 {
        (self.generation >> INCARNATION_SHIFT) as u32
    }
}

/// Index of a user in a [`Users`](crate::Users).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct UserIndex(pub u32);

impl UserIndex {
    /// No user has it: whoever another process knows, and this one does not.
    pub const NOBODY: UserIndex = UserIndex(u32::MAX);
}

/// How a client is known: SHA-256 of its certificate's DER, or the digest of its Noise key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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

/// Whether a client connects anew where the gateway ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Reconnects {
    /// Somebody has to start it again.
    #[default]
    Never,
    /// Also before that, where the gateway asks it to move.
    ByItself,
    /// Likewise, and it moves: this connection is to take the place of the one with this address.
    Moving(IpAddr),
}

/// What kind of thing a client has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialKind {
    Certificate,
    NoiseKey(Kind),
}

impl CredentialKind {
    /// What clients log in with whose packets carry this version of QUIC.
    pub fn of_version(version: u32) -> Self {
        Kind::of_quic_version(version).map_or(CredentialKind::Certificate, CredentialKind::NoiseKey)
    }
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId(pub u64);
