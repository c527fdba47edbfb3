//! The client's end of the tunnel: one connection, one address, one TUN queue.
//!
//! `tollgate connect`, the load generator and the simulator are shells around this machine. It never reconnects by itself: whoever drives it
//! decides whether and when to make a new one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::{ClientConfig as CryptoConfig, HmacKey};
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionId, ConnectionIdGenerator, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event as ConnectionEvent, StreamEvent, StreamId, VarInt,
};

use crate::assignment::{ASSIGNMENT_BYTES_MAX, Assignment, AssignmentError};
use crate::connection_id::{ConnectionIdKey, ShardIndex, SteeringIds};
use crate::counters::Counters;
use crate::link::{Link, outgoing};
use crate::machine::{Frame, Machine, Received, Transmit, WakeReason};
use crate::packet::icmp::packet_too_big;
use crate::packet::inner::InnerPacket;
use crate::packet::merge::{MergeLimits, Merger};
use crate::packet::split::split;
use crate::packet::vnet::VnetHeader;
use crate::params::TransportParams;
use crate::shard::close_code;
use crate::transport::transport;
use crate::verdict::DropReason;

/// How long a client waits for its address after the handshake.
const ASSIGNMENT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Super-packets are split in chunks of this size, in bytes.
const ARENA_BYTES: usize = 256 * 1024;

/// What a client is told at its start.
pub struct ClientParams {
    /// The gateway's outer address.
    pub remote: SocketAddr,
    /// The name that the gateway's certificate must carry.
    pub server_name: String,
    /// Transport parameters.
    pub transport: TransportParams,
    /// Bounds and switches of the merging of inner packets.
    pub merge: MergeLimits,
    /// Datagrams of one UDP send.
    pub send_datagrams_max: usize,
    /// All of the client's entropy but TLS's.
    pub seed: [u8; 32],
}

/// Something the driver must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The tunnel is up: these are its addresses.
    Assigned(Assignment),
    /// The tunnel is down for good.
    Closed(CloseCause),
}

/// What ended a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// This side closed it.
    #[error("closed by this client")]
    Local,
    /// The gateway closed it, with an application code.
    #[error("closed by the gateway: {reason} (code {code:#04x})")]
    Gateway {
        /// The code.
        code: u64,
        /// Its words.
        reason: String,
    },
    /// The gateway has forgotten the connection (RFC 9000, section 10.3): it has been restarted.
    #[error("the gateway has forgotten this connection: it was restarted")]
    Reset,
    /// Nothing was heard for the idle timeout, or the handshake got no answer.
    #[error("the gateway does not answer")]
    TimedOut,
    /// The gateway's message makes no sense.
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    /// TLS failed, on either side: a certificate, a name, no common key exchange (RFC 9001, section 4.8).
    #[error("{0}")]
    Tls(String),
    /// The server speaks no version of QUIC that this client does.
    #[error("the server speaks another version of QUIC")]
    Version,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A client of one gateway. See the crate's documentation for how to drive it.
pub struct Client {
    endpoint: Endpoint,
    link: Link,
    assignment: Option<Assignment>,
    assignment_stream: Option<StreamId>,
    assignment_json: Vec<u8>,
    assignment_deadline: Option<Instant>,
    responses: VecDeque<(Transmit, Vec<u8>)>,
    events: VecDeque<ClientEvent>,
    merger: Merger,
    arena: BytesMut,
    counters: Counters,
    send_datagrams_max: usize,
    closed: bool,
    drained: bool,
    undecided: Option<Instant>,
}

impl Client {
    /// Begins the handshake.
    ///
    /// # Errors
    ///
    /// If the remote address or the server name cannot be used.
    pub fn new(
        params: ClientParams,
        tls: Arc<dyn CryptoConfig>,
        reset_key: Arc<dyn HmacKey>,
        now: Instant,
    ) -> Result<Self, ConnectError> {
        let mut endpoint = endpoint(&params, reset_key);
        let mut config = ClientConfig::new(tls);
        config.transport_config(Arc::new(transport(&params.transport)));
        let initial_id = initial_id(&params.seed);
        config.initial_dst_cid_provider(Arc::new(move || initial_id));
        let (handle, connection) = endpoint.connect(now, config, params.remote, &params.server_name)?;
        Ok(Client {
            endpoint,
            link: Link::new(handle, connection),
            assignment: None,
            assignment_stream: None,
            assignment_json: Vec::new(),
            assignment_deadline: None,
            responses: VecDeque::new(),
            events: VecDeque::new(),
            merger: Merger::new(params.merge),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            counters: Counters::default(),
            send_datagrams_max: params.send_datagrams_max,
            closed: false,
            drained: false,
            undecided: Some(now),
        })
    }

