//! A shard towards the outer network: UDP datagrams in, UDP sends out, and everything a connection's timers want.
//!
//! Never looks into an inner packet.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{DatagramEvent, EndpointEvent, Incoming, TimeSource};

use super::connections::{Owned, Stage};
use super::{Event, Shard};
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::excerpt::excerpt;
use crate::io::{Received, Transmit, WakeReason};
use crate::quic::admission::Room;
use crate::quic::connection_id::{Steered, steer};
use crate::quic::failures::{COST_OF_FAILURE, COST_OF_HALF, Standing};
use crate::quic::moves::Moves;
use crate::quic::responses::Responses;
use crate::quic::retry;
use crate::quic::retry::{CHOSEN_ID_BYTES_MIN, Claim, INITIAL_BYTES_MIN, Initial};
use crate::quic::tunnel_connection::{TunnelConnection, outgoing};
use crate::session::message::Message;

/// How long a ClientHello may take to be complete: its parts are sent at once, and repeated after a second.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client may send before its handshake is complete, in bytes. It bounds what a connection keeps of CRYPTO frames that came out of
/// order, whatever their number and length. Quincy's client sends 4 KiB; the rest is for long certificate chains and repetitions.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 24 * 1024;
/// What keeping a datagram costs beside its bytes.
const DATAGRAM_COST_BYTES: usize = 192;

impl Shard {
    /// Takes one UDP receive apart. The kernel steers an aggregate by its first datagram, so each one's connection ID is looked at.
    pub(super) fn receive_datagrams(&mut self, now: Instant, received: Received) {
        let Received { remote, local_ip, ecn, segment_bytes, mut data } = received;
        while !data.is_empty() {
            let datagram = data.split_to(segment_bytes.clamp(1, data.len()));
            let here = self.params.index;
            match steer(&datagram, &self.params.connection_id_key, self.params.shards, here) {
                Steered::To(owner) if owner == here => {
                    self.receive_datagram(now, Received { remote, local_ip, ecn, segment_bytes, data: datagram });
                }
                Steered::To(owner) => {
                    self.counters.misrouted_datagrams += 1;
                    // Copied, because shards share no buffers.
                    let data = BytesMut::from(&datagram[..]);
                    self.outbox.send(owner, Message::Datagram(Received { remote, local_ip, ecn, segment_bytes, data }));
                }
                Steered::Foreign => self.counters.drops.count(DropReason::ForeignDatagram),
            }
        }
    }

