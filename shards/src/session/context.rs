//! What a role of a shard works with while it handles one message.

use std::collections::VecDeque;
use std::time::Instant;

use crate::session::addresses::SteeringUpdate;
use crate::session::message::Outbox;
use crate::session::users::Users;

/// The shard around a [`SessionHome`](crate::session::home::SessionHome) or a [`AddressAllocator`](crate::session::addresses::AddressAllocator), as far as they need it.
///
/// Number and directory are of one epoch. When they change, both roles' `apply` is called before anything else.
pub struct Context<'a> {
    /// The time.
    pub now: Instant,
    /// Number of the shard's epoch.
    pub epoch: u64,
    /// The users of that epoch.
    pub directory: &'a Users,
    /// Where messages go.
    pub outbox: &'a mut Outbox,
    /// Where changes for the kernel's steering go. They are carried out before any message leaves the shard.
    pub steers: &'a mut VecDeque<SteeringUpdate>,
}
