//! A simulator of the gateway: shards of the real engine, their mesh, real clients and the links between, in one thread under virtual time.
//!
//! Everything random comes from one seed, through a stream of its own for each subsystem. The same seed gives the same run, in every process;
//! [`Facts::trace_hash`] is the proof. A run has two phases (see [`run`]): in the first there are faults, and nothing forbidden may
//! happen; in the second there are none, and everything allowed must.
//!
//! [`revocation`] is another kind of run, for one question only: whether anything of a user who was sent away passes afterwards.
//!
//! A [`Plan`] says what a run is made of, [`World`](world::World) lets it happen, and a [`Violation`] is what must never be.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "never published; what its name says is not said again")]

mod by_shard;
mod calm;
mod client;
mod clock;
mod files;
mod gateway;
mod hits;
mod hostile;
mod identity;
mod link;
mod mesh;
mod noise;
pub mod open;
mod oracle;
mod packets;
mod plan;
mod population;
mod random;
pub mod revocation;
mod run;
mod schedule;
mod shell;
mod shrink;
mod tcp;
mod trace;
mod traffic;
pub mod world;

pub use hits::{Hits, Tally};
pub use identity::{Dial, Hello};
pub use oracle::Violation;
pub use packets::{Forger, udp};
pub use plan::{Feature, Features, LinkPlan, Plan};
pub use run::{Facts, Options, Planted, run, run_bytes};
pub use schedule::Time;
pub use shrink::{Cut, shrink};
