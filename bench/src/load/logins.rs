//! What the users of a run log in with, at both ends: the gateway's files, and the clients' handshakes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use rustls::CipherSuite;
use serde::Deserialize;
use tollgate::tls::{Clients, client_provider};
use tollgate_config::{KeyExchange, PemSource};
use tollgate_noise::{ClientConfig, Kind, PrivateKey, TLS_VERSION};
use tollgate_testkit::deploy::{ConfigFile, Identity, authorized_keys, user_entry};

/// What users log in with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handshake {
    /// As Quincy's client offers it: X25519 with ML-KEM-768, and AES-256-GCM first.
    #[default]
    Tls,
    /// The same with ChaCha20-Poly1305 alone, which is what Noise has.
    TlsChacha20,
    NoiseStandard,
    NoiseHybrid,
    NoisePostQuantum,
}

/// The credentials of a run.
pub enum Logins {
    Tls { users: Vec<Identity>, has_chacha20_only: bool },
    Noise { gateway: PrivateKey, users: Vec<PrivateKey> },
}

/// One user's side of the handshake, which its connections share.
#[derive(Clone)]
pub struct Login {
    pub config: Arc<dyn CryptoConfig>,
    pub quic_version: u32,
}

impl Handshake {
    fn kind(self) -> Option<Kind> {
        match self {
            Handshake::Tls | Handshake::TlsChacha20 => None,
            Handshake::NoiseStandard => Some(Kind::Standard),
            Handshake::NoiseHybrid => Some(Kind::Hybrid),
            Handshake::NoisePostQuantum => Some(Kind::PostQuantum),
        }
    }
}

impl Logins {
    /// Makes credentials for so many users, whom `name` names; `progress` is told of each.
    pub fn make(
        handshake: Handshake,
        users: u32,
        name: impl Fn(u32) -> String,
        mut progress: impl FnMut(u32),
    ) -> Result<Self> {
        let numbers = (0..users).inspect(|user| progress(*user));
        match handshake.kind() {
            None => {
                let users = numbers.map(|user| Ok(Identity::generate(&name(user), &[])?)).collect::<Result<_>>()?;
                Ok(Logins::Tls { users, has_chacha20_only: handshake == Handshake::TlsChacha20 })
            }
            Some(kind) => {
                let key = |_| PrivateKey::generate(kind, &SystemRandom::new()).context("no random numbers");
                Ok(Logins::Noise { gateway: key(0)?, users: numbers.map(key).collect::<Result<_>>()? })
            }
        }
    }

    pub fn users(&self) -> usize {
        match self {
            Logins::Tls { users, .. } => users.len(),
            Logins::Noise { users, .. } => users.len(),
        }
    }

    /// The entry in the users file of the user with that number.
    pub fn entry(&self, user: usize, name: &str, settings: &str) -> String {
        match self {
            Logins::Tls { users, .. } => user_entry(name, &users[user].fingerprint, settings),
            Logins::Noise { users, .. } => {
                let key = users[user].public().to_string();
                format!("[users.{name}]\n{}{settings}\n", authorized_keys([&key[..]]))
            }
        }
    }

    /// The gateway's file with what serves them.
    pub fn serve(&self, file: ConfigFile) -> ConfigFile {
        let Logins::Noise { gateway, .. } = self else { return file };
        let (kind, key) = (gateway.kind().name(), gateway.to_base64());
        file.with_protocol([("mode", "noise"), ("key_exchange", kind), ("private_key", &key)])
    }

    /// The users' sides, in their order. `certificate` is the gateway's, where it has one.
    pub fn logins(&self, certificate: &Path) -> Result<Vec<Login>> {
        match self {
            Logins::Tls { users, has_chacha20_only } => {
                let mut provider = client_provider(KeyExchange::Hybrid);
                if *has_chacha20_only {
                    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
                }
                let trusted = Clients::offering(&[PemSource::File(certificate.to_owned())], provider)?;
                let login = |Identity { certificate_pem, key_pem, .. }: &Identity| {
                    let [chain, key] = [certificate_pem, key_pem].map(|pem| PemSource::Inline(pem.clone().into()));
                    let config = trusted.client(&[chain], &key).context("a user's certificate")?;
                    Ok(Login { config, quic_version: TLS_VERSION })
                };
                users.iter().map(login).collect()
            }
            Logins::Noise { gateway, users } => {
                let server = gateway.public();
                let login = |key: &PrivateKey| {
                    let config = ClientConfig::new(key, server.clone(), Arc::new(SystemRandom::new()))?;
                    Ok(Login { quic_version: config.quic_version(), config: Arc::new(config) })
                };
                users.iter().map(login).collect()
            }
        }
    }
}
