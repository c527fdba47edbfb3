//! Who the other side of a connection is, and why a connection is over.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use tollgate_noise::{Announcement, PublicKey, UnlistedKey};

use crate::excerpt::excerpt;
use crate::ids::{Credential, CredentialKind, Fingerprint, Reconnects};

/// What the client of an established connection has shown.
pub fn credential(connection: &Connection) -> Option<Credential> {
    let identity = connection.crypto_session().peer_identity()?;
    if let Some(key) = identity.downcast_ref::<PublicKey>() {
        let kind = CredentialKind::NoiseKey(key.kind());
        return Some(Credential { kind, fingerprint: Fingerprint::of_key(key) });
    }
    let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    Some(Credential { kind: CredentialKind::Certificate, fingerprint: Fingerprint::of(chain.first()?) })
}

/// Until when the client's certificate is valid (RFC 5280, section 4.1.2.5). `None` where it has none, or one that says nothing that can be read.
pub fn certificate_until(connection: &Connection) -> Option<SystemTime> {
    let identity = connection.crypto_session().peer_identity()?;
    let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The application protocol (RFC 7301) of clients that come back by themselves when the gateway closes their connections. They offer Quincy's too, for
/// servers that know no other.
pub const RETURNING_PROTOCOL: &[u8] = b"tollgate";

/// Whether the client of an established connection connects anew.
pub fn reconnects(connection: &Connection) -> Reconnects {
    let Some(data) = connection.crypto_session().handshake_data() else { return Reconnects::Never };
    if let Some(announced) = data.downcast_ref::<Option<Announcement>>() {
        return match *announced {
            Some(Announcement::Returns) => Reconnects::ByItself,
            Some(Announcement::Moves(address)) => Reconnects::Moving(address),
            None => Reconnects::Never,
        };
    }
    let protocol = data.downcast::<HandshakeData>().ok().and_then(|tls| tls.protocol);
    if protocol.as_deref() != Some(RETURNING_PROTOCOL) {
        return Reconnects::Never;
    }
    let identity = connection.crypto_session().peer_identity();
    let chain = identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.and_then(|chain| claimed(&chain)).map_or(Reconnects::ByItself, Reconnects::Moving)
}

/// How the entry begins that a client which moves has behind its certificates. Nobody looks up more than the first of them.
const CLAIM: &[u8] = b"tollgate address ";

/// The last entry of the certificate chain (RFC 8446, section 4.4.2, which is encrypted) of a client that moves: the address that it has.
pub fn claim(address: IpAddr) -> CertificateDer<'static> {
    [CLAIM, address.to_string().as_bytes()].concat().into()
}

fn claimed(chain: &[CertificateDer<'_>]) -> Option<IpAddr> {
    str::from_utf8(chain.last()?.strip_prefix(CLAIM)?).ok()?.parse().ok()
}

/// A handshake that has come to nothing.
#[derive(Debug)]
pub struct Failed {
    pub remote: SocketAddr,
    /// What its version of QUIC says that the client would have logged in with.
    pub kind: CredentialKind,
    pub failure: Failure,
}

/// Why a handshake has come to nothing.
#[derive(Debug)]
pub enum Failure {
    /// The client has shown a Noise key that was not listed.
    Unlisted(Credential),
    /// In words.
    Other(String),
}

impl Failure {
    pub fn of(error: &ConnectionError) -> Self {
        let unlisted = match error {
            ConnectionError::TransportError(error) => UnlistedKey::of(error),
            _ => None,
        };
        match unlisted {
            Some(UnlistedKey { kind, digest }) => {
                Failure::Unlisted(Credential { kind: CredentialKind::NoiseKey(kind), fingerprint: Fingerprint(digest) })
            }
            None => Failure::Other(words(error)),
        }
    }
}

/// Why a connection is lost.
pub fn words(reason: &ConnectionError) -> String {
    match reason {
        ConnectionError::ApplicationClosed(close) => {
            let said = excerpt(&close.reason);
            format!("closed by the client: {said} (code {:#04x})", close.error_code.into_inner())
        }
        other => excerpt(other.to_string().as_bytes()),
    }
}
