//! One QUIC connection as a carrier of inner packets: what the gateway's end and the client's have in common.
//!
//! This module knows no users and no addresses.

use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionHandle, Endpoint, SendDatagramError};

use crate::machine::Transmit;
use crate::verdict::{DropReason, Drops};

/// Largest UDP payload over IPv4, in bytes, which bounds a `UDP_SEGMENT` send.
const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;

/// A connection and what its carrier remembers of it.
pub struct Link {
    /// The connection.
    pub connection: Connection,
    /// Its name at the endpoint.
    pub handle: ConnectionHandle,
    datagrams_seen: u64,
    frames_seen: u64,
}

impl Link {
    /// Takes over a new connection.
    pub fn new(handle: ConnectionHandle, connection: Connection) -> Self {
        Link { connection, handle, datagrams_seen: 0, frames_seen: 0 }
    }

    /// Carries messages between the connection and its endpoint. Afterwards the endpoint has forgotten the connection if it says `true`.
    #[must_use]
    pub fn exchange(&mut self, endpoint: &mut Endpoint) -> bool {
        while let Some(event) = self.connection.poll_endpoint_events() {
            let drained = event.is_drained();
            if let Some(event) = endpoint.handle_event(self.handle, event) {
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
        self.connection.datagrams().max_size().unwrap_or(0)
    }

    /// Queues an inner packet, if there is room.
    pub fn send(&mut self, packet: Bytes, drops: &mut Drops) {
        // The newest gives way rather than the oldest: quinn-proto does not say how many old ones it drops, and every drop is counted here.
        match self.connection.datagrams().send(packet, false) {
            Ok(()) => {}
            Err(SendDatagramError::Blocked(_)) => drops.count(DropReason::DatagramQueueFull),
            Err(SendDatagramError::TooLarge) => drops.count(DropReason::TooBig),
            Err(_) => drops.count(DropReason::NotAttached),
        }
    }

    /// Appends the next run of datagrams to `buf`.
    pub fn poll_transmit(&mut self, now: Instant, datagrams_max: usize, buf: &mut Vec<u8>) -> Option<Transmit> {
        let mtu_bytes = usize::from(self.connection.current_mtu()).max(1);
        let datagrams_max = (UDP_PAYLOAD_BYTES_MAX / mtu_bytes).clamp(1, datagrams_max);
        let transmit = self.connection.poll_transmit(now, datagrams_max, buf)?;
        Some(outgoing(&transmit))
    }

    /// Counts the UDP datagrams of the last batch that brought no frame at all: what did not authenticate, and duplicates.
    ///
    /// quinn-proto does not tell of them one by one, so packets with several frames may hide some: the count is a lower bound.
    pub fn count_undecryptable(&mut self, drops: &mut Drops) {
        let stats = self.connection.stats();
        let rx = &stats.frame_rx;
        let frames = rx.acks
            + rx.ack_frequency
            + rx.crypto
            + rx.connection_close
            + rx.data_blocked
            + rx.datagram
            + u64::from(rx.handshake_done)
            + rx.immediate_ack
            + rx.max_data
            + rx.max_stream_data
            + rx.max_streams_bidi
            + rx.max_streams_uni
            + rx.new_connection_id
            + rx.new_token
            + rx.path_challenge
            + rx.path_response
            + rx.ping
            + rx.reset_stream
            + rx.retire_connection_id
            + rx.stream_data_blocked
            + rx.streams_blocked_bidi
            + rx.streams_blocked_uni
            + rx.stop_sending
            + rx.stream;
        let datagrams = stats.udp_rx.datagrams;
        let barren =
            datagrams.saturating_sub(self.datagrams_seen).saturating_sub(frames.saturating_sub(self.frames_seen));
        drops.add(DropReason::Undecryptable, barren);
        (self.datagrams_seen, self.frames_seen) = (datagrams, frames);
    }
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
