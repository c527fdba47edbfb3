//! The engine of the Tollgate gateway: what a core does, without the core.
//!
//! # The contract
//!
//! Everything here is a state machine without input or output. It reads no clock, draws no entropy but what its seed gives, starts no
//! thread, takes no lock and makes no system call; whoever drives it does. [`Machine`] states how, once, for the gateway's [`Shard`] and
//! for the [`Client`]:
//!
//! 1. **In**: a bounded batch of `handle_*` calls, all with the `now` that the driver read once for the batch.
//! 2. **Decide**: one call; every connection that the batch touched is looked at once.
//! 3. **Out**: `poll_*` until each says `None`. Outputs are batches, never single packets.
//!
//! `poll_timeout` then tells when to call `handle_timeout`, and why. A [`Shard`] asserts this order in debug builds.
//!
//! Input is never trusted and never panics: what cannot be used is a [`DropReason`] and a counter. A panic is a bug of this crate.
//! Everything that grows is bounded by a `*_max` of [`Params`].
#![forbid(unsafe_code)]
#![warn(clippy::iter_over_hash_type)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod admission;
pub mod allowance;
pub mod assignment;
pub mod bucket;
pub mod client;
pub mod congestion;
pub mod connection_id;
pub mod context;
pub mod counters;
pub mod deadlines;
pub mod directory;
pub mod epoch;
pub mod excerpt;
pub mod failures;
pub mod home;
pub mod in_flight;
pub mod keeper;
pub mod lease;
pub mod ledger;
pub mod link;
pub mod machine;
pub mod memory;
pub mod message;
pub mod moves;
pub mod packet;
pub mod params;
pub mod path_mtu;
pub mod policy;
pub mod retry;
pub mod routes;
pub mod shaper;
pub mod shard;
pub mod transport;
pub mod verdict;
pub mod wall_clock;

pub use client::{Client, ClientEvent, ClientParams, CloseCause, Tunnel, TunnelParams};
pub use connection_id::ShardIndex;
pub use counters::Counters;
pub use directory::{Directory, UserIndex};
pub use epoch::{Epoch, Ticket};
pub use machine::{Ecn, Frame, Machine, Received, Transmit, WakeReason};
pub use message::Message;
pub use params::Params;
pub use shard::{ClientMtu, Command, Event, Shard, ShardKeys};
pub use verdict::{DropReason, Drops};
