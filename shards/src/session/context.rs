//! What homes and the address allocator of a shard work with.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::ids::ShardIndex;
use crate::session::addresses::SteeringUpdate;
use crate::session::message::ControlMessage;
use crate::session::topology::Topology;
use crate::session::users::Users;

/// The shard around a `SessionHome` and an [`AddressAllocator`](crate::session::addresses::AddressAllocator), as far as they need it. When the
/// users change, `apply` of both is called before anything else.
pub struct Context {
    /// As of the present call.
    pub now: Instant,
    /// Version of the snapshot that `users` are of.
    pub version: u64,
    pub users: Arc<Users>,
    /// Messages to shards, this one included.
    pub outbox: VecDeque<(ShardIndex, ControlMessage)>,
    /// Changes for the kernel's steering. They are carried out before any message leaves the shard.
    pub steers: VecDeque<SteeringUpdate>,
    pub topology: Topology,
}

impl Context {
    pub fn new(topology: Topology, version: u64, users: Arc<Users>, now: Instant) -> Self {
        Context { now, version, users, outbox: VecDeque::new(), steers: VecDeque::new(), topology }
    }

    pub fn send(&mut self, to: ShardIndex, message: ControlMessage) {
        self.outbox.push_back((to, message));
    }

    pub fn send_to_allocator(&mut self, message: ControlMessage) {
        self.send(self.topology.allocator(), message);
    }

    /// Nobody has `addresses` any more, which the kernel steers.
    pub fn unsteer(&mut self, addresses: Vec<IpAddr>) {
        self.steers.extend(addresses.into_iter().map(|address| SteeringUpdate { address, owner: None }));
    }

    /// Sends what `message` makes to every shard, this one included.
    pub fn broadcast(&mut self, message: impl Fn() -> ControlMessage) {
        self.outbox.extend(self.topology.all().map(|shard| (shard, message())));
    }
}
