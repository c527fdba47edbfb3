//! The data plane of a shard: what is done for each packet. It knows users by number, and no session: it says who has logged in, who has gone and
//! which tokens are wanted, and is told who may stay, where addresses lead and which tokens there are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{ConnectionError, Event as ConnectionEvent};

use super::action::Event;
use super::client_mtus::ClientMtus;
use super::downlink::Downlink;
use super::drain::Drain;
use super::message::{Message, Outbox, PacketMessage};
use super::told::{End, Peer};
use super::usage::{EndedUsage, Usage};
use crate::assignment::Assignment;
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::forward::forwarder::Forwarder;
use crate::forward::policy::{Destination, Policy};
use crate::handshake_counts::HandshakeOutcome;
use crate::ids::{ConnectionKey, Credential, Reconnects, ShardIndex, Shards, UserIndex};
use crate::io::{Received, Transmit};
use crate::limit::lease::LeaseClose;
use crate::limit::rate::Limit;
use crate::limit::shaper::{Direction, FlowKey, QueuedPacket};
use crate::limit::user_queues::UserQueues;
use crate::memory::{Accounts, Memory};
use crate::packet::icmp::unasked_reply;
use crate::packet::inner::InnerPacket;
use crate::packet::vnet::VnetHeader;
use crate::params::Params;
use crate::quic::close_code;
use crate::quic::connections::{Identity, Stage};
use crate::quic::endpoint::QuicEndpoint;
use crate::quic::failures::COST_OF_FAILURE;
use crate::quic::intake::Intake;
use crate::quic::keys::ShardKeys;
use crate::quic::peer::{Failed, Failure, words};
use crate::session::message::ControlMessage;
use crate::session::snapshot::Snapshot;

/// What is done for each packet.
pub struct DataPlane {
    pub quic: QuicEndpoint,
    pub forward: Forwarder,
    pub limits: UserQueues,
    pub accounts: Accounts,
    pub outbox: Outbox,
    pub client_mtus: ClientMtus,
    pub(super) drain: Option<Drain>,
    /// What clients have carried that had addresses and are gone.
    pub(super) former_usage: Usage,
    /// The same by user, of those who have gone since the driver asked last.
    pub(super) ended_usage: BTreeMap<UserIndex, EndedUsage>,
    pub here: ShardIndex,
    pub(super) now: Instant,
    /// Of the snapshot that is in force.
    version: u64,
}

/// Somebody has proved to hold the secret of a credential.
#[derive(Debug, Clone, Copy)]
pub struct LoggedIn {
    pub connection: ConnectionKey,
    pub credential: Credential,
    pub reconnects: Reconnects,
}

impl DataPlane {
    pub fn new(params: &Params, keys: &ShardKeys, snapshot: &Snapshot, now: Instant) -> Self {
        let (here, limits) = (params.index, &params.limits);
        let policy = Policy::new(params.tunnel, &params.outer_addresses, snapshot.isolate_clients);
        // The part of the seed that the endpoint does not use for itself alone: nobody sees it.
        let flow_key = FlowKey(params.seed[16..].try_into().expect("a seed has 32 bytes"));
        let mut quic = QuicEndpoint::new(params.clone(), keys, &snapshot.handshakes, now);
        quic.session_limits = snapshot.session_limits;
        DataPlane {
            quic,
            forward: Forwarder::new(policy, limits.merge, now),
            limits: UserQueues::new(here, params.incarnation, limits.waiting, flow_key),
            accounts: Accounts { counters: Counters::default(), memory: Memory::new(limits.memory_bytes_max) },
            outbox: Outbox::new(here, limits.hairpin_packets_max),
            client_mtus: ClientMtus::new(params.transport.mtu_bytes, now),
            drain: None,
            former_usage: Usage::default(),
            ended_usage: BTreeMap::new(),
            here,
            now,
            version: snapshot.version,
        }
    }