    /// Takes one datagram that belongs here.
    pub(super) fn receive_datagram(&mut self, now: Instant, received: Received) {
        let Received { remote, local_ip, ecn, mut data, .. } = received;
        let mut issued_s = None;
        let has_long_header = has_long_header(&data);
        if has_long_header && let Some(initial) = Initial::parse(&data) {
            match self.prove_address(now, remote, local_ip, &initial, data.len()) {
                Some(claim) => issued_s = Some(claim.issued_s),
                None => return,
            }
        }
        if has_long_header {
            // What handshakes bring may be kept for as long as they last, so it keeps no receive buffer.
            data = BytesMut::from(&data[..]);
        }
        let (bytes, mut answer) = (data.len(), Vec::new());
        match self.endpoint.handle(now, remote, local_ip, ecn, data, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let slot = handle.0 as u32;
                if let Some(owned) = self.connections.at(slot) {
                    let current = owned.link.connection.remote_address();
                    let mtu_bytes = owned.link.connection.current_mtu();
                    if !owned.moves.may_receive(now, remote, bytes, current, mtu_bytes) {
                        return self.counters.drops.count(DropReason::AddressChange);
                    }
                    if let Stage::Handshaking { room_bytes, .. } = &mut owned.stage {
                        match room_bytes.checked_sub(bytes + DATAGRAM_COST_BYTES) {
                            Some(left) => *room_bytes = left,
                            None => return self.counters.drops.count(DropReason::HandshakeLimit),
                        }
                    }
                    owned.link.handle_event(event);
                    if remote != current {
                        owned.moves.received(now, owned.link.connection.remote_address());
                    }
                    touch(&mut self.touched, owned);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(now, incoming, issued_s),
            Some(DatagramEvent::Response(transmit)) => self.respond(outgoing(&transmit), &answer),
            None => self.counters.drops.count(DropReason::ForeignDatagram),
        }
    }

    /// Every source must prove its address (RFC 9000, section 8.1.2) before it costs more than a Retry. Returns what it has proven, if the
    /// endpoint is to see the Initial.
    fn prove_address(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        initial: &Initial<'_>,
        bytes: usize,
    ) -> Option<Claim> {
        let wall_clock = self.wall_clock.now();
        if bytes < INITIAL_BYTES_MIN || initial.destination.len() < CHOSEN_ID_BYTES_MIN {
            self.counters.drops.count(DropReason::ForeignDatagram);
            return None;
        }
        let Some(claim) = self.retries.read(initial.token) else {
            let answer = self.retries.answer(initial, remote, wall_clock);
            let transmit = Transmit { remote, local_ip, ecn: None, bytes: answer.len(), segment_bytes: answer.len() };
            self.counters.retries += u64::from(respond(&mut self.responses, &mut self.counters, transmit, answer));
            return None;
        };
        // Whoever has a token has an ID of ours from the same Retry, and keeps to our IDs from then on.
        if !self.params.connection_id_key.is_ours(initial.destination) {
            self.counters.drops.count(DropReason::ForeignDatagram);
            return None;
        }
        // The connection of a client whose address has changed meanwhile may stand.
        if !claim.holds(remote, wall_clock) && !self.stale_tokens.allows(now) {
            self.counters.drops.count(DropReason::InvalidToken);
            return None;
        }
        // The rest of a ClientHello is not a new handshake.
        let is_fresh = claim.issued_s == retry::seconds(wall_clock);
        if is_fresh && !self.admission.knows(remote) && !self.hears(now, remote) {
            self.counters.drops.count(DropReason::HandshakeRate);
            return None;
        }
        Some(claim)
    }

    /// Whether the first packet of a handshake from `remote` is heard, as it is or because it is not the first one any more.
    fn hears(&mut self, now: Instant, remote: SocketAddr) -> bool {
        match self.failures.standing(now, remote.ip()) {
            Standing::Heard if !self.admission.is_crowded(now, remote.ip()) => true,
            Standing::Heard | Standing::Doubted => self.failures.is_repeated(now, remote),
            Standing::Ignored => false,
        }
    }

    /// Lets a handshake begin, where it may. `issued_s` is when its token was issued.
    fn admit(&mut self, now: Instant, incoming: Incoming, issued_s: Option<u64>) {
        let mut answer = Vec::new();
        if !incoming.remote_address_validated() {
            match self.endpoint.retry(incoming, &mut answer) {
                Ok(transmit) => {
                    self.counters.retries += 1;
                    self.respond(outgoing(&transmit), &answer);
                }
                Err(error) => self.endpoint.ignore(error.into_incoming()),
            }
            return;
        }
        let remote = incoming.remote_address();
        let address = remote.ip();
        let persists = issued_s.is_some_and(|issued_s| issued_s < retry::seconds(self.wall_clock.now()));
        // Not refused: an honest client's next Initial may find room. One for which there is none takes nothing of its source's share.
        let room = self.room(now, address);
        let hindrance = if room == Room::None {
            Some(DropReason::HandshakeLimit)
        } else if !self.failures.admits(now, remote, persists) {
            Some(DropReason::HandshakeRate)
        } else if !self.make_room(now, room) {
            Some(DropReason::HandshakeLimit)
        } else {
            None
        };
        if let Some(hindrance) = hindrance {
            self.endpoint.ignore(incoming);
            return self.counters.drops.count(hindrance);
        }
        match self.endpoint.accept(incoming, now, &mut answer, None) {
            Ok((handle, connection)) => {
                let deadline = now + HELLO_TIMEOUT.min(self.params.handshake_timeout);
                let place = self.admission.admit(remote, handle.0 as u32);
                let stage = Stage::Handshaking { place, deadline, room_bytes: HANDSHAKE_BYTES_MAX };
                let link =
                    TunnelConnection::new(handle, connection, self.params.transport.datagram_send_buffer_bytes_max);
                let slot = self.connections.insert(self.params.index, link, stage, Moves::new(remote, now));
                let owned = self.connections.at(slot).expect("just inserted");
                self.deadlines.arm(slot, &mut owned.armed, deadline, WakeReason::Handshake);
                touch(&mut self.touched, owned);
            }
            Err(error) => {
                // What is answered has come as far as TLS.
                let cost = if error.response.is_some() { COST_OF_FAILURE } else { COST_OF_HALF };
                self.failures.count(now, address, cost);
                self.counters.drops.count(DropReason::Undecryptable);
                let reason = excerpt(error.cause.to_string().as_bytes());
                self.tell(Event::HandshakeFailed { reason });
                if let Some(transmit) = error.response {
                    self.respond(outgoing(&transmit), &answer);
                }
            }
        }
    }

    /// Whether a handshake from `address` finds room. The rest of a ClientHello that came in the same batch is taken before its handshake gives way
    /// as one without.
    fn room(&mut self, now: Instant, address: IpAddr) -> Room {
        let mut looked_at = None;
        loop {
            let room = self.admission.room(now, address);
            let Room::InsteadOf(slot) = room else { return room };
            let is_behind = self.connections.at(slot).is_some_and(|owned| owned.touched);
            if !is_behind || looked_at == Some(slot) {
                return room;
            }
            looked_at = Some(slot);
            self.drive(now, slot);
        }
    }

    /// Sees to it that a handshake for which there is `room` finds it, at the cost of another one where it must be. Returns whether it does.
    fn make_room(&mut self, now: Instant, room: Room) -> bool {
        if self.stopping {
            return false;
        }
        match room {
            Room::Free => {}
            Room::InsteadOf(slot) => self.give_way(now, slot),
            Room::None => return false,
        }
        if self.connections.len() >= self.params.limits.connections_max
            && let Some(slot) = self.admission.first_to_go()
        {
            self.give_way(now, slot);
        }
        self.connections.len() < self.params.limits.connections_max
    }

    /// Queues an answer outside any connection, made of `bytes`.
    pub(super) fn respond(&mut self, transmit: Transmit, bytes: &[u8]) {
        respond(&mut self.responses, &mut self.counters, transmit, bytes);
    }

    /// Calls every connection whose time has come.
    pub(super) fn connection_timeouts(&mut self, now: Instant) {
        while let Some(slot) = self.deadlines.pop_due(now) {
            let Some(owned) = self.connections.at(slot) else { continue };
            owned.armed.fired();
            if owned.link.connection.poll_timeout().is_some_and(|at| at <= now) {
                owned.link.handle_timeout(now);
            }
            // Also re-arms what was woken in vain.
            touch(&mut self.touched, owned);
        }
    }

    /// The next UDP send of any connection, then of those outside.
    pub(super) fn next_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(&slot) = self.sending.front() {
            if let Some(owned) = self.connections.at(slot) {
                let transmit = owned.link.poll_transmit(now, self.params.limits.send_datagrams_max, buf);
                if let Some(transmit) = transmit {
                    let (current, mtu_bytes) =
                        (owned.link.connection.remote_address(), owned.link.connection.current_mtu());
                    owned.moves.sent(now, transmit.remote, transmit.bytes, current, mtu_bytes);
                    return Some(transmit);
                }
                owned.sending = false;
            }
            self.sending.pop_front();
            self.settle(slot);
        }
        // Last, so that live traffic goes first.
        self.responses.pop(buf)
    }

