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
// What only `inspect` reads is dead without it; the workspace is built with it.
#![cfg_attr(not(feature = "inspect"), allow(dead_code, reason = "read by `inspect` alone"))]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod assignment;
mod client;
mod counters;
mod drops;
mod excerpt;
mod forward;
mod ids;
mod io;
mod limit;
mod machine;
mod memory;
pub mod packet;
mod quic;
mod session;
mod shard;

pub use assignment::{Assignment, AssignmentError};
pub use client::{Client, ClientEvent, ClientParams, CloseCause, Tunnel, TunnelParams};
pub use counters::Counters;
pub use drops::{DropReason, Drops};
pub use excerpt::excerpt;
pub use ids::{CommandId, ConnectionKey, Fingerprint, ShardIndex, UserIndex};
pub use io::{Received, Transmit, WakeReason};
pub use limit::rate::{BURST_BYTES_MIN, Limit, Rate};
pub use limit::shaper::ShaperLimits;
pub use machine::Machine;
pub use memory::Held;
pub use packet::ecn::Ecn;
pub use packet::frame::Frame;
pub use quic::close_code;
pub use quic::connection_id::{ConnectionIdKey, SHARDS_MAX};
pub use quic::endpoint::ShardKeys;
pub use quic::retry::TokenKey;
pub use quic::timers::{TimerEntry, TimerQueue};
pub use quic::transport::{Congestion, TransportParams, transport};
pub use session::addresses::SteeringUpdate;
pub use session::home::home_of;
pub use session::message::{CloseReason, ControlMessage};
pub use session::snapshot::Snapshot;
pub use session::users::{AddressRange, ConnectionLimit, User, Users, UsersError, WhenReached};
pub use shard::message::{Message, PacketMessage};
pub use shard::params::{Limits, Params};
pub use shard::{ClientMtu, Command, Event, Shard};

/// The engine's inside, for tests and for those who check from outside that shards agree. Nothing here is for the data path.
#[cfg(feature = "inspect")]
pub mod inspect {
    pub use crate::forward::routes::Routes;
    pub use crate::limit::bucket::{TokenBucket, UNITS_PER_BYTE, units};
    pub use crate::limit::issuer::{Audit, LeaseIssuer};
    pub use crate::limit::lease::{Lease, LeaseClose, LeaseGrant, LeaseId, LeaseReport};
    pub use crate::session::addresses::{AddressAllocator, Holding};
    pub use crate::session::context::Context;
    pub use crate::session::home::{ALLOCATOR, Member, Session, SessionHome};
    pub use crate::session::message::{Login, Outbox, Refusal};
    pub use crate::shard::inspect::{HeldLease, Inspect, OwnedStage, SessionMember, UserTokens};
}
