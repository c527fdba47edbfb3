//! Why there is no tunnel, whether trying again could help, and why nobody tries any more.

use std::io;

use tollgate_shards::{AssignmentError, CloseCause, close_code};

use super::network::NetworkError;
use crate::handshakes::{HandshakeError, Mode};
use crate::io::BindError;
use crate::tls::OutOfValidity;

/// Refusals in a row until they count as final: a first one may be about an address that is still leased to this client's predecessor.
const REFUSALS_MAX: u32 = 2;

/// Why the client has given up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The client's certificates or its key cannot be used.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The first answer of a gateway was a refusal that trying again would not change.
    #[error(transparent)]
    Gateway(#[from] Failure),
    /// `connection_string` cannot be used.
    #[error(
        "connection_string cannot be used: {0}; its host must be a DNS name or an IP address, as the gateway's certificate bears it"
    )]
    Name(#[from] quinn_proto::ConnectError),
    /// This machine's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A descriptor failed.
    #[error("the tunnel's descriptors failed: {0}; start again")]
    System(#[from] io::Error),
}

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
    /// No TLS handshake.
    #[error(
        "TLS with the gateway failed ({0}): check protocol.trusted_certificate_paths, that the gateway's certificate bears the host of connection_string, and key_exchange on both sides"
    )]
    Tls(String),
    /// No Noise handshake.
    #[error(
        "the Noise handshake with the gateway failed ({0}): check protocol.server_public_key, and that a user of the gateway has this client's public key among the authorized_keys"
    )]
    Noise(String),
    /// A certificate that is not valid at the time that this machine's clock shows. The clock may be set any moment.
    #[error("{0}")]
    Clock(OutOfValidity),
    /// Something that speaks QUIC, but another version of it.
    #[error("the server does not serve {0}: check connection_string, and mode and key_exchange on both sides")]
    Version(Mode),
    /// The gateway has nothing for this client.
    #[error(
        "the gateway refused this client ({0}): a user of its must have this client's certificate or key among the authorized_certs or authorized_keys, and an address must be free"
    )]
    Refused(String),
    /// The gateway is about to end.
    #[error("the gateway sends its clients away: it is being drained")]
    SentAway,
    /// The gateway's message makes no sense.
    #[error("{0}: correct tunnel_network and the address pools at the gateway")]
    Assignment(AssignmentError),
    /// A cause with no advice of its own.
    #[error("{0}")]
    Closed(CloseCause),
}

impl Failure {
    /// The failure that a connection's end by `cause` stands for, where this client speaks `mode`.
    pub fn of(cause: CloseCause, mode: Mode) -> Self {
        match cause {
            CloseCause::TimedOut => Failure::Silent,
            CloseCause::Gateway { code, reason } if code == u64::from(close_code::ESTABLISHMENT_FAILED) => {
                Failure::Refused(reason)
            }
            CloseCause::Gateway { code, .. } if code == u64::from(close_code::DRAIN) => Failure::SentAway,
            CloseCause::Assignment(error) => Failure::Assignment(error),
            CloseCause::Handshake(words) if mode == Mode::Tls => Failure::Tls(words),
            CloseCause::Handshake(words) => Failure::Noise(words),
            CloseCause::Version => Failure::Version(mode),
            cause => Failure::Closed(cause),
        }
    }

    /// Whether it will be the same next time, unless somebody changes something, here or at the gateway. `refusals` is how many
    /// [`Failure::Refused`] there were in a row, this one included.
    pub fn is_final(&self, refusals: u32) -> bool {
        match self {
            Failure::Tls(_) | Failure::Noise(_) | Failure::Version(_) | Failure::Assignment(_) => true,
            Failure::Refused(_) => refusals >= REFUSALS_MAX,
            Failure::Unresolved(_)
            | Failure::Socket(_)
            | Failure::NoWay
            | Failure::Silent
            | Failure::Clock(_)
            | Failure::SentAway
            | Failure::Closed(_) => false,
        }
    }

    /// Whether the gateway has said that it ends: another one is better.
    pub fn sends_away(&self) -> bool {
        match self {
            Failure::SentAway => true,
            Failure::Closed(CloseCause::Gateway { code, .. }) => *code == u64::from(close_code::SHUTDOWN),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::{ConnectionError, TransportError, TransportErrorCode};

    use tollgate_noise::Kind;

    use super::*;

    fn transport_error(code: TransportErrorCode) -> Failure {
        let error = TransportError { code, frame: None, reason: "the reason".to_owned() };
        Failure::of(ConnectionError::TransportError(error).into(), Mode::Tls)
    }

    #[test]
    fn tls_alerts_of_either_side_are_final() {
        let failure = transport_error(TransportErrorCode::crypto(48));
        assert!(matches!(&failure, Failure::Tls(words) if words.contains("the reason")), "{failure}");
        assert!(failure.is_final(0));
        let close = TransportError { code: TransportErrorCode::crypto(40), frame: None, reason: String::new() };
        let failure = Failure::of(ConnectionError::ConnectionClosed(close.into()).into(), Mode::Tls);
        assert!(matches!(failure, Failure::Tls(_)), "{failure}");
        let failure = Failure::of(CloseCause::Handshake("the reason".to_owned()), Mode::Noise(Kind::Standard));
        assert!(failure.is_final(0) && failure.to_string().contains("server_public_key"), "{failure}");
    }

    #[test]
    fn another_quic_version_is_final() {
        let failure = Failure::of(ConnectionError::VersionMismatch.into(), Mode::Noise(Kind::Hybrid));
        assert!(failure.is_final(0) && failure.to_string().contains("does not serve Noise hybrid"), "{failure}");
    }

    #[test]
    fn a_refusal_is_final_the_second_time() {
        let cause = CloseCause::Gateway { code: 2, reason: "Session establishment failed".to_owned() };
        let failure = Failure::of(cause, Mode::Tls);
        assert!(!failure.is_final(1) && failure.is_final(2), "{failure}");
    }

    #[test]
    fn silence_resets_shutdowns_and_overload_pass() {
        let shutdown = CloseCause::Gateway { code: 1, reason: "Server shutdown".to_owned() };
        for failure in [
            Failure::of(CloseCause::TimedOut, Mode::Tls),
            Failure::of(CloseCause::Reset, Mode::Tls),
            Failure::of(shutdown, Mode::Tls),
            transport_error(TransportErrorCode::CONNECTION_REFUSED),
        ] {
            assert!(!failure.is_final(0), "{failure}");
        }
    }
}
