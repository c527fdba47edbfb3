//! The connections that a shard owns, by slot.
//!
//! This module drives nothing.

use std::net::IpAddr;
use std::time::Instant;

use crate::ids::{ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::io::WakeReason;
use crate::quic::admission::Place;
use crate::quic::moves::Moves;
use crate::quic::timers::TimerEntry;
use crate::quic::tunnel_connection::TunnelConnection;
use crate::session::message::Login;

/// A connection and where it stands.
pub struct Owned {
    pub key: ConnectionKey,
    pub link: TunnelConnection,
    pub stage: Stage,
    pub moves: Moves,
    pub armed: TimerEntry,
    /// What its queue is accounted for, in bytes.
    pub queued_bytes: usize,
    /// The MTU that the driver was told for the client's address, where it is less than the tunnel's.
    pub told_mtu_bytes: Option<u16>,
    /// Queued to be looked at.
    pub touched: bool,
    /// Queued to send.
    pub sending: bool,
}

/// Where a connection stands between its first Initial and its last CLOSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The handshake is under way.
    Handshaking {
        /// Its place among the pending ones.
        place: Place,
        /// When it is given up.
        deadline: Instant,
        /// What the client may still send until then, in bytes.
        room_bytes: usize,
    },
    /// Logged in; the home has been asked.
    Attaching(Member),
    /// Has its address.
    Attached {
        /// Whose.
        member: Member,
        /// The leased inner address.
        address: IpAddr,
        /// Whether packets need tokens.
        limited: bool,
    },
    /// Says goodbye, or waits until its last packets have died out (RFC 9000, section 10.2).
    Closed,
}

/// A connection's place in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Whose session.
    pub user: UserIndex,
    /// Where the session is.
    pub home: ShardIndex,
    /// By which certificate the client logged in.
    pub certificate: Fingerprint,
}

impl Owned {
    /// Whose connection it is, once somebody has logged in.
    pub fn member(&self) -> Option<Member> {
        match self.stage {
            Stage::Attaching(member) | Stage::Attached { member, .. } => Some(member),
            Stage::Handshaking { .. } | Stage::Closed => None,
        }
    }

    /// Whether the handshake was given up.
    pub fn is_given_up(&self) -> bool {
        self.stage == Stage::Closed && self.link.connection.crypto_session().is_handshaking()
    }

    /// What the home is told of a connection that has logged in.
    pub fn login(&self) -> Option<(Login, ShardIndex)> {
        let Member { user, home, certificate } = self.member()?;
        Some((Login { user, connection: self.key, certificate }, home))
    }
}

/// All connections of a shard. Bounded by `connections_max`, through the admission of handshakes.
pub struct Connections {
    /// Boxed, so that one can be taken out while it is driven without moving kilobytes.
    slots: Vec<Option<Box<Owned>>>,
    len: usize,
    generation: u64,
}

/// The upper half of a generation is the shard's incarnation.
const INCARNATION_SHIFT: u32 = 32;

impl Connections {
    pub fn new(incarnation: u32) -> Self {
        Connections { slots: Vec::new(), len: 0, generation: u64::from(incarnation) << INCARNATION_SHIFT }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts a new connection into the slot that its endpoint chose.
    pub fn insert(&mut self, owner: ShardIndex, link: TunnelConnection, stage: Stage, moves: Moves) -> u32 {
        let slot = link.handle.0;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.generation += 1;
        let key = ConnectionKey { owner, slot: slot as u32, generation: self.generation };
        let owned = Owned {
            key,
            link,
            stage,
            moves,
            armed: TimerEntry::default(),
            queued_bytes: 0,
            told_mtu_bytes: None,
            touched: false,
            sending: false,
        };
        let previous = self.slots[slot].replace(Box::new(owned));
        assert!(previous.is_none(), "the endpoint gave a slot away twice");
        self.len += 1;
        slot as u32
    }

    /// Takes out the connection of `key`, if it still is the one in its slot; [`Connections::put_back`] must follow.
    pub fn take_exact(&mut self, key: ConnectionKey) -> Option<Box<Owned>> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.take_if(|owned| owned.key == key)
    }

    /// Takes a connection out to drive it; [`Connections::put_back`] or [`Connections::forget`] must follow.
    pub fn take(&mut self, slot: u32) -> Option<Box<Owned>> {
        self.slots.get_mut(slot as usize)?.take()
    }

    /// Ends what [`Connections::take`] began.
    pub fn put_back(&mut self, owned: Box<Owned>) {
        let slot = owned.key.slot as usize;
        self.slots[slot] = Some(owned);
    }

    /// Ends what [`Connections::take`] began, for good.
    pub fn forget(&mut self, owned: Box<Owned>) {
        self.len -= 1;
        drop(owned);
    }

    /// The connection in `slot`.
    pub fn at(&mut self, slot: u32) -> Option<&mut Owned> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Every connection, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = &Owned> {
        self.slots.iter().flatten().map(|owned| &**owned)
    }

    /// Every occupied slot, in order.
    pub fn slots(&self) -> Vec<u32> {
        (0..self.slots.len() as u32).filter(|&slot| self.slots[slot as usize].is_some()).collect()
    }

    /// Why the connection in `slot` wants to be woken.
    pub fn wake_reason(&mut self, slot: u32) -> WakeReason {
        self.at(slot).and_then(|owned| owned.armed.reason()).unwrap_or(WakeReason::Connection)
    }
}
