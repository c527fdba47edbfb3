//! The limited users of a shard: tokens on lease, packets that wait for more, and when each user is to be served.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::lease::{Lease, LeaseClose, LeaseGrant, LeaseId, LeaseReport};
use super::rate::Limit;
use super::shaper::{Direction, FlowKey, QueuedPacket, Shaper, ShaperLimits};
use crate::drops::{DropReason, Drops};
use crate::ids::{ConnectionKey, ShardIndex, UserIndex};
use crate::memory::{Accounts, Memory, PACKET_BYTES};

/// A limited user's tokens and waiting packets on one shard: of all connections of the user, in both directions.
pub struct UserQueue {
    pub lease: Lease,
    pub shaper: Shaper,
    home: ShardIndex,
    limit: Limit,
    /// Those that share it; the last one takes it away.
    connections: usize,
    /// Queued to be served.
    ready: bool,
    /// When it wants to be served without having been touched.
    armed: Option<Instant>,
    /// What its packets are accounted for, in bytes, and how many those are.
    accounted_bytes: usize,
    accounted_packets: usize,
}

impl UserQueue {
    /// Brings the account up to date with the queue.
    fn account(&mut self, memory: &mut Memory) {
        let packets = self.shaper.waiting_packets();
        let bytes = self.shaper.waiting_bytes() + packets * (size_of::<QueuedPacket>() + PACKET_BYTES);
        memory.waiting_bytes = memory.waiting_bytes + bytes - self.accounted_bytes;
        memory.waiting_packets = memory.waiting_packets + packets - self.accounted_packets;
        (self.accounted_bytes, self.accounted_packets) = (bytes, packets);
    }
}

/// The queues of all limited users who have a connection here. One entry a user in each of its collections.
pub struct UserQueues {
    here: ShardIndex,
    limits: ShaperLimits,
    key: FlowKey,
    queues: FxHashMap<UserIndex, UserQueue>,
    /// Users to be served, because their packets, tokens or time have changed.
    ready: VecDeque<UserIndex>,
    /// When users want to be served without that.
    due: BTreeSet<(Instant, UserIndex)>,
    /// Number of the last lease.
    leases: u64,
}

impl UserQueues {
    /// Those of shard `here`, of which there were `incarnation` before.
    pub fn new(here: ShardIndex, incarnation: u32, limits: ShaperLimits, key: FlowKey) -> Self {
        let leases = u64::from(incarnation) << 32;
        let (queues, ready, due) = (FxHashMap::default(), VecDeque::new(), BTreeSet::new());
        UserQueues { here, limits, key, queues, ready, due, leases }
    }

    /// One more connection shares the user's queue.
    pub fn join(&mut self, user: UserIndex, home: ShardIndex, limit: Limit) {
        if !self.queues.contains_key(&user) {
            let lease = Lease::new(user, self.next_lease());
            let mut shaper = Shaper::new(self.limits, self.key);
            shaper.set_rate(limit.rate);
            let (ready, armed) = (false, None);
            let (accounted_bytes, accounted_packets) = (0, 0);
            let queue = UserQueue {
                lease,
                shaper,
                home,
                limit,
                connections: 0,
                ready,
                armed,
                accounted_bytes,
                accounted_packets,
            };
            self.queues.insert(user, queue);
        }
        if let Some(queue) = self.queues.get_mut(&user) {
            queue.connections += 1;
        }
    }

    /// A name for a lease that this shard has never used, nor an earlier incarnation of it.
    fn next_lease(&mut self) -> LeaseId {
        self.leases += 1;
        LeaseId { holder: self.here, number: self.leases }
    }

    /// Whether a limited user's packet may go now; if not, a copy of it waits.
    pub fn pay(
        &mut self,
        now: Instant,
        (user, connection): (UserIndex, ConnectionKey),
        direction: Direction,
        packet: &[u8],
        Accounts { counters, memory }: &mut Accounts,
    ) -> bool {
        let Some(queue) = self.queues.get_mut(&user) else { return false };
        make_ready(&mut self.ready, user, queue);
        if queue.shaper.is_empty() && queue.lease.spend(packet.len() as u64) {
            return true;
        }
        if !memory.has_room(packet.len()) {
            counters.drops.count(DropReason::MemoryLimit);
            return false;
        }
        // A slice would pin a receive buffer of 64 KiB for as long as it waits.
        let packet = Bytes::copy_from_slice(packet);
        queue.shaper.push(now, direction, connection, packet, &mut |reason, _| counters.drops.count(reason));
        queue.account(memory);
        false
    }

