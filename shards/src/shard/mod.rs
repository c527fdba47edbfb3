//! A shard: a core's worth of gateway.
//!
//! It is made of two planes. The data plane moves packets; the control plane holds sessions, addresses and what commands change. Here is the only
//! place that knows both: what one has for the other, or for another shard, passes through here. A plane is told of a message in the same way
//! whether it came from this shard or from another, so that where they meet makes no difference.
//!
//! A shard never touches a descriptor, and never another shard.

pub mod action;
mod client_mtus;
pub mod control;
mod data;
mod downlink;
mod drain;
mod figures;
mod handover;
#[cfg(feature = "inspect")]
pub mod inspect;
pub mod message;
mod sessions;
#[cfg(feature = "inspect")]
pub mod states;
pub mod told;
pub mod usage;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::drops::DropReason;
use crate::ids::{CommandId, ConnectionKey, Credential, Fingerprint, SHARDS_MAX, ShardIndex, UserIndex};
use crate::io::{Received, WakeReason};
use crate::machine::{Machine, Output};
use crate::packet::MergeKind;
use crate::params::Params;
use crate::quic::close_code;
use crate::quic::connections::Identity;
use crate::quic::endpoint::QuicEndpoint;
use crate::quic::intake::Intake;
use crate::quic::keys::ShardKeys;
use crate::session::context::Context;
use crate::session::message::{CloseReason, ControlMessage};
use crate::session::snapshot::Snapshot;
use crate::session::topology::Topology;

use action::{Action, Command, Event};
use control::ControlPlane;
use data::{DataPlane, LoggedIn};
use handover::{Attaching, login};
use message::{Message, PacketMessage};

/// A core's worth of gateway. See the crate's documentation for how to drive it.
pub struct Shard {
    data: DataPlane,
    control: ControlPlane,
    /// Whether anything was handled since connections were last looked at.
    undecided: bool,
    attaching: Option<Attaching>,
    /// Whether its process has yet to get the memory of the one before it.
    is_taking_over: bool,
}

impl Shard {
    /// A shard without connections.
    ///
    /// # Panics
    ///
    /// If `params` names more than [`SHARDS_MAX`](crate::SHARDS_MAX) shards, or a shard that is not one of them.
    pub fn new(params: Params, keys: &ShardKeys, snapshot: Arc<Snapshot>, now: Instant) -> Self {
        let (here, shards) = (params.index, params.shards);
        assert!(shards.count <= SHARDS_MAX && shards.contains(here), "{here:?} of {shards:?}");
        let predecessor = params.predecessor;
        assert!(predecessor.is_none_or(|before| before.generation != shards.generation), "two of {shards:?}");
        let topology = predecessor.map_or(Topology::alone(shards), |before| Topology::succeeding(shards, before));
        let context = Context::new(topology, snapshot.version, snapshot.users.clone(), now);
        let remembered_max = params.limits.remembered_addresses_max;
        let mut data = DataPlane::new(&params, keys, &snapshot, now);
        data.quic.ids.set_sibling(predecessor);
        Shard {
            data,
            control: ControlPlane::new(here, params.incarnation, params.tunnel, remembered_max, context),
            undecided: false,
            attaching: None,
            is_taking_over: predecessor.is_some(),
        }
    }

    pub fn index(&self) -> ShardIndex {
        self.data.here
    }

