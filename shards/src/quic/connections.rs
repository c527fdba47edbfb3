//! The connections of a shard, by slot, and which of them are to be looked at, to send, and to be woken.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use quinn_proto::Event as ConnectionEvent;

use crate::deadlines::{SessionEnd, SessionLimits, SessionTimes};
use crate::ids::{ConnectionKey, CredentialKind, Fingerprint, INCARNATION_SHIFT, Reconnects, ShardIndex, UserIndex};
use crate::io::WakeReason;
use crate::memory::{Memory, PACKET_BYTES};
use crate::quic::admission::Place;
use crate::quic::moves::Moves;
use crate::quic::timers::{TimerEntry, TimerQueue};
use crate::quic::tunnel_connection::TunnelConnection;

/// A client's connection and where it stands.
pub struct ClientConnection {
    pub key: ConnectionKey,
    pub tunnel: TunnelConnection,
    pub stage: Stage,
    pub moves: Moves,
    /// What its version of QUIC says that the client logs in with.
    pub kind: CredentialKind,
    /// When its first Initial was taken.
    pub began: Instant,
    /// When the last datagram came that was for it.
    pub heard_at: Instant,
    /// Of whoever has logged in.
    pub deadlines: Option<SessionTimes>,
    /// Taken from the connection before its turn had come.
    pub early_event: Option<ConnectionEvent>,
    timer: TimerEntry,
    /// What its queue is accounted for, in bytes.
    queued_bytes: usize,
    /// Packets that are queued, as of the last account.
    queued_packets: usize,
    /// Of the account, what cannot be taken back.
    handed_bytes: usize,
    /// The MTU that the driver was told for the client's address, where it is less than the tunnel's.
    pub told_mtu_bytes: Option<u16>,
    /// Queued to be looked at.
    touched: bool,
    /// Queued to send.
    sending: bool,
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
    /// Logged in; the user's home has been asked.
    LoggedIn(Identity),
    /// Has its address.
    Attached {
        identity: Identity,
        /// The leased inner address.
        address: IpAddr,
        /// Whether packets need tokens.
        limited: bool,
    },
    /// Says goodbye, or waits until its last packets have died out (RFC 9000, section 10.2).
    Closed,
}

/// Who has logged in on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub user: UserIndex,
    pub home: ShardIndex,
    pub credential: Fingerprint,
    pub kind: CredentialKind,
    pub reconnects: Reconnects,
}

impl ClientConnection {
    /// Who has logged in, if anybody has.
    pub fn identity(&self) -> Option<Identity> {
        match self.stage {
            Stage::LoggedIn(identity) | Stage::Attached { identity, .. } => Some(identity),
            Stage::Handshaking { .. } | Stage::Closed => None,
        }
    }

