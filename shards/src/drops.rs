//! What becomes of an inner packet, and the counters of what did not become of it.

/// Why a packet was dropped. Each reason is a counter; none is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum DropReason {
    /// Inner packet whose header cannot be read or contradicts its length.
    Malformed,
    /// Inner source is not the address leased to the connection.
    ForgedSource,
    /// Inner destination is another client's, or some unassigned address of the tunnel network, under client isolation.
    Isolated,
    /// Inner destination is multicast or broadcast.
    Multicast,
    /// Inner destination is the address under which the gateway is reached from outside.
    OuterAddress,
    /// Inner destination is unspecified, loopback or link-local: never routed.
    Unroutable,
    /// No connection has the inner destination.
    NoRoute,
    /// Too large for the client's path; answered with ICMP "packet too big" where that is allowed.
    TooBig,
    /// The connection's queue of datagrams to send is full.
    DatagramQueueFull,
    /// The queue of packets waiting for the user's tokens is full.
    OverLimit,
    /// It waited for the user's tokens, and was dropped to shorten a standing queue (CoDel, RFC 8289).
    QueueDelay,
    /// It waited for the user's tokens for longer than the queue's bound in time.
    WaitedTooLong,
    /// The mesh to the destination's shard is full.
    MeshFull,
    /// The connection is gone or has no address yet.
    NotAttached,
    /// UDP datagram that is not QUIC, or whose connection ID is not one of ours.
    ForeignDatagram,
    /// UDP datagram that some connection could not use: it did not authenticate, or was a duplicate.
    Undecryptable,
    /// Handshake refused because too many are pending.
    HandshakeLimit,
    /// Pending handshake that was ended because another one needed its place.
    HandshakeGaveWay,
    /// Handshake refused because too many from the same source have failed.
    HandshakeRate,
    /// Initial whose token is too old, or another address's.
    InvalidToken,
    /// UDP datagram from an address to which its connection may not move now (RFC 9000, section 9.3.1).
    AddressChange,
    /// Answer outside any connection (Retry, stateless reset) for which there is no room.
    ResponseQueueFull,
    /// ICMP "packet too big" not sent, because too many were already (RFC 4443, section 2.4 f).
    ReplyLimit,
    /// The kernel refused a UDP send.
    UdpSend,
    /// UDP receive was cut off because it was larger than the buffer.
    UdpTruncated,
    /// The kernel refused a TUN write.
    TunWrite,
    /// The connection's queue of datagrams received was full; the oldest gave way.
    ReceiveQueueFull,
    /// The connection ended while the packet was queued to be sent on it, or waited for the tokens to be.
    ConnectionClosed,
    /// The shard held all that it may: the oldest packets of its longest queue gave way.
    MemoryLimit,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [DropReason; 29] = [
        DropReason::Malformed,
        DropReason::ForgedSource,
        DropReason::Isolated,
        DropReason::Multicast,
        DropReason::OuterAddress,
        DropReason::Unroutable,
        DropReason::NoRoute,
        DropReason::TooBig,
        DropReason::DatagramQueueFull,
        DropReason::OverLimit,
        DropReason::QueueDelay,
        DropReason::WaitedTooLong,
        DropReason::MeshFull,
        DropReason::NotAttached,
        DropReason::ForeignDatagram,
        DropReason::Undecryptable,
        DropReason::HandshakeLimit,
        DropReason::HandshakeGaveWay,
        DropReason::HandshakeRate,
        DropReason::InvalidToken,
        DropReason::AddressChange,
        DropReason::ResponseQueueFull,
        DropReason::ReplyLimit,
        DropReason::UdpSend,
        DropReason::UdpTruncated,
        DropReason::TunWrite,
        DropReason::ReceiveQueueFull,
        DropReason::ConnectionClosed,
        DropReason::MemoryLimit,
    ];

    /// Those of them that count outer datagrams and answers to them, not inner packets.
    pub const OUTER: [DropReason; 8] = [
        DropReason::ForeignDatagram,
        DropReason::Undecryptable,
        DropReason::HandshakeLimit,
        DropReason::HandshakeGaveWay,
        DropReason::HandshakeRate,
        DropReason::InvalidToken,
        DropReason::AddressChange,
        DropReason::ResponseQueueFull,
    ];

    /// The reason's name in logs, tables and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::ForgedSource => "forged_source",
            DropReason::Isolated => "isolated",
            DropReason::Multicast => "multicast",
            DropReason::OuterAddress => "outer_address",
            DropReason::Unroutable => "unroutable",
            DropReason::NoRoute => "no_route",
            DropReason::TooBig => "too_big",
            DropReason::DatagramQueueFull => "datagram_queue_full",
            DropReason::OverLimit => "over_limit",
            DropReason::QueueDelay => "queue_delay",
            DropReason::WaitedTooLong => "waited_too_long",
            DropReason::MeshFull => "mesh_full",
            DropReason::NotAttached => "not_attached",
            DropReason::ForeignDatagram => "foreign_datagram",
            DropReason::Undecryptable => "undecryptable",
            DropReason::HandshakeLimit => "handshake_limit",
            DropReason::HandshakeGaveWay => "handshake_gave_way",
            DropReason::HandshakeRate => "handshake_rate",
            DropReason::InvalidToken => "invalid_token",
            DropReason::AddressChange => "address_change",
            DropReason::ResponseQueueFull => "response_queue_full",
            DropReason::ReplyLimit => "reply_limit",
            DropReason::UdpSend => "udp_send",
            DropReason::UdpTruncated => "udp_truncated",
            DropReason::TunWrite => "tun_write",
            DropReason::ReceiveQueueFull => "receive_queue_full",
            DropReason::ConnectionClosed => "connection_closed",
            DropReason::MemoryLimit => "memory_limit",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `packets` at once.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Packets dropped for `reason`.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }

    /// Packets dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut drops = Drops::default();
        for (count, reason) in DropReason::ALL.into_iter().enumerate() {
            drops.add(reason, count as u64);
        }
        for (count, (reason, counted)) in drops.iter().enumerate() {
            assert_eq!(counted, count as u64, "{}", reason.name());
        }
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
