//! Configuration of the gateway and its client: TOML in, checked values out.
//!
//! [`ServerConfig::load`] and [`ClientConfig::load`] read one file, lay the environment over it, and give values that the rest of the
//! program need not check again, or a [`ConfigError`] that lists every problem with its place and its remedy. A key that is not known
//! is a problem: a setting with a typo would otherwise be a setting that silently does nothing.
//!
//! Files written for Quincy 3 are read unchanged. Tollgate's own settings live in the tables `[shards]`,
//! `[connection_ids]`, `[data_path]`, `[sessions]`, `[usage]`, `[audit]`, `[events]`, `[host]` and `[control]`.
//!
//! This crate opens the configuration file and the users file and nothing else: certificates and keys stay paths until the shell reads
//! them, and whether a CPU or an interface exists is the shell's to find out. It never reads the environment by itself.
#![forbid(unsafe_code)]

mod bind;
mod client;
mod connection;
mod connection_ids;
mod control;
mod data_path;
mod document;
mod effective;
mod environment;
mod error;
mod files;
mod host;
mod kind;
mod likeness;
mod log;
mod metrics;
mod open;
mod protocol;
mod records;
mod schema;
mod server;
mod sessions;
mod setting;
mod shards;
mod table;
mod usage;
mod users;
mod value;

pub use client::{ClientConfig, Network, ServerAddress};
pub use connection::{CongestionController, Connection};
pub use connection_ids::{ConnectionIds, IdLayoutName, ServerIdKey};
pub use control::{Control, control_socket};
pub use data_path::DataPath;
pub use document::FILE_BYTES_MAX;
pub use effective::{Changed, UserChanges, needs_restart};
pub use error::{ConfigError, PROBLEMS_MAX, Place, Problem};
pub use files::files;
pub use host::HostSettings;
pub use kind::FilePlace;
pub use likeness::nearest;
pub use log::{LogFormat, Logging};
pub use metrics::Metrics;
pub use open::{Open, open_file};
pub use protocol::{
    ClientNoise, ClientProtocol, ClientTls, KeyExchange, NoiseKeySource, PemSource, ServerProtocol, ServerTls,
};
pub use records::{Audit, Events, Sync};
pub use schema::{Entry, Origin, Section, Traits};
pub use server::ServerConfig;
pub use sessions::{Sessions, UserSessions};
pub use shards::{Cpus, ShardCount, Shards};
pub use usage::{Quotas, Usage};
pub use users::{Credentials, Defaults, USERS_FILE_BYTES_MAX};
pub use value::{INTERFACE as INTERFACE_NAME, LogFilter, interface as interface_name, rate, rate_text};
