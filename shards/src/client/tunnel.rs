//! The client's connection: handshake, address, inner packets in and out, one by one.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::crypto::{ClientConfig as CryptoConfig, HmacKey};
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionId, DatagramEvent, Dir, Endpoint, EndpointConfig, Event as ConnectionEvent,
    StreamEvent, TransportConfig, VarInt,
};
use siphasher::sip::SipHasher24;

use super::message::{Messages, TooLong};
use super::moving::Moving;
use super::{ClientEvent, CloseCause};
use crate::assignment::{Assignment, AssignmentError};
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::ids::{ShardIndex, Shards};
use crate::io::{Received, Transmit, WakeReason};
use crate::packet::icmp::unasked_reply;
use crate::quic::close_code;
use crate::quic::connection_id::{ConnectionIdKey, ID_LENGTHS, IdLayout, IdScheme, SteeringIds};
use crate::quic::tunnel_connection::{TunnelConnection, outgoing};

/// How long a client waits for its address after the handshake.
const ASSIGNMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// When the gateway is asked again whether it has heard of a new path, after the first time. Later questions come twice as late each.
const PATH_PROBE_INTERVAL: Duration = Duration::from_millis(200);
/// Questions about a new path.
const PATH_PROBES_MAX: u32 = 5;

pub struct TunnelParams {
    /// The gateway's outer address.
    pub remote: SocketAddr,
    /// That of the handshake: it says which one the gateway is asked for.
    pub quic_version: u32,
    /// The name that the gateway's certificate must carry. Noise knows the gateway by its key.
    pub server_name: String,
    /// Transport parameters, from [`crate::quic::transport::transport`]. Tunnels may share them.
    pub transport: Arc<TransportConfig>,
    /// Datagrams of one UDP send.
    pub send_datagrams_max: usize,
    /// All of the tunnel's entropy but its handshake's.
    pub seed: [u8; 32],
}

/// One connection to a gateway, without frames: whoever drives it has the inner packets themselves.
///
/// It is driven like a [`Machine`](crate::machine::Machine), in the same order: a batch of `handle_*`, [`send`](Tunnel::send) and
/// [`close`](Tunnel::close), then each `poll_*` until it says `None`. It allocates nothing for packets to come, so that a process can hold
/// thousands.
pub struct Tunnel {
    pub(super) endpoint: Endpoint,
    pub(super) dial: Dial,
    pub(super) link: TunnelConnection,
    pub(super) messages: Messages,
    pub(super) moving: Moving,
    pub(super) assignment: Option<Assignment>,
    assignment_deadline: Option<Instant>,
    /// An answer outside the connection; one at a time.
    response: Option<(Transmit, Vec<u8>)>,
    pub(super) events: VecDeque<ClientEvent>,
    pub(super) counters: Counters,
    pub(super) send_datagrams_max: usize,
    /// Largest inner packet that the path carries, as told last. 0 before.
    told_mtu_bytes: usize,
    pub(super) closed: bool,
    pub(super) drained: bool,
    touched: Option<Instant>,
    /// While the gateway has not answered on a new path.
    pub(super) path_probe: Option<PathProbe>,
    /// Whether the connection has done anything that its counters do not show.
    uncounted: bool,
}

/// How connections to the gateway begin.
pub(super) struct Dial {
    params: TunnelParams,
    /// Connections so far.
    count: u64,
}

impl Dial {
    /// Begins a handshake.
    ///
    /// # Errors
    ///
    /// If the remote address or the server name cannot be used.
    pub fn begin(
        &mut self,
        endpoint: &mut Endpoint,
        handshake: Arc<dyn CryptoConfig>,
        now: Instant,
    ) -> Result<TunnelConnection, ConnectError> {
        let TunnelParams { remote, quic_version, ref server_name, ref transport, ref seed, .. } = self.params;
        let mut config = ClientConfig::new(handshake);
        config.version(quic_version).transport_config(transport.clone());
        let initial_id = initial_id(seed, self.count);
        config.initial_dst_cid_provider(Arc::new(move || initial_id));
        self.count += 1;
        let (handle, connection) = endpoint.connect(now, config, remote, server_name)?;
        Ok(TunnelConnection::new(handle, connection, 0))
    }
}

