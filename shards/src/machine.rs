//! The contract between a state machine of this crate and whoever drives it; see the crate's documentation for the order of calls.
//!
//! This module owns no state.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::packet::MergeKind;
use crate::verdict::DropReason;

/// An ECN codepoint of the outer IP header (RFC 3168).
pub use quinn_proto::EcnCodepoint as Ecn;

/// One UDP receive: a datagram, or with `UDP_GRO` several of one sender and of equal size, the last possibly shorter.
#[derive(Debug)]
pub struct Received {
    /// Who sent it.
    pub remote: SocketAddr,
    /// The address of ours that it was sent to, where the socket could tell.
    pub local_ip: Option<IpAddr>,
    /// The ECN codepoint that all of its datagrams carried.
    pub ecn: Option<Ecn>,
    /// Length of each datagram but the last, in bytes. Never 0.
    pub segment_bytes: usize,
    /// The datagrams back to back. They are decrypted in place.
    pub data: BytesMut,
}

/// One UDP send: a run of datagrams of equal size (the last possibly shorter), made for `UDP_SEGMENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub remote: SocketAddr,
    /// The address of ours to send from, where it matters.
    pub local_ip: Option<IpAddr>,
    /// The ECN codepoint to set.
    pub ecn: Option<Ecn>,
    /// Length of all datagrams together, in bytes: what was appended to the driver's buffer.
    pub bytes: usize,
    /// Length of each datagram but the last, in bytes; equals `bytes` for a single one.
    pub segment_bytes: usize,
}

impl Transmit {
    /// How many datagrams the run holds.
    pub fn datagrams(&self) -> usize {
        self.bytes.div_ceil(self.segment_bytes.max(1))
    }
}

/// One frame for a TUN queue opened with `IFF_VNET_HDR`, possibly a TSO or USO super-packet.
///
/// What is written is `header` followed by each of `payloads`, in order.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The virtio header, and behind it the inner headers where they had to be rewritten.
    pub header: &'a [u8],
    /// The rest of the frame, as slices of the buffers it was received in.
    pub payloads: &'a [Bytes],
    /// Whether the inner packet carries TCP or UDP payload, as opposed to a bare acknowledgement, an ICMP message and the like.
    pub carries_data: bool,
}

impl Frame<'_> {
    /// Length of the inner packet (all that follows the virtio header), in bytes.
    pub fn inner_bytes(&self) -> usize {
        self.header.len() + self.payloads.iter().map(Bytes::len).sum::<usize>() - crate::packet::vnet::HEADER_BYTES
    }
}

/// Why a machine wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeReason {
    /// A connection's timer: loss detection, pacing, acknowledgement delay, keep-alive, idle timeout.
    Connection,
    /// Tokens come back to a user's bucket whose packets wait for them.
    Tokens,
    /// A pending handshake runs out of time.
    Handshake,
}

/// A sans-IO state machine between a UDP socket and a TUN queue. The crate's documentation states the order of the calls.
pub trait Machine {
    /// Takes one UDP receive.
    fn handle_udp(&mut self, now: Instant, received: Received);

    /// Takes one frame of a TUN queue, the virtio header in front.
    fn handle_frame(&mut self, now: Instant, frame: &[u8]);

    /// Takes note that `now` has come. Cheap when nothing is due.
    fn handle_timeout(&mut self, now: Instant);

    /// Looks at every connection that the batch touched. To be called once between the batch's last `handle_*` and its first `poll_*`.
    fn decide(&mut self, now: Instant);

    /// Appends the next UDP send to `buf`, which must be empty, or says that there is none.
    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit>;

    /// The next frame for the TUN queue. It is gone with the next call.
    fn poll_frame(&mut self) -> Option<Frame<'_>>;

    /// Takes note that the driver could not deliver `packets` that it was given.
    fn handle_drop(&mut self, reason: DropReason, packets: u64);

    /// Takes note that the TUN queue refuses super-packets of this kind: from now on their packets come one by one.
    fn handle_refused_merges(&mut self, kind: MergeKind);

    /// Whether the last batch has left received datagrams that were not looked at. More of them are to wait in the kernel meanwhile.
    fn has_backlog(&self) -> bool {
        false
    }

    /// When `handle_timeout` is wanted next, and why.
    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)>;
}
