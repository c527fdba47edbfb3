//! The three handshakes, and what tells them apart.

use std::fmt;

/// Which handshake a key is for. QUIC's version says it to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// X25519.
    Standard,
    /// ML-KEM-768.
    PostQuantum,
    /// X25519 and ML-KEM-768.
    Hybrid,
}

impl Kind {
    /// Every kind, in the order of their versions.
    pub const ALL: [Kind; 3] = [Kind::Standard, Kind::PostQuantum, Kind::Hybrid];

    /// The version that packets of such a connection carry.
    pub const fn quic_version(self) -> u32 {
        match self {
            Kind::Standard => 0x5251_0101,
            Kind::PostQuantum => 0x5251_0301,
            Kind::Hybrid => 0x5251_0401,
        }
    }

    /// The kind whose packets carry `version`.
    pub fn of_quic_version(version: u32) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.quic_version() == version)
    }

    pub(crate) const fn has_dh(self) -> bool {
        matches!(self, Kind::Standard | Kind::Hybrid)
    }

    pub(crate) const fn has_kem(self) -> bool {
        matches!(self, Kind::PostQuantum | Kind::Hybrid)
    }

    pub(crate) const fn protocol_name(self) -> &'static str {
        match self {
            Kind::Standard => "Noise_IK_25519_ChaChaPoly_BLAKE2s",
            Kind::PostQuantum => "Noise_pqIKkc_MLKEM768_ChaChaPoly_BLAKE2s",
            Kind::Hybrid => "Noise_hybridIKkc_25519+MLKEM768_ChaChaPoly_BLAKE2s",
        }
    }

    /// X25519 secret, seed of ML-KEM, secret that is mixed into what is drawn: those that the kind has, in this order.
    pub const fn private_key_bytes(self) -> usize {
        match self {
            Kind::Standard => 32,
            Kind::PostQuantum => 64 + 32,
            Kind::Hybrid => 32 + 64 + 32,
        }
    }

    /// X25519 key, key of ML-KEM: those that the kind has, in this order.
    pub const fn public_key_bytes(self) -> usize {
        match self {
            Kind::Standard => 32,
            Kind::PostQuantum => 1184,
            Kind::Hybrid => 32 + 1184,
        }
    }

    /// What configurations call it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Standard => "standard",
            Kind::PostQuantum => "post_quantum",
            Kind::Hybrid => "hybrid",
        }
    }

    /// The kind that configurations call `name`.
    pub fn of_name(name: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_name_and_lengths_tell_the_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of_quic_version(kind.quic_version()), Some(kind));
            assert_eq!(Kind::of_name(kind.name()), Some(kind));
            let alike = |other: &Kind| {
                other.private_key_bytes() == kind.private_key_bytes()
                    || other.public_key_bytes() == kind.public_key_bytes()
            };
            assert_eq!(Kind::ALL.iter().filter(|other| alike(other)).count(), 1);
        }
        assert_eq!((Kind::of_quic_version(1), Kind::of_name("tls")), (None, None));
    }
}
