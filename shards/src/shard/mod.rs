//! A shard: a core's worth of gateway, in its three roles.
//!
//! As *owner* it holds the connections whose IDs steer to it and moves their packets; as *home* it holds the sessions of the users that hash to
//! it; shard 0 is also the *keeper* of the addresses. Roles talk through messages even within one shard, so that where they meet makes no
//! difference.
//!
//! A shard never touches a descriptor, and never another shard.

mod commands;
mod connections;
mod inner;
#[cfg(feature = "inspect")]
pub mod inspect;
mod lifecycle;
mod limited;
mod memory;
mod mtu;
mod outer;
pub mod params;
mod roles;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::crypto::HmacKey;
use quinn_proto::{Endpoint, EndpointConfig, ServerConfig};
use rustc_hash::FxHashMap;

use crate::counters::Counters;
use crate::drops::DropReason;
use crate::forward::policy::Policy;
use crate::forward::routes::Routes;
use crate::ids::{CommandId, ConnectionKey, ShardIndex, UserIndex};
use crate::io::{Received, Transmit, WakeReason};
use crate::limit::bucket::RateLimiter;
use crate::limit::shaper::FlowKey;
use crate::limit::user_queue::{Queues, UserQueue};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::packet::coalesce::Coalescer;
use crate::packet::frame::Frame;
use crate::packet::{MergeKind, PacketPool};
use crate::quic::admission::Admission;
use crate::quic::connection_id::SteeringIds;
use crate::quic::failures::Failures;
use crate::quic::in_flight::InFlight;
use crate::quic::responses::Responses;
use crate::quic::retry;
use crate::quic::retry::{Retries, TokenKey};
use crate::quic::timers::TimerQueue;
use crate::quic::transport::gateway_transport;
use crate::quic::wall_clock::WallClock;
use crate::session::addresses::{AddressAllocator, SteeringUpdate};
use crate::session::home::{ALLOCATOR, SessionHome};
use crate::session::message::{Message, Outbox};
use crate::session::snapshot::Snapshot;
use crate::shard::params::Params;

use connections::Connections;
use roles::Roles;

/// Events that nobody has asked for yet; further ones are counted only. Beyond it goes nothing but the end of each connection, once.
const EVENTS_MAX: usize = 4096;

/// Records of unacknowledged packets may take one part in so many of a shard's memory.
const RECORDS_OF_MEMORY: usize = 4;

/// ICMP messages that a shard sends in a second, and at once (RFC 4443, section 2.4 f).
const REPLIES_PER_S: u64 = 1000;
const REPLIES_BURST: u64 = 100;
/// Narrowed paths that a shard tells of at once; beyond that, one a second.
const NARROWINGS_BURST: u64 = 10;

/// Initials with a token that held once, answered in a second, and at once: a client whose token is too old is to know (RFC 9000, section 8.1.3).
const STALE_TOKENS_PER_S: u64 = 100;
const STALE_TOKENS_BURST: u64 = 20;

/// Time between two stateless resets. A gateway that comes back after a crash owes one to every old client, soon.
const RESET_INTERVAL: std::time::Duration = std::time::Duration::from_micros(100);

/// What a shard's cryptography needs, shared by all shards of a gateway.
#[derive(Clone)]
pub struct ShardKeys {
    /// Key of the stateless reset tokens, kept across restarts.
    pub reset: Arc<dyn HmacKey>,
    /// Key of the Retry tokens, kept across restarts.
    pub token: TokenKey,
}

/// An order from outside.
#[derive(Clone)]
pub enum Command {
    /// Close every connection and take no new ones.
    Stop,
    /// Go over to another epoch: who is not in it any more is closed, limits and addresses are those of the new one.
    Apply {
        /// The order's number.
        ticket: CommandId,
        /// The next epoch.
        epoch: Arc<Snapshot>,
    },
    /// Close a user's connections.
    Kick {
        /// The order's number.
        ticket: CommandId,
        /// Whose.
        user: UserIndex,
    },
}

