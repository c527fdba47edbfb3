//! Noise keys: making private ones, and the public ones that belong to them. Text in and out as `quincy-identity noise` has it.

use std::io::{self, Read};

use aws_lc_rs::rand::SystemRandom;
use tollgate_noise::{KeyError, Kind, NoRandomness, PrivateKey};
use zeroize::Zeroizing;

use crate::noise::read_key;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum NoiseKeyError {
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: see getrandom(2)")]
    NoRandomness(#[from] NoRandomness),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}")]
    Unreadable(#[from] io::Error),
    /// Standard input holds something else than one key.
    #[error("standard input is no private key ({0}): give it the line that `tollgate identity noise genkey` prints")]
    NoKey(#[from] KeyError),
    /// A key of another kind than was said.
    #[error("the key on standard input is of kind {found}: leave -k out, or write -k {found}")]
    OtherKind {
        /// Which it is.
        found: KeyExchange,
    },
}

/// What can be done with Noise keys on the command line.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a private key and print it.
    ///
    /// One line of base64, for `private_key` of a client or for a file that `private_key_files` of a gateway names; keep it secret.
    Genkey {
        /// Which handshake the key is for.
        #[arg(short, long, value_name = "KIND", default_value = "standard")]
        key_exchange: KeyExchange,
    },
    /// Print the public key of the private key on standard input.
    ///
    /// One line of base64: a gateway's for `server_public_key` of its clients, a client's for `authorized_keys` in users.toml.
    Pubkey {
        /// Which handshake the key is for. Without it, the key's length tells.
        #[arg(short, long, value_name = "KIND")]
        key_exchange: Option<KeyExchange>,
    },
}

/// A kind of key as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyExchange {
    /// X25519
    Standard,
    /// X25519 and ML-KEM-768
    Hybrid,
    /// ML-KEM-768
    #[value(alias = "post_quantum")]
    PostQuantum,
}

impl KeyExchange {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Standard => KeyExchange::Standard,
            Kind::Hybrid => KeyExchange::Hybrid,
            Kind::PostQuantum => KeyExchange::PostQuantum,
        }
    }

    /// The kind itself.
    pub fn kind(self) -> Kind {
        match self {
            KeyExchange::Standard => Kind::Standard,
            KeyExchange::Hybrid => Kind::Hybrid,
            KeyExchange::PostQuantum => Kind::PostQuantum,
        }
    }
}

impl std::fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind().name().replace('_', "-"))
    }
}

impl Command {
    /// Does it. Returns the line to be printed.
    ///
    /// # Errors
    ///
    /// If the key cannot be made, or `input` holds none.
    pub fn run(self, input: impl Read) -> Result<Zeroizing<String>, NoiseKeyError> {
        match self {
            Command::Genkey { key_exchange } => {
                Ok(PrivateKey::generate(key_exchange.kind(), &SystemRandom::new())?.to_base64())
            }
            Command::Pubkey { key_exchange } => {
                let key = read_key(input)??;
                let found = KeyExchange::of(key.kind());
                if key_exchange.is_some_and(|expected| expected != found) {
                    return Err(NoiseKeyError::OtherKind { found });
                }
                Ok(Zeroizing::new(key.public().to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn run(line: &str, input: &str) -> Result<Zeroizing<String>, String> {
        let line = Line::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        line.command.run(input.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_made_key_has_a_public_one_of_its_kind() {
        for (options, bytes) in
            [("", 44), (" -k standard", 44), (" -k hybrid", 1624), (" --key-exchange post-quantum", 1580)]
        {
            let key = run(&format!("x genkey{options}"), "").unwrap();
            let public = run("x pubkey", &format!(" {}\n", *key)).unwrap();
            assert_eq!(public.len(), bytes, "{options}");
            assert_eq!(run(&format!("x pubkey{options}"), &key), Ok(public.clone()));
            assert_ne!(run("x pubkey", &run(&format!("x genkey{options}"), "").unwrap()).unwrap(), public);
        }
    }

    #[test]
    fn what_is_no_key_or_another_kind_is_refused_without_being_shown() {
        let standard = run("x genkey", "").unwrap();
        assert!(run("x pubkey -k hybrid", &standard).unwrap_err().contains("write -k standard"));
        for input in ["", "c2VjcmV0", "secret", &"A".repeat(10_000)] {
            let error = run("x pubkey", input).unwrap_err();
            assert!(error.contains("genkey") && (input.is_empty() || !error.contains(input)), "{error}");
        }
    }
}
