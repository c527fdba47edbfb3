//! The handshakes that a configuration names, with what they need loaded: a gateway's, and a client's.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use rustls::pki_types::CertificateDer;
use tollgate_config::{ClientProtocol, Credentials, Open, ServerProtocol, ServerTls};
use tollgate_noise::{Announcement, Handshakes, Kind, PrivateKey, PublicKey, ServerConfig, TLS_VERSION};
use tollgate_shards::{CredentialKind, MovingHandshake, Users};

use crate::noise::{self, NoiseError};
use crate::tls::{self, ReturningClient, TlsError, ValidityNote};

/// Names of users that a line has at most.
const NAMES_MAX: usize = 5;

/// Why a handshake is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Certificates or their keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Noise keys.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

/// A way in which clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// TLS, with whatever key exchange.
    Tls,
    /// Noise, with keys of this kind.
    Noise(Kind),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Tls => f.write_str("TLS"),
            Mode::Noise(kind) => write!(f, "Noise {kind}"),
        }
    }
}

impl Mode {
    /// That of whoever logs in with such a credential.
    pub fn of(kind: CredentialKind) -> Self {
        match kind {
            CredentialKind::Certificate => Mode::Tls,
            CredentialKind::NoiseKey(kind) => Mode::Noise(kind),
        }
    }

    /// The version of QUIC that says so on the wire.
    pub fn quic_version(self) -> u32 {
        match self {
            Mode::Tls => TLS_VERSION,
            Mode::Noise(kind) => kind.quic_version(),
        }
    }

    /// Whether a user of such `credentials` can come in so.
    fn takes(self, credentials: &Credentials) -> bool {
        match self {
            Mode::Tls => credentials.certificates > 0,
            Mode::Noise(kind) => credentials.noise_keys[kind as usize] > 0,
        }
    }
}

/// What a gateway serves.
#[derive(Clone)]
pub struct Served {
    /// With no Noise client listed.
    pub handshakes: Handshakes,
    /// As clients see it.
    pub identity: ServerIdentity,
}

/// How a gateway shows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// In TLS: its certificate, and those that vouch for it.
    certificates: Vec<CertificateDer<'static>>,
    /// In Noise.
    keys: Vec<PublicKey>,
}

impl Served {
    /// Loads what `protocol` names, of files that `open` opens.
    ///
    /// # Errors
    ///
    /// If any of it cannot be read, or does not fit together.
    pub fn load(protocol: &ServerProtocol, open: &Open<'_>) -> Result<Self, HandshakeError> {
        let keys = noise::private_keys(&protocol.noise, open)?;
        let noise = || ServerConfig::new(&keys, Arc::<Users>::default(), Arc::new(SystemRandom::new()));
        let noise = (!keys.is_empty()).then(noise).transpose().map_err(NoiseError::from)?.map(Arc::new);
        let certificates = protocol.tls.as_ref().map(|tls| chain(tls, open)).transpose()?.unwrap_or_default();
        let tls = protocol.tls.as_ref().map(|tls| tls::server(tls, open)).transpose()?.map(|tls| tls as _);
        let keys = keys.iter().map(PrivateKey::public).collect();
        Ok(Served { handshakes: Handshakes { tls, noise }, identity: ServerIdentity { certificates, keys } })
    }

    /// In which ways clients come in.
    pub fn modes(&self) -> Vec<Mode> {
        let Handshakes { tls, noise } = &self.handshakes;
        let noise = noise.iter().flat_map(|noise| noise.kinds()).map(Mode::Noise);
        tls.iter().map(|_| Mode::Tls).chain(noise).collect()
    }
}

impl ServerIdentity {
    /// In what `next` is another one, a line each.
    pub fn changes(&self, next: &ServerIdentity) -> Vec<String> {
        let mut changes = Vec::new();
        if self.certificates != next.certificates {
            changes.push("the gateway's certificate replaced".to_owned());
        }
        let replaced = next.keys.iter().filter(|key| !self.keys.contains(key));
        changes.extend(replaced.map(|key| format!("the gateway's Noise key of kind \"{}\" replaced", key.kind())));
        changes
    }
}

/// The gateway's certificate and those that vouch for it.
fn chain(tls: &ServerTls, open: &Open<'_>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chains = tls.certificates.iter().map(|source| tls::certificates("certificate", source, open));
    Ok(chains.collect::<Result<Vec<_>, _>>()?.concat())
}

/// Which users can come in by `modes`, in a line.
pub fn who_can_come_in(modes: &[Mode], credentials: &[Credentials]) -> String {
    let users = |mode: &Mode| match credentials.iter().filter(|user| mode.takes(user)).count() {
        0 => format!("{mode} (no user yet)"),
        1 => format!("{mode} (1 user)"),
        users => format!("{mode} ({users} users)"),
    };
    format!("Clients can come in by {}", modes.iter().map(users).collect::<Vec<_>>().join(", "))
}

/// A line about the users, each a name with its credentials, who have some, but none of `modes`.
pub fn shut_out<'u>(modes: &[Mode], users: impl Iterator<Item = (&'u str, &'u Credentials)>) -> Option<String> {
    let has_some = |user: &Credentials| user.certificates > 0 || user.noise_keys.iter().any(|keys| *keys > 0);
    let is_out = |user: &Credentials| has_some(user) && !modes.iter().any(|mode| mode.takes(user));
    let names: Vec<String> = users.filter(|(_, user)| is_out(user)).map(|(name, _)| format!("{name:?}")).collect();
    let (first, _) = names.split_at_checked(NAMES_MAX).unwrap_or((&names, &[]));
    let more = match names.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| {
        format!(
            "no mode that is served lets in {}{more}: give them credentials of a mode that is, or serve theirs beside it, in \
             [protocol.tls] and [protocol.noise]",
            first.join(", ")
        )
    })
}

/// A client's side of the handshake.
pub struct Spoken {
    /// What the engine takes.
    pub config: Arc<dyn CryptoConfig>,
    /// Likewise for one that moves from one connection to another.
    pub moving: MovingHandshake,
    /// Which it is.
    pub mode: Mode,
    /// Where TLS notes that the gateway's certificate is out of its validity.
    pub validity: ValidityNote,
}

impl Spoken {
    /// Loads what `protocol` names.
    ///
    /// # Errors
    ///
    /// If any of it cannot be read, or does not fit together.
    pub fn load(protocol: &ClientProtocol) -> Result<Self, HandshakeError> {
        match protocol {
            ClientProtocol::Tls(tls) => {
                let ReturningClient { config, moving, validity } = tls::returning_client(tls)?;
                Ok(Spoken { config, moving, mode: Mode::Tls, validity })
            }
            ClientProtocol::Noise(noise) => {
                let client = noise::client(noise)?;
                let config = Arc::new(client.announcing(Announcement::Returns));
                let moving: MovingHandshake =
                    Arc::new(move |address| Some(Arc::new(client.announcing(Announcement::Moves(address)))));
                let mode = Mode::Noise(noise.key_exchange.noise());
                Ok(Spoken { config, moving, mode, validity: ValidityNote::default() })
            }
        }
    }
}