/// Questions to the gateway on a new path.
pub(super) struct PathProbe {
    /// Acknowledgements received before.
    acks_received: u64,
    sent: u32,
    next_at: Instant,
}

impl Tunnel {
    /// Begins the handshake.
    ///
    /// # Errors
    ///
    /// If the remote address or the server name cannot be used.
    pub fn new(
        params: TunnelParams,
        handshake: Arc<dyn CryptoConfig>,
        reset_key: Arc<dyn HmacKey>,
        now: Instant,
    ) -> Result<Self, ConnectError> {
        let mut endpoint = endpoint(&params, reset_key);
        let send_datagrams_max = params.send_datagrams_max;
        let mut dial = Dial { params, count: 0 };
        let link = dial.begin(&mut endpoint, handshake, now)?;
        Ok(Tunnel {
            endpoint,
            dial,
            link,
            messages: Messages::default(),
            moving: Moving::default(),
            assignment: None,
            assignment_deadline: None,
            response: None,
            events: VecDeque::new(),
            counters: Counters::default(),
            send_datagrams_max,
            told_mtu_bytes: 0,
            closed: false,
            drained: false,
            touched: Some(now),
            path_probe: None,
            uncounted: false,
        })
    }

    pub fn assignment(&self) -> Option<Assignment> {
        self.assignment
    }

    /// The counters as of the last [`Tunnel::poll_transmit`] that said `None`. Up is towards the gateway: `up_packets` were queued to be
    /// sent, `down_packets` handed out.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the gateway has answered at all.
    pub fn has_heard(&self) -> bool {
        self.link.connection.stats().udp_rx.datagrams > 0
    }

    /// Largest inner packet that fits the path now, in bytes. 0 before the handshake is complete.
    pub fn inner_mtu_bytes(&mut self) -> usize {
        self.link.inner_mtu_bytes()
    }

    /// Free space of the send queue, in bytes: a packet of this length finds room.
    pub fn send_room_bytes(&mut self) -> usize {
        self.link.send_room_bytes()
    }

    /// Whether the connection is over and everything said.
    pub fn is_drained(&self) -> bool {
        self.drained && self.moving.is_quiet()
    }

    /// Says goodbye, as Quincy's client does. What is still queued to be sent is dropped.
    pub fn close(&mut self, now: Instant) {
        self.link.connection.close(now, VarInt::from_u32(close_code::SHUTDOWN), Bytes::from_static(b"Client shutdown"));
        self.give_up_move(now);
        self.close_because(CloseCause::Local);
        self.touch(now);
    }

    /// Queues an inner packet, unchecked. If there is no room, or no tunnel, a drop is counted.
    pub fn send(&mut self, packet: Bytes) {
        let bytes = packet.len() as u64;
        if self.link.send(packet, usize::MAX, &mut self.counters.drops) {
            self.counters.up_packets += 1;
            self.counters.up_bytes += bytes;
        }
    }

