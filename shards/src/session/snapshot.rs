//! What may change while the gateway runs. All shards share one epoch at a time through an `Arc`, and go from one to the next by
//! [`Command::Apply`](crate::Command::Apply).
//!
//! This module checks nothing: whoever makes an epoch has.

use std::sync::Arc;

use quinn_proto::crypto::ServerConfig as CryptoConfig;

use crate::session::users::Users;

/// One state of everything that may change.
#[derive(Clone)]
pub struct Snapshot {
    /// Ascending from one epoch to the next.
    pub number: u64,
    /// The users. Those of the next epoch [succeed](Users::succeed) them.
    pub directory: Arc<Users>,
    /// Whether a client's packets to other clients are dropped.
    pub isolate_clients: bool,
    /// TLS of new connections.
    pub tls: Arc<dyn CryptoConfig>,
}
