//! A simulator of the gateway: shards of the real engine, their mesh, real clients and the links between, in one thread under virtual time.
//!
//! Everything random comes from one seed, through a stream of its own for each subsystem. The same seed gives the same run, in every process;
//! [`Facts::trace_hash`] is the proof. A run has two phases (see [`run`](mod@run)): in the first there are faults, and nothing forbidden may
//! happen; in the second there are none, and everything allowed must.
//!
//! [`revocation`] is another kind of run, for one question only: whether anything of a user who was sent away passes afterwards.
//!
//! A [`Plan`] says what a run is made of, [`World`](world::World) lets it happen, and [`oracle`] judges.
#![forbid(unsafe_code)]

mod calm;
pub mod client;
pub mod gateway;
pub mod identity;
pub mod link;
pub mod mesh;
pub mod oracle;
pub mod packets;
pub mod plan;
pub mod population;
pub mod random;
pub mod regression;
pub mod revocation;
pub mod run;
pub mod schedule;
pub mod trace;
mod traffic;
pub mod world;

pub use oracle::Violation;
pub use plan::{Feature, Features, Plan};
pub use run::{Facts, Options, Planted, run};
