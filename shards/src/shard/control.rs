//! The control plane of a shard: what is done for each login and each command. It sees no packet.

use std::net::IpAddr;
use std::time::Instant;

use super::params::Params;
use crate::ids::{CommandId, ShardIndex, UserIndex};
use crate::limit::rate::Limit;
use crate::session::addresses::AddressAllocator;
use crate::session::barriers::Barriers;
use crate::session::context::Context;
use crate::session::home::{ALLOCATOR, SessionHome, home_of};
use crate::session::message::ControlMessage;
use crate::session::snapshot::Snapshot;

/// What is done for each login and each command.
pub struct ControlPlane {
    pub context: Context,
    pub sessions: SessionHome,
    /// Where this shard allocates the addresses.
    pub addresses: Option<AddressAllocator>,
    pub barriers: Barriers,
    here: ShardIndex,
    shards: u16,
    incarnation: u32,
}

impl ControlPlane {
    /// A control plane without sessions. One that was started anew beside its siblings tells them so before anything else.
    pub fn new(params: &Params, snapshot: &Snapshot, now: Instant) -> Self {
        let Params { index: here, shards, incarnation, .. } = *params;
        let remembered_max = params.limits.remembered_addresses_max;
        let mut context = Context::new(shards, snapshot.version, snapshot.users.clone(), now);
        if incarnation > 0 {
            let siblings = (0..shards).map(ShardIndex).filter(|&sibling| sibling != here);
            siblings.for_each(|to| context.send(to, ControlMessage::Restarted { shard: here, incarnation }));
        }
        let addresses = (here == ALLOCATOR)
            .then(|| AddressAllocator::new(params.tunnel, &context.users, remembered_max, shards, incarnation));
        let sessions = SessionHome::new(here, shards, incarnation, now);
        ControlPlane { context, sessions, addresses, barriers: Barriers::new(shards), here, shards, incarnation }
    }

    pub fn limit(&self, user: UserIndex) -> Option<Limit> {
        self.context.users.user(user)?.limit
    }

    pub fn home(&self, user: UserIndex) -> ShardIndex {
        home_of(self.context.users.name(user), self.shards)
    }

    /// Another snapshot has been put into the context.
    pub fn apply(&mut self) {
        self.addresses.iter_mut().for_each(|addresses| addresses.apply(&mut self.context));
        self.sessions.apply(&mut self.context);
    }

    /// Another shard has lost its memory, and the data plane has told it which connections are here.
    pub fn sibling_restarted(&mut self, shard: ShardIndex, incarnation: u32) {
        let (owner, owner_incarnation) = (self.here, self.incarnation);
        let told = ControlMessage::Reattached { owner, owner_incarnation, home_incarnation: incarnation };
        self.context.send(shard, told);
        self.sessions.shard_restarted(&mut self.context, shard, incarnation);
        self.addresses.iter_mut().for_each(|addresses| addresses.shard_restarted(&mut self.context, shard));
        self.barriers.restarted(shard);
        let (from, command) = (self.here, self.barriers.of(self.here));
        self.context.send(shard, ControlMessage::Barrier { from, command, revoked: Vec::new() });
    }

    /// This shard has executed a command, and closed the connections that had the addresses `revoked`.
    pub fn executed(&mut self, command: CommandId, revoked: &[IpAddr]) {
        let from = self.here;
        self.context.broadcast(|| ControlMessage::Barrier { from, command, revoked: revoked.to_vec() });
    }
}
