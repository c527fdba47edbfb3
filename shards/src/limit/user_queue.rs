//! A limited user at an owner: the tokens on lease, and the packets that wait for more.
//!
//! All connections of the user on this shard share one, in both directions: one queue, in which a flow has a direction.

use std::time::Instant;

use bytes::Bytes;

use crate::drops::DropReason;
use crate::ids::{ConnectionKey, ShardIndex, UserIndex};
use crate::limit::lease::{Lease, LeaseId};
use crate::limit::rate::Limit;
use crate::limit::shaper::{Direction, FlowKey, QueuedPacket, Shaper, ShaperLimits};
use crate::memory::{Memory, PACKET_BYTES};

/// What the queues of a shard's limited users have in common.
#[derive(Debug, Clone, Copy)]
pub struct Queues {
    /// Their bounds.
    pub limits: ShaperLimits,
    /// Decides which flows share a queue when there are too many.
    pub key: FlowKey,
}

/// Takes note of a packet that waited and goes nowhere.
pub type Dropped<'a> = dyn FnMut(DropReason, QueuedPacket) + 'a;

/// A limited user's tokens and queues on one shard.
pub struct UserQueue {
    /// The tokens.
    pub lease: Lease,
    /// Where they come from.
    pub home: ShardIndex,
    /// Connections that share the allowance; the last one takes it away.
    pub connections: usize,
    /// Queued to be served.
    pub ready: bool,
    /// When it wants to be served without having been touched.
    pub armed: Option<Instant>,
    /// What its queues are accounted for, in bytes.
    pub accounted_bytes: usize,
    limit: Limit,
    queue: Shaper,
}

impl UserQueue {
    /// An allowance without tokens.
    pub fn new(user: UserIndex, home: ShardIndex, lease: LeaseId, limit: Limit, queues: Queues) -> Self {
        let mut allowance = UserQueue {
            lease: Lease::new(user, lease),
            home,
            connections: 0,
            ready: false,
            armed: None,
            accounted_bytes: 0,
            limit,
            queue: Shaper::new(queues.limits, queues.key),
        };
        allowance.set_limit(limit);
        allowance
    }

    /// Takes the user's limit. Says whether it is another one.
    pub fn set_limit(&mut self, limit: Limit) -> bool {
        self.queue.set_rate(limit.rate);
        std::mem::replace(&mut self.limit, limit) != limit
    }

    /// Whether packets wait.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// What waits in both directions, in bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.queue.waiting_bytes()
    }

    /// What waits in both directions, in packets.
    pub fn waiting_packets(&self) -> usize {
        self.queue.waiting_packets()
    }

    /// Brings the account up to date with the queue.
    pub fn account(&mut self, memory: &mut Memory) {
        let bytes = self.waiting_bytes() + self.waiting_packets() * (size_of::<QueuedPacket>() + PACKET_BYTES);
        memory.waiting_bytes = memory.waiting_bytes + bytes - self.accounted_bytes;
        self.accounted_bytes = bytes;
    }

    /// Pays for a packet of `bytes`, unless it must wait: for tokens, or for those that came before it.
    pub fn spend(&mut self, bytes: usize) -> bool {
        !self.is_waiting() && self.lease.spend(bytes as u64)
    }

    /// Lets a packet wait. It is to be a copy: a slice would pin a receive buffer of 64 KiB for as long as it waits.
    pub fn wait(
        &mut self,
        now: Instant,
        direction: Direction,
        connection: ConnectionKey,
        packet: Bytes,
        dropped: &mut Dropped<'_>,
    ) {
        self.queue.push(now, direction, connection, packet, &mut |reason, waiting| dropped(reason, waiting));
    }

    /// The next packet that the tokens pay for; it has been paid for.
    pub fn next_affordable(&mut self, now: Instant, dropped: &mut Dropped<'_>) -> Option<QueuedPacket> {
        let tokens_bytes = self.lease.available_bytes();
        let next = self.queue.pop(now, tokens_bytes, &mut |reason, waiting| dropped(reason, waiting))?;
        let paid = self.lease.spend(next.packet.len() as u64);
        debug_assert!(paid, "a packet was released without tokens");
        Some(next)
    }

    /// Drops what has waited too long.
    pub fn expire(&mut self, now: Instant, dropped: &mut Dropped<'_>) {
        self.queue.expire(now, &mut |reason, waiting| dropped(reason, waiting));
    }

    /// The length of the packet that goes next.
    pub fn head_bytes(&self) -> Option<usize> {
        self.queue.head_bytes()
    }

    /// When it wants to be served, tokens or not.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.lease.poll_timeout(), self.queue.expires_at()].into_iter().flatten().min()
    }

    /// One of the connections that share it is closed: its packets wait no longer.
    pub fn leave(&mut self, connection: ConnectionKey, left: &mut impl FnMut(QueuedPacket)) {
        self.connections -= 1;
        self.take_where(|waiting| waiting.connection == connection, left);
    }

    /// Takes what waits and is `chosen`.
    pub fn take_where(&mut self, chosen: impl Fn(&QueuedPacket) -> bool, taken: &mut impl FnMut(QueuedPacket)) {
        self.queue.take_where(chosen, taken);
    }

    /// Lets everything go that waits, unpaid: the limit was lifted.
    pub fn drain(&mut self, released: &mut impl FnMut(QueuedPacket)) {
        self.queue.drain(released);
    }
}
