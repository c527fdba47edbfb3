//! The users a gateway knows: names, certificates, limits, addresses. Read-only; all shards share one through an `Arc`.
//!
//! This module never reads files: the configuration crate fills it.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU64;

use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate's DER: how a client is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate given as DER.
    pub fn of(certificate_der: &[u8]) -> Self {
        Fingerprint(Sha256::digest(certificate_der).into())
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

/// A rate in bits per second, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// A rate of `bits_per_s`; `None` for 0.
    pub const fn from_bits_per_s(bits_per_s: u64) -> Option<Self> {
        match NonZeroU64::new(bits_per_s) {
            Some(rate) => Some(Rate(rate)),
            None => None,
        }
    }

    /// Bits per second.
    pub const fn bits_per_s(self) -> u64 {
        self.0.get()
    }

    /// Whole bytes per second, at least 1.
    pub const fn bytes_per_s(self) -> u64 {
        let bytes = self.0.get() / 8;
        if bytes == 0 { 1 } else { bytes }
    }
}

/// An inclusive range of addresses of one family, `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range from `first` to `last`; `None` if they are of different families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(AddressRange { first, last })
    }

    /// Lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }
}

/// One user, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name, unique in the directory.
    pub name: String,
    /// Certificates that log this user in.
    pub certificates: Vec<Fingerprint>,
    /// Limit over all of the user's connections and both directions; `None` for no limit.
    pub limit: Option<Rate>,
    /// Addresses that this user's connections get, and nobody else's; empty for the tunnel network's pool.
    pub pool: Vec<AddressRange>,
}

/// Index of a user in a [`Directory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserIndex(pub u32);

/// Two users claim the same thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The same name twice.
    #[error("user '{0}' is defined twice")]
    DuplicateName(String),
    /// The same certificate for two users, or twice for one.
    #[error("certificate {fingerprint} is authorized for user '{first}' and again for user '{second}'")]
    DuplicateCertificate {
        /// The certificate.
        fingerprint: Fingerprint,
        /// Who had it first.
        first: String,
        /// Who claimed it again.
        second: String,
    },
}

/// All users.
#[derive(Debug, Default)]
pub struct Directory {
    users: Vec<User>,
    by_certificate: FxHashMap<Fingerprint, UserIndex>,
}

impl Directory {
    /// Indexes `users`.
    ///
    /// # Errors
    ///
    /// If two share a name or a certificate.
    pub fn new(users: Vec<User>) -> Result<Self, DirectoryError> {
        let mut by_certificate = FxHashMap::default();
        let mut by_name = FxHashMap::default();
        for (index, user) in users.iter().enumerate() {
            if by_name.insert(user.name.as_str(), index).is_some() {
                return Err(DirectoryError::DuplicateName(user.name.clone()));
            }
            for fingerprint in &user.certificates {
                if let Some(UserIndex(first)) = by_certificate.insert(*fingerprint, UserIndex(index as u32)) {
                    return Err(DirectoryError::DuplicateCertificate {
                        fingerprint: *fingerprint,
                        first: users[first as usize].name.clone(),
                        second: user.name.clone(),
                    });
                }
            }
        }
        drop(by_name);
        Ok(Directory { users, by_certificate })
    }

    /// The user whom a certificate logs in.
    pub fn find(&self, certificate: &Fingerprint) -> Option<UserIndex> {
        self.by_certificate.get(certificate).copied()
    }

    /// The user at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not of this directory.
    pub fn user(&self, index: UserIndex) -> &User {
        &self.users[index.0 as usize]
    }

    /// All users, in configured order.
    pub fn users(&self) -> &[User] {
        &self.users
    }
}