    /// Queues a user to be served.
    pub fn want_service(&mut self, user: UserIndex) {
        if let Some(queue) = self.queues.get_mut(&user) {
            make_ready(&mut self.ready, user, queue);
        }
    }

    /// Tokens have come, or are wanted back.
    pub fn handle_grant(&mut self, grant: &LeaseGrant) {
        let Some(queue) = self.queues.get_mut(&grant.user) else { return };
        queue.lease.handle_grant(grant);
        make_ready(&mut self.ready, grant.user, queue);
    }

    /// Queues the users whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, user)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if let Some(queue) = self.queues.get_mut(&user) {
                queue.armed = None;
            }
            self.want_service(user);
        }
    }

    /// When [`UserQueues::handle_timeout`] is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    /// Whether some user is to be served.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next user to be served. What has waited too long is dropped.
    pub fn next_ready(&mut self, now: Instant, drops: &mut Drops) -> Option<UserIndex> {
        let user = self.ready.pop_front()?;
        if let Some(queue) = self.queues.get_mut(&user) {
            queue.ready = false;
            queue.shaper.expire(now, &mut |reason, _| drops.count(reason));
        }
        Some(user)
    }

    /// The next packet that the user's tokens pay for; it has been paid for.
    pub fn next_affordable(&mut self, now: Instant, user: UserIndex, drops: &mut Drops) -> Option<QueuedPacket> {
        let UserQueue { lease, shaper, .. } = self.queues.get_mut(&user)?;
        let next = shaper.pop(now, lease.available_bytes(), &mut |reason, _| drops.count(reason))?;
        let paid = lease.spend(next.packet.len() as u64);
        debug_assert!(paid, "a packet was released without tokens");
        Some(next)
    }

    /// What the user's home is to be told, after what could be spent has been, and which home that is.
    pub fn poll_report(
        &mut self,
        now: Instant,
        user: UserIndex,
        memory: &mut Memory,
    ) -> Option<(ShardIndex, LeaseReport)> {
        let queue = self.queues.get_mut(&user)?;
        queue.account(memory);
        let (waiting_bytes, head_bytes) = (queue.shaper.waiting_bytes(), queue.shaper.head_bytes().unwrap_or(0));
        let report = queue.lease.poll_report(now, waiting_bytes as u64, head_bytes as u64);
        let due = [queue.lease.poll_timeout(), queue.shaper.expires_at()].into_iter().flatten().min();
        if due != queue.armed {
            if let Some(armed) = queue.armed {
                self.due.remove(&(armed, user));
            }
            self.due.extend(due.map(|at| (at, user)));
            queue.armed = due;
        }
        Some((queue.home, report?))
    }

    /// A limited user's connection is closed: what waits for tokens on its behalf is given to `left`, and the last one gives the lease back.
    pub fn leave(
        &mut self,
        user: UserIndex,
        connection: ConnectionKey,
        memory: &mut Memory,
        left: &mut impl FnMut(QueuedPacket),
    ) -> Option<(ShardIndex, LeaseClose)> {
        let queue = self.queues.get_mut(&user)?;
        queue.connections -= 1;
        queue.shaper.take_where(|waiting| waiting.connection == connection, left);
        queue.account(memory);
        if queue.connections == 0 { self.close(user, memory) } else { None }
    }

    /// Takes what waits of `user` and is `chosen`, and has the user served.
    pub fn take_where(
        &mut self,
        user: UserIndex,
        chosen: impl Fn(&QueuedPacket) -> bool,
        taken: &mut impl FnMut(QueuedPacket),
    ) {
        if let Some(queue) = self.queues.get_mut(&user) {
            queue.shaper.take_where(chosen, taken);
            make_ready(&mut self.ready, user, queue);
        }
    }

    /// Another limit holds for a user. Where tokens of the one before go back, for they may be worth seconds of the new one, it is said to whom.
    pub fn set_limit(&mut self, user: UserIndex, limit: Limit) -> Option<(ShardIndex, LeaseClose)> {
        let lease = self.next_lease();
        let queue = self.queues.get_mut(&user)?;
        make_ready(&mut self.ready, user, queue);
        queue.shaper.set_rate(limit.rate);
        (std::mem::replace(&mut queue.limit, limit) != limit).then(|| {
            let close = queue.lease.close();
            queue.lease.expire(lease);
            (queue.home, close)
        })
    }

    /// A user is limited no more: all that waits is given to `released`.
    pub fn lift_limit(
        &mut self,
        user: UserIndex,
        memory: &mut Memory,
        released: &mut impl FnMut(QueuedPacket),
    ) -> Option<(ShardIndex, LeaseClose)> {
        self.next_lease();
        self.queues.get_mut(&user)?.shaper.drain(released);
        self.close(user, memory)
    }

    /// The home of a user has died: what the lease from it held is void.
    pub fn expire_lease(&mut self, user: UserIndex) {
        let lease = self.next_lease();
        if let Some(queue) = self.queues.get_mut(&user) {
            queue.lease.expire(lease);
            make_ready(&mut self.ready, user, queue);
        }
    }

    /// Another home lends the user's tokens: what the lease from the one before held is void.
    pub fn rehome(&mut self, user: UserIndex, home: ShardIndex) {
        if let Some(queue) = self.queues.get_mut(&user) {
            queue.home = home;
        }
        self.expire_lease(user);
    }

    #[cfg(feature = "inspect")]
    pub fn get(&self, user: UserIndex) -> Option<&UserQueue> {
        self.queues.get(&user)
    }

    /// Leases that this incarnation has begun.
    pub fn leases_begun(&self) -> u64 {
        self.leases & u64::from(u32::MAX)
    }

    pub fn len(&self) -> usize {
        self.queues.len()
    }

    fn close(&mut self, user: UserIndex, memory: &mut Memory) -> Option<(ShardIndex, LeaseClose)> {
        let queue = self.queues.remove(&user)?;
        memory.waiting_bytes -= queue.accounted_bytes;
        memory.waiting_packets -= queue.accounted_packets;
        if let Some(armed) = queue.armed {
            self.due.remove(&(armed, user));
        }
        Some((queue.home, queue.lease.close()))
    }
}