    /// Takes one UDP receive. It is decrypted in place.
    pub fn handle_udp(&mut self, now: Instant, received: Received) {
        let Received { remote, local_ip, ecn, segment_bytes, mut data } = received;
        while !data.is_empty() {
            let datagram = data.split_to(segment_bytes.clamp(1, data.len()));
            let mut answer = Vec::new();
            match self.endpoint.handle(now, remote, local_ip, ecn, datagram, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) if handle == self.link.handle => {
                    self.link.handle_event(event);
                }
                Some(DatagramEvent::ConnectionEvent(handle, event)) => self.moving.handle_event(handle, event),
                Some(DatagramEvent::Response(transmit)) if self.response.is_none() => {
                    self.response = Some((outgoing(&transmit), answer));
                }
                _ => self.counters.drops.count(DropReason::ForeignDatagram),
            }
        }
        self.touch(now);
    }

    /// Takes note that `now` has come. Cheap when nothing is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.link.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.link.handle_timeout(now);
            self.touch(now);
        }
        self.handle_move_timeout(now);
        self.probe_path(now);
        if self.link.path.poll_timeout().is_some_and(|at| at <= now) {
            self.touch(now);
        }
        if self.assignment_deadline.is_some_and(|at| at <= now) {
            self.assignment_deadline = None;
            self.fail(now, CloseCause::Other("the gateway assigned no address within 10 s".to_owned()));
            self.touch(now);
        }
    }

    /// Takes note that packets to the gateway leave by another way now (RFC 9000, section 9.2), or, if not `is_elsewhere`, by the same one
    /// again. The gateway, which answers to where it last heard from, hears of it at once, and again until it has answered. Nothing happens
    /// before the tunnel is up.
    pub fn handle_path_change(&mut self, now: Instant, is_elsewhere: bool) {
        if self.assignment.is_none() || self.closed {
            return;
        }
        if is_elsewhere {
            // RFC 9000, section 9.4: what was measured was another path.
            self.link.connection.path_changed(now);
            self.link.connection.local_address_changed();
        } else {
            self.link.connection.ping();
        }
        let acks_received = self.link.connection.stats().frame_rx.acks;
        self.path_probe = Some(PathProbe { acks_received, sent: 1, next_at: now + PATH_PROBE_INTERVAL });
        self.touch(now);
    }

    /// The connection itself, for those who play a client that misbehaves.
    #[cfg(feature = "inspect")]
    pub fn connection_mut(&mut self) -> &mut quinn_proto::Connection {
        &mut self.link.connection
    }

    /// Looks at what has happened to the connection since the last time. Returns whether anything has.
    pub(super) fn look(&mut self) -> bool {
        let Some(now) = self.touched.take() else { return false };
        self.drained |= self.link.exchange(&mut self.endpoint);
        self.take_connection_events(now);
        self.look_at_move(now);
        self.follow_path(now);
        true
    }

    /// The next thing that the driver must know.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.look();
        self.events.pop_front()
    }

    /// The next inner packet from the gateway, in order of arrival, exactly as it came.
    pub fn poll_packet(&mut self) -> Option<Bytes> {
        self.look();
        let packet = self.recv()?;
        self.counters.down_packets += 1;
        self.counters.down_bytes += packet.len() as u64;
        Some(packet)
    }

    /// The next datagram, those of the connection before this one first.
    pub(super) fn recv(&mut self) -> Option<Bytes> {
        self.moving.recv().or_else(|| self.link.recv())
    }

    /// Appends the next UDP send to `buf`, which must be empty, or says that there is none.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.look();
        if let Some((transmit, answer)) = self.response.take() {
            buf.extend_from_slice(&answer);
            return Some(transmit);
        }
        if let Some(transmit) = self.poll_transmit_of_move(now, buf) {
            return Some(transmit);
        }
        while !self.drained {
            let transmit = self.link.poll_transmit(now, self.send_datagrams_max, usize::MAX, buf);
            if transmit.is_some() {
                self.uncounted = true;
                return transmit;
            }
            self.drained |= self.link.exchange(&mut self.endpoint);
            if !std::mem::take(&mut self.uncounted) {
                return None;
            }
            self.link.count(now, &mut self.counters);
            self.follow_path(now);
            if !self.confirm() {
                return None;
            }
        }
        if std::mem::take(&mut self.uncounted) {
            self.link.count(now, &mut self.counters);
        }
        None
    }

    /// Looks whether the path carries something else than was told, and tells.
    fn follow_path(&mut self, now: Instant) {
        let told_mtu_bytes = self.link.told_mtu_bytes(now);
        let before = std::mem::replace(&mut self.told_mtu_bytes, told_mtu_bytes);
        if before != 0 && before != told_mtu_bytes {
            self.counters.narrowed_paths += u64::from(told_mtu_bytes < before);
            self.events.push_back(ClientEvent::PathMtu(told_mtu_bytes as u16));
        }
    }

    /// Whether there is something to send to learn what the path carries.
    fn confirm(&mut self) -> bool {
        let (assignment, mtu_bytes) = (self.assignment, self.link.inner_mtu_bytes());
        self.link.path.has_confirmation(|| {
            let Assignment { client_address, server_address } = assignment?;
            unasked_reply(client_address.addr(), server_address.addr(), mtu_bytes)
        })
    }

    /// When [`Tunnel::handle_timeout`] is wanted next, and why.
    pub fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        if self.is_drained() {
            return None;
        }
        let connection = self.link.poll_timeout().filter(|_| !self.drained).map(|at| (at, WakeReason::Connection));
        let moving = self.moving.poll_timeout().map(|at| (at, WakeReason::Connection));
        let assignment = self.assignment_deadline.map(|at| (at, WakeReason::Handshake));
        let touched = self.touched.map(|at| (at, WakeReason::Connection));
        let path = self.path_probe.as_ref().map(|probe| (probe.next_at, WakeReason::Connection));
        [touched, connection, moving, assignment, path].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Something has happened that is to be looked at, and counted.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
        self.uncounted = true;
    }

    fn probe_path(&mut self, now: Instant) {
        let Some(probe) = self.path_probe.as_mut().filter(|probe| probe.next_at <= now) else { return };
        let is_answered = self.link.connection.stats().frame_rx.acks > probe.acks_received;
        if is_answered || self.closed || probe.sent >= PATH_PROBES_MAX {
            self.path_probe = None;
            return;
        }
        probe.next_at = now + PATH_PROBE_INTERVAL * 2u32.pow(probe.sent);
        probe.sent += 1;
        self.link.connection.ping();
        self.touch(now);
    }

    pub(super) fn close_because(&mut self, cause: CloseCause) {
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
                ConnectionEvent::ConnectionLost { reason } => self.lost(now, reason.into()),
                ConnectionEvent::Stream(StreamEvent::Opened { dir: Dir::Uni } | StreamEvent::Readable { .. }) => {
                    self.take_messages(now);
                }
                _ => {}
            }
        }
    }

    fn take_messages(&mut self, now: Instant) {
        loop {
            match self.messages.poll(&mut self.link.connection) {
                Ok(Some(json)) if self.assignment.is_none() => match Assignment::from_json(&json) {
                    Ok(assignment) => {
                        self.assignment_deadline = None;
                        self.assigned(assignment);
                    }
                    Err(error) => return self.fail(now, error.into()),
                },
                Ok(Some(json)) => self.take_notice(now, &json),
                Ok(None) => return,
                Err(TooLong) => return self.fail(now, AssignmentError::TooLong.into()),
            }
        }
    }

    pub(super) fn assigned(&mut self, assignment: Assignment) {
        self.assignment = Some(assignment);
        self.events.push_back(ClientEvent::Assigned(assignment));
    }
}

