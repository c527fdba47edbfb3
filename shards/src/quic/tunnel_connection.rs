//! One QUIC connection as a carrier of inner packets: what the gateway's end and the client's have in common.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionEvent, ConnectionHandle, ConnectionStats, Dir, Endpoint, SendDatagramError};

use crate::counters::Counters;
use crate::drops::{DropReason, Drops};
use crate::io::Transmit;
use crate::memory::PACKET_BYTES;
use crate::packet::pool::WAITING_CHUNK_BYTES;
use crate::quic::path_mtu::{Confirm, PathMtu};
use crate::quic::{congestion, in_flight};

/// Largest UDP payload over IPv4, in bytes, which bounds a `UDP_SEGMENT` send.
const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;

/// What a queued packet takes beside its bytes, as quinn-proto counts.
const QUEUED_PACKET_BYTES: usize = size_of::<Bytes>();

/// An empty queue keeps room for so many packets.
const BACKLOG_KEPT_MAX: usize = 256;

/// CRYPTO frames of a connection. An honest client sends a dozen, and each again where it was lost; bytes with gaps between cost far more memory
/// than they are long, and time each time that they are put in order.
const CRYPTO_FRAMES_MAX: u64 = 128;

/// A connection and what its carrier remembers of it.
pub struct TunnelConnection {
    pub connection: Connection,
    pub handle: ConnectionHandle,
    counted: Counted,
    /// Packets taken out of the receive queue, and those that it lost.
    taken: u64,
    /// Whether the receive queue is known to hold nothing.
    emptied: bool,
    /// Packets that the send queue took and did not drop.
    queued: u64,
    /// Free space of quinn-proto's own send queue when it is empty, in bytes.
    handed_bytes_max: usize,
    /// What waits behind it.
    backlog: VecDeque<Bytes>,
    /// Its bytes, with those that each packet takes beside: what [`take_back`](TunnelConnection::take_back) could take back.
    pub backlog_bytes: usize,
    /// Both together may be so much.
    queued_bytes_max: usize,
    /// Whether the last batch left packets in the send queue, so that what joins them waits too. Then it is to have memory of its own: a chunk that
    /// it shared with other connections' packets would stay for as long as the slowest of all waits.
    pub is_behind: bool,
    /// CRYPTO frames received, as of the last count.
    crypto_frames: u64,
    /// Whether datagrams may be sent as ECN-capable: whether anybody answers the marks (RFC 9484, section 10.4).
    answers_marks: bool,
    /// Whether it is over, and nothing holds back what says so.
    is_open: bool,
    /// What the path carries, and what is told of it.
    pub path: PathMtu,
    /// Packets that were made here to confirm what the path carries, and are not in the counters yet.
    own_packets: u64,
    /// Largest inner packet that fits it, until something happens that may change that: asked for with every packet.
    inner_mtu_bytes: Option<usize>,
}

/// How far quinn-proto's statistics have been carried over into the counters.
#[derive(Default)]
struct Counted {
    udp_datagrams: u64,
    frames: u64,
    datagrams_received: u64,
    datagrams_sent: u64,
}

impl TunnelConnection {
    /// Takes over a new connection, whose send queue may hold `queued_bytes_max`; what quinn-proto was told, if that is more.
    pub fn new(handle: ConnectionHandle, mut connection: Connection, queued_bytes_max: usize) -> Self {
        let handed_bytes_max = connection.datagrams().send_buffer_space();
        let answers_marks = congestion::answers_marks(connection.congestion_state());
        TunnelConnection {
            connection,
            handle,
            counted: Counted::default(),
            own_packets: 0,
            taken: 0,
            emptied: true,
            queued: 0,
            handed_bytes_max,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            queued_bytes_max: queued_bytes_max.max(handed_bytes_max),
            is_behind: false,
            crypto_frames: 0,
            answers_marks,
            is_open: false,
            path: PathMtu::default(),
            inner_mtu_bytes: None,
        }
    }

    /// Gives the connection what the endpoint has for it.
    pub fn handle_event(&mut self, event: ConnectionEvent) {
        self.emptied = false;
        self.inner_mtu_bytes = None;
        self.connection.handle_event(event);
    }

