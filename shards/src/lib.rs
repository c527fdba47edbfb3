//! The engine of the Tollgate gateway: what a core does, without the core.
//!
//! # The contract
//!
//! Everything here is a state machine without input or output. It reads no clock, draws no entropy but what its seed gives, starts no
//! thread, takes no lock and makes no system call; whoever drives it does. [`Machine`] states how, once, for the gateway's [`Shard`] and
//! for the [`Client`]:
//!
//! 1. **In**: a bounded batch of `handle_*` calls, all with the `now` that the driver read once for the batch.
//! 2. **Out**: `poll_output` until it says `None`. Every connection that the batch touched is looked at once; what comes out are batches, never
//!    single packets, in the order in which they are to be carried out.
//!
//! `poll_timeout` then tells when to call `handle_timeout`, and why.
//!
//! A driver's loop, here around a client that has nobody to talk to:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use tollgate_shards::{Machine, Output, Received};
//!
//! /// One pass: a batch in, everything out. Returns how long to sleep, if nothing comes.
//! fn pass(machine: &mut impl Machine, now: Instant, batch: Vec<Received>, sent: &mut Vec<Vec<u8>>) -> Option<Duration> {
//!     batch.into_iter().for_each(|received| machine.handle_udp(now, received));
//!     if machine.poll_timeout().is_some_and(|(at, _)| at <= now) {
//!         machine.handle_timeout(now);
//!     }
//!     let mut buf = Vec::new();
//!     while let Some(output) = machine.poll_output(now, true, Some(&mut buf)) {
//!         match output {
//!             Output::Frame(frame) => assert!(frame.inner_bytes() > 0, "here it would be written to the TUN queue"),
//!             Output::Transmit(_) => sent.push(std::mem::take(&mut buf)),
//!             Output::Action(_) => {}
//!         }
//!     }
//!     machine.poll_timeout().map(|(at, _)| at.saturating_duration_since(now))
//! }
//!
//! # use std::sync::Arc;
//! # use tollgate_shards::{Client, Congestion, TLS_VERSION, TransportParams, TunnelParams, packet::MergeLimits, transport};
//! # let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
//! # let tls = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
//! # let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
//! # let tls = Arc::new(quinn_proto::crypto::rustls::QuicClientConfig::try_from(tls)?);
//! # let reset_key = Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &[3; 64]));
//! # let settings = TransportParams {
//! #     mtu_bytes: 1400, idle_timeout: Duration::from_secs(30), keep_alive: None, initial_rtt: None,
//! #     datagram_send_buffer_bytes_max: 1 << 20, datagram_receive_buffer_bytes_max: 1 << 20, congestion: Congestion::default(),
//! # };
//! # let (remote, server_name) = ("198.18.0.1:55555".parse()?, "gateway".to_owned());
//! # let transport = Arc::new(transport(&settings));
//! # let quic_version = TLS_VERSION;
//! # let params = TunnelParams { remote, quic_version, server_name, transport, send_datagrams_max: 64, seed: [7; 32] };
//! let start = Instant::now();
//! let mut client = Client::new(params, MergeLimits::default(), tls, reset_key, start)?;
//! let mut sent = Vec::new();
//! let pause = pass(&mut client, start, Vec::new(), &mut sent).expect("a lost first packet is to be repeated");
//! assert!(sent[0].len() >= 1200, "an Initial fills a datagram (RFC 9000, section 14.1)");
//! pass(&mut client, start + pause, Vec::new(), &mut sent);
//! assert!(sent.len() > 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Input is never trusted and never panics: what cannot be used is a [`DropReason`] and a counter. A panic is a bug of this crate.
//! Everything that grows is bounded by a `*_max` of [`Params`].
#![forbid(unsafe_code)]
#![warn(clippy::iter_over_hash_type)]
// What only `inspect` reads is dead without it; the workspace is built with it.
#![cfg_attr(not(feature = "inspect"), allow(dead_code, reason = "read by `inspect` alone"))]
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![allow(missing_docs, reason = "what a name says, no comment repeats")]

mod assignment;
mod backlogs;
mod client;
mod counters;
mod counts;
mod deadlines;
mod drops;
mod durations;
mod excerpt;
mod forward;
mod handshake_counts;
mod ids;
mod io;
mod limit;
mod machine;
mod memory;
mod notice;
pub mod packet;
mod params;
mod quic;
mod session;
mod shard;
pub mod sibling;
#[cfg(test)]
mod test_time;

pub use assignment::{Assignment, AssignmentError};
pub use client::{Client, ClientEvent, CloseCause, MovingHandshake, Tunnel, TunnelParams};
pub use counters::Counters;
pub use counts::{Counts, Kind};
pub use deadlines::{SessionEnd, SessionEnds, SessionLimits};
pub use drops::{DropReason, Drops};
pub use durations::Durations;
pub use excerpt::excerpt;
pub use handshake_counts::{HandshakeCounts, HandshakeOutcome, KindCounts};
pub use ids::{
    CommandId, ConnectionKey, Credential, CredentialKind, Fingerprint, Generation, Reconnects, SHARDS_MAX, ShardIndex,
    Shards, UserIndex,
};
pub use io::{Received, Transmit, WakeReason};
pub use limit::rate::{BURST_BYTES_MIN, Limit, Rate};
pub use limit::shaper::ShaperLimits;
pub use machine::{Machine, Output};
pub use memory::Held;
pub use packet::ecn::Ecn;
pub use packet::frame::Frame;
pub use params::{Congestion, Limits, Params, TransportParams};
pub use quic::close_code;
pub use quic::connection_id::{ConnectionIdKey, ID_LENGTHS, IdLayout, IdLayoutError, QuicLb, Steering};
pub use quic::keys::ShardKeys;
pub use quic::peer::{RETURNING_PROTOCOL, claim};
pub use quic::placement::Load;
pub use quic::retry::TokenKey;
pub use quic::timers::{TimerEntry, TimerQueue};
pub use quic::transport::transport;
pub use session::addresses::SteeringUpdate;
pub use session::home::home_of;
pub use session::message::{CloseReason, ControlMessage};
pub use session::snapshot::Snapshot;
pub use session::users::{AddressRange, ConnectionLimit, User, Users, UsersError, WhenReached};
pub use shard::Shard;
pub use shard::action::{Action, ClientMtu, Command, Event};
pub use shard::message::{Message, PacketMessage};
pub use shard::told::{End, Peer, Told};
pub use shard::usage::{ConnectionUsage, EndedUsage, PathState, Usage};
pub use tollgate_noise::{Handshakes, TLS_VERSION};

/// The engine's inside, for tests and for those who check from outside that shards agree. Nothing here is for the data path.
#[cfg(feature = "inspect")]
pub mod inspect {
    pub use crate::forward::routes::Routes;
    pub use crate::limit::bucket::{TokenBucket, UNITS_PER_BYTE, units};
    pub use crate::limit::issuer::{Audit, LeaseIssuer};
    pub use crate::limit::lease::{Lease, LeaseClose, LeaseGrant, LeaseId, LeaseReport};
    pub use crate::session::addresses::{AddressAllocator, Holding};
    pub use crate::session::context::Context;
    pub use crate::session::home::{Member, Session};
    pub use crate::session::message::{Login, Refusal};
    pub use crate::session::topology::Topology;
    pub use crate::shard::control::ControlPlane;
    pub use crate::shard::inspect::{Inspect, LoggedInNow, UserTokens};
    pub use crate::shard::states::{STATES, State};
}
