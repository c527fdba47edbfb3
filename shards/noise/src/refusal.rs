//! Why a handshake is refused, as the other side and the log are told.

use std::fmt;

use quinn_proto::{TransportError, TransportErrorCode};

use crate::failed::Failed;
use crate::keys::PublicKey;
use crate::kind::Kind;

/// TLS calls it handshake_failure; QUIC carries it as 0x128 (RFC 9001, section 4.8).
const ALERT: u8 = 40;
const BROKEN: &str = "a Noise message cannot be read: it is for another key, or damaged";

/// Why the other side is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Broken,
    Unlisted(UnlistedKey),
}

impl From<Failed> for Refusal {
    fn from(Failed: Failed) -> Self {
        Refusal::Broken
    }
}

impl From<Refusal> for TransportError {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal {
            Refusal::Broken => BROKEN.to_owned(),
            Refusal::Unlisted(key) => key.to_string(),
        };
        TransportError { code: TransportErrorCode::crypto(ALERT), frame: None, reason }
    }
}

/// The key of a client that a server has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnlistedKey {
    #[allow(missing_docs, reason = "the name says it")]
    pub kind: Kind,
    /// What [`PublicKey::digest`] gives.
    pub digest: [u8; 32],
}

impl UnlistedKey {
    pub(crate) fn new(key: &PublicKey) -> Self {
        UnlistedKey { kind: key.kind(), digest: key.digest() }
    }

    /// The key that a server of this crate has refused with `error`. quinn-proto says no more of a connection that ends with its first packet.
    pub fn of(error: &TransportError) -> Option<Self> {
        let (kind, digits) = error.reason.strip_prefix(PREFIX)?.split_once(INFIX)?;
        let mut digest = [0; 32];
        if digits.len() != 2 * digest.len() || !digits.is_ascii() {
            return None;
        }
        for (place, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * place..][..2], 16).ok()?;
        }
        Some(UnlistedKey { kind: Kind::of_name(kind)?, digest })
    }
}

const PREFIX: &str = "this Noise key is nobody's: ";
const INFIX: &str = " sha256:";

impl fmt::Display for UnlistedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{INFIX}", self.kind)?;
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_whose_key_it_was() {
        for kind in Kind::ALL {
            let key = UnlistedKey { kind, digest: std::array::from_fn(|place| place as u8 * 5) };
            let error = TransportError::from(Refusal::Unlisted(key));
            assert_eq!((error.code, UnlistedKey::of(&error)), (TransportErrorCode::crypto(ALERT), Some(key)));
            let reason = error.reason[..error.reason.len() - 1].to_owned();
            assert_eq!(UnlistedKey::of(&TransportError { reason, ..error }), None);
        }
        assert_eq!(UnlistedKey::of(&Refusal::Broken.into()), None);
    }
}
