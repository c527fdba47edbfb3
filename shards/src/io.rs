//! What passes between a UDP socket and a machine, and why a machine wants to be woken.

use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;

use crate::packet::ecn::Ecn;

/// One UDP receive: a datagram, or with `UDP_GRO` several of one sender and of equal size, the last possibly shorter.
#[derive(Debug)]
pub struct Received {
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

/// Why a machine wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeReason {
    /// A connection's timer: loss detection, pacing, acknowledgement delay, keep-alive, idle timeout.
    Connection,
    /// Tokens come back to a user's bucket whose packets wait for them.
    Tokens,
    /// A pending handshake runs out of time.
    Handshake,
    /// Other shards are to be told what this one has to do.
    Load,
    /// A client is due to be sent away.
    Drain,
    /// A client's session is over.
    Session,
}
