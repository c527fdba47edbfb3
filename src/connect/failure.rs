//! Why there is no tunnel, and whether trying again could help.

use tollgate_shards::{AssignmentError, CloseCause, close_code};

use crate::io::BindError;
use crate::tls::OutOfValidity;

/// Refusals in a row until they count as final: a first one may be about an address that is still leased to this client's predecessor.
const REFUSALS_MAX: u32 = 2;

/// Why an attempt brought no tunnel, or why a tunnel is down.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The name in `connection_string` has no address.
    #[error("the gateway's name cannot be resolved ({0}): check connection_string, and this machine's DNS")]
    Unresolved(String),
    /// No UDP socket.
    #[error(transparent)]
    Socket(BindError),
    /// A gateway that can only be reached through its own tunnel.
    #[error(
        "this machine has no way to the gateway outside the tunnel now: connect it to a network, and see `ip route`"
    )]
    NoWay,
    /// The gateway has not answered.
    #[error("the gateway does not answer: check connection_string, and that UDP gets there and back")]
    Silent,
    /// No TLS session.
    #[error(
        "TLS with the gateway failed ({0}): check protocol.trusted_certificate_paths, that the gateway's certificate bears the host of connection_string, and key_exchange on both sides"
    )]
    Tls(String),
    /// A certificate that is not valid at the time that this machine's clock shows. The clock may be set any moment.
    #[error("{0}")]
    Clock(OutOfValidity),
    /// Something that speaks QUIC, but another version of it.
    #[error("the server speaks no QUIC version 1: check connection_string, and that its mode is \"tls\"")]
    Version,
    /// The gateway has nothing for this client.
    #[error(
        "the gateway refused this client ({0}): a user of its must have this client's certificate among the authorized_certs, and an address must be free"
    )]
    Refused(String),
    /// The gateway's message makes no sense.
    #[error("{0}: correct tunnel_network and the address pools at the gateway")]
    Assignment(AssignmentError),
    /// A cause with no advice of its own.
    #[error("{0}")]
    Closed(CloseCause),
}

impl Failure {
    /// The failure that a connection's end by `cause` stands for.
    pub fn of(cause: CloseCause) -> Self {
        match cause {
            CloseCause::TimedOut => Failure::Silent,
            CloseCause::Gateway { code, reason } if code == u64::from(close_code::ESTABLISHMENT_FAILED) => {
                Failure::Refused(reason)
            }
            CloseCause::Assignment(error) => Failure::Assignment(error),
            CloseCause::Tls(words) => Failure::Tls(words),
            CloseCause::Version => Failure::Version,
            cause => Failure::Closed(cause),
        }
    }

    /// Whether it will be the same next time, unless somebody changes something, here or at the gateway. `refusals` is how many
    /// [`Failure::Refused`] there were in a row, this one included.
    pub fn is_final(&self, refusals: u32) -> bool {
        match self {
            Failure::Tls(_) | Failure::Version | Failure::Assignment(_) => true,
            Failure::Refused(_) => refusals >= REFUSALS_MAX,
            Failure::Unresolved(_)
            | Failure::Socket(_)
            | Failure::NoWay
            | Failure::Silent
            | Failure::Clock(_)
            | Failure::Closed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::{ConnectionError, TransportError, TransportErrorCode};

    use super::*;

    fn transport_error(code: TransportErrorCode) -> Failure {
        let error = TransportError { code, frame: None, reason: "the reason".to_owned() };
        Failure::of(ConnectionError::TransportError(error).into())
    }

    #[test]
    fn tls_alerts_of_either_side_are_final() {
        let failure = transport_error(TransportErrorCode::crypto(48));
        assert!(matches!(&failure, Failure::Tls(words) if words.contains("the reason")), "{failure}");
        assert!(failure.is_final(0));
        let close = TransportError { code: TransportErrorCode::crypto(40), frame: None, reason: String::new() };
        let failure = Failure::of(ConnectionError::ConnectionClosed(close.into()).into());
        assert!(matches!(failure, Failure::Tls(_)), "{failure}");
    }

    #[test]
    fn another_quic_version_is_final() {
        let failure = Failure::of(ConnectionError::VersionMismatch.into());
        assert!(matches!(failure, Failure::Version) && failure.is_final(0), "{failure}");
    }

    #[test]
    fn a_refusal_is_final_the_second_time() {
        let cause = CloseCause::Gateway { code: 2, reason: "Session establishment failed".to_owned() };
        let failure = Failure::of(cause);
        assert!(!failure.is_final(1) && failure.is_final(2), "{failure}");
    }

    #[test]
    fn silence_resets_shutdowns_and_overload_pass() {
        let shutdown = CloseCause::Gateway { code: 1, reason: "Server shutdown".to_owned() };
        for failure in [
            Failure::of(CloseCause::TimedOut),
            Failure::of(CloseCause::Reset),
            Failure::of(shutdown),
            transport_error(TransportErrorCode::CONNECTION_REFUSED),
        ] {
            assert!(!failure.is_final(0), "{failure}");
        }
    }
}