fn make_ready(ready: &mut VecDeque<UserIndex>, user: UserIndex, queue: &mut UserQueue) {
    if !std::mem::replace(&mut queue.ready, true) {
        ready.push_back(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::limit::rate::Rate;
    use crate::test_time::origin;

    #[test]
    fn what_waited_for_a_connection_that_leaves_is_held_no_more() {
        let (user, home) = (UserIndex(0), ShardIndex(1));
        let mut queues = UserQueues::new(ShardIndex(0), 0, ShaperLimits::default(), FlowKey([7; 16]));
        let mut accounts = Accounts { counters: Counters::default(), memory: Memory::new(1 << 20) };
        let connections = [0, 1].map(|slot| ConnectionKey { owner: ShardIndex(0), slot, generation: 0 });
        for connection in connections {
            queues.join(user, home, Limit::new(Rate::from_bits_per_s(8000).unwrap()));
            assert!(!queues.pay(origin(), (user, connection), Direction::Down, &[0x45; 100], &mut accounts));
        }
        let held = |accounts: &Accounts| (accounts.memory.waiting_packets, accounts.memory.waiting_bytes);
        let of_both = held(&accounts);
        let mut left = 0;
        assert!(queues.leave(user, connections[0], &mut accounts.memory, &mut |_| left += 1).is_none());
        assert_eq!((left, held(&accounts)), (1, (of_both.0 / 2, of_both.1 / 2)));
        assert!(queues.leave(user, connections[1], &mut accounts.memory, &mut |_| left += 1).is_some());
        assert_eq!((left, held(&accounts)), (2, (0, 0)));
    }
}
