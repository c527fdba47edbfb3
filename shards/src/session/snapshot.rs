//! What may change while the gateway runs. All shards share one snapshot at a time through an `Arc`, and go from one to the next by
//! [`Command::Apply`](crate::Command::Apply).
//!
//! This module checks nothing: whoever makes a snapshot has.

use std::sync::Arc;

use tollgate_noise::Handshakes;

use crate::deadlines::SessionLimits;
use crate::session::users::Users;

/// One version of everything that may change.
#[derive(Clone)]
pub struct Snapshot {
    /// Ascending from one snapshot to the next.
    pub version: u64,
    /// Those of the next snapshot [succeed](Users::succeed) them.
    pub users: Arc<Users>,
    /// Whether a client's packets to other clients are dropped.
    pub isolate_clients: bool,
    /// How long sessions may last.
    pub session_limits: SessionLimits,
    /// Of new connections. The versions that they are for are those of the first snapshot: what a shard serves it says at its start.
    pub handshakes: Handshakes,
}