    /// The addresses, once the tunnel is up.
    pub fn assignment(&self) -> Option<Assignment> {
        self.assignment
    }

    /// The counters as they stand. Up is towards the gateway.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Says goodbye, as Quincy's client does.
    pub fn close(&mut self, now: Instant) {
        self.link.connection.close(now, VarInt::from_u32(close_code::SHUTDOWN), Bytes::from_static(b"Client shutdown"));
        self.close_because(CloseCause::Local);
        self.undecided = Some(now);
    }

    /// Sends an inner packet that no check of this side has seen. For clients that cheat on purpose, in tests of gateways.
    pub fn send_unchecked(&mut self, packet: Bytes) {
        self.link.send(packet, &mut self.counters.drops);
    }

    /// Whether the connection is over and everything said.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The next thing the driver must know.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    fn close_because(&mut self, cause: CloseCause) {
        if !self.closed {
            self.closed = true;
            self.events.push_back(ClientEvent::Closed(cause));
        }
    }

    fn fail(&mut self, now: Instant, cause: CloseCause) {
        self.link.connection.close(now, VarInt::from_u32(close_code::ESTABLISHMENT_FAILED), Bytes::new());
        self.close_because(cause);
    }

    fn take_connection_events(&mut self, now: Instant) {
        while let Some(event) = self.link.connection.poll() {
            match event {
                ConnectionEvent::Connected => self.assignment_deadline = Some(now + ASSIGNMENT_TIMEOUT),
                ConnectionEvent::ConnectionLost { reason } => self.close_because(CloseCause::from(reason)),
                ConnectionEvent::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    self.assignment_stream = self.link.connection.streams().accept(Dir::Uni);
                    self.read_assignment(now);
                }
                ConnectionEvent::Stream(StreamEvent::Readable { id }) if Some(id) == self.assignment_stream => {
                    self.read_assignment(now);
                }
                _ => {}
            }
        }
    }

    fn read_assignment(&mut self, now: Instant) {
        let Some(id) = self.assignment_stream else { return };
        let mut stream = self.link.connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        let finished = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) if self.assignment_json.len() + chunk.bytes.len() > ASSIGNMENT_BYTES_MAX => {
                    let _ = chunks.finalize();
                    return self.fail(now, AssignmentError::TooLong.into());
                }
                Ok(Some(chunk)) => self.assignment_json.extend_from_slice(&chunk.bytes),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let _ = chunks.finalize();
        if !finished {
            return;
        }
        self.assignment_stream = None;
        self.assignment_deadline = None;
        match Assignment::from_json(&self.assignment_json) {
            Ok(assignment) => {
                self.assignment = Some(assignment);
                self.events.push_back(ClientEvent::Assigned(assignment));
            }
            Err(error) => self.fail(now, error.into()),
        }
    }

    fn take_inner_packets(&mut self) {
        while !self.merger.is_full()
            && let Some(packet) = self.link.connection.datagrams().recv()
        {
            let Ok(inner) = InnerPacket::parse(&packet) else {
                self.counters.drops.count(DropReason::Malformed);
                continue;
            };
            match self.assignment {
                Some(assignment) if assignment.client_address.addr() == inner.destination => {
                    self.counters.down_packets += 1;
                    self.counters.down_bytes += packet.len() as u64;
                    if self.merger.push(packet, &inner).is_err() {
                        self.counters.drops.count(DropReason::TunWrite);
                    }
                }
                _ => self.counters.drops.count(DropReason::NoRoute),
            }
        }
    }
}

