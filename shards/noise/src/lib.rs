//! The Noise modes of Quincy 3 for quinn-proto: keys, handshake, packet protection, and the configurations of both sides.
//!
//! All is as Quincy's clients and servers have it on the wire. No input or output; what is random comes from a [`Randomness`] that the caller gives,
//! and from nothing else.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod announcement;
mod client;
mod coins;
mod dh;
mod failed;
mod handshake;
mod handshakes;
mod hash;
mod kem;
mod keys;
mod kind;
mod protection;
mod random;
#[cfg(test)]
mod reference;
mod refusal;
mod schedule;
mod server;
mod session;
mod stream;
mod symmetric;
#[cfg(test)]
mod vectors;

pub use announcement::Announcement;
pub use client::{ClientConfig, ClientError};
pub use handshakes::{Handshakes, TLS_VERSION};
pub use keys::{KeyError, Listed, PrivateKey, PublicKey};
pub use kind::Kind;
pub use random::{NoRandomness, Randomness};
pub use refusal::UnlistedKey;
pub use schedule::RetryKey;
pub use server::{DuplicateKind, ServerConfig};
