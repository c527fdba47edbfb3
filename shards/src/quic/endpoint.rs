//! The shard's end of QUIC: datagrams in, UDP sends out, who may begin a handshake and how it ends.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{DatagramEvent, Endpoint, EndpointEvent, Event as ConnectionEvent, Incoming, TimeSource, VarInt};
use tollgate_noise::Handshakes;

use super::admission::{Admission, Room};
use super::connection_id::{IdScheme, Steered, has_long_header};
use super::connections::{ClientConnection, Connections, Stage};
use super::failures::{COST_OF_FAILURE, COST_OF_HALF, Failures, Standing};
use super::handshake_ends::outcome;
use super::in_flight::InFlight;
use super::initial::{self, CHOSEN_ID_BYTES_MIN, INITIAL_BYTES_MIN, Initial, Versions};
use super::intake::Intake;
use super::keys::ShardKeys;
use super::moves::Moves;
use super::peer::{Failed, Failure};
use super::placement::Placement;
use super::responses::Responses;
use super::retry::{self, Claim, Retries};
use super::setup::{endpoint, id_scheme, retries, server_config};
use super::tunnel_connection::{TunnelConnection, outgoing, unanswered};
use super::wall_clock::WallClock;
use crate::counters::Counters;
use crate::deadlines::SessionLimits;
use crate::drops::DropReason;
use crate::handshake_counts::HandshakeCounts;
use crate::ids::{CredentialKind, ShardIndex};
use crate::io::{Received, Transmit};
use crate::limit::bucket::RateLimiter;
use crate::memory::{Accounts, CONNECTION_BYTES};
use crate::params::Params;

/// Records of unacknowledged packets may take one part in so many of a shard's memory.
const RECORDS_OF_MEMORY: usize = 4;
/// How long a ClientHello may take to be complete: its parts are sent at once, and repeated after a second.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// What a client may send before its handshake is complete, in bytes. It bounds what a connection keeps of CRYPTO frames that came out of
/// order, whatever their number and length. Quincy's client sends 4 KiB; the rest is for long certificate chains and repetitions.
const HANDSHAKE_BYTES_MAX: usize = 24 * 1024;
/// What is due again at once, since it could not be sent, waits so long.
const DUE_AGAIN: Duration = Duration::from_millis(1);
/// What keeping a datagram costs beside its bytes.
const DATAGRAM_COST_BYTES: usize = 192;
/// Initials with a token that held once, answered in a second, and at once: a client whose token is too old is to know (RFC 9000, section 8.1.3).
const STALE_TOKENS_PER_S: u32 = 100;
const STALE_TOKENS_BURST: u32 = 20;

pub struct QuicEndpoint {
    endpoint: Endpoint,
    pub connections: Connections,
    pub admission: Admission,
    pub failures: Failures,
    /// They go out after what connections send, so that live traffic goes first.
    pub responses: Responses,
    pub retries: Retries,
    /// Where new clients go.
    pub placement: Placement,
    /// Initials with tokens that hold no more and are answered nevertheless.
    stale_tokens: RateLimiter,
    in_flight: InFlight,
    /// The time of day that tokens are judged by.
    pub wall_clock: WallClock,
    keys: ShardKeys,
    pub ids: IdScheme,
    /// Those of its first handshakes: quinn-proto takes no others later.
    versions: Versions,
    pub(super) params: Params,
    /// Whether handshakes begin.
    pub intake: Intake,
    /// Handshakes that have failed and nobody was told of yet.
    pub failed: VecDeque<Failed>,
    /// What became of all that are over.
    pub handshake_ends: HandshakeCounts,
    pub session_limits: SessionLimits,
}

impl QuicEndpoint {
    /// An endpoint without connections, which will log in with `handshakes`.
    pub fn new(params: Params, keys: &ShardKeys, handshakes: &Handshakes, now: Instant) -> Self {
        let limits = &params.limits;
        let wall_clock = WallClock::new(params.wall_clock, now);
        let in_flight = InFlight::new(limits.memory_bytes_max / RECORDS_OF_MEMORY);
        let server = server_config(&params, keys, handshakes, &wall_clock, &in_flight);
        let versions = Versions::new(handshakes.versions());
        QuicEndpoint {
            endpoint: endpoint(&params, keys, &versions, server),
            connections: Connections::new(params.index, params.incarnation),
            admission: Admission::new(limits.handshakes_max, limits.handshakes_per_source_max),
            failures: Failures::new(retry::subkey(&params.seed, b"failures"), now),
            responses: Responses::default(),
            retries: retries(&params, keys),
            placement: Placement::new(params.index, params.shards, limits.connections_max, now),
            stale_tokens: RateLimiter::new(STALE_TOKENS_PER_S, STALE_TOKENS_BURST, now),
            in_flight,
            wall_clock,
            keys: keys.clone(),
            ids: id_scheme(&params, keys),
            versions,
            params,
            intake: Intake::Open,
            failed: VecDeque::new(),
            handshake_ends: HandshakeCounts::default(),
            session_limits: SessionLimits::default(),
        }
    }

