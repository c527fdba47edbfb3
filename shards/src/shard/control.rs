//! The control plane of a shard: what is done for each login and each command. It sees no packet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::ids::{CommandId, Fingerprint, ShardIndex, UserIndex};
use crate::limit::rate::Limit;
use crate::session::addresses::AddressAllocator;
use crate::session::barriers::Barriers;
use crate::session::context::Context;
use crate::session::home::SessionHome;
use crate::session::message::ControlMessage;

/// What is done for each login and each command.
pub struct ControlPlane {
    pub context: Context,
    pub sessions: SessionHome,
    /// Where this shard allocates the addresses.
    pub addresses: Option<AddressAllocator>,
    pub barriers: Barriers,
    pub(super) here: ShardIndex,
    pub(super) incarnation: u32,
    tunnel: IpNet,
    remembered_max: usize,
    /// Who had which address when the addresses went to another process, from there on.
    pub(super) remembered: Vec<(Fingerprint, IpAddr)>,
    /// What homes of another process have said of users who have, or had, connections here.
    pub(super) told_limits: BTreeMap<UserIndex, Option<Limit>>,
}

impl ControlPlane {
    /// A control plane without sessions. One that was started anew beside its siblings tells them so before anything else; one that takes over from
    /// another process waits for that one.
    pub fn new(here: ShardIndex, incarnation: u32, tunnel: IpNet, remembered_max: usize, mut context: Context) -> Self {
        let topology = context.topology;
        let is_anew = incarnation > 0 && topology.sibling.is_none();
        if is_anew {
            let siblings = topology.all().filter(|&sibling| sibling != here);
            siblings.for_each(|to| context.send(to, ControlMessage::Restarted { shard: here, incarnation }));
        }
        let sessions = match topology.sibling {
            Some(before) => SessionHome::succeeding(here, before.iter(), incarnation),
            None => SessionHome::new(here, topology, incarnation, context.now),
        };
        let mut this = ControlPlane {
            context,
            sessions,
            addresses: None,
            barriers: Barriers::new(topology),
            here,
            incarnation,
            tunnel,
            remembered_max,
            remembered: Vec::new(),
            told_limits: BTreeMap::new(),
        };
        let is_alone = topology.homes().count() == 1;
        this.allocate(|allocator| match topology.sibling {
            Some(_) => allocator.succeeding(incarnation, topology.homes()),
            None if is_anew && !is_alone => allocator.recovering(incarnation, topology.homes()),
            None => allocator,
        });
        this
    }

    /// Makes this shard the allocator, if it is the one.
    pub(super) fn allocate(&mut self, begin: impl FnOnce(AddressAllocator) -> AddressAllocator) {
        if self.here == self.context.topology.allocator() {
            let new = AddressAllocator::new(self.tunnel, &self.context.users, self.remembered_max);
            self.addresses = Some(begin(new));
        }
    }

    /// Takes a message to the session home, the address allocator or the barriers.
    pub fn handle_message(&mut self, message: ControlMessage) {
        use ControlMessage as M;
        let ControlPlane { context, sessions, addresses, barriers, .. } = self;
        if let M::Barrier { from, command, .. } = message {
            return barriers.passed(from, command);
        }
        // What is still said to a home that has yielded its owners say again to the next one.
        if !context.topology.is_home(self.here) {
            return;
        }
        match (message, addresses) {
            (M::Login { login, version, address, age_ms }, _) => {
                sessions.attach(context, login, version, address, Duration::from_millis(age_ms));
            }
            (M::Gone { user, connection }, _) => sessions.detach(context, user, connection),
            (M::AddressAllocated { login, address }, _) => sessions.address_allocated(context, login, address),
            (M::LeaseWanted(report), _) => sessions.report_lease(context, &report),
            (M::LeaseClosed(close), _) => sessions.close_lease(context, &close),
            (M::Reattached { owner, owner_incarnation, home_incarnation }, _) => {
                sessions.reattached(context, owner, owner_incarnation, home_incarnation);
            }
            (M::Level { user, level_bytes }, _) => sessions.level_told(user, level_bytes),
            (M::Yielded { lost_ms }, _) => sessions.yielded(context.now, lost_ms),
            (M::Remembered { addresses }, Some(allocator)) => allocator.remember_all(&addresses),
            (M::AllocateAddress { login, home, version }, Some(allocator)) => {
                allocator.allocate(context, login, home, version);
            }
            (M::ReleaseAddress { login, address }, Some(allocator)) => {
                // One that was not held is a message of an earlier incarnation.
                let _ = allocator.release(context, login, address);
            }
            (M::HoldAddress { login, address, home }, Some(allocator)) => {
                let _ = allocator.hold(context, login, address, home);
            }
            (M::Held { home, allocator_incarnation }, Some(allocator)) => {
                allocator.home_held(context, home, allocator_incarnation);
            }
            // Nobody sends it here.
            _ => {}
        }
    }

    /// What holds for a user's connections here.
    pub fn limit(&self, user: UserIndex) -> Option<Limit> {
        let own = || self.context.users.user(user)?.limit;
        self.told_limits.get(&user).copied().unwrap_or_else(own)
    }

    pub fn home(&self, user: UserIndex) -> ShardIndex {
        self.context.topology.home_of(self.context.users.name(user))
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