/// Something to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client has its address.
    Attached {
        /// Who.
        user: UserIndex,
        /// On which connection.
        connection: ConnectionKey,
        /// Its inner address.
        address: IpAddr,
    },
    /// A client that was logged in is gone.
    Detached {
        /// Who.
        user: UserIndex,
        /// On which connection.
        connection: ConnectionKey,
        /// What ended it.
        reason: String,
        /// The epoch that ended it: a later one than the shard's where the user's home is ahead.
        epoch: u64,
    },
    /// Somebody completed a handshake with a certificate that no user has.
    UnknownCertificate {
        /// Its fingerprint.
        certificate: crate::ids::Fingerprint,
    },
    /// The path to a client carries less than before.
    PathNarrowed {
        /// Whose.
        user: UserIndex,
        /// On which connection.
        connection: ConnectionKey,
        /// Largest inner packet that it carries, in bytes.
        mtu_bytes: u16,
        /// Whether that is less than the tunnel's IPv6 needs.
        is_too_narrow: bool,
    },
    /// A client was turned away after its login, because no address is free.
    PoolExhausted {
        /// Who.
        user: UserIndex,
    },
    /// A client was turned away after its login: its user has an address, and those that are left are for users who have none.
    PoolReserved {
        /// Who.
        user: UserIndex,
    },
    /// A client was turned away after its login, because its user has all the connections allowed.
    TooManyConnections {
        /// Who.
        user: UserIndex,
    },
    /// A handshake came to nothing.
    HandshakeFailed {
        /// Why.
        reason: String,
    },
    /// There were more events than anybody asked for.
    Forgotten {
        /// How many are not told of.
        events: u64,
    },
}

/// What the path to one client carries, for the kernel's route to its inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientMtu {
    /// The client's inner address.
    pub address: IpAddr,
    /// The connection that has it. Of two shards, the one whose connection is older may be heard later.
    pub connection: ConnectionKey,
    /// Largest inner packet, in bytes, where it is less than the tunnel's MTU; `None` where it is not, or the client is gone.
    pub mtu_bytes: Option<u16>,
}

/// A core's worth of gateway. See the crate's documentation for how to drive it.
pub struct Shard {
    params: Params,
    policy: Policy,
    epoch: Arc<Snapshot>,
    endpoint: Endpoint,
    keys: ShardKeys,
    connections: Connections,
    admission: Admission,
    allowances: FxHashMap<UserIndex, UserQueue>,
    /// Limited users to be served, because their packets, tokens or time have changed. One entry a user.
    ready: VecDeque<UserIndex>,
    /// When an allowance wants to be served without that. One entry a user.
    allowances_due: BTreeSet<(Instant, UserIndex)>,
    queues: Queues,
    /// Number of the last lease.
    leases: u64,
    deadlines: TimerQueue,
    routes: Routes,
    home: SessionHome,
    keeper: Option<AddressAllocator>,
    outbox: Outbox,
    /// Connections that the batch touched, to be looked at.
    touched: VecDeque<u32>,
    /// Connections that may have something to send.
    sending: VecDeque<u32>,
    responses: Responses,
    retries: Retries,
    /// Initials with tokens that hold no more and are answered nevertheless.
    stale_tokens: RateLimiter,
    failures: Failures,
    steers: VecDeque<SteeringUpdate>,
    /// One entry for each change of a connection's path; the driver takes them in every pass.
    client_mtus: VecDeque<ClientMtu>,
    events: VecDeque<Event>,
    /// Events that nobody was told of yet, not even of their number.
    forgotten_events: u64,
    merger: Coalescer,
    arena: PacketPool,
    memory: Memory,
    in_flight: InFlight,
    replies: RateLimiter,
    narrowings_told: RateLimiter,
    counters: Counters,
    now: Instant,
    wall_clock: WallClock,
    /// Whether anything was handled since the last decision.
    undecided: bool,
    stopping: bool,
    /// The last order that each shard, this one included, has said it has carried out.
    fences: Vec<CommandId>,
}

