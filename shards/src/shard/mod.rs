//! A shard: a core's worth of gateway, in its three roles.
//!
//! As *owner* it holds the connections whose IDs steer to it and moves their packets; as *home* it holds the sessions of the users that hash to
//! it; shard 0 is also the *keeper* of the addresses. Roles talk through messages even within one shard, so that where they meet makes no
//! difference.
//!
//! A shard never touches a descriptor, and never another shard.

mod connections;
mod inner;
mod lifecycle;
mod outer;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::{HandshakeTokenKey, HmacKey, ServerConfig as CryptoConfig};
use quinn_proto::{Endpoint, EndpointConfig, ServerConfig};
use rustc_hash::FxHashMap;

use crate::admission::Admission;
use crate::allowance::Allowance;
use crate::bucket::Bucket;
use crate::connection_id::ShardIndex;
use crate::connection_id::SteeringIds;
use crate::counters::Counters;
use crate::deadlines::Deadlines;
use crate::directory::{Directory, UserIndex};
use crate::home::{Home, KEEPER, Steer};
use crate::machine::{Frame, Machine, Received, Transmit, WakeReason};
use crate::message::{Message, Outbox};
use crate::packet::merge::Merger;
use crate::params::Params;
use crate::policy::Policy;
use crate::pool::Keeper;
use crate::routes::{ConnectionKey, Routes};
use crate::transport::transport;
use crate::verdict::DropReason;

use connections::Connections;

/// Answers outside any connection (Retry, version negotiation, stateless reset) that wait to be sent.
const RESPONSES_MAX: usize = 256;

/// Events that nobody has asked for yet; the oldest are forgotten.
const EVENTS_MAX: usize = 4096;

/// ICMP messages that a shard sends in a second, and at once (RFC 4443, section 2.4 f).
const REPLIES_PER_S: u64 = 1000;
const REPLIES_BURST: u64 = 100;

/// Inner packets are built and copied in chunks of this size, in bytes: two super-packets. A packet
/// that stays queued keeps its whole chunk alive.
const ARENA_BYTES: usize = 128 * 1024;

/// Time between two stateless resets. A gateway that comes back after a crash owes one to every old client, soon.
const RESET_INTERVAL: std::time::Duration = std::time::Duration::from_micros(100);

/// Application close codes, as Quincy uses them, and one of ours.
pub mod close_code {
    /// The gateway or the client stops.
    pub const SHUTDOWN: u32 = 0x01;
    /// The certificate is nobody's, or there is no address.
    pub const ESTABLISHMENT_FAILED: u32 = 0x02;
    /// The user's fixed address has gone to a newer connection.
    pub const SUPERSEDED: u32 = 0x03;
}

/// What a shard's cryptography needs, shared by all shards of a gateway.
#[derive(Clone)]
pub struct ShardKeys {
    /// TLS.
    pub tls: Arc<dyn CryptoConfig>,
    /// Key of the stateless reset tokens, kept across restarts.
    pub reset: Arc<dyn HmacKey>,
    /// Key of the Retry tokens.
    pub token: Arc<dyn HandshakeTokenKey>,
}

/// An order from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Close every connection and take no new ones.
    Stop,
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
    },
    /// Somebody completed a handshake with a certificate that no user has.
    UnknownCertificate {
        /// Its fingerprint.
        certificate: crate::directory::Fingerprint,
    },
    /// A client was turned away after its login, because no address is free.
    PoolExhausted {
        /// Who.
        user: UserIndex,
    },
    /// A handshake came to nothing.
    HandshakeFailed {
        /// Why.
        reason: String,
    },
}

/// A core's worth of gateway. See the crate's documentation for how to drive it.
pub struct Shard {
    params: Params,
    policy: Policy,
    directory: Arc<Directory>,
    endpoint: Endpoint,
    connections: Connections,
    admission: Admission,
    allowances: FxHashMap<UserIndex, Allowance>,
    deadlines: Deadlines,
    routes: Routes,
    home: Home,
    keeper: Option<Keeper>,
    outbox: Outbox,
    /// Connections that the batch touched, to be looked at.
    touched: VecDeque<u32>,
    /// Connections that may have something to send.
    sending: VecDeque<u32>,
    responses: VecDeque<(Transmit, Vec<u8>)>,
    steers: VecDeque<Steer>,
    events: VecDeque<Event>,
    merger: Merger,
    arena: BytesMut,
    replies: Bucket,
    counters: Counters,
    now: Instant,
    /// Whether anything was handled since the last decision.
    undecided: bool,
    stopping: bool,
}