    /// Ends what taking a connection out began, for good.
    pub(super) fn forget(&mut self, mut owned: Box<Owned>) {
        while owned.link.recv().is_some() {
            self.counters.drops.count(DropReason::NotAttached);
        }
        owned.link.count(self.now, &mut self.counters);
        self.memory.queued_bytes -= owned.queued_bytes;
        self.deadlines.disarm(owned.key.slot, &mut owned.armed);
        self.connections.forget(owned);
    }

    /// What is left to do once a connection has nothing more to send in this pass.
    fn settle(&mut self, slot: u32) {
        let Some(mut owned) = self.connections.take(slot) else { return };
        if owned.link.exchange(&mut self.endpoint) {
            return self.forget(owned);
        }
        if owned.is_given_up() {
            // A stranger whose handshake came to nothing is owed no closing period (RFC 9000, section 10.2): it costs memory.
            let _ = self.endpoint.handle_event(owned.link.handle, EndpointEvent::drained());
            return self.forget(owned);
        }
        owned.link.count(self.now, &mut self.counters);
        owned.account(&mut self.memory);
        if owned.link.misuses_crypto() && owned.stage != Stage::Closed {
            touch(&mut self.touched, &mut owned);
        }
        self.follow_path(self.now, &mut owned);
        if let Some(at) = owned.link.poll_timeout() {
            self.deadlines.arm(slot, &mut owned.armed, at, WakeReason::Connection);
        }
        if let Stage::Handshaking { deadline, .. } = owned.stage {
            self.deadlines.arm(slot, &mut owned.armed, deadline, WakeReason::Handshake);
        }
        self.connections.put_back(owned);
    }
}

/// Queues an answer where there is room, and counts it or its loss. Returns whether there was.
fn respond(responses: &mut Responses, counters: &mut Counters, transmit: Transmit, bytes: &[u8]) -> bool {
    let is_queued = responses.push(transmit, bytes);
    if is_queued {
        counters.stateless_responses += 1;
    } else {
        counters.drops.count(DropReason::ResponseQueueFull);
    }
    is_queued
}

/// Whether a datagram begins with a packet of the handshake (RFC 8999, section 5.1).
fn has_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

/// Queues a connection to be looked at.
pub(super) fn touch(touched: &mut std::collections::VecDeque<u32>, owned: &mut Owned) {
    if !owned.touched {
        owned.touched = true;
        touched.push_back(owned.key.slot);
    }
}

/// Queues a connection to send.
pub(super) fn want_to_send(sending: &mut std::collections::VecDeque<u32>, owned: &mut Owned) {
    if !owned.sending {
        owned.sending = true;
        sending.push_back(owned.key.slot);
    }
}