impl Shard {
    /// A shard without connections.
    ///
    /// # Panics
    ///
    /// If `params` names more than 128 shards, or an index that is not one of them.
    pub fn new(params: Params, keys: &ShardKeys, epoch: Arc<Snapshot>, now: Instant) -> Self {
        assert!(
            params.shards <= 128 && params.index.0 < params.shards,
            "shard {:?} of {}",
            params.index,
            params.shards
        );
        let remembered_max = params.limits.remembered_addresses_max;
        let keeper = (params.index == ALLOCATOR).then(|| {
            AddressAllocator::new(params.tunnel, &epoch.directory, remembered_max, params.shards, params.incarnation)
        });
        let limits = &params.limits;
        let wall_clock = WallClock::new(params.wall_clock, now);
        let in_flight = InFlight::new(limits.memory_bytes_max / RECORDS_OF_MEMORY);
        let config = Arc::new(server_config(&params, keys, &epoch, &wall_clock, &in_flight));
        Shard {
            policy: policy(&params, &epoch),
            endpoint: endpoint(&params, keys, config),
            keys: keys.clone(),
            connections: Connections::new(params.incarnation),
            admission: Admission::new(limits.handshakes_max, limits.handshakes_per_source_max),
            allowances: FxHashMap::default(),
            ready: VecDeque::new(),
            allowances_due: BTreeSet::new(),
            queues: Queues { limits: limits.waiting, key: flow_key(&params.seed) },
            leases: u64::from(params.incarnation) << 32,
            deadlines: TimerQueue::default(),
            routes: Routes::default(),
            home: SessionHome::new(params.index, params.shards, params.incarnation, now),
            keeper,
            outbox: first_words(&params),
            touched: VecDeque::new(),
            sending: VecDeque::new(),
            responses: Responses::default(),
            retries: retries(&params, keys),
            stale_tokens: RateLimiter::new(STALE_TOKENS_PER_S, STALE_TOKENS_BURST, now),
            failures: Failures::new(retry::subkey(&params.seed, b"failures"), now),
            steers: VecDeque::new(),
            client_mtus: VecDeque::new(),
            events: VecDeque::new(),
            forgotten_events: 0,
            merger: Coalescer::new(limits.merge),
            arena: PacketPool::default(),
            memory: Memory::new(limits.memory_bytes_max),
            in_flight,
            replies: RateLimiter::new(REPLIES_PER_S, REPLIES_BURST, now),
            narrowings_told: RateLimiter::new(1, NARROWINGS_BURST, now),
            counters: Counters::default(),
            now,
            undecided: false,
            stopping: false,
            fences: vec![CommandId::default(); usize::from(params.shards)],
            wall_clock,
            epoch,
            params,
        }
    }

    /// Which shard this is.
    pub fn index(&self) -> ShardIndex {
        self.params.index
    }

    /// The counters as they stand.
    pub fn counters(&self) -> Counters {
        let (connections, users) = (self.home.connections() as u64, self.home.users() as u64);
        Counters { connections, users, thinned_acks: self.merger.thinned_acks(), ..self.counters }
    }

    /// Inner packets that passed so far, whichever way.
    pub fn passed_packets(&self) -> u64 {
        self.counters.up_packets + self.counters.down_packets + self.counters.relayed_packets
    }

    /// Addresses held, as the keeper sees it; `None` on every other shard.
    pub fn addresses_held(&self) -> Option<u64> {
        self.keeper.as_ref().map(AddressAllocator::held)
    }

    /// Connections that this shard owns, handshakes and closing ones included.
    pub fn owned_connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the order to stop has been carried out: every connection has said goodbye and may be forgotten.
    pub fn is_stopped(&self) -> bool {
        self.stopping && self.connections.len() == 0
    }

    /// Whether the order to stop has been given and every close frame handed out.
    pub fn has_said_goodbye(&self) -> bool {
        self.stopping && self.sending.is_empty() && self.touched.is_empty()
    }

    /// The last order that every shard has carried out, as far as this one has heard, with nothing under way to it from before. What the order
    /// forbids passes this shard no more, once the outputs of the pass are out.
    pub fn settled(&self) -> CommandId {
        self.fences.iter().copied().min().unwrap_or_default()
    }

