//! Why a client's connection may end. Both ends keep to the rules of QUIC, TLS and Noise, and what links and strangers do to datagrams is nobody's
//! breach of them: a datagram that has changed is none (RFC 9001, section 5.2).

use tollgate_shards::{ClientEvent, CloseCause};

use super::Violation;
use crate::plan::{Feature, Features};

/// How the words begin of what may end a connection beside.
const RIGHT: [&str; 3] = [
    // Its packets, or its home, may have been lost for so long.
    "the gateway assigned no address within",
    // The client was elsewhere when the token was issued, or has kept it for long (RFC 9000, section 8.1.2).
    "aborted by peer: received an invalid Retry Token",
    // The gateway closes it with a code of its own before the handshake is over (RFC 9000, section 10.2.3).
    "aborted by peer: the application or application protocol caused the connection to be closed during the handshake",
];

/// What TLS calls handshake_failure is how Noise says that it does not know a key.
const REFUSED: &str = "aborted by peer: the cryptographic handshake failed: error 40";

/// A client of an honest world is told something. `may_be_refused` is whether its Noise key may not have been listed.
pub(super) fn told(event: &ClientEvent, features: Features, may_be_refused: bool) -> Result<(), Violation> {
    let ClientEvent::Closed(cause) = event else { return Ok(()) };
    let is_right = match cause {
        CloseCause::Local | CloseCause::Gateway { .. } | CloseCause::Reset | CloseCause::TimedOut => true,
        CloseCause::Other(words) if RIGHT.iter().any(|right| words.starts_with(right)) => true,
        // Of an upgrade nobody is to notice it who has begun to log in.
        CloseCause::NotTaken => features.has(Feature::Drain),
        // Nothing protects a Version Negotiation (RFC 9000, section 6): one bit makes it of a Retry, and anybody may send one.
        CloseCause::Version => features.has(Feature::Corruption) || features.has(Feature::Negotiation),
        // TLS of ours refuses nobody; whose certificate is nobody's is told once it is established.
        CloseCause::Handshake(words) => may_be_refused && words.starts_with(REFUSED),
        CloseCause::Other(_) | CloseCause::Assignment(_) => false,
    };
    if is_right {
        return Ok(());
    }
    Err(Violation::new("ends", format!("a connection is over because of a breach of rules: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_right(cause: CloseCause) -> bool {
        told(&ClientEvent::Closed(cause), Features::of(&[]), false).is_ok()
    }

    #[test]
    fn a_connection_that_ends_by_a_breach_of_rules_is_found() {
        let breach = "aborted by peer: detected an error with protocol compliance that was not covered by more specific error codes";
        for cause in [CloseCause::Other(breach.to_owned()), CloseCause::Handshake("no".to_owned()), CloseCause::Version]
        {
            assert!(!is_right(cause.clone()), "{cause}");
        }
        let refused = ClientEvent::Closed(CloseCause::Handshake(REFUSED.to_owned()));
        assert!(told(&refused, Features::ALL, true).is_ok() && told(&refused, Features::ALL, false).is_err());
        assert!(is_right(CloseCause::TimedOut) && is_right(CloseCause::Other(format!("{} 10 s", RIGHT[0]))));
    }
}