    /// What the shard holds, for those who check from outside that shards agree. Everything is copied, and in order.
    #[cfg(feature = "inspect")]
    pub fn inspect(&self) -> inspect::Inspect<'_> {
        inspect::Inspect(self)
    }

    /// Takes note of the driver's receive buffers, in bytes, with those of which the shard has kept a part.
    pub fn handle_receive_buffers(&mut self, bytes: usize) {
        self.data.accounts.memory.receive_buffers_bytes = bytes;
    }

    /// Takes note of the share of the time in which the driver had work, in percent.
    pub fn handle_busy(&mut self, percent: u8) {
        self.data.quic.placement.set_busy(percent);
    }

    /// Frees what is only kept to be used again.
    pub fn give_back(&mut self) {
        self.data.forward.pool.free();
    }

    /// Whether the command to stop has been executed: every connection has said goodbye and may be forgotten.
    pub fn is_stopped(&self) -> bool {
        self.data.quic.intake == Intake::Closed && self.owned_connections() == 0
    }

    /// Whether the command to stop has been given and every close frame handed out.
    pub fn has_said_goodbye(&self) -> bool {
        let QuicEndpoint { intake, connections, .. } = &self.data.quic;
        *intake == Intake::Closed && connections.first_sending().is_none() && !connections.has_touched()
    }

    /// Whether its process has yet to take over: to get the memory of the one before it, which serves the clients until then.
    pub fn is_taking_over(&self) -> bool {
        self.is_taking_over
    }

    /// The last command that every shard has executed, as far as this one has heard, with nothing under way to it from before. What the command
    /// forbids passes this shard no more, once the outputs of the pass are out.
    pub fn completed(&self) -> CommandId {
        self.control.barriers.completed()
    }

    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.begin(now);
        self.receive(message);
        self.exchange();
    }

    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.begin(now);
        match command {
            Command::Stop => self.data.stop(),
            Command::Drain { over, within, to_successor } => self.data.drain(over, within, to_successor),
            Command::Resume => self.data.resume(),
            Command::Apply { id, snapshot } => self.apply(id, &snapshot),
            Command::Kick { id, user } => {
                let revoked = self.revoke("Disconnected by the operator", |kicked, _, _| kicked == user);
                self.control.executed(id, &revoked);
            }
            Command::HandOver { id, to, incarnation } => self.hand_over(id, to, incarnation),
            Command::TakeBack { id, incarnation } => self.take_back(id, incarnation),
            Command::PredecessorGone => self.lose_predecessor(),
        }
        self.exchange();
    }

    fn begin(&mut self, now: Instant) {
        self.set_time(now);
        self.undecided = true;
    }

    fn set_time(&mut self, now: Instant) {
        self.control.context.now = now;
        self.data.set_time(now);
    }

    /// Carries what the planes have for each other, until neither has anything.
    fn exchange(&mut self) {
        self.collect();
        loop {
            while let Some(message) = self.data.outbox.local.pop_front() {
                self.receive(message);
                self.collect();
            }
            if !self.attach_if_due() {
                return;
            }
            self.collect();
        }
    }

    /// Sends what the control plane has for either plane of any shard.
    fn collect(&mut self) {
        while let Some((to, message)) = self.control.context.outbox.pop_front() {
            self.data.outbox.send(to, message);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Packet(PacketMessage::Hairpin { connection, packets }) => {
                packets.into_iter().for_each(|packet| self.data.deliver(connection, packet));
            }
            Message::Packet(PacketMessage::Frame(frame)) => self.data.handle_frame(&frame, false),
            Message::Packet(PacketMessage::Datagram(received)) => self.data.handle_datagram(received),
            Message::Control(message) => self.receive_control(message),
            Message::Load { from, load } => self.data.quic.placement.told(from, load),
        }
    }

    fn receive_control(&mut self, message: ControlMessage) {
        use ControlMessage as M;
        let Shard { data, control, .. } = self;
        match message {
            M::Admit { connection, address, age_ms } => self.admit(connection, address, age_ms),
            M::Close { connection, reason, version } => self.close(connection, reason, version),
            M::Route { address, connection } => data.forward.routes.insert(address, connection),
            M::Unroute { address, connection } => data.forward.routes.remove(address, connection),
            M::RoutesTold => self.routes_told(),
            M::Tokens(grant) => {
                data.accounts.counters.lease_grants += 1;
                data.limits.handle_grant(&grant);
            }
            M::Restarted { shard, incarnation } => self.sibling_restarted(shard, incarnation),
            M::Limit { user, limit } => self.limit_told(user, limit),
            message => {
                if let M::Barrier { revoked, .. } = &message {
                    data.drop_waiting_from(revoked);
                }
                control.handle_message(message);
            }
        }
    }

    /// Looks at every connection that the batch touched, and serves the limited users whose tokens or packets have come, as far as there is room.
    fn look_at_touched(&mut self, now: Instant) {
        self.set_time(now);
        self.data.weigh();
        while !self.data.forward.coalescer.is_full()
            && let Some(slot) = self.data.quic.connections.next_touched()
        {
            self.drive(slot);
        }
        while !self.data.forward.coalescer.is_full() && self.data.limits.has_ready() {
            self.data.serve_next();
            self.exchange();
        }
        self.data.tell_load(self.control.context.topology.own);
    }

    /// Looks at one connection that the batch touched: what happened to it, what came out of it.
    fn drive(&mut self, slot: u32) {
        let is_drained = self.data.quic.exchange(slot);
        while let Some(login) = self.data.poll_login(slot) {
            self.log_in(login);
        }
        self.data.drive(slot, is_drained);
        self.exchange();
    }

    /// Somebody has proved to hold the secret of a credential: the user's home is asked for an address.
    fn log_in(&mut self, logged_in: LoggedIn) {
        let LoggedIn { connection, credential, reconnects } = logged_in;
        let Credential { kind, fingerprint: credential } = credential;
        let Some(user) = self.control.context.users.find(&credential) else { return self.data.reject(logged_in) };
        let home = self.control.home(user);
        let identity = Identity { user, home, credential, kind, reconnects };
        self.data.identify(connection, identity);
        let login = login(connection, identity);
        let version = self.control.context.version;
        self.data.outbox.send(home, ControlMessage::Login { login, version, address: None, age_ms: 0 });
        // Its handshake had begun before.
        self.data.send_away_late(connection, reconnects);
    }

    /// The home has taken a connection in.
    fn admit(&mut self, connection: ConnectionKey, address: IpAddr, age_ms: u64) {
        let Some(identity) = self.data.waits_for_address(connection) else { return };
        // The home may be a snapshot behind.
        if self.control.context.users.allows(identity.user, address) {
            self.data.admit(connection.slot, identity, address, self.control.limit(identity.user));
            self.data.resume_session(connection.slot, age_ms);
        } else {
            self.data.close(connection.slot, close_code::REVOKED, "Access revoked");
        }
    }

    /// The home wants a connection closed.
    fn close(&mut self, connection: ConnectionKey, reason: CloseReason, version: u64) {
        let Some(slot) = self.data.quic.connections.find(connection) else { return };
        let who = self
            .data
            .quic
            .connections
            .at(slot)
            .and_then(|client| Some((client.identity()?.user, told::Peer::of(client))));
        let refused = who.and_then(|(user, peer)| match reason {
            CloseReason::PoolExhausted => Some((Event::PoolExhausted { user }, peer)),
            CloseReason::PoolReserved => Some((Event::PoolReserved { user }, peer)),
            CloseReason::TooManyConnections => Some((Event::TooManyConnections { user }, peer)),
            CloseReason::OverQuota => Some((Event::OverQuota { user }, peer)),
            CloseReason::Revoked | CloseReason::Superseded | CloseReason::Moved => None,
        });
        refused.into_iter().for_each(|(event, peer)| self.data.outbox.tell(event, Some(peer)));
        let (code, reason) = match reason {
            CloseReason::PoolExhausted | CloseReason::PoolReserved => {
                (close_code::ESTABLISHMENT_FAILED, "Session establishment failed")
            }
            CloseReason::TooManyConnections => (close_code::ESTABLISHMENT_FAILED, "Too many connections"),
            CloseReason::Revoked => (close_code::REVOKED, "Access revoked"),
            CloseReason::Superseded => (close_code::SUPERSEDED, "Superseded by a newer connection"),
            CloseReason::Moved => (close_code::UPGRADE, "Moved to a newer connection"),
            CloseReason::OverQuota => (close_code::QUOTA, "The quota is used up"),
        };
        self.data.close_of(Some(version), slot, code, reason);
    }

    /// Goes over to another snapshot: whoever may not stay is closed, other limits hold for the others.
    fn apply(&mut self, command: CommandId, snapshot: &Snapshot) {
        self.data.apply(snapshot);
        self.control.context.version = snapshot.version;
        self.control.context.users = snapshot.users.clone();
        let mut limited = Vec::new();
        let users = &snapshot.users;
        let revoked = self.revoke("Access revoked", |user, connection, (credential, address)| {
            if users.find(&credential) != Some(user) || address.is_some_and(|address| !users.allows(user, address)) {
                return true;
            }
            limited.extend(address.map(|_| (user, connection)));
            false
        });
        self.hold_limits(&limited);
        self.control.apply();
        self.control.executed(command, &revoked);
    }

    /// The limits that are in force hold for connections with addresses, all of their users.
    fn hold_limits(&mut self, connections: &[(UserIndex, ConnectionKey)]) {
        for &(user, connection) in connections {
            self.data.set_limited(connection, self.control.limit(user));
        }
        let users: BTreeSet<_> = connections.iter().map(|&(user, _)| user).collect();
        users.into_iter().for_each(|user| self.data.set_limit(user, self.control.limit(user)));
    }

    /// Closes every connection on which somebody has logged in and that `is_over`. Returns the inner addresses that they had.
    fn revoke(
        &mut self,
        reason: &'static str,
        mut is_over: impl FnMut(UserIndex, ConnectionKey, (Fingerprint, Option<IpAddr>)) -> bool,
    ) -> Vec<IpAddr> {
        let mut revoked = Vec::new();
        for (connection, identity, address) in self.data.clients() {
            if is_over(identity.user, connection, (identity.credential, address)) {
                revoked.extend(address);
                self.data.close(connection.slot, close_code::REVOKED, reason);
            }
        }
        revoked
    }

    /// A sibling has lost its memory: it is told what it must know, and what it held is void.
    fn sibling_restarted(&mut self, shard: ShardIndex, incarnation: u32) {
        let version = self.control.context.version;
        let mut users = BTreeSet::new();
        for (connection, identity, address) in self.data.clients() {
            if identity.home == shard {
                let login = login(connection, identity);
                let age_ms = self.data.session_age_ms(connection.slot);
                self.data.outbox.send(shard, ControlMessage::Login { login, version, address, age_ms });
                users.insert(identity.user);
            }
        }
        users.into_iter().for_each(|user| self.data.limits.expire_lease(user));
        self.data.forward.routes.forget_before(shard, incarnation);
        self.data.quic.placement.forget(shard, self.control.context.now);
        if shard == self.control.context.topology.allocator() {
            self.data.forward.routes.doubt();
        }
        self.control.sibling_restarted(shard, incarnation);
    }
}