    /// Takes a message from another shard.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.begin(now);
        self.receive(now, message);
        self.receive_local(now);
    }

    /// Takes an order from outside.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.begin(now);
        match command {
            Command::Stop => self.stop(now),
            Command::Apply { ticket, epoch } => self.apply(now, ticket, epoch),
            Command::Kick { ticket, user } => self.kick(now, ticket, user),
        }
        self.receive_local(now);
    }

    /// The next message for another shard. To be polled after [`Shard::poll_steer`] is idle: a message may release what a steering entry held.
    pub fn poll_message(&mut self) -> Option<(ShardIndex, Message)> {
        debug_assert!(self.steers.is_empty(), "steering comes before messages");
        let message = self.outbox.poll_remote();
        self.counters.messages += u64::from(message.is_some());
        message
    }

    /// The next change for the kernel's steering of inner addresses.
    pub fn poll_steer(&mut self) -> Option<SteeringUpdate> {
        self.steers.pop_front()
    }

    /// The next change of what the path to a client carries.
    pub fn poll_client_mtu(&mut self) -> Option<ClientMtu> {
        self.client_mtus.pop_front()
    }

    /// The next event for the log.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.forgotten_events > 0 {
            return Some(Event::Forgotten { events: std::mem::take(&mut self.forgotten_events) });
        }
        self.events.pop_front()
    }

    fn begin(&mut self, now: Instant) {
        if now != self.now {
            self.now = now;
            self.wall_clock.set(now);
        }
        self.undecided = true;
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX && !matches!(event, Event::Detached { .. }) {
            self.forgotten_events += 1;
            self.counters.forgotten_events += 1;
            return;
        }
        self.events.push_back(event);
    }

    fn receive_local(&mut self, now: Instant) {
        while let Some(message) = self.outbox.poll_local() {
            self.receive(now, message);
        }
    }

    fn receive(&mut self, now: Instant, message: Message) {
        match message {
            Message::Attached { connection, address } => self.attached(now, connection, address),
            Message::Close { connection, reason, epoch } => self.close_for(now, connection, reason, epoch),
            Message::Route { address, connection } => self.routes.insert(address, connection),
            Message::Unroute { address, connection } => self.routes.remove(address, connection),
            Message::RoutesTold => self.routes.told(),
            Message::LeaseGrant(grant) => self.lease_granted(&grant),
            Message::Fence { from, ticket, revoked } => self.fenced(from, ticket, &revoked),
            Message::Restarted { shard, incarnation } => self.sibling_restarted(now, shard, incarnation),
            Message::Hairpin { connection, packets } => self.deliver_from_mesh(connection, packets),
            Message::Frame(frame) => self.route_frame(&frame, false),
            Message::Datagram(received) => self.receive_datagram(now, received),
            Message::Attach { .. }
            | Message::Detach { .. }
            | Message::AddressAllocated { .. }
            | Message::LeaseReport(_)
            | Message::LeaseClose(_)
            | Message::Reattached { .. } => self.receive_as_home(now, message),
            Message::AllocateAddress { .. }
            | Message::ReleaseAddress { .. }
            | Message::HoldAddress { .. }
            | Message::Held { .. } => self.receive_as_keeper(now, message),
        }
    }
}

