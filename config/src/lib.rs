//! Configuration of the gateway and its client: TOML in, checked values out.
//!
//! [`ServerConfig::load`] and [`ClientConfig::load`] read one file, lay the environment over it, and give values that the rest of the
//! program need not check again, or a [`ConfigError`] that lists every problem with its place and its remedy. A key that is not known
//! is a problem: a setting with a typo would otherwise be a setting that silently does nothing.
//!
//! Files written for Quincy 3 are read unchanged. Tollgate's own settings live in the tables `[shards]`,
//! `[data_path]`, `[sessions]` and `[control]`.
//!
//! This crate opens the configuration file and the users file and nothing else: certificates and keys stay paths until the shell reads
//! them, and whether a CPU or an interface exists is the shell's to find out. It never reads the environment by itself.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod control;
mod data_path;
mod document;
mod effective;
mod error;
mod live;
mod protocol;
mod server;
mod sessions;
mod setting;
mod shards;
mod users;
mod value;

pub use client::{ClientConfig, Network, ServerAddress};
pub use connection::{CongestionController, Connection, MTU_BYTES_MAX, MTU_BYTES_MIN, MTU_BYTES_MIN_V6};
pub use control::{Control, socket_name};
pub use data_path::{COALESCE_US_MAX, DataPath};
pub use error::{ConfigError, PROBLEMS_MAX, Place, Problem};
pub use live::{Changed, UserChanges};
pub use protocol::{ClientTls, KeyExchange, PemSource, ServerTls};
pub use server::{FILE_BYTES_MAX, Metrics, ServerConfig};
pub use sessions::Sessions;
pub use shards::{CPUS_MAX, SHARDS_MAX, ShardCount, Shards};
pub use users::{Defaults, NoiseKey, USERS_FILE_BYTES_MAX, UsersFile};
pub use value::{LogFilter, RATE_BITS_PER_S_MAX, interface as interface_name};

/// The reader behind all of these, for other TOML files: it reports every mistake with its place and its remedy.
pub mod reading {
    pub use crate::document::{Ignored, Report, Table, load};
    pub use crate::setting::Setting;
    pub use crate::value::{RATE, rate};
}