impl Shard {
    /// A shard without connections.
    ///
    /// # Panics
    ///
    /// If `params` names more than 128 shards, or an index that is not one of them.
    pub fn new(params: Params, keys: &ShardKeys, directory: Arc<Directory>, now: Instant) -> Self {
        assert!(
            params.shards <= 128 && params.index.0 < params.shards,
            "shard {:?} of {}",
            params.index,
            params.shards
        );
        let keeper = (params.index == KEEPER)
            .then(|| Keeper::new(params.tunnel, &directory, params.limits.remembered_addresses_max));
        let limits = &params.limits;
        Shard {
            policy: Policy::new(&params),
            endpoint: endpoint(&params, keys),
            connections: Connections::default(),
            admission: Admission::new(limits.handshakes_max, limits.handshakes_per_source_max),
            allowances: FxHashMap::default(),
            deadlines: Deadlines::default(),
            routes: Routes::default(),
            home: Home::new(params.index),
            keeper,
            outbox: Outbox::new(params.index, params.shards),
            touched: VecDeque::new(),
            sending: VecDeque::new(),
            responses: VecDeque::new(),
            steers: VecDeque::new(),
            events: VecDeque::new(),
            merger: Merger::new(limits.merge),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            replies: Bucket::new(REPLIES_PER_S, REPLIES_BURST, now),
            counters: Counters::default(),
            now,
            undecided: false,
            stopping: false,
            directory,
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
        Counters { connections, users, ..self.counters }
    }

    /// Addresses held, as the keeper sees it; `None` on every other shard.
    pub fn addresses_held(&self) -> Option<u64> {
        self.keeper.as_ref().map(Keeper::held)
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
    pub fn poll_steer(&mut self) -> Option<Steer> {
        self.steers.pop_front()
    }

    /// The next event for the log.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn begin(&mut self, now: Instant) {
        self.now = now;
        self.undecided = true;
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn receive_local(&mut self, now: Instant) {
        while let Some(message) = self.outbox.poll_local() {
            self.receive(now, message);
        }
    }

    fn receive(&mut self, now: Instant, message: Message) {
        let Shard { home, directory, outbox, steers, routes, .. } = self;
        match message {
            Message::Attach(login) => home.attach(now, directory, login, outbox),
            Message::Detach { user, connection } => home.detach(user, connection, outbox, steers),
            Message::AllocateAddress { login, home } => {
                let keeper = self.keeper.as_mut();
                let address = keeper.and_then(|keeper| keeper.allocate(login.user, login.certificate));
                outbox.send(home, Message::AddressAllocated { login, address });
            }
            Message::AddressAllocated { login, address } => {
                home.address_allocated(directory, login, address, outbox, steers);
            }
            Message::ReleaseAddress { user, certificate, address } => {
                if let Some(keeper) = &mut self.keeper {
                    keeper.release(user, certificate, address);
                }
            }
            Message::Route { address, connection } => routes.insert(address, connection),
            Message::Unroute { address, connection } => routes.remove(address, connection),
            Message::RequestLease { user, owner, wanted_bytes } => {
                home.request_lease(now, user, owner, wanted_bytes, outbox);
            }
            Message::GrantLease { user, bytes } => self.lease_granted(user, bytes),
            Message::Attached { connection, address, limited } => self.attached(now, connection, address, limited),
            Message::Close { connection, reason } => self.close_for(now, connection, reason),
            Message::Hairpin { connection, packets } => self.deliver_from_mesh(connection, packets),
            Message::Frame(frame) => self.route_frame(&frame, false),
            Message::Datagram(received) => self.receive_datagram(now, received),
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
        self.home.handle_timeout(now, &mut self.outbox);
        self.receive_local(now);
    }

    fn decide(&mut self, now: Instant) {
        self.undecided = false;
        self.now = now;
        while !self.merger.is_full()
            && let Some(slot) = self.touched.pop_front()
        {
            self.drive(now, slot);
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

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        if !self.touched.is_empty() {
            return Some((self.now, WakeReason::Connection));
        }
        let connection = self.deadlines.next().map(|(at, slot)| (at, self.connections.wake_reason(slot)));
        let tokens = self.home.poll_timeout().map(|at| (at, WakeReason::Tokens));
        [connection, tokens].into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}

/// Copies `packet` into `arena`, for where it would otherwise pin a receive buffer of 64 KiB for as long as it is queued.
fn copied(arena: &mut BytesMut, packet: &[u8]) -> Bytes {
    room(arena, packet.len());
    arena.extend_from_slice(packet);
    arena.split().freeze()
}

/// Makes sure that `arena` has room for `bytes`, in a fresh chunk if the current one is used up.
fn room(arena: &mut BytesMut, bytes: usize) {
    if arena.capacity() - arena.len() < bytes {
        arena.reserve(bytes.max(ARENA_BYTES));
    }
}

fn endpoint(params: &Params, keys: &ShardKeys) -> Endpoint {
    let (shards, index, id_key) = (params.shards, params.index, params.connection_id_key.clone());
    let nonce_key: [u8; 16] = params.seed[..16].try_into().expect("a seed has 32 bytes");
    let mut config = EndpointConfig::new(keys.reset.clone());
    config
        .cid_generator(move || Box::new(SteeringIds::new(id_key.clone(), shards, index, nonce_key)))
        .rng_seed(Some(params.seed))
        .min_reset_interval(RESET_INTERVAL);
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    let mut server = ServerConfig::new(keys.tls.clone(), keys.token.clone());
    server
        .transport_config(Arc::new(transport(&params.transport)))
        .migration(true)
        .max_incoming(params.limits.handshakes_max)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(1024 * 1024);
    Endpoint::new(Arc::new(config), Some(Arc::new(server)), true, None)
}