impl Machine for Shard {
    type Action = Action;

    fn handle_udp(&mut self, now: Instant, received: Received) {
        self.begin(now);
        self.data.handle_udp(received);
    }

    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        self.begin(now);
        self.data.handle_frame(frame, true);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.begin(now);
        self.data.quic.handle_timeout(now);
        self.data.send_away();
        self.data.limits.handle_timeout(now);
        self.control.sessions.handle_timeout(&mut self.control.context);
        self.exchange();
    }

    fn poll_output(
        &mut self,
        now: Instant,
        takes_frames: bool,
        buf: Option<&mut Vec<u8>>,
    ) -> Option<Output<'_, Action>> {
        if std::mem::take(&mut self.undecided) {
            self.look_at_touched(now);
        }
        if takes_frames {
            if !self.data.forward.coalescer.is_empty() {
                return self.data.forward.coalescer.poll_frame().map(Output::Frame);
            }
            // Lets go of the last one.
            self.data.forward.coalescer.poll_frame();
        }
        if let Some(buf) = buf {
            debug_assert!(buf.is_empty(), "each send has a buffer of its own");
            if let Some(transmit) = self.data.poll_transmit(now, buf) {
                return Some(Output::Transmit(transmit));
            }
        }
        self.collect();
        // Steering comes before messages.
        let action = if let Some(update) = self.control.context.steers.pop_front() {
            Action::Steering(update)
        } else if let Some(mtu) = self.data.client_mtus.changes.pop_front() {
            Action::ClientMtu(mtu)
        } else if let Some((to, message)) = self.data.outbox.remote.pop_front() {
            self.data.accounts.counters.messages += 1;
            Action::Send(to, message)
        } else {
            Action::Tell(self.data.outbox.poll_told()?)
        };
        Some(Output::Action(action))
    }

    fn handle_drop(&mut self, reason: DropReason, packets: u64) {
        self.data.accounts.counters.drops.add(reason, packets);
    }

    fn handle_refused_merges(&mut self, kind: MergeKind) {
        self.data.forward.coalescer.give_up(kind);
    }

    fn has_backlog(&self) -> bool {
        self.data.quic.connections.has_touched()
    }

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        if self.has_backlog() {
            return Some((self.control.context.now, WakeReason::Connection));
        }
        if self.data.limits.has_ready() {
            return Some((self.control.context.now, WakeReason::Tokens));
        }
        let connection = self.data.quic.connections.poll_timeout();
        let tokens = self.control.sessions.poll_timeout();
        let waiting = self.data.limits.poll_timeout();
        let drain = self.data.drain_timeout().map(|at| (at, WakeReason::Drain));
        let tokens = [tokens, waiting].into_iter().flatten().min().map(|at| (at, WakeReason::Tokens));
        let load = self.data.quic.placement.poll_timeout().map(|at| (at, WakeReason::Load));
        [connection, tokens, load, drain].into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}