    /// Another snapshot is in force.
    pub fn apply(&mut self, snapshot: &Snapshot) {
        self.quic.set_handshakes(&snapshot.handshakes);
        self.forward.policy.isolate_clients = snapshot.isolate_clients;
        self.version = snapshot.version;
        self.limit_sessions(snapshot.session_limits);
    }

    pub fn set_time(&mut self, now: Instant) {
        if now != self.now {
            self.now = now;
            self.quic.wall_clock.set(now);
        }
    }

    // UDP datagrams.

    pub fn handle_udp(&mut self, received: Received) {
        let DataPlane { quic, accounts, outbox, .. } = self;
        quic.handle_udp(self.now, received, accounts, &mut |owner, received| {
            outbox.send(owner, PacketMessage::Datagram(received));
        });
        self.tell_failed();
    }

    pub fn handle_datagram(&mut self, received: Received) {
        self.quic.handle_datagram(self.now, received, &mut self.accounts);
        self.tell_failed();
    }

    /// Once a pass: draws what Retries need, and tells the other shards what this one has to do, if it is time.
    pub fn tell_load(&mut self, shards: Shards) {
        let QuicEndpoint { connections, admission, retries, placement, .. } = &mut self.quic;
        retries.ids.restock();
        placement.set_own(connections.logged_in + admission.pending(), connections.len());
        let Some(load) = placement.poll_load(self.now) else { return };
        let (from, others) = (self.here, shards.iter());
        others.filter(|&to| to != from).for_each(|to| self.outbox.send(to, Message::Load { from, load }));
    }

