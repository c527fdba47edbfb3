//! The limited users of a shard: tokens on lease, packets that wait for more, and when each user is to be served.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::lease::{LeaseClose, LeaseGrant, LeaseId, LeaseReport};
use super::rate::Limit;
use super::shaper::{Direction, QueuedPacket};
use super::user_queue::{Dropped, Queues, UserQueue};
use crate::drops::{DropReason, Drops};
use crate::ids::{ConnectionKey, ShardIndex, UserIndex};
use crate::memory::Memory;

/// The queues of all limited users who have a connection here. One entry a user in each of its collections.
pub struct UserQueues {
    here: ShardIndex,
    params: Queues,
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
    pub fn new(here: ShardIndex, incarnation: u32, params: Queues) -> Self {
        let leases = u64::from(incarnation) << 32;
        UserQueues { here, params, queues: FxHashMap::default(), ready: VecDeque::new(), due: BTreeSet::new(), leases }
    }

    /// One more connection shares the user's queue.
    pub fn join(&mut self, user: UserIndex, home: ShardIndex, limit: Limit) {
        if !self.queues.contains_key(&user) {
            let lease = self.next_lease();
            self.queues.insert(user, UserQueue::new(user, home, lease, limit, self.params));
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
        memory: &mut Memory,
        drops: &mut Drops,
    ) -> bool {
        let Some(queue) = self.queues.get_mut(&user) else { return false };
        make_ready(&mut self.ready, user, queue);
        if queue.spend(packet.len()) {
            return true;
        }
        if !memory.has_room(packet.len()) {
            drops.count(DropReason::MemoryLimit);
            return false;
        }
        let packet = Bytes::copy_from_slice(packet);
        queue.wait(now, direction, connection, packet, &mut |reason, _| drops.count(reason));
        queue.account(memory);
        false
    }

    /// Queues a limited user to be served: its packets, its tokens or its time have changed.
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
            queue.expire(now, &mut |reason, _| drops.count(reason));
        }
        Some(user)
    }

    /// The next packet that the user's tokens pay for; it has been paid for.
    pub fn next_affordable(
        &mut self,
        now: Instant,
        user: UserIndex,
        dropped: &mut Dropped<'_>,
    ) -> Option<QueuedPacket> {
        self.queues.get_mut(&user)?.next_affordable(now, dropped)
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
        let (waiting_bytes, head_bytes) = (queue.waiting_bytes(), queue.head_bytes().unwrap_or(0));
        let report = queue.lease.poll_report(now, waiting_bytes as u64, head_bytes as u64);
        let due = queue.poll_timeout();
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
        queue.leave(connection, left);
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
            queue.take_where(chosen, taken);
            make_ready(&mut self.ready, user, queue);
        }
    }

    /// Another limit holds for a user. Where tokens of the one before go back, for they may be worth seconds of the new one, it is said to whom.
    pub fn set_limit(&mut self, user: UserIndex, limit: Limit) -> Option<(ShardIndex, LeaseClose)> {
        let lease = self.next_lease();
        let queue = self.queues.get_mut(&user)?;
        make_ready(&mut self.ready, user, queue);
        queue.set_limit(limit).then(|| {
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
        self.queues.get_mut(&user)?.drain(released);
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

    /// The queue of a user, if the user is limited and here.
    #[cfg(feature = "inspect")]
    pub fn get(&self, user: UserIndex) -> Option<&UserQueue> {
        self.queues.get(&user)
    }

    /// How many users have a queue here.
    #[cfg(feature = "inspect")]
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    fn close(&mut self, user: UserIndex, memory: &mut Memory) -> Option<(ShardIndex, LeaseClose)> {
        let queue = self.queues.remove(&user)?;
        memory.waiting_bytes -= queue.accounted_bytes;
        if let Some(armed) = queue.armed {
            self.due.remove(&(armed, user));
        }
        Some((queue.home, queue.lease.close()))
    }
}

/// Queues a limited user to be served.
fn make_ready(ready: &mut VecDeque<UserIndex>, user: UserIndex, queue: &mut UserQueue) {
    if !std::mem::replace(&mut queue.ready, true) {
        ready.push_back(user);
    }
}