    /// New connections log in with `handshakes` from now on. Of their versions those count that were there from the beginning.
    pub fn set_handshakes(&mut self, handshakes: &Handshakes) {
        let server = server_config(&self.params, &self.keys, handshakes, &self.wall_clock, &self.in_flight);
        self.endpoint.set_server_config(Some(server));
    }

    /// Takes one UDP receive apart. The kernel steers an aggregate by its first datagram, so each one's connection ID is looked at: what belongs
    /// to another shard goes to `misrouted`.
    pub fn handle_udp(
        &mut self,
        now: Instant,
        received: Received,
        accounts: &mut Accounts,
        misrouted: &mut impl FnMut(ShardIndex, Received),
    ) {
        let Received { remote, local_ip, ecn, segment_bytes, mut data } = received;
        while !data.is_empty() {
            let datagram = data.split_to(segment_bytes.clamp(1, data.len()));
            let here = self.params.index;
            match self.ids.steer(&datagram) {
                Steered::To(owner) if owner == here => {
                    let received = Received { remote, local_ip, ecn, segment_bytes, data: datagram };
                    self.handle_datagram(now, received, accounts);
                }
                Steered::To(owner) => {
                    accounts.counters.misrouted_datagrams += 1;
                    // Copied, because shards share no buffers.
                    let data = BytesMut::from(&datagram[..]);
                    misrouted(owner, Received { remote, local_ip, ecn, segment_bytes, data });
                }
                Steered::Foreign => accounts.counters.drops.count(DropReason::ForeignDatagram),
            }
        }
    }

