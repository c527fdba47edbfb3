//! A limited user at an owner: the tokens on lease, and the packets that wait for more.
//!
//! All connections of the user on this shard share one, in both directions. Each direction has a queue of its own; tokens go to both in turn.
//!
//! This module mints no tokens, and judges no packet.

use std::time::Instant;

use bytes::Bytes;

use crate::connection_id::ShardIndex;
use crate::directory::{Limit, UserIndex};
use crate::lease::{Lease, LeaseId};
use crate::routes::ConnectionKey;
use crate::shaper::{Shaper, ShaperLimits, Waiting};
use crate::verdict::DropReason;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// What the queues of a shard's limited users have in common.
#[derive(Debug, Clone, Copy)]
pub struct Queues {
    /// Their bounds.
    pub limits: ShaperLimits,
    /// Decides which flows share a queue when there are too many.
    pub perturbation: u64,
}

/// Takes note of a packet that waited and goes nowhere.
pub type Dropped<'a> = dyn FnMut(Direction, DropReason, Waiting) + 'a;

/// A limited user's tokens and queues on one shard.
pub struct Allowance {
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
    limit: Limit,
    up: Shaper,
    down: Shaper,
    /// Bytes by which one direction is ahead of the other while both wait: positive when it is up.
    lead_bytes: i64,
}

impl Allowance {
    /// An allowance without tokens.
    pub fn new(user: UserIndex, home: ShardIndex, lease: LeaseId, limit: Limit, queues: Queues) -> Self {
        let mut allowance = Allowance {
            lease: Lease::new(user, lease),
            home,
            connections: 0,
            ready: false,
            armed: None,
            limit,
            up: Shaper::new(queues.limits, queues.perturbation),
            down: Shaper::new(queues.limits, queues.perturbation),
            lead_bytes: 0,
        };
        allowance.set_limit(limit);
        allowance
    }

    /// Takes the user's limit. Says whether it is another one.
    pub fn set_limit(&mut self, limit: Limit) -> bool {
        self.up.set_rate(limit.rate);
        self.down.set_rate(limit.rate);
        std::mem::replace(&mut self.limit, limit) != limit
    }

    /// Whether packets wait.
    pub fn is_waiting(&self) -> bool {
        !self.up.is_empty() || !self.down.is_empty()
    }

    /// What waits in both directions, in bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.up.waiting_bytes() + self.down.waiting_bytes()
    }

    /// What waits in one direction, in packets.
    pub fn waiting_packets(&self, direction: Direction) -> usize {
        match direction {
            Direction::Up => self.up.waiting_packets(),
            Direction::Down => self.down.waiting_packets(),
        }
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
        let queue = self.queue(direction);
        queue.push(now, connection, packet, &mut |reason, waiting| dropped(direction, reason, waiting));
    }

    /// The next packet that the tokens pay for; it has been paid for.
    pub fn next_affordable(&mut self, now: Instant, dropped: &mut Dropped<'_>) -> Option<(Direction, Waiting)> {
        while let Some(direction) = self.turn() {
            let tokens_bytes = self.lease.available_bytes();
            let queue = self.queue(direction);
            let next = queue.pop(now, tokens_bytes, &mut |reason, waiting| dropped(direction, reason, waiting));
            match next {
                Some(waiting) => {
                    let bytes = waiting.packet.len();
                    let paid = self.lease.spend(bytes as u64);
                    debug_assert!(paid, "a packet was released without tokens");
                    self.lead_bytes += if direction == Direction::Up { bytes as i64 } else { -(bytes as i64) };
                    return Some((direction, waiting));
                }
                // Too few tokens. Where the queue has emptied itself instead, the other one may have something.
                None if !self.queue(direction).is_empty() => return None,
                None => {}
            }
        }
        self.lead_bytes = 0;
        None
    }

    /// Drops what has waited too long.
    pub fn expire(&mut self, now: Instant, dropped: &mut Dropped<'_>) {
        self.up.expire(now, &mut |reason, waiting| dropped(Direction::Up, reason, waiting));
        self.down.expire(now, &mut |reason, waiting| dropped(Direction::Down, reason, waiting));
    }

    /// The length of the packet that goes next.
    pub fn head_bytes(&self) -> Option<usize> {
        match self.turn()? {
            Direction::Up => self.up.head_bytes(),
            Direction::Down => self.down.head_bytes(),
        }
    }

    /// When it wants to be served, tokens or not.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.lease.poll_timeout(), self.up.expires_at(), self.down.expires_at()].into_iter().flatten().min()
    }

    /// One of the connections that share it is closed: its packets wait no longer.
    pub fn leave(&mut self, connection: ConnectionKey, left: &mut impl FnMut(Direction, Waiting)) {
        self.connections -= 1;
        let is_its = |waiting: &Waiting| waiting.connection == connection;
        self.up.take_where(is_its, &mut |waiting| left(Direction::Up, waiting));
        self.down.take_where(is_its, &mut |waiting| left(Direction::Down, waiting));
    }

    /// Takes what waits on its way to the user's clients and is `chosen`.
    pub fn take_down_where(&mut self, chosen: impl Fn(&Waiting) -> bool, taken: &mut impl FnMut(Waiting)) {
        self.down.take_where(chosen, taken);
    }

    /// Lets everything go that waits, unpaid: the limit was lifted.
    pub fn drain(&mut self, released: &mut impl FnMut(Direction, Waiting)) {
        self.up.drain(&mut |waiting| released(Direction::Up, waiting));
        self.down.drain(&mut |waiting| released(Direction::Down, waiting));
    }

    /// The direction whose packet goes next.
    fn turn(&self) -> Option<Direction> {
        match (self.up.is_empty(), self.down.is_empty()) {
            (true, true) => None,
            (false, true) => Some(Direction::Up),
            (true, false) => Some(Direction::Down),
            (false, false) if self.lead_bytes > 0 => Some(Direction::Down),
            (false, false) => Some(Direction::Up),
        }
    }

    fn queue(&mut self, direction: Direction) -> &mut Shaper {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}
