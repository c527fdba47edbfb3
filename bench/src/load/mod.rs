//! `tollgate-bench load`: thousands of clients from one process, inner traffic made and checked on both ends.
//!
//! Threads of the harness, all in one process:
//! - each *crowd* thread drives its part of the clients (the engine's [`Tunnel`](tollgate_shards::Tunnel) machines) over few UDP
//!   sockets, and is the near end of their flows;
//! - the *far end* is an ordinary UDP service behind the gateway: the other end of every flow;
//! - the *director* (the calling thread) ramps up, starts and stops traffic, samples the gateway, and at the end balances the ledgers.
//!
//! Near and far end speak in band only, in the messages of [`wire`]: so it makes no difference whether the gateway is ours, a peer's, or
//! on another machine.

pub mod crowd;
mod director;
pub mod far_end;
pub mod latencies;
pub mod ledger;
pub mod options;
pub mod packet;
pub mod pattern;
pub mod sink;
pub mod sizes;
pub mod source;
pub mod table;
pub mod verdict;
pub mod wire;

pub use director::{Observer, SAMPLES_MAX, run, run_observed, run_with_faults};