    pub fn handle_datagram(&mut self, now: Instant, received: Received, accounts: &mut Accounts) {
        let Received { remote, local_ip, ecn, mut data, .. } = received;
        let mut hello = None;
        if has_long_header(&data) {
            if let Some(initial) = Initial::parse(&data, &self.versions) {
                match self.prove_address(now, remote, local_ip, &initial, data.len(), &mut accounts.counters) {
                    Some(claim) => hello = Some((claim.issued_s, initial.version)),
                    None => return,
                }
            }
            // What handshakes bring may be kept for as long as they last, so it keeps no receive buffer.
            data = BytesMut::from(initial::of_a_client(&data, &self.versions));
        }
        let (bytes, mut answer) = (data.len(), Vec::new());
        match self.endpoint.handle(now, remote, local_ip, ecn, data, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let slot = handle.0 as u32;
                let Some(client) = self.connections.at(slot) else { return };
                let current = client.tunnel.connection.remote_address();
                let mtu_bytes = client.tunnel.connection.current_mtu();
                if !client.moves.may_receive(now, remote, bytes, current, mtu_bytes) {
                    return accounts.counters.drops.count(DropReason::AddressChange);
                }
                if let Stage::Handshaking { room_bytes, .. } = &mut client.stage {
                    match room_bytes.checked_sub(bytes + DATAGRAM_COST_BYTES) {
                        Some(left) => *room_bytes = left,
                        None => return accounts.counters.drops.count(DropReason::HandshakeLimit),
                    }
                }
                let answers = |client: &ClientConnection| client.tunnel.connection.stats().frame_rx.path_response;
                let answers_before = client.moves.is_unproven(remote).then(|| answers(client));
                client.hear(now, event);
                if answers_before.is_some_and(|before| answers(client) > before) {
                    client.moves.answer(remote);
                }
                if remote != current {
                    client.moves.follow(now, client.tunnel.connection.remote_address());
                }
                self.connections.touch(slot);
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(now, incoming, hello, accounts),
            Some(DatagramEvent::Response(transmit)) => {
                self.responses.respond(outgoing(&transmit), &answer, &mut accounts.counters);
            }
            None => accounts.counters.drops.count(DropReason::ForeignDatagram),
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
        counters: &mut Counters,
    ) -> Option<Claim> {
        let wall_clock = self.wall_clock.now();
        if bytes < INITIAL_BYTES_MIN || initial.destination.len() < CHOSEN_ID_BYTES_MIN {
            counters.drops.count(DropReason::ForeignDatagram);
            return None;
        }
        let Some(claim) = self.retries.read(initial.token) else {
            let owner = self.placement.choose(now, remote, initial.destination);
            let answer = self.retries.answer(initial, remote, wall_clock, owner);
            let transmit = Transmit { remote, local_ip, ecn: None, bytes: answer.len(), segment_bytes: answer.len() };
            counters.retries += u64::from(self.responses.respond(transmit, answer, counters));
            return None;
        };
        // Whoever has a token has an ID of ours from the same Retry, and keeps to our IDs from then on. The process that sent it may be dead.
        if !self.ids.whose(initial.destination).is_answered() {
            counters.drops.count(DropReason::ForeignDatagram);
            return None;
        }
        // The connection of a client whose address has changed meanwhile may stand.
        if !claim.holds(remote, wall_clock) && !self.stale_tokens.allows(now) {
            counters.drops.count(DropReason::InvalidToken);
            return None;
        }
        // The rest of a ClientHello is not a new handshake.
        let is_fresh = claim.issued_s == retry::seconds(wall_clock);
        if is_fresh && !self.admission.knows(remote) && !self.hears(now, remote) {
            counters.drops.count(DropReason::HandshakeRate);
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

    /// Lets a handshake begin, where it may. `hello` is when its token was issued, and its version of QUIC.
    fn admit(&mut self, now: Instant, incoming: Incoming, hello: Option<(u64, u32)>, accounts: &mut Accounts) {
        let mut answer = Vec::new();
        if !incoming.remote_address_validated() {
            match self.endpoint.retry(incoming, &mut answer) {
                Ok(transmit) => {
                    accounts.counters.retries += 1;
                    self.responses.respond(outgoing(&transmit), &answer, &mut accounts.counters);
                }
                Err(error) => self.endpoint.ignore(error.into_incoming()),
            }
            return;
        }
        let remote = incoming.remote_address();
        let address = remote.ip();
        let persists = hello.is_some_and(|(issued_s, _)| issued_s < retry::seconds(self.wall_clock.now()));
        let kind = CredentialKind::of_version(hello.map_or(0, |(_, version)| version));
        if !self.intake.is_open() {
            let QuicEndpoint { intake, endpoint, responses, .. } = self;
            return intake.turn_away(endpoint, incoming, responses, &mut accounts.counters);
        }
        // Not refused: an honest client's next Initial may find room. One for which there is none takes nothing of its source's share.
        let room = self.room(now, address);
        let hindrance = if room == Room::None {
            Some(DropReason::HandshakeLimit)
        } else if !self.failures.admits(now, remote, persists) {
            Some(DropReason::HandshakeRate)
        } else if !self.make_room(now, room, accounts) {
            Some(DropReason::HandshakeLimit)
        } else {
            None
        };
        if let Some(hindrance) = hindrance {
            self.endpoint.ignore(incoming);
            return accounts.counters.drops.count(hindrance);
        }
        match self.endpoint.accept(incoming, now, &mut answer, None) {
            Ok((handle, connection)) => {
                let deadline = now + HELLO_TIMEOUT.min(self.params.handshake_timeout);
                let place = self.admission.admit(now, remote, handle.0 as u32);
                let queued_bytes_max = self.params.transport.datagram_send_buffer_bytes_max;
                let tunnel = TunnelConnection::new(handle, connection, queued_bytes_max);
                let moves = Moves::new(remote, now);
                self.connections.insert((now, deadline), tunnel, kind, place, HANDSHAKE_BYTES_MAX, moves);
            }
            Err(error) => {
                // What is answered has come as far as TLS.
                let cost = if error.response.is_some() { COST_OF_FAILURE } else { COST_OF_HALF };
                self.failures.count(now, address, cost);
                accounts.counters.drops.count(DropReason::Undecryptable);
                self.handshake_ends.count(kind, outcome(&error.cause));
                self.failed.push_back(Failed { remote, kind, failure: Failure::of(&error.cause) });
                if let Some(transmit) = error.response {
                    self.responses.respond(outgoing(&transmit), &answer, &mut accounts.counters);
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
            if !self.connections.is_touched(slot) || looked_at == Some(slot) {
                return room;
            }
            looked_at = Some(slot);
            self.look_early(now, slot);
        }
    }

    /// Looks at what has happened to a handshake before its turn has come.
    fn look_early(&mut self, now: Instant, slot: u32) {
        while let Some(client) = self.connections.at(slot)
            && client.early_event.is_none()
            && let Some(event) = client.tunnel.connection.poll()
        {
            match event {
                ConnectionEvent::HandshakeDataReady => self.hello_complete(now, slot),
                ConnectionEvent::ConnectionLost { reason } => drop(self.handshake_lost(now, slot, &reason)),
                other => client.early_event = Some(other),
            }
        }
    }

    /// Sees to it that a handshake for which there is `room` finds it, at the cost of another one where it must be. Returns whether it does.
    fn make_room(&mut self, now: Instant, room: Room, accounts: &mut Accounts) -> bool {
        match room {
            Room::Free => {}
            Room::InsteadOf(slot) => self.give_way(now, slot, accounts),
            Room::None => return false,
        }
        if self.connections.len() >= self.params.limits.connections_max
            && let Some(slot) = self.admission.first_to_go(now)
        {
            self.give_way(now, slot, accounts);
        }
        self.connections.len() < self.params.limits.connections_max
    }

    /// Carries messages between a connection and the endpoint. Afterwards the endpoint has forgotten the connection if it says `true`.
    pub fn exchange(&mut self, slot: u32) -> bool {
        self.connections.at(slot).is_some_and(|client| client.tunnel.exchange(&mut self.endpoint))
    }

    /// Closes a connection, if it is not closed already.
    pub fn close(&mut self, now: Instant, slot: u32, code: u32, reason: &'static str) {
        if let Some(client) = self.connections.at(slot)
            && !client.tunnel.connection.is_closed()
        {
            client.tunnel.connection.close(now, VarInt::from_u32(code), Bytes::from_static(reason.as_bytes()));
        }
        self.connections.touch(slot);
    }

    /// The endpoint forgets a connection before its closing period is over.
    pub fn give_up(&mut self, slot: u32) {
        if let Some(client) = self.connections.at(slot) {
            let _ = self.endpoint.handle_event(client.tunnel.handle, EndpointEvent::drained());
        }
    }

    /// Takes a connection out for good that the endpoint has forgotten.
    pub fn forget(&mut self, now: Instant, slot: u32, accounts: &mut Accounts) {
        let Some(client) = self.connections.at(slot) else { return };
        while client.tunnel.recv().is_some() {
            accounts.counters.drops.count(DropReason::NotAttached);
        }
        client.tunnel.count(now, &mut accounts.counters);
        self.connections.remove(slot, &mut accounts.memory);
    }

    /// Calls every connection whose time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.connections.pop_due(now) {
            let Some(client) = self.connections.at(slot) else { continue };
            if client.tunnel.connection.poll_timeout().is_some_and(|at| at <= now) {
                client.tunnel.handle_timeout(now);
            }
            // What it sends changes that, but as long as the driver's socket is full it sends nothing.
            if let Some((at, reason)) = client.poll_timeout(&self.session_limits) {
                self.connections.arm(slot, at.max(now + DUE_AGAIN), reason);
            }
            self.connections.touch(slot);
        }
    }

    /// The next UDP send of the connection in `slot`.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        slot: u32,
        accounts: &mut Accounts,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let client = self.connections.at(slot)?;
        let Accounts { counters, memory } = accounts;
        let datagrams_max = self.params.limits.send_datagrams_max;
        loop {
            let unanswered_before = client.moves.has_answered().then(|| unanswered(&client.tunnel.connection));
            let handed_bytes_max = client.handed_bytes_max(memory);
            let transmit = client.tunnel.poll_transmit(now, datagrams_max, handed_bytes_max, buf);
            client.account_handed(memory);
            let transmit = transmit?;
            let connection = &client.tunnel.connection;
            // A challenge is repeated with all that is sent until its answer has come.
            if unanswered_before.is_some_and(|before| before == unanswered(connection)) {
                client.moves.prove(transmit.remote);
            }
            let (current, mtu_bytes) = (connection.remote_address(), connection.current_mtu());
            if client.moves.may_send(now, transmit.remote, transmit.bytes, current, mtu_bytes) {
                return Some(transmit);
            }
            counters.drops.add(DropReason::AddressChange, transmit.datagrams() as u64);
            buf.clear();
        }
    }

    /// What connections and handshakes take, with what those may have sent out of order, in bytes.
    pub fn connections_bytes(&self) -> usize {
        self.connections.len() * CONNECTION_BYTES + self.admission.pending() * HANDSHAKE_BYTES_MAX
    }

    /// What the records of unacknowledged packets take, in bytes.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.in_flight.bytes()
    }
}
