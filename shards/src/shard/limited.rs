//! A shard as the owner of limited users' connections: packets pay with tokens on lease, or wait for them.
//!
//! Never asks the bucket: that is the home's.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::Shard;
use super::connections::{Member, Owned};
use super::outer::want_to_send;
use crate::drops::DropReason;
use crate::ids::{ConnectionKey, UserIndex};
use crate::limit::lease::{LeaseGrant, LeaseId};
use crate::limit::rate::Limit;
use crate::limit::shaper::{Direction, QueuedPacket};
use crate::limit::user_queue::UserQueue;
use crate::packet::inner::InnerPacket;
use crate::session::message::Message;

impl Shard {
    /// One more connection shares the user's allowance here.
    pub(super) fn join_allowance(&mut self, member: &Member, limit: Limit) {
        let Member { user, home, .. } = *member;
        if !self.allowances.contains_key(&user) {
            let lease = self.next_lease();
            let allowance = UserQueue::new(user, home, lease, limit, self.queues);
            self.allowances.insert(user, allowance);
        }
        if let Some(allowance) = self.allowances.get_mut(&user) {
            allowance.connections += 1;
        }
    }

    /// A name for a lease that this shard has never used, nor an earlier incarnation of it.
    pub(super) fn next_lease(&mut self) -> LeaseId {
        self.leases += 1;
        LeaseId { holder: self.params.index, number: self.leases }
    }

    /// Whether a limited user's packet may go now; if not, a copy of it waits.
    pub(super) fn pays(&mut self, owned: &Owned, direction: Direction, packet: &[u8]) -> bool {
        let Some(Member { user, .. }) = owned.member() else { return false };
        let Some(allowance) = self.allowances.get_mut(&user) else { return false };
        make_ready(&mut self.ready, user, allowance);
        if allowance.spend(packet.len()) {
            return true;
        }
        let drops = &mut self.counters.drops;
        if !self.memory.has_room(packet.len()) {
            drops.count(DropReason::MemoryLimit);
            return false;
        }
        let packet = Bytes::copy_from_slice(packet);
        allowance.wait(self.now, direction, owned.key, packet, &mut |reason, _| drops.count(reason));
        allowance.account(&mut self.memory);
        false
    }

    /// Queues a limited user to be served: its packets, its tokens or its time have changed.
    pub(super) fn want_service(&mut self, user: UserIndex) {
        if let Some(allowance) = self.allowances.get_mut(&user) {
            make_ready(&mut self.ready, user, allowance);
        }
    }

    /// Tokens have come, or are wanted back.
    pub(super) fn lease_granted(&mut self, grant: &LeaseGrant) {
        let Some(allowance) = self.allowances.get_mut(&grant.user) else { return };
        allowance.lease.handle_grant(grant);
        make_ready(&mut self.ready, grant.user, allowance);
    }

    /// Queues the limited users whose time has come.
    pub(super) fn allowance_timeouts(&mut self, now: Instant) {
        while let Some(&(at, user)) = self.allowances_due.first()
            && at <= now
        {
            self.allowances_due.pop_first();
            if let Some(allowance) = self.allowances.get_mut(&user) {
                allowance.armed = None;
            }
            self.want_service(user);
        }
    }

    /// Sends on what the tokens of `user` pay for, and asks for more.
    pub(super) fn serve(&mut self, now: Instant, user: UserIndex) {
        let drops = &mut self.counters.drops;
        let Some(allowance) = self.allowances.get_mut(&user) else { return };
        allowance.ready = false;
        allowance.expire(now, &mut |reason, _| drops.count(reason));
        while !self.merger.is_full() {
            let drops = &mut self.counters.drops;
            let next = self
                .allowances
                .get_mut(&user)
                .and_then(|allowance| allowance.next_affordable(now, &mut |reason, _| drops.count(reason)));
            let Some(waiting) = next else { break };
            self.release(waiting);
        }
        if self.merger.is_full() {
            self.want_service(user);
        }
        self.ask_for_tokens(now, user);
    }

    /// A packet that has waited goes on its way. What became of the routes meanwhile counts.
    fn release(&mut self, waiting: QueuedPacket) {
        let Some(mut owned) = self.connections.take_exact(waiting.connection) else {
            return self.counters.drops.count(DropReason::NotAttached);
        };
        match waiting.direction {
            Direction::Up => self.up(&mut owned, waiting.packet, false),
            Direction::Down => {
                self.queue_released(&mut owned, waiting.packet);
                want_to_send(&mut self.sending, &mut owned);
            }
        }
        self.connections.put_back(owned);
    }

