//! The keys that all shards of a gateway share.

use std::sync::Arc;

use quinn_proto::crypto::HmacKey;

use super::connection_id::ConnectionIdKey;
use super::retry::TokenKey;

/// What a shard's cryptography needs, shared by all shards of a gateway.
#[derive(Clone)]
pub struct ShardKeys {
    /// Key of the tags in connection IDs, kept across restarts.
    pub connection_id: ConnectionIdKey,
    /// Key of the stateless reset tokens, kept across restarts.
    pub reset: Arc<dyn HmacKey>,
    /// Key of the Retry tokens, kept across restarts.
    pub token: TokenKey,
}