impl Machine for Client {
    fn handle_udp(&mut self, now: Instant, received: Received) {
        let Received { remote, local_ip, ecn, segment_bytes, mut data } = received;
        while !data.is_empty() {
            let datagram = data.split_to(segment_bytes.clamp(1, data.len()));
            let mut answer = Vec::new();
            match self.endpoint.handle(now, remote, local_ip, ecn, datagram, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(_, event)) => self.link.connection.handle_event(event),
                Some(DatagramEvent::Response(transmit)) if self.responses.is_empty() => {
                    self.responses.push_back((outgoing(&transmit), answer));
                }
                _ => self.counters.drops.count(DropReason::ForeignDatagram),
            }
        }
        self.undecided = Some(now);
    }

    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let drops = &mut self.counters.drops;
        let Some(assignment) = self.assignment else { return drops.count(DropReason::NotAttached) };
        let Some((header, packet)) = VnetHeader::parse(frame) else { return drops.count(DropReason::Malformed) };
        let Ok(inner) = InnerPacket::parse(packet) else { return drops.count(DropReason::Malformed) };
        if inner.source != assignment.client_address.addr() {
            return drops.count(DropReason::ForgedSource);
        }
        let mtu_bytes = self.link.inner_mtu_bytes();
        if header.segment_bytes(packet) > mtu_bytes {
            drops.count(DropReason::TooBig);
            if let Some(reply) = packet_too_big(packet, mtu_bytes as u16, assignment.server_address.addr())
                && let Ok(inner) = InnerPacket::parse(&reply)
                && self.merger.push(reply, &inner).is_ok()
            {
                self.counters.too_big_replies += 1;
            }
            return;
        }
        let (link, counters) = (&mut self.link, &mut self.counters);
        let sent = split(&header, packet, &mut self.arena, &mut |packet| {
            counters.up_packets += 1;
            counters.up_bytes += packet.len() as u64;
            link.send(packet, &mut counters.drops);
        });
        if sent.is_err() {
            self.counters.drops.count(DropReason::Malformed);
        }
        self.undecided = Some(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.link.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.link.connection.handle_timeout(now);
            self.undecided = Some(now);
        }
        if self.assignment_deadline.is_some_and(|at| at <= now) {
            self.assignment_deadline = None;
            self.fail(now, CloseCause::Other("the gateway assigned no address within 10 s".to_owned()));
            self.undecided = Some(now);
        }
    }

    fn decide(&mut self, now: Instant) {
        self.drained |= self.link.exchange(&mut self.endpoint);
        self.take_connection_events(now);
        self.take_inner_packets();
        self.undecided = self.merger.is_full().then_some(now);
    }

    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((transmit, answer)) = self.responses.pop_front() {
            buf.extend_from_slice(&answer);
            return Some(transmit);
        }
        if self.drained {
            return None;
        }
        let transmit = self.link.poll_transmit(now, self.send_datagrams_max, buf);
        if transmit.is_none() {
            self.drained |= self.link.exchange(&mut self.endpoint);
        }
        transmit
    }

    fn poll_frame(&mut self) -> Option<Frame<'_>> {
        self.merger.poll_frame()
    }

    fn handle_drop(&mut self, reason: DropReason, packets: u64) {
        self.counters.drops.add(reason, packets);
    }

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        if self.drained {
            return None;
        }
        let connection = self.link.connection.poll_timeout().map(|at| (at, WakeReason::Connection));
        let assignment = self.assignment_deadline.map(|at| (at, WakeReason::Handshake));
        let undecided = self.undecided.map(|at| (at, WakeReason::Connection));
        [undecided, connection, assignment].into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}

impl From<quinn_proto::ConnectionError> for CloseCause {
    fn from(error: quinn_proto::ConnectionError) -> Self {
        use quinn_proto::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => CloseCause::Gateway {
                code: close.error_code.into_inner(),
                reason: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            E::Reset => CloseCause::Reset,
            E::TimedOut => CloseCause::TimedOut,
            E::LocallyClosed => CloseCause::Local,
            E::VersionMismatch => CloseCause::Version,
            E::TransportError(ref failure) if is_tls_alert(failure.code) => CloseCause::Tls(error.to_string()),
            E::ConnectionClosed(ref close) if is_tls_alert(close.error_code) => CloseCause::Tls(error.to_string()),
            other => CloseCause::Other(other.to_string()),
        }
    }
}

/// RFC 9000, section 20.1: CRYPTO_ERROR.
fn is_tls_alert(code: quinn_proto::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

fn endpoint(params: &ClientParams, reset_key: Arc<dyn HmacKey>) -> Endpoint {
    let (id_key, nonce_key) = (half(&params.seed, 0), half(&params.seed, 1));
    let mut config = EndpointConfig::new(reset_key);
    config
        .cid_generator(move || Box::new(SteeringIds::new(ConnectionIdKey(id_key), 1, ShardIndex(0), nonce_key)))
        .rng_seed(Some(params.seed));
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    Endpoint::new(Arc::new(config), None, true, None)
}

/// The random ID that the first Initial is sent to (RFC 9000, section 7.2). Its first byte picks the owner among the gateway's shards.
fn initial_id(seed: &[u8; 32]) -> ConnectionId {
    let mut nonce_key = half(seed, 1);
    nonce_key.reverse();
    SteeringIds::new(ConnectionIdKey(half(seed, 0)), 1, ShardIndex(0), nonce_key).generate_cid()
}

fn half(seed: &[u8; 32], which: usize) -> [u8; 16] {
    seed[16 * which..][..16].try_into().expect("a seed has two halves")
}