    /// Gives the connection a datagram that came for it.
    pub fn hear(&mut self, now: Instant, datagram: quinn_proto::ConnectionEvent) {
        self.heard_at = now;
        self.tunnel.handle_event(datagram);
    }

    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        self.early_event.take().or_else(|| self.tunnel.connection.poll())
    }

    /// When it wants to be woken next, and why.
    pub fn poll_timeout(&mut self, limits: &SessionLimits) -> Option<(Instant, WakeReason)> {
        let connection = self.tunnel.poll_timeout().map(|at| (at, WakeReason::Connection));
        let handshake = match self.stage {
            Stage::Handshaking { deadline, .. } => Some((deadline, WakeReason::Handshake)),
            _ => None,
        };
        let session = self.session_end(limits).map(|(at, _)| (at, WakeReason::Session));
        [connection, handshake, session].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// When the session of whoever has logged in is over if no inner packet comes, and why.
    pub fn session_end(&self, limits: &SessionLimits) -> Option<(Instant, SessionEnd)> {
        self.identity()?;
        self.deadlines?.end(limits)
    }

    pub fn address(&self) -> Option<IpAddr> {
        match self.stage {
            Stage::Attached { address, .. } => Some(address),
            _ => None,
        }
    }

    #[cfg(feature = "inspect")]
    pub fn accounted_handed_bytes(&self) -> usize {
        self.handed_bytes
    }

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match self.stage {
            Stage::Handshaking { place, .. } if !place.has_hello => "hello_incomplete",
            Stage::Handshaking { .. } => "handshaking",
            Stage::LoggedIn(_) => "logged_in",
            Stage::Attached { limited: false, .. } => "attached",
            Stage::Attached { limited: true, .. } => "attached_limited",
            Stage::Closed => "closed",
        }
    }

    /// Whether the handshake was given up.
    pub fn is_given_up(&self) -> bool {
        self.stage == Stage::Closed && self.tunnel.connection.crypto_session().is_handshaking()
    }

    /// Brings the account up to date with the queue.
    pub fn account(&mut self, memory: &mut Memory) {
        let bytes = self.tunnel.held_bytes();
        memory.queued_bytes = memory.queued_bytes + bytes - self.queued_bytes;
        self.queued_bytes = bytes;
        let packets = self.tunnel.queued_packets();
        memory.queued_packets = memory.queued_packets + packets - self.queued_packets;
        self.queued_packets = packets;
        self.account_handed(memory);
        memory.backlogs.set(self.key.slot, self.tunnel.backlog_bytes);
    }

    /// What its queue holds, as of the last account, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What quinn-proto may have of this connection, in bytes.
    #[inline]
    pub fn handed_bytes_max(&self, memory: &Memory) -> usize {
        memory.handed_bytes_max(self.handed_bytes)
    }

    /// Brings the account up to date with what quinn-proto has.
    #[inline]
    pub fn account_handed(&mut self, memory: &mut Memory) {
        let handed_bytes = self.tunnel.handed_bytes();
        memory.handed_bytes = memory.handed_bytes + handed_bytes - self.handed_bytes;
        self.handed_bytes = handed_bytes;
    }

    /// Adds a packet of so many bytes to the account, until [`ClientConnection::account`] knows better.
    #[inline]
    pub fn account_packet(&mut self, memory: &mut Memory, bytes: usize) {
        memory.queued_bytes += bytes + PACKET_BYTES;
        self.queued_bytes += bytes + PACKET_BYTES;
        let backlog_bytes = self.tunnel.backlog_bytes;
        if backlog_bytes > 0 {
            memory.backlogs.set(self.key.slot, backlog_bytes);
        } else {
            self.account_handed(memory);
        }
    }
}

/// All connections of a shard. Bounded by `connections_max`, through the admission of handshakes.
pub struct Connections {
    here: ShardIndex,
    /// Boxed: an empty slot costs a pointer.
    slots: Vec<Option<Box<ClientConnection>>>,
    len: usize,
    /// Those on which somebody has logged in and that are not over.
    pub logged_in: usize,
    generation: u64,
    timers: TimerQueue,
    /// Those that the batch touched, to be looked at.
    touched: VecDeque<u32>,
    /// Those that may have something to send.
    sending: VecDeque<u32>,
}