    /// The next UDP send of any connection, then of those outside.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(slot) = self.quic.connections.first_sending() {
            if let Some(transmit) = self.quic.poll_transmit(now, slot, &mut self.accounts, buf) {
                return Some(transmit);
            }
            self.quic.connections.has_sent();
            self.rest(slot);
        }
        self.quic.responses.pop(buf)
    }

    /// What is left to do once a connection has nothing more to send in this pass.
    fn rest(&mut self, slot: u32) {
        if self.quic.connections.is_touched(slot) {
            // What has happened to it is still to be looked at: if it is over, its home must hear of that before it is forgotten.
            return;
        }
        if self.quic.exchange(slot) {
            return self.quic.forget(self.now, slot, &mut self.accounts);
        }
        let Some(client) = self.quic.connections.at(slot) else { return };
        if client.is_given_up() {
            // A stranger whose handshake came to nothing is owed no closing period (RFC 9000, section 10.2): it costs memory.
            self.quic.give_up(slot);
            return self.quic.forget(self.now, slot, &mut self.accounts);
        }
        client.tunnel.count(self.now, &mut self.accounts.counters);
        client.account(&mut self.accounts.memory);
        if client.tunnel.misuses_crypto() && client.stage != Stage::Closed {
            self.quic.connections.touch(slot);
        }
        self.follow_path(slot);
        let QuicEndpoint { connections, session_limits, .. } = &mut self.quic;
        let timeout = connections.at(slot).and_then(|client| client.poll_timeout(session_limits));
        if let Some((at, reason)) = timeout {
            self.quic.connections.arm(slot, at, reason);
        }
    }

    // Connections from login to goodbye.

    /// Looks at what happened to a connection, until somebody logs in on it.
    pub fn poll_login(&mut self, slot: u32) -> Option<LoggedIn> {
        loop {
            let client = self.quic.connections.at(slot)?;
            let connection = client.key;
            match client.poll_event()? {
                ConnectionEvent::HandshakeDataReady => self.quic.hello_complete(self.now, slot),
                ConnectionEvent::Connected => match self.quic.handshake_complete(slot) {
                    Some((credential, reconnects)) => return Some(LoggedIn { connection, credential, reconnects }),
                    None => self.close(slot, close_code::ESTABLISHMENT_FAILED, "Session establishment failed"),
                },
                ConnectionEvent::ConnectionLost { reason } => self.lost(slot, &reason),
                _ => {}
            }
        }
    }

    /// Takes what has come out of a connection after its events; `is_drained` if the endpoint has forgotten it.
    pub fn drive(&mut self, slot: u32, is_drained: bool) {
        let Some(client) = self.quic.connections.at(slot) else { return };
        let (stage, misuses_crypto) = (client.stage, client.tunnel.misuses_crypto());
        if let Stage::Handshaking { deadline, .. } = stage
            && deadline <= self.now
        {
            self.close(slot, close_code::ESTABLISHMENT_FAILED, "Handshake timed out");
        } else if stage != Stage::Closed && misuses_crypto {
            if matches!(stage, Stage::Handshaking { .. }) {
                self.quic.count_failure(self.now, slot, COST_OF_FAILURE);
            }
            self.close(slot, close_code::MISUSE, "too many CRYPTO frames");
        }
        let are_left = self.answer_too_large(slot) | self.take_inner_packets(slot);
        // What has come is looked at first: a shard that could not run for a while takes nobody for idle who was not.
        self.end_session(slot);
        if are_left {
            self.quic.connections.touch(slot);
        }
        if is_drained {
            return self.quic.forget(self.now, slot, &mut self.accounts);
        }
        self.quic.connections.want_to_send(slot);
    }

    pub fn reject(&mut self, login: LoggedIn) {
        let slot = login.connection.slot;
        self.quic.count_failure(self.now, slot, COST_OF_FAILURE);
        self.quic.handshake_ends.count(login.credential.kind, HandshakeOutcome::UnknownCredential);
        let Credential { kind, fingerprint } = login.credential;
        let peer = self.quic.connections.at(slot).map(|client| Peer::of(client));
        let peer = peer.map(|peer| Peer { credential: Some(fingerprint), ..peer });
        self.outbox.tell(Event::UnknownCredential { kind, fingerprint }, peer);
        self.close(slot, close_code::ESTABLISHMENT_FAILED, "Session establishment failed");
    }

    pub fn identify(&mut self, connection: ConnectionKey, identity: Identity) {
        self.accounts.counters.handshakes += 1;
        if let Some(client) = self.quic.connections.at(connection.slot) {
            self.quic.handshake_ends.count(client.kind, HandshakeOutcome::LoggedIn);
            self.quic.handshake_ends.of(client.kind).times.add(self.now.saturating_duration_since(client.began));
            client.stage = Stage::LoggedIn(identity);
            self.quic.connections.logged_in += 1;
            self.begin_session(connection.slot);
        }
    }

    /// Another shard is the home of whoever has logged in on a connection.
    pub fn rehome(&mut self, connection: ConnectionKey, new_home: ShardIndex) {
        let Some(slot) = self.quic.connections.find(connection) else { return };
        if let Some(client) = self.quic.connections.at(slot)
            && let Stage::LoggedIn(Identity { home, .. }) | Stage::Attached { identity: Identity { home, .. }, .. } =
                &mut client.stage
        {
            *home = new_home;
        }
    }

    /// Who has logged in on a connection that has no address yet.
    pub fn waits_for_address(&mut self, connection: ConnectionKey) -> Option<Identity> {
        let slot = self.quic.connections.find(connection)?;
        match self.quic.connections.at(slot)?.stage {
            Stage::LoggedIn(identity) => Some(identity),
            _ => None,
        }
    }

    /// A connection has its address: the client is told.
    pub fn admit(&mut self, slot: u32, identity: Identity, address: IpAddr, limit: Option<Limit>) {
        let Some(client) = self.quic.connections.at(slot) else { return };
        let assignment = Assignment::new(self.forward.policy.tunnel, address).to_json();
        if !client.tunnel.send_message(&assignment) {
            return self.close(slot, close_code::ESTABLISHMENT_FAILED, "Session establishment failed");
        }
        client.stage = Stage::Attached { identity, address, limited: limit.is_some() };
        let (user, connection) = (identity.user, client.key);
        if let Some(limit) = limit {
            self.limits.join(user, identity.home, limit);
        }
        let peer = Peer::of(client);
        self.outbox.tell(Event::Attached { user, connection, address }, Some(peer));
        self.follow_path(slot);
        self.quic.connections.touch(slot);
    }

    pub fn close(&mut self, slot: u32, code: u32, reason: &'static str) {
        self.close_of(None, slot, code, reason);
    }

    /// Likewise, because another `version` of the snapshot wants it.
    pub fn close_of(&mut self, version: Option<u64>, slot: u32, code: u32, reason: &'static str) {
        self.end(version, slot, (code, reason), End::Gateway(code));
    }

    pub(super) fn end(&mut self, version: Option<u64>, slot: u32, (code, reason): (u32, &'static str), end: End) {
        self.quic.close(self.now, slot, code, reason);
        self.leave(slot, version, &format!("closed by the gateway: {reason} (code {code:#04x})"), end);
    }

    /// Closes every connection, and takes no new ones.
    pub fn stop(&mut self) {
        self.quic.intake = Intake::Closed;
        self.drain = None;
        let slots: Vec<_> = self.quic.connections.iter().map(|client| client.key.slot).collect();
        for slot in slots {
            self.close(slot, close_code::SHUTDOWN, "Server shutdown");
        }
    }

    /// The connections on which somebody has logged in, in the order of slots, with their addresses.
    pub fn clients(&self) -> Vec<(ConnectionKey, Identity, Option<IpAddr>)> {
        let clients = self.quic.connections.iter();
        clients.filter_map(|client| Some((client.key, client.identity()?, client.address()))).collect()
    }

    /// The users who have connections here, limited or not, in order.
    pub fn users(&self) -> Vec<UserIndex> {
        let mut users: Vec<_> =
            self.quic.connections.iter().filter_map(|client| Some(client.identity()?.user)).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// The other side has closed a connection, or it has died.
    fn lost(&mut self, slot: u32, reason: &ConnectionError) {
        if self.quic.handshake_lost(self.now, slot, reason) {
            return self.tell_failed();
        }
        self.leave(slot, None, &words(reason), End::of(reason));
    }

    fn leave(&mut self, slot: u32, version: Option<u64>, reason: &str, end: End) {
        if self.quic.handshake_closed(self.now, slot, reason) {
            return self.tell_failed();
        }
        let Some(client) = self.quic.connections.at(slot) else { return };
        let (connection, peer) = (client.key, Peer { end: Some(end), ..Peer::of(client) });
        let (identity, attached) = match std::mem::replace(&mut client.stage, Stage::Closed) {
            Stage::LoggedIn(identity) => (identity, None),
            Stage::Attached { identity, address, limited } => (identity, Some((address, limited))),
            Stage::Handshaking { .. } | Stage::Closed => return,
        };
        if let Some((address, limited)) = attached {
            let (usage, lasted) = (peer.usage, self.now.saturating_duration_since(client.began));
            self.former_usage += usage;
            *self.ended_usage.entry(identity.user).or_default() += EndedUsage { usage, connections: 1, lasted };
            self.client_mtus.forget(client, address);
            if limited {
                self.leave_queue(identity.user, connection);
            }
        }
        let user = identity.user;
        self.quic.connections.logged_in -= 1;
        self.outbox.send(identity.home, ControlMessage::Gone { user, connection });
        if attached.is_some() {
            let (reason, version) = (reason.to_owned(), version.unwrap_or(self.version));
            self.outbox.tell(Event::Detached { user, connection, reason, version }, Some(peer));
        }
    }

    fn leave_queue(&mut self, user: UserIndex, connection: ConnectionKey) {
        let DataPlane { limits, accounts: Accounts { counters, memory }, .. } = self;
        let closed = limits.leave(user, connection, memory, &mut |waiting| match waiting.direction {
            Direction::Up => counters.drops.count(DropReason::NotAttached),
            Direction::Down => {
                counters.down_packets += 1;
                counters.down_bytes += waiting.packet.len() as u64;
                counters.drops.count(DropReason::ConnectionClosed);
            }
        });
        self.close_lease(closed);
    }

    fn close_lease(&mut self, closed: Option<(ShardIndex, LeaseClose)>) {
        if let Some((home, close)) = closed {
            self.outbox.send(home, ControlMessage::LeaseClosed(close));
        }
    }

    fn tell_failed(&mut self) {
        while let Some(Failed { remote, kind, failure }) = self.quic.failed.pop_front() {
            let mut peer = Peer::stranger(remote, kind);
            let event = match failure {
                Failure::Unlisted(Credential { kind, fingerprint }) => {
                    peer.credential = Some(fingerprint);
                    Event::UnknownCredential { kind, fingerprint }
                }
                Failure::Other(reason) => Event::HandshakeFailed { reason },
            };
            self.outbox.tell(event, Some(peer));
        }
    }

    // Inner packets of clients.

    /// Takes the inner packets that a connection has received, while there is room for what becomes of them. Returns whether some are left.
    #[must_use]
    fn take_inner_packets(&mut self, slot: u32) -> bool {
        let Some(client) = self.quic.connections.at(slot) else { return false };
        let Stage::Attached { identity, address, limited } = client.stage else {
            while client.tunnel.recv().is_some() {
                self.accounts.counters.drops.count(DropReason::NotAttached);
            }
            return false;
        };
        let local_ip = client.tunnel.connection.local_ip();
        let sender = Sender { connection: client.key, user: identity.user, address, local_ip };
        while !self.forward.coalescer.is_full() {
            let Some(packet) = self.quic.connections.at(slot).and_then(|client| client.tunnel.recv()) else { break };
            self.quic.connections.mark_active(slot, self.now);
            self.up(&sender, packet, limited);
        }
        self.forward.coalescer.is_full()
    }

    /// Judges one inner packet of a client, has it pay where its user is limited and it has not yet, and sends it on.
    fn up(&mut self, sender: &Sender, packet: Bytes, pays: bool) {
        let Ok(inner) = InnerPacket::parse(&packet) else {
            return self.accounts.counters.drops.count(DropReason::Malformed);
        };
        // What waits now is judged again when it goes.
        let Forwarder { policy, routes, .. } = &self.forward;
        let destination = match policy.judge(&inner, sender.address, sender.local_ip, routes) {
            Ok(destination) => destination,
            Err(reason) => return self.accounts.counters.drops.count(reason),
        };
        // Only now: what goes nowhere costs nothing.
        let payer = (sender.user, sender.connection);
        if pays && !self.limits.pay(self.now, payer, Direction::Up, &packet, &mut self.accounts) {
            return;
        }
        match destination {
            Destination::Tun => {
                self.accounts.counters.up_packets += 1;
                self.accounts.counters.up_bytes += packet.len() as u64;
                self.forward.write_to_tun(packet, &inner, &mut self.accounts.counters);
            }
            // To itself: the route is its own, and nothing would be learned from it.
            Destination::Client(to) if to == sender.connection => {
                self.accounts.counters.drops.count(DropReason::NoRoute);
            }
            Destination::Client(to) => {
                self.accounts.counters.relayed_packets += 1;
                let packet = self.forward.pool.copy(&packet);
                if to.owner == self.here { self.deliver(to, packet) } else { self.outbox.hairpin(to, packet) }
            }
        }
    }

    /// Takes a frame of the TUN: to a connection of this shard, or once across the mesh.
    pub fn handle_frame(&mut self, frame: &[u8], may_cross: bool) {
        let Some((header, packet)) = VnetHeader::parse(frame) else {
            return self.accounts.counters.drops.count(DropReason::Malformed);
        };
        if let Err(reason) = self.route_frame(&header, packet, frame, may_cross) {
            self.accounts.counters.drops.add(reason, header.packets(packet));
        }
    }

    fn route_frame(
        &mut self,
        header: &VnetHeader,
        packet: &[u8],
        frame: &[u8],
        may_cross: bool,
    ) -> Result<(), DropReason> {
        let inner = InnerPacket::parse(packet).map_err(|_| DropReason::Malformed)?;
        let connection = self.forward.routes.find(inner.destination).ok_or(DropReason::NoRoute)?;
        if connection.owner != self.here {
            if !may_cross {
                return Err(DropReason::NoRoute);
            }
            self.accounts.counters.misrouted_frames += 1;
            let frame = self.forward.pool.copy(frame);
            self.outbox.send(connection.owner, PacketMessage::Frame(frame));
            return Ok(());
        }
        let slot = self.quic.connections.find(connection).ok_or(DropReason::NoRoute)?;
        self.quic.connections.mark_active(slot, self.now);
        let (mut downlink, forward) = self.downlink();
        let sent = downlink.frame(slot, header, packet, forward);
        self.quic.connections.want_to_send(slot);
        sent
    }

    /// Sends an inner packet to a client of this shard.
    pub fn deliver(&mut self, to: ConnectionKey, packet: Bytes) {
        let Some(slot) = self.quic.connections.find(to) else {
            return self.accounts.counters.drops.count(DropReason::NoRoute);
        };
        self.quic.connections.mark_active(slot, self.now);
        let (mut downlink, forward) = self.downlink();
        downlink.deliver(slot, packet, forward);
        self.quic.connections.want_to_send(slot);
    }

    /// The way down to clients, apart from what knows where packets come from.
    fn downlink(&mut self) -> (Downlink<'_>, &mut Forwarder) {
        let downlink = Downlink {
            connections: &mut self.quic.connections,
            limits: &mut self.limits,
            accounts: &mut self.accounts,
            outbox: &mut self.outbox,
            now: self.now,
        };
        (downlink, &mut self.forward)
    }

    // Limited users.

    /// Sends on what the tokens of a user pay for, and asks for more.
    pub fn serve_next(&mut self) {
        let Some(user) = self.limits.next_ready(self.now, &mut self.accounts.counters.drops) else { return };
        while !self.forward.coalescer.is_full() {
            let next = self.limits.next_affordable(self.now, user, &mut self.accounts.counters.drops);
            let Some(waiting) = next else { break };
            self.accounts.counters.waits.add(self.now.saturating_duration_since(waiting.since));
            self.release(waiting);
        }
        if self.forward.coalescer.is_full() {
            self.limits.want_service(user);
        }
        if let Some((home, report)) = self.limits.poll_report(self.now, user, &mut self.accounts.memory) {
            self.outbox.send(home, ControlMessage::LeaseWanted(report));
        }
    }

    /// A packet that has waited goes on its way. What became of the routes meanwhile counts.
    fn release(&mut self, waiting: QueuedPacket) {
        let QueuedPacket { direction, connection, packet, .. } = waiting;
        let found = self.quic.connections.find(connection);
        let Some((slot, client)) = found.and_then(|slot| Some((slot, self.quic.connections.at(slot)?))) else {
            return self.accounts.counters.drops.count(DropReason::NotAttached);
        };
        match (direction, client.stage) {
            (Direction::Up, Stage::Attached { identity, address, .. }) => {
                let local_ip = client.tunnel.connection.local_ip();
                self.up(&Sender { connection, user: identity.user, address, local_ip }, packet, false);
            }
            (Direction::Up, _) => self.accounts.counters.drops.count(DropReason::NotAttached),
            (Direction::Down, _) => {
                self.downlink().0.released(slot, packet);
                self.quic.connections.want_to_send(slot);
            }
        }
    }

    /// A limit holds from now on for a connection that has an address; `None` for none. Whether its user joins a queue only now.
    pub fn set_limited(&mut self, connection: ConnectionKey, limit: Option<Limit>) {
        let Some(slot) = self.quic.connections.find(connection) else { return };
        if let Some(client) = self.quic.connections.at(slot)
            && let Stage::Attached { identity, limited, .. } = &mut client.stage
            && !std::mem::replace(limited, limit.is_some())
            && let Some(limit) = limit
        {
            self.limits.join(identity.user, identity.home, limit);
        }
    }

    /// A limit holds from now on for a user of whom a connection is here; `None` lets everything go that waits.
    pub fn set_limit(&mut self, user: UserIndex, limit: Option<Limit>) {
        let mut released = Vec::new();
        let closed = match limit {
            Some(limit) => self.limits.set_limit(user, limit),
            None => self.limits.lift_limit(user, &mut self.accounts.memory, &mut |waiting| released.push(waiting)),
        };
        self.close_lease(closed);
        released.into_iter().for_each(|waiting| self.release(waiting));
    }

    /// Some clients have been sent away: what they have sent to limited users and waits here goes nowhere.
    pub fn drop_waiting_from(&mut self, sources: &[IpAddr]) {
        if sources.is_empty() {
            return;
        }
        let is_theirs = |waiting: &QueuedPacket| {
            waiting.direction == Direction::Down
                && InnerPacket::parse(&waiting.packet).is_ok_and(|packet| sources.contains(&packet.source))
        };
        for user in self.users() {
            let drops = &mut self.accounts.counters.drops;
            self.limits.take_where(user, is_theirs, &mut |_| drops.count(DropReason::NotAttached));
        }
    }

    // What paths carry.

    /// Looks, once a batch, whether the path of a connection carries something else than was told, and tells.
    fn follow_path(&mut self, slot: u32) {
        let Some(client) = self.quic.connections.at(slot) else { return };
        let carried_bytes = client.tunnel.told_mtu_bytes(self.now);
        let Stage::Attached { identity, address, .. } = client.stage else { return };
        let (who, counters) = ((identity.user, address), &mut self.accounts.counters);
        let event = self.client_mtus.set(self.now, client, who, carried_bytes, counters);
        event.into_iter().for_each(|event| self.outbox.tell(event, None));
        let has_unanswered = client.tunnel.path.has_unanswered();
        let (tunnel, mtu_bytes) = (&self.forward.policy.tunnel, client.tunnel.inner_mtu_bytes());
        if client.tunnel.path.has_confirmation(|| unasked_reply(tunnel.addr(), address, mtu_bytes)) {
            self.quic.connections.want_to_send(slot);
        }
        if has_unanswered {
            // Frames are made while connections are looked at: those of this pass may be out.
            self.quic.connections.touch(slot);
        }
    }

    /// Answers packets that were too large while a connection searched its path, while there is room. Returns whether some are left.
    #[must_use]
    fn answer_too_large(&mut self, slot: u32) -> bool {
        let Some(client) = self.quic.connections.at(slot) else { return false };
        // Nothing is said in the name of a client that has gone.
        if !client.tunnel.path.has_unanswered() || client.address().is_none() {
            return false;
        }
        let told_bytes = client.tunnel.told_mtu_bytes(self.now);
        while !self.forward.coalescer.is_full() {
            let Some(unanswered) = client.tunnel.path.poll_unanswered() else { return false };
            let reply = self.forward.reply_too_big(self.now, &unanswered.head, told_bytes, &mut self.accounts.counters);
            reply.into_iter().for_each(|(to, packet)| self.outbox.hairpin(to, packet));
        }
        client.tunnel.path.has_unanswered()
    }

    /// Sets what queues may hold, once a pass.
    pub fn weigh(&mut self) {
        let others = self.accounts.memory.receive_buffers_bytes
            + self.forward.pool.held_bytes()
            + self.quic.connections_bytes()
            + self.quic.unacknowledged_bytes();
        self.accounts.memory.set_others(others);
    }
}

/// Who sends an inner packet.
struct Sender {
    connection: ConnectionKey,
    user: UserIndex,
    address: IpAddr,
    local_ip: Option<IpAddr>,
}
