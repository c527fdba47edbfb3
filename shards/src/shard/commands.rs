//! A shard under orders: other users and limits, somebody sent away, a sibling that was started anew.
//!
//! Never checks an order: whoever gives it has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connections::{Member, Owned, Stage};
use super::{Shard, policy, server_config};
use crate::ids::{CommandId, ShardIndex, UserIndex};
use crate::limit::rate::Limit;
use crate::quic::close_code;
use crate::session::home::ALLOCATOR;
use crate::session::message::Message;
use crate::session::snapshot::Snapshot;

impl Shard {
    /// Goes over to another epoch.
    pub(super) fn apply(&mut self, now: Instant, ticket: CommandId, epoch: Arc<Snapshot>) {
        let config = server_config(&self.params, &self.keys, &epoch, &self.wall_clock, &self.in_flight);
        self.endpoint.set_server_config(Some(Arc::new(config)));
        self.policy = policy(&self.params, &epoch);
        self.epoch = epoch;
        let revoked = self.apply_to_connections(now);
        self.apply_as_home_and_keeper(now);
        self.carried_out(ticket, &revoked);
    }

    /// Closes a user's connections.
    pub(super) fn kick(&mut self, now: Instant, ticket: CommandId, user: UserIndex) {
        let mut revoked = Vec::new();
        self.each_member(|shard, owned, member| {
            if member.user == user {
                shard.revoke(now, owned, "Disconnected by the operator", &mut revoked);
            }
        });
        self.carried_out(ticket, &revoked);
    }

    /// A sibling has lost its memory: it is told what it must know, and what it held is void.
    pub(super) fn sibling_restarted(&mut self, now: Instant, shard: ShardIndex, incarnation: u32) {
        let epoch = self.epoch.number;
        let mut users = BTreeSet::new();
        self.each_member(|this, owned, member| {
            if let Some((login, home)) = owned.login()
                && home == shard
            {
                let address = match owned.stage {
                    Stage::Attached { address, .. } => Some(address),
                    _ => None,
                };
                this.outbox.send(home, Message::Attach { login, epoch, address });
                users.insert(member.user);
            }
        });
        self.expire_leases(users);
        self.routes.forget_owner(shard);
        if shard == ALLOCATOR {
            self.routes.doubt();
        }
        let (owner, owner_incarnation) = (self.params.index, self.params.incarnation);
        self.outbox.send(shard, Message::Reattached { owner, owner_incarnation, home_incarnation: incarnation });
        self.restarted_as_home_and_keeper(now, shard, incarnation);
        // It has nothing under way from before any order, and nothing to it is from before this shard's last one.
        let latest = self.fences.iter().copied().max().unwrap_or_default();
        self.fences[usize::from(shard.0)] = latest;
        let from = self.params.index;
        let ticket = self.fences[usize::from(from.0)];
        self.outbox.send(shard, Message::Fence { from, ticket, revoked: Vec::new() });
    }

    /// Another shard has carried out an order.
    pub(super) fn fenced(&mut self, from: ShardIndex, ticket: CommandId, revoked: &[IpAddr]) {
        self.drop_waiting_from(revoked);
        if let Some(fence) = self.fences.get_mut(usize::from(from.0)) {
            *fence = ticket.max(*fence);
        }
    }

    fn carried_out(&mut self, ticket: CommandId, revoked: &[IpAddr]) {
        let from = self.params.index;
        self.outbox.broadcast(|| Message::Fence { from, ticket, revoked: revoked.to_vec() });
    }

    /// Closes a connection that an order forbids. If it had an inner address, that is added to `revoked`.
    fn revoke(&mut self, now: Instant, owned: &mut Owned, reason: &'static str, revoked: &mut Vec<IpAddr>) {
        if let Stage::Attached { address, .. } = owned.stage {
            revoked.push(address);
        }
        self.goodbye(now, owned, close_code::REVOKED, reason);
    }

    /// Whoever may not stay is closed; other limits hold for the others. Returns the inner addresses of those closed.
    fn apply_to_connections(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut revoked = Vec::new();
        let directory = self.epoch.directory.clone();
        let mut limits: BTreeMap<UserIndex, Option<Limit>> = BTreeMap::new();
        self.each_member(|shard, owned, member| {
            let valid = directory.find(&member.certificate) == Some(member.user);
            let limit = directory.user(member.user).and_then(|user| user.limit);
            match &mut owned.stage {
                Stage::Attached { address, limited, .. } if valid && directory.allows(member.user, *address) => {
                    let begins = limit.filter(|_| !*limited);
                    *limited = limit.is_some();
                    limits.insert(member.user, limit);
                    if let Some(limit) = begins {
                        shard.join_allowance(&member, limit);
                    }
                }
                Stage::Attaching(_) if valid => {}
                _ => shard.revoke(now, owned, "Access revoked", &mut revoked),
            }
        });
        limits.into_iter().for_each(|(user, limit)| self.change_limit(user, limit));
        revoked
    }

    /// Calls `act` for every connection that has logged in, in the order of slots.
    fn each_member(&mut self, mut act: impl FnMut(&mut Self, &mut Owned, Member)) {
        for slot in self.connections.slots() {
            let Some(mut owned) = self.connections.take(slot) else { continue };
            if let Some(member) = owned.member() {
                act(self, &mut owned, member);
            }
            self.connections.put_back(owned);
        }
    }
}
