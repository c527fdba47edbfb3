//! The keys of Noise handshakes, loaded.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use tollgate_config::{ClientNoise, NoiseKeySource, Open, open_file};
use tollgate_noise::{ClientConfig, ClientError, DuplicateKind, KeyError, PrivateKey};
use zeroize::Zeroizing;

/// Longest text of a key, in bytes: the longest key, and white space.
const TEXT_BYTES_MAX: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// A file that cannot be read.
    #[error("cannot read the private key '{}': {error}", path.display())]
    Unreadable {
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file with something else in it.
    #[error(
        "'{}' is no private key ({error}): it must hold the one line that `tollgate identity noise genkey` prints",
        path.display()
    )]
    NoKey {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyError,
    },
    /// Two private keys of one kind.
    #[error("protocol.noise: {0}; name one of each kind")]
    Twice(#[from] DuplicateKind),
    /// Keys that do not go together, or that no handshake takes.
    #[error("protocol.private_key and protocol.server_public_key: {0}")]
    Unusable(#[from] ClientError),
    /// A client without one of its keys.
    #[error("a client needs protocol.private_key and protocol.server_public_key")]
    Missing,
}

/// A gateway's private keys, in files that `open` opens.
///
/// # Errors
///
/// If one cannot be read.
pub fn private_keys(sources: &[NoiseKeySource], open: &Open<'_>) -> Result<Vec<PrivateKey>, NoiseError> {
    sources.iter().map(|source| private_key(source, open)).collect()
}

/// A client's side of the handshake.
///
/// # Errors
///
/// If its key cannot be read, or is none for the gateway's.
pub fn client(noise: &ClientNoise) -> Result<ClientConfig, NoiseError> {
    let own = private_key(noise.private_key.as_ref().ok_or(NoiseError::Missing)?, &open_file)?;
    let server = noise.server_public_key.clone().ok_or(NoiseError::Missing)?;
    Ok(ClientConfig::new(&own, server, Arc::new(SystemRandom::new()))?)
}

fn private_key(source: &NoiseKeySource, open: &Open<'_>) -> Result<PrivateKey, NoiseError> {
    match source {
        NoiseKeySource::Inline(key) => Ok(key.clone()),
        NoiseKeySource::File(path) => open(path)
            .and_then(read_key)
            .map_err(|error| NoiseError::Unreadable { path: path.clone(), error })?
            .map_err(|error| NoiseError::NoKey { path: path.clone(), error }),
    }
}

/// The key that `source` holds, and nothing else. What is longer than a key may be is none.
///
/// # Errors
///
/// If it cannot be read.
pub fn read_key(source: impl Read) -> io::Result<Result<PrivateKey, KeyError>> {
    // Of full size from the start: growing would leave copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(TEXT_BYTES_MAX as usize));
    source.take(TEXT_BYTES_MAX).read_to_end(&mut text)?;
    Ok(std::str::from_utf8(&text).map_err(|_| KeyError::NotBase64).and_then(PrivateKey::parse))
}