    /// Tells the connection that its time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.inner_mtu_bytes = None;
        self.connection.handle_timeout(now);
    }

    /// Carries messages between the connection and its endpoint. Afterwards the endpoint has forgotten the connection if it says `true`.
    #[must_use]
    pub fn exchange(&mut self, endpoint: &mut Endpoint) -> bool {
        while let Some(event) = self.connection.poll_endpoint_events() {
            let drained = event.is_drained();
            if let Some(event) = endpoint.handle_event(self.handle, event) {
                self.inner_mtu_bytes = None;
                self.connection.handle_event(event);
            }
            if drained {
                return true;
            }
        }
        false
    }

    /// Largest inner packet that fits the path now, in bytes (RFC 9221, section 3). 0 where the peer takes no datagrams.
    pub fn inner_mtu_bytes(&mut self) -> usize {
        let TunnelConnection { inner_mtu_bytes, connection, .. } = self;
        *inner_mtu_bytes.get_or_insert_with(|| connection.datagrams().max_size().unwrap_or(0))
    }

    /// Largest inner packet as senders may be told of it: what fits the path now, unless it is just being searched.
    pub fn told_mtu_bytes(&mut self, now: Instant) -> usize {
        let carried_bytes = self.inner_mtu_bytes();
        self.path.tell(now, carried_bytes)
    }

    /// When [`TunnelConnection::told_mtu_bytes`] is to be asked again, or the connection's timer is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        [self.connection.poll_timeout(), self.path.poll_timeout()].into_iter().flatten().min()
    }

    /// The next inner packet received, in order of arrival.
    pub fn recv(&mut self) -> Option<Bytes> {
        let packet = self.connection.datagrams().recv();
        match packet {
            Some(_) => self.taken += 1,
            None => self.emptied = true,
        }
        packet
    }

    /// Queues an inner packet, if there is room. Returns whether there was; if not, a drop has been counted.
    ///
    /// quinn-proto is handed no more than `handed_bytes_max`, or one packet.
    #[inline]
    pub fn send(&mut self, packet: Bytes, handed_bytes_max: usize, drops: &mut Drops) -> bool {
        if self.connection.is_closed() {
            drops.count(DropReason::NotAttached);
            return false;
        }
        if self.backlog.is_empty() && self.may_hand(packet.len(), handed_bytes_max) {
            match self.connection.datagrams().send(packet, false) {
                Ok(()) => {
                    self.queued += 1;
                    return true;
                }
                Err(SendDatagramError::Blocked(packet)) => return self.wait(packet, drops),
                Err(SendDatagramError::TooLarge) => drops.count(DropReason::TooBig),
                Err(_) => drops.count(DropReason::NotAttached),
            }
            return false;
        }
        self.wait(packet, drops)
    }

    /// Queues a packet behind what quinn-proto has. The newest gives way, so that whoever sends too much finds no room.
    #[inline(never)]
    fn wait(&mut self, packet: Bytes, drops: &mut Drops) -> bool {
        if self.send_room_bytes() < packet.len() {
            drops.count(DropReason::DatagramQueueFull);
            return false;
        }
        self.backlog_bytes += packet.len() + QUEUED_PACKET_BYTES;
        self.backlog.push_back(packet);
        self.queued += 1;
        true
    }

    /// Takes back the oldest packets that quinn-proto has not got, `bytes` at least if there are as many. Returns how many packets.
    pub fn take_back(&mut self, bytes: usize) -> u64 {
        let (before, target) = (self.backlog.len(), self.backlog_bytes.saturating_sub(bytes));
        while self.backlog_bytes > target
            && let Some(packet) = self.backlog.pop_front()
        {
            self.backlog_bytes -= packet.len() + QUEUED_PACKET_BYTES;
        }
        let packets = (before - self.backlog.len()) as u64;
        self.queued -= packets;
        packets
    }

    /// Whether quinn-proto may be handed another packet, so that it has no more than `handed_bytes_max`, or that one.
    #[inline]
    fn may_hand(&mut self, bytes: usize, handed_bytes_max: usize) -> bool {
        handed_bytes_max == usize::MAX || {
            let handed_bytes = self.handed_bytes();
            handed_bytes == 0 || handed_bytes + bytes + QUEUED_PACKET_BYTES <= handed_bytes_max
        }
    }

    /// Gives quinn-proto what it has room for, as far as it may have it.
    fn hand_over(&mut self, handed_bytes_max: usize) {
        while let Some(bytes) = self.backlog.front().map(Bytes::len)
            && bytes <= self.connection.datagrams().send_buffer_space()
            && self.may_hand(bytes, handed_bytes_max)
            && let Some(packet) = self.backlog.pop_front()
        {
            self.backlog_bytes -= packet.len() + QUEUED_PACKET_BYTES;
            // One that no longer fits the path is counted once the queue is empty.
            let _ = self.connection.datagrams().send(packet, false);
        }
        if self.backlog.is_empty() && self.backlog.capacity() > BACKLOG_KEPT_MAX {
            self.backlog = VecDeque::new();
        }
    }

    /// How many packets of so many bytes the send queue takes.
    pub fn room_for_packets(&mut self, bytes: usize) -> usize {
        (self.send_room_bytes() + QUEUED_PACKET_BYTES) / (bytes + QUEUED_PACKET_BYTES)
    }

    /// Free space of the send queue, in bytes: a packet of this length finds room.
    pub fn send_room_bytes(&mut self) -> usize {
        self.queued_bytes_max.saturating_sub(self.queued_bytes())
    }

    /// What the send queue holds, in bytes, with those that each packet takes beside.
    pub fn queued_bytes(&mut self) -> usize {
        self.handed_bytes() + self.backlog_bytes
    }

    /// What quinn-proto's own queue holds, in bytes: nobody can take that back.
    pub fn handed_bytes(&mut self) -> usize {
        self.handed_bytes_max - self.connection.datagrams().send_buffer_space()
    }

    /// Memory behind the send queue, in bytes: the first packet may keep a whole piece.
    pub fn held_bytes(&mut self) -> usize {
        let queued_bytes = self.queued_bytes();
        if queued_bytes == 0 {
            return 0;
        }
        queued_bytes + self.queued_packets() * PACKET_BYTES + WAITING_CHUNK_BYTES
    }

    /// Packets in the send queue, as of the last count.
    pub fn queued_packets(&self) -> usize {
        (self.queued - self.counted.datagrams_sent) as usize
    }

    /// Appends the next run of datagrams to `buf`. quinn-proto is handed no more than `handed_bytes_max`, or one packet.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        datagrams_max: usize,
        handed_bytes_max: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        if self.connection.is_closed() && !self.is_open {
            self.is_open = true;
            in_flight::open(self.connection.congestion_state());
        }
        let mtu_bytes = usize::from(self.connection.current_mtu()).max(1);
        let datagrams_max = (UDP_PAYLOAD_BYTES_MAX / mtu_bytes).clamp(1, datagrams_max);
        if !self.backlog.is_empty() {
            self.hand_over(handed_bytes_max);
        }
        let mut transmit = self.connection.poll_transmit(now, datagrams_max, buf);
        if transmit.is_none() && self.confirm() {
            transmit = self.connection.poll_transmit(now, 1, buf);
        }
        if transmit.is_none() {
            self.inner_mtu_bytes = None;
            self.is_behind = self.queued_bytes() > 0;
        }
        let transmit = transmit.as_ref().map(outgoing)?;
        Some(Transmit { ecn: transmit.ecn.filter(|_| self.answers_marks), ..transmit })
    }

    /// Queues what confirms that the path has shrunk, or that it has not. Returns whether there was something.
    fn confirm(&mut self) -> bool {
        match self.path.poll_confirmation() {
            Some(Confirm::Large(packet)) => {
                let is_queued = u64::from(self.connection.datagrams().send(packet, false).is_ok());
                self.queued += is_queued;
                self.own_packets += is_queued;
                true
            }
            Some(Confirm::Small) => {
                self.connection.ping();
                true
            }
            None => false,
        }
    }

    /// Writes `message` on a new unidirectional stream, whole, and finishes it.
    pub fn send_message(&mut self, message: &[u8]) -> bool {
        let Some(stream) = self.connection.streams().open(Dir::Uni) else { return false };
        let mut stream = self.connection.send_stream(stream);
        stream.write(message) == Ok(message.len()) && stream.finish().is_ok()
    }

    /// Whether the peer takes apart what it has to say in CRYPTO frames, or goes on with them after its last handshake message, when a client has
    /// nothing to say in them (RFC 8446, section 4.6; RFC 9001, section 6). Each may keep the datagram that it came in.
    pub fn misuses_crypto(&self) -> bool {
        self.crypto_frames > CRYPTO_FRAMES_MAX
    }

    /// Counts what the connection has carried and dropped since the last time. Due once a batch, when nothing more is to be sent, and
    /// before the link is dropped.
    pub fn count(&mut self, now: Instant, counters: &mut Counters) {
        let stats = self.connection.stats();
        self.path.observe(now, &stats, self.connection.rtt());
        let (received, sent) = (stats.frame_rx.datagram, stats.frame_tx.datagram);
        self.crypto_frames = stats.frame_rx.crypto;
        counters.datagrams_received += received - self.counted.datagrams_received;
        counters.datagrams_sent += sent - self.counted.datagrams_sent;
        counters.own_packets += std::mem::take(&mut self.own_packets);
        (self.counted.datagrams_received, self.counted.datagrams_sent) = (received, sent);
        self.count_undecryptable(&stats, &mut counters.drops);
        let closed = self.connection.is_closed();
        if self.emptied && received > self.taken {
            // A closed connection's last frames are counted by quinn-proto, but no longer queued.
            let reason = if closed { DropReason::NotAttached } else { DropReason::ReceiveQueueFull };
            counters.drops.add(reason, received - self.taken);
            self.taken = received;
        }
        if closed {
            (self.backlog, self.backlog_bytes) = (VecDeque::new(), 0);
        }
        if self.queued > sent && (closed || self.queued_bytes() == 0) {
            // Of an open connection, quinn-proto drops what no longer fits when the path changes.
            let reason = if closed { DropReason::ConnectionClosed } else { DropReason::TooBig };
            counters.drops.add(reason, self.queued - sent);
            self.queued = sent;
        }
    }

    /// Counts the UDP datagrams of the last batch that brought no frame at all: what did not authenticate, and duplicates.
    ///
    /// quinn-proto does not tell of them one by one, so packets with several frames may hide some: the count is a lower bound.
    fn count_undecryptable(&mut self, stats: &ConnectionStats, drops: &mut Drops) {
        let rx = &stats.frame_rx;
        let acknowledged = rx.acks + rx.ack_frequency + rx.immediate_ack;
        let handshake = rx.crypto + u64::from(rx.handshake_done) + rx.new_token + rx.connection_close;
        let paths = rx.path_challenge + rx.path_response + rx.ping + rx.new_connection_id + rx.retire_connection_id;
        let limits = rx.max_data + rx.max_stream_data + rx.max_streams_bidi + rx.max_streams_uni;
        let blocked = rx.data_blocked + rx.stream_data_blocked + rx.streams_blocked_bidi + rx.streams_blocked_uni;
        let data = rx.datagram + rx.stream + rx.reset_stream + rx.stop_sending;
        let frames = acknowledged + handshake + paths + limits + blocked + data;
        let datagrams = stats.udp_rx.datagrams;
        let barren = (datagrams - self.counted.udp_datagrams).saturating_sub(frames - self.counted.frames);
        drops.add(DropReason::Undecryptable, barren);
        (self.counted.udp_datagrams, self.counted.frames) = (datagrams, frames);
    }
}

/// How many packets were sent that say nothing of an answer: challenges, and what fills the path alone.
pub fn unanswered(connection: &Connection) -> u64 {
    let stats = connection.stats();
    stats.frame_tx.path_challenge + stats.path.sent_plpmtud_probes
}

/// quinn-proto's description of a send in this crate's terms.
pub fn outgoing(transmit: &quinn_proto::Transmit) -> Transmit {
    Transmit {
        remote: transmit.destination,
        local_ip: transmit.src_ip,
        ecn: transmit.ecn,
        bytes: transmit.size,
        segment_bytes: transmit.segment_size.unwrap_or(transmit.size),
    }
}