fn endpoint(params: &TunnelParams, reset_key: Arc<dyn HmacKey>) -> Endpoint {
    let seed = &params.seed;
    let (id_key, nonce_key) = (half(seed, 0), half(seed, 1));
    let layout = IdLayout::plain(*ID_LENGTHS.start(), ConnectionIdKey(id_key)).expect("the shortest IDs there are");
    let scheme = IdScheme::new(layout, Shards::alone(1), ShardIndex(0));
    let mut config = EndpointConfig::new(reset_key);
    config
        .cid_generator(move || Box::new(SteeringIds::new(scheme.clone(), nonce_key)))
        .rng_seed(Some(*seed))
        .supported_versions(vec![params.quic_version]);
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    Endpoint::new(Arc::new(config), None, true, None)
}

/// The random ID that the first Initial of a connection is sent to (RFC 9000, section 7.2).
fn initial_id(seed: &[u8; 32], number: u64) -> ConnectionId {
    let mut hasher = SipHasher24::new_with_key(&half(seed, 1));
    hasher.write(b"initial");
    if number > 0 {
        hasher.write_u64(number);
    }
    ConnectionId::new(&hasher.finish().to_le_bytes())
}

fn half(seed: &[u8; 32], which: usize) -> [u8; 16] {
    seed[16 * which..][..16].try_into().expect("a seed has two halves")
}