    fn ask_for_tokens(&mut self, now: Instant, user: UserIndex) {
        let Some(allowance) = self.allowances.get_mut(&user) else { return };
        allowance.account(&mut self.memory);
        let (waiting_bytes, head_bytes) = (allowance.waiting_bytes(), allowance.head_bytes().unwrap_or(0));
        if let Some(report) = allowance.lease.poll_report(now, waiting_bytes as u64, head_bytes as u64) {
            self.outbox.send(allowance.home, Message::LeaseReport(report));
        }
        let due = allowance.poll_timeout();
        if due != allowance.armed {
            if let Some(armed) = allowance.armed {
                self.allowances_due.remove(&(armed, user));
            }
            self.allowances_due.extend(due.map(|at| (at, user)));
            allowance.armed = due;
        }
    }

    /// A limited user's connection is closed: what waits for tokens on its behalf goes nowhere, and the last one gives the lease back.
    pub(super) fn leave_allowance(&mut self, user: UserIndex, connection: ConnectionKey) {
        let Some(allowance) = self.allowances.get_mut(&user) else { return };
        let counters = &mut self.counters;
        allowance.leave(connection, &mut |waiting| match waiting.direction {
            Direction::Up => counters.drops.count(DropReason::NotAttached),
            Direction::Down => {
                counters.down_packets += 1;
                counters.down_bytes += waiting.packet.len() as u64;
                counters.drops.count(DropReason::ConnectionClosed);
            }
        });
        if allowance.connections == 0 {
            self.close_allowance(user);
        }
    }

    /// Some clients have been sent away: what they have sent to limited users and waits here goes nowhere.
    pub(super) fn drop_waiting_from(&mut self, sources: &[IpAddr]) {
        if sources.is_empty() {
            return;
        }
        let is_theirs = |waiting: &QueuedPacket| {
            waiting.direction == Direction::Down
                && InnerPacket::parse(&waiting.packet).is_ok_and(|packet| sources.contains(&packet.source))
        };
        for user in self.users_here() {
            let Some(allowance) = self.allowances.get_mut(&user) else { continue };
            let drops = &mut self.counters.drops;
            allowance.take_where(is_theirs, &mut |_| drops.count(DropReason::NotAttached));
            self.want_service(user);
        }
    }

    /// The users who have connections here, limited or not, in order.
    pub(super) fn users_here(&self) -> Vec<UserIndex> {
        let members = self.connections.iter().filter_map(|owned| owned.member());
        let mut users: Vec<_> = members.map(|member| member.user).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// A limit holds from now on for a user of whom a connection is here; `None` lets everything go that waits. Tokens of another limit go back:
    /// they may be worth seconds of the new one.
    pub(super) fn change_limit(&mut self, user: UserIndex, limit: Option<Limit>) {
        let lease = self.next_lease();
        let Some(allowance) = self.allowances.get_mut(&user) else { return };
        match limit {
            Some(limit) => {
                if allowance.set_limit(limit) {
                    self.outbox.send(allowance.home, Message::LeaseClose(allowance.lease.close()));
                    allowance.lease.expire(lease);
                }
                self.want_service(user);
            }
            None => {
                let mut released = Vec::new();
                allowance.drain(&mut |waiting| released.push(waiting));
                self.close_allowance(user);
                released.into_iter().for_each(|waiting| self.release(waiting));
            }
        }
    }

    fn close_allowance(&mut self, user: UserIndex) {
        let Some(mut allowance) = self.allowances.remove(&user) else { return };
        self.memory.waiting_bytes -= allowance.accounted_bytes;
        if let Some(armed) = allowance.armed.take() {
            self.allowances_due.remove(&(armed, user));
        }
        self.outbox.send(allowance.home, Message::LeaseClose(allowance.lease.close()));
    }

    /// The home of some users has died: what their leases from it held is void.
    pub(super) fn expire_leases(&mut self, users: impl IntoIterator<Item = UserIndex>) {
        for user in users {
            let lease = self.next_lease();
            if let Some(allowance) = self.allowances.get_mut(&user) {
                allowance.lease.expire(lease);
            }
            self.want_service(user);
        }
    }
}

/// Queues a limited user to be served.
fn make_ready(ready: &mut VecDeque<UserIndex>, user: UserIndex, allowance: &mut UserQueue) {
    if !allowance.ready {
        allowance.ready = true;
        ready.push_back(user);
    }
}