impl Connections {
    pub fn new(here: ShardIndex, incarnation: u32) -> Self {
        Connections {
            here,
            slots: Vec::new(),
            len: 0,
            logged_in: 0,
            generation: u64::from(incarnation) << INCARNATION_SHIFT,
            timers: TimerQueue::default(),
            touched: VecDeque::new(),
            sending: VecDeque::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts a new connection into the slot that its endpoint chose, to be woken at `deadline`.
    pub fn insert(
        &mut self,
        (now, deadline): (Instant, Instant),
        tunnel: TunnelConnection,
        kind: CredentialKind,
        place: Place,
        room_bytes: usize,
        moves: Moves,
    ) {
        let slot = tunnel.handle.0;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.generation += 1;
        let slot_u32 = slot as u32;
        let previous = self.slots[slot].replace(Box::new(ClientConnection {
            key: ConnectionKey { owner: self.here, slot: slot_u32, generation: self.generation },
            tunnel,
            stage: Stage::Handshaking { place, deadline, room_bytes },
            moves,
            kind,
            began: now,
            heard_at: now,
            deadlines: None,
            early_event: None,
            timer: TimerEntry::default(),
            queued_bytes: 0,
            queued_packets: 0,
            handed_bytes: 0,
            told_mtu_bytes: None,
            touched: false,
            sending: false,
        }));
        assert!(previous.is_none(), "the endpoint gave a slot away twice");
        self.len += 1;
        self.arm(slot_u32, deadline, WakeReason::Handshake);
        self.touch(slot_u32);
    }

    /// The slot of `key`, if its connection is still there.
    #[inline]
    pub fn find(&self, key: ConnectionKey) -> Option<u32> {
        let connection = self.slots.get(key.slot as usize)?.as_deref()?;
        (connection.key == key).then_some(key.slot)
    }

    #[inline]
    pub fn at(&mut self, slot: u32) -> Option<&mut ClientConnection> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Every connection, in the order of the slots.
    pub fn iter(&self) -> impl Iterator<Item = &ClientConnection> {
        self.slots.iter().flatten().map(|connection| &**connection)
    }

    /// Takes a connection out for good.
    pub fn remove(&mut self, slot: u32, memory: &mut Memory) {
        let Some(mut connection) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        memory.queued_bytes -= connection.queued_bytes;
        memory.queued_packets -= connection.queued_packets;
        memory.handed_bytes -= connection.handed_bytes;
        memory.backlogs.set(slot, 0);
        self.timers.disarm(slot, &mut connection.timer);
        self.len -= 1;
    }

    /// An inner packet has come from or for the client in `slot`.
    #[inline]
    pub fn mark_active(&mut self, slot: u32, now: Instant) {
        if let Some(Some(connection)) = self.slots.get_mut(slot as usize)
            && let Some(deadlines) = &mut connection.deadlines
        {
            deadlines.active_at = now;
        }
    }

    /// Other limits hold from now on: whose session ends earlier is woken earlier.
    pub fn apply(&mut self, limits: &SessionLimits) {
        let Connections { slots, timers, .. } = self;
        for connection in slots.iter_mut().flatten() {
            if let Some((at, _)) = connection.session_end(limits) {
                timers.arm(connection.key.slot, &mut connection.timer, at, WakeReason::Session);
            }
        }
    }

    #[inline]
    pub fn touch(&mut self, slot: u32) {
        if let Some(Some(connection)) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut connection.touched, true)
        {
            self.touched.push_back(slot);
        }
    }

    pub fn is_touched(&mut self, slot: u32) -> bool {
        self.at(slot).is_some_and(|client| client.touched)
    }

    /// The next connection to be looked at. It may be gone by now.
    pub fn next_touched(&mut self) -> Option<u32> {
        let slot = self.touched.pop_front()?;
        if let Some(connection) = self.at(slot) {
            connection.touched = false;
        }
        Some(slot)
    }

    pub fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    #[inline]
    pub fn want_to_send(&mut self, slot: u32) {
        if let Some(Some(connection)) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut connection.sending, true)
        {
            self.sending.push_back(slot);
        }
    }

    /// The connection whose turn it is to send.
    pub fn first_sending(&self) -> Option<u32> {
        self.sending.front().copied()
    }

    /// The connection whose turn it is has nothing more to send.
    pub fn has_sent(&mut self) {
        if let Some(slot) = self.sending.pop_front()
            && let Some(connection) = self.at(slot)
        {
            connection.sending = false;
        }
    }

    /// Sees to it that the connection in `slot` is woken at `at` or earlier.
    pub fn arm(&mut self, slot: u32, at: Instant, reason: WakeReason) {
        if let Some(Some(connection)) = self.slots.get_mut(slot as usize) {
            self.timers.arm(slot, &mut connection.timer, at, reason);
        }
    }

    /// The next connection whose time has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        while let Some(slot) = self.timers.pop_due(now) {
            if let Some(connection) = self.at(slot) {
                connection.timer.0 = None;
                return Some(slot);
            }
        }
        None
    }

    /// When a connection wants to be woken next, and why.
    pub fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        let (at, slot) = self.timers.next()?;
        let reason = self.at(slot).and_then(|connection| connection.timer.0);
        Some((at, reason.map_or(WakeReason::Connection, |(_, reason)| reason)))
    }
}
