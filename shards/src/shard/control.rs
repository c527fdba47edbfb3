//! The control plane of a shard: what is done for each login and each command. It sees no packet.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::params::Params;
use crate::ids::{CommandId, ShardIndex, UserIndex};
use crate::limit::rate::Limit;
use crate::session::addresses::{AddressAllocator, SteeringUpdate};
use crate::session::barriers::Barriers;
use crate::session::context::Context;
use crate::session::home::{ALLOCATOR, SessionHome, home_of};
use crate::session::message::{ControlMessage, Outbox};
use crate::session::snapshot::Snapshot;
use crate::session::users::Users;

/// What is done for each login and each command.
pub struct ControlPlane {
    pub snapshot: Arc<Snapshot>,
    pub sessions: SessionHome,
    /// Where this shard allocates the addresses.
    pub addresses: Option<AddressAllocator>,
    barriers: Barriers,
    outbox: Outbox,
    steers: VecDeque<SteeringUpdate>,
    here: ShardIndex,
    shards: u16,
    incarnation: u32,
}

impl ControlPlane {
    /// A control plane without sessions. One that was started anew beside its siblings tells them so before anything else.
    pub fn new(params: &Params, snapshot: Arc<Snapshot>, now: Instant) -> Self {
        let Params { index: here, shards, incarnation, .. } = *params;
        let remembered_max = params.limits.remembered_addresses_max;
        let users = &snapshot.directory;
        let addresses = (here == ALLOCATOR)
            .then(|| AddressAllocator::new(params.tunnel, users, remembered_max, shards, incarnation));
        let mut outbox = Outbox::new(here, shards);
        if incarnation > 0 {
            let siblings = (0..shards).map(ShardIndex).filter(|&sibling| sibling != here);
            siblings.for_each(|to| outbox.send(to, ControlMessage::Restarted { shard: here, incarnation }));
        }
        ControlPlane {
            sessions: SessionHome::new(here, shards, incarnation, now),
            addresses,
            barriers: Barriers::new(shards),
            outbox,
            steers: VecDeque::new(),
            here,
            shards,
            incarnation,
            snapshot,
        }
    }

    /// The users as they are now.
    pub fn users(&self) -> &Users {
        &self.snapshot.directory
    }

    /// The limit of a user, if there is one.
    pub fn limit(&self, user: UserIndex) -> Option<Limit> {
        self.users().user(user)?.limit
    }

    /// The home of a user.
    pub fn home(&self, user: UserIndex) -> ShardIndex {
        home_of(self.users().name(user), self.shards)
    }

    /// Lets `act` work with the sessions.
    pub fn in_sessions(&mut self, now: Instant, act: impl FnOnce(&mut SessionHome, &mut Context<'_>)) {
        let ControlPlane { snapshot, sessions, outbox, steers, .. } = self;
        act(sessions, &mut context(now, snapshot, outbox, steers));
    }

    /// Lets `act` work with the addresses, if they are here.
    pub fn in_addresses(&mut self, now: Instant, act: impl FnOnce(&mut AddressAllocator, &mut Context<'_>)) {
        let ControlPlane { snapshot, addresses, outbox, steers, .. } = self;
        if let Some(addresses) = addresses {
            act(addresses, &mut context(now, snapshot, outbox, steers));
        }
    }

    /// Another snapshot is in force.
    pub fn apply(&mut self, now: Instant) {
        self.in_addresses(now, |addresses, context| addresses.apply(context));
        self.in_sessions(now, |sessions, context| sessions.apply(context));
    }

    /// Another shard has lost its memory, and the data plane has told it which connections are here.
    pub fn sibling_restarted(&mut self, now: Instant, shard: ShardIndex, incarnation: u32) {
        let (owner, owner_incarnation) = (self.here, self.incarnation);
        let told = ControlMessage::Reattached { owner, owner_incarnation, home_incarnation: incarnation };
        self.outbox.send(shard, told);
        self.in_sessions(now, |sessions, context| sessions.shard_restarted(context, shard, incarnation));
        self.in_addresses(now, |addresses, context| addresses.shard_restarted(context, shard));
        self.barriers.restarted(shard);
        let (from, command) = (self.here, self.barriers.of(self.here));
        self.outbox.send(shard, ControlMessage::Barrier { from, command, revoked: Vec::new() });
    }

    /// This shard has executed a command, and closed the connections that had the addresses `revoked`.
    pub fn executed(&mut self, command: CommandId, revoked: &[IpAddr]) {
        let from = self.here;
        self.outbox.broadcast(|| ControlMessage::Barrier { from, command, revoked: revoked.to_vec() });
    }

    /// A shard has executed a command.
    pub fn barrier_passed(&mut self, from: ShardIndex, command: CommandId) {
        self.barriers.passed(from, command);
    }

    /// The last command that every shard has executed.
    pub fn completed(&self) -> CommandId {
        self.barriers.completed()
    }

    /// The next message for another shard.
    pub fn poll_remote(&mut self) -> Option<(ShardIndex, ControlMessage)> {
        self.outbox.poll_remote()
    }

    /// The next message for this shard.
    pub fn poll_local(&mut self) -> Option<ControlMessage> {
        self.outbox.poll_local()
    }

    /// The next change for the kernel's steering of inner addresses.
    pub fn poll_steer(&mut self) -> Option<SteeringUpdate> {
        self.steers.pop_front()
    }

    /// Whether there are such changes.
    pub fn has_steers(&self) -> bool {
        !self.steers.is_empty()
    }
}

fn context<'a>(
    now: Instant,
    snapshot: &'a Snapshot,
    outbox: &'a mut Outbox,
    steers: &'a mut VecDeque<SteeringUpdate>,
) -> Context<'a> {
    Context { now, epoch: snapshot.number, directory: &snapshot.directory, outbox, steers }
}
