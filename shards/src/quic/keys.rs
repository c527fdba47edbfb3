//! The keys that all shards of a gateway share.

use std::sync::Arc;

use quinn_proto::crypto::HmacKey;

use super::connection_id::IdLayout;
use super::retry::TokenKey;

/// What a shard's cryptography needs, shared by all shards of a gateway.
#[derive(Clone)]
pub struct ShardKeys {
    /// Layout of connection IDs, with the key of their tags, which is kept across restarts.
    pub id_layout: IdLayout,
    /// Key of the stateless reset tokens, kept across restarts.
    pub reset: Arc<dyn HmacKey>,
    /// Key of the Retry tokens, kept across restarts.
    pub token: TokenKey,
}
