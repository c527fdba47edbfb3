//! Homes that go over to another process of the gateway, and come back if that dies.
//!
//! Homes and allocator are always those of one process: the newest that lives and is ready. It takes them over as if all of them had been started anew:
//! owners tell which connections they have, homes which addresses those hold. What nobody else knows the former homes tell: how many tokens there are,
//! and who had which address.
//!
//! An owner attaches its connections to the new homes when every shard of its process has executed the order. Then no former home says anything any
//! more, and nothing that it has said is under way.

use std::collections::BTreeSet;

use super::Shard;
use super::control::ControlPlane;
use crate::ids::{CommandId, ConnectionKey, Shards, UserIndex};
use crate::limit::rate::Limit;
use crate::quic::connections::Identity;
use crate::session::home::SessionHome;
use crate::session::message::{ControlMessage, Login};

/// Addresses remembered in one message.
const REMEMBERED_OF_A_MESSAGE: usize = 1024;

/// The homes that the owner's connections are to be attached to, as soon as every shard of its process has executed the order.
#[derive(Debug, Clone, Copy)]
pub struct Attaching {
    order: CommandId,
    homes_incarnation: u32,
}

/// A client that has logged in, as its home is told.
pub(super) fn login(connection: ConnectionKey, identity: Identity) -> Login {
    let Identity { user, credential, reconnects, .. } = identity;
    Login { user, connection, credential, reconnects }
}

impl Shard {
    /// The homes are those of `to` from now on.
    pub(super) fn hand_over(&mut self, order: CommandId, to: Shards, homes_incarnation: u32) {
        self.control.hand_over(order, to);
        self.set_sibling(Some(to));
        self.attaching = Some(Attaching { order, homes_incarnation });
        self.control.executed(order, &[]);
    }

    /// The process to which the homes had gone is dead: they are here again.
    pub(super) fn take_back(&mut self, order: CommandId, homes_incarnation: u32) {
        let Some(dead) = self.control.context.topology.sibling else { return };
        self.control.take_back(homes_incarnation);
        self.set_sibling(None);
        let steered = self.data.forward.routes.forget_all_of(dead);
        if self.control.addresses.is_some() {
            // Nobody else knows where the kernel steers them to.
            self.control.context.unsteer(steered);
        }
        self.attaching = Some(Attaching { order, homes_incarnation });
        self.control.executed(order, &[]);
    }

    /// The process before this one is no more, and its connections with it.
    pub(super) fn lose_predecessor(&mut self) {
        let Some(gone) = self.control.context.topology.sibling else { return };
        self.set_sibling(None);
        self.control.lose_predecessor(gone);
    }

    /// Every home of another process has its memory, and this shard knows all routes.
    pub(super) fn routes_told(&mut self) {
        self.data.forward.routes.told();
        self.is_taking_over = false;
        let topology = self.control.context.topology;
        self.lead_to(topology.sibling.filter(|sibling| sibling.contains(topology.allocator())));
    }

    /// There is a process beside this one, or there is none any more: then new clients come here.
    fn set_sibling(&mut self, sibling: Option<Shards>) {
        self.data.quic.ids.set_sibling(sibling);
        if sibling.is_none() {
            self.lead_to(None);
        }
    }

    /// New clients are led to the shards of the process beside this one, or to the own.
    fn lead_to(&mut self, successor: Option<Shards>) {
        let own = self.control.context.topology.own;
        self.data.quic.placement.lead_to(successor);
        self.data.quic.retries.ids.lead_to(successor.unwrap_or(own));
    }

    /// Attaches the connections to their new homes, if nothing of the former ones is under way any more. Says whether it did.
    pub(super) fn attach_if_due(&mut self) -> bool {
        let (own, barriers) = (self.control.context.topology.own, &self.control.barriers);
        let is_due = |attaching: &mut Attaching| barriers.have_all_passed(own, attaching.order);
        let Some(Attaching { homes_incarnation, .. }) = self.attaching.take_if(is_due) else { return false };
        // What former homes have told is as old as they are: all of it has arrived.
        self.data.forward.routes.doubt();
        let version = self.control.context.version;
        let mut users = BTreeSet::new();
        for (connection, identity, address) in self.data.clients() {
            let user = identity.user;
            let home = self.control.home(user);
            self.data.rehome(connection, home);
            let login = login(connection, identity);
            let age_ms = self.data.session_age_ms(connection.slot);
            self.control.context.send(home, ControlMessage::Login { login, version, address, age_ms });
            users.insert(user);
        }
        for user in users {
            self.data.limits.rehome(user, self.control.home(user));
        }
        if self.control.context.topology.sibling.is_none() {
            // The homes have come back.
            let told = std::mem::take(&mut self.control.told_limits);
            self.hold_limits_of(|user| told.contains_key(&user));
        }
        self.control.attached(homes_incarnation);
        true
    }

    /// A home of another process says what a user's limit is.
    pub(super) fn limit_told(&mut self, user: UserIndex, limit: Option<Limit>) {
        let is_known = self.control.context.users.user(user).is_some();
        if is_known && !self.control.context.topology.is_home(self.data.here) {
            let before = self.control.limit(user);
            self.control.told_limits.insert(user, limit);
            if limit != before {
                self.hold_limits_of(|other| other == user);
            }
        }
    }

    fn hold_limits_of(&mut self, is_chosen: impl Fn(UserIndex) -> bool) {
        let clients = self.data.clients().into_iter();
        let chosen = clients.filter(|(_, identity, address)| address.is_some() && is_chosen(identity.user));
        let connections: Vec<_> = chosen.map(|(connection, identity, _)| (identity.user, connection)).collect();
        self.hold_limits(&connections);
    }
}

impl ControlPlane {
    fn hand_over(&mut self, order: CommandId, to: Shards) {
        self.context.topology.hand_over(to);
        self.barriers.join(to, order);
        let silent = SessionHome::new(self.here, self.context.topology, 0, self.context.now);
        std::mem::replace(&mut self.sessions, silent).tell_successors(&mut self.context);
        let Some(allocator) = self.addresses.take() else { return };
        self.remembered = allocator.remembered();
        for addresses in self.remembered.chunks(REMEMBERED_OF_A_MESSAGE) {
            self.context.send_to_allocator(ControlMessage::Remembered { addresses: addresses.to_vec() });
        }
    }

    fn take_back(&mut self, homes_incarnation: u32) {
        self.incarnation = homes_incarnation;
        self.context.topology.lose_sibling();
        let topology = self.context.topology;
        self.barriers.leave(topology);
        self.sessions = SessionHome::returning(self.here, topology.all(), homes_incarnation, self.context.now);
        self.allocate(|allocator| allocator.succeeding(homes_incarnation, topology.homes()));
        let remembered = std::mem::take(&mut self.remembered);
        self.addresses.iter_mut().for_each(|allocator| allocator.remember_all(&remembered));
    }

    fn lose_predecessor(&mut self, gone: Shards) {
        self.context.topology.lose_sibling();
        self.barriers.leave(self.context.topology);
        self.sessions.owners_gone(&mut self.context, gone);
    }

    /// The owner has attached its connections to all homes.
    fn attached(&mut self, home_incarnation: u32) {
        let (owner, owner_incarnation) = (self.here, self.incarnation);
        for home in self.context.topology.homes() {
            self.context.send(home, ControlMessage::Reattached { owner, owner_incarnation, home_incarnation });
        }
    }
}