impl Machine for Shard {
    fn handle_udp(&mut self, now: Instant, received: Received) {
        self.begin(now);
        self.receive_datagrams(now, received);
    }

    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        self.begin(now);
        self.route_frame(frame, true);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.begin(now);
        self.connection_timeouts(now);
        self.allowance_timeouts(now);
        let Roles { mut context, home, .. } = self.roles(now);
        home.handle_timeout(&mut context);
        self.receive_local(now);
    }

    fn decide(&mut self, now: Instant) {
        self.undecided = false;
        self.now = now;
        self.weigh();
        while !self.merger.is_full()
            && let Some(slot) = self.touched.pop_front()
        {
            self.drive(now, slot);
            self.receive_local(now);
        }
        while !self.merger.is_full()
            && let Some(user) = self.ready.pop_front()
        {
            self.serve(now, user);
            self.receive_local(now);
        }
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        debug_assert!(!self.undecided, "decide comes before poll");
        debug_assert!(buf.is_empty(), "each send has a buffer of its own");
        self.next_transmit(now, buf)
    }

    fn poll_frame(&mut self) -> Option<Frame<'_>> {
        self.merger.poll_frame()
    }

    fn handle_drop(&mut self, reason: DropReason, packets: u64) {
        self.counters.drops.add(reason, packets);
    }

    fn handle_refused_merges(&mut self, kind: MergeKind) {
        self.merger.give_up(kind);
    }

    fn has_backlog(&self) -> bool {
        !self.touched.is_empty()
    }

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        if !self.touched.is_empty() {
            return Some((self.now, WakeReason::Connection));
        }
        if !self.ready.is_empty() {
            return Some((self.now, WakeReason::Tokens));
        }
        let connection = self.deadlines.next().map(|(at, slot)| (at, self.connections.wake_reason(slot)));
        let tokens = self.home.poll_timeout().map(|at| (at, WakeReason::Tokens));
        let waiting = self.allowances_due.first().map(|&(at, _)| (at, WakeReason::Tokens));
        [connection, tokens, waiting].into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}

/// The outbox of a new shard. One that was started anew beside its siblings tells them so before anything else.
fn first_words(params: &Params) -> Outbox {
    let mut outbox = Outbox::new(params.index, params.shards);
    if params.incarnation > 0 {
        let siblings = (0..params.shards).map(ShardIndex).filter(|&sibling| sibling != params.index);
        siblings.for_each(|sibling| {
            outbox.send(sibling, Message::Restarted { shard: params.index, incarnation: params.incarnation })
        });
    }
    outbox
}

/// The part of the seed that the endpoint does not use for itself alone: nobody sees it.
fn flow_key(seed: &[u8; 32]) -> FlowKey {
    FlowKey(seed[16..].try_into().expect("a seed has 32 bytes"))
}

fn policy(params: &Params, epoch: &Snapshot) -> Policy {
    Policy::new(params.index, params.tunnel, &params.outer_addresses, epoch.isolate_clients)
}

fn retries(params: &Params, keys: &ShardKeys) -> Retries {
    // Of another key than the endpoint's own, so that no ID is issued twice.
    let nonce_key = retry::subkey(&params.seed, b"retry id");
    let ids = SteeringIds::new(params.connection_id_key.clone(), params.shards, params.index, nonce_key);
    Retries::new(keys.token.clone(), ids, retry::subkey(&params.seed, b"retry token"))
}

fn endpoint(params: &Params, keys: &ShardKeys, server: Arc<ServerConfig>) -> Endpoint {
    let (shards, index, id_key) = (params.shards, params.index, params.connection_id_key.clone());
    let nonce_key: [u8; 16] = params.seed[..16].try_into().expect("a seed has 32 bytes");
    let mut config = EndpointConfig::new(keys.reset.clone());
    config
        .cid_generator(move || Box::new(SteeringIds::new(id_key.clone(), shards, index, nonce_key)))
        .rng_seed(Some(params.seed))
        .supported_versions(vec![retry::VERSION])
        .min_reset_interval(RESET_INTERVAL);
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    Endpoint::new(Arc::new(config), Some(server), true, None)
}

fn server_config(
    params: &Params,
    keys: &ShardKeys,
    epoch: &Snapshot,
    wall_clock: &WallClock,
    in_flight: &InFlight,
) -> ServerConfig {
    let mut server = ServerConfig::new(epoch.tls.clone(), Arc::new(keys.token.clone()));
    server
        .transport_config(Arc::new(gateway_transport(&params.transport, in_flight)))
        .migration(true)
        .retry_token_lifetime(retry::TOKEN_LIFETIME)
        .max_incoming(params.limits.handshakes_max)
        // An Initial is answered at once, so nothing comes between.
        .incoming_buffer_size(0)
        .incoming_buffer_size_total(0)
        .time_source(Arc::new(wall_clock.clone()));
    server
}
