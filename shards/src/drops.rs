//! Why packets are dropped, and how many were.

use crate::counts::{Counts, kinds};

/// Declares each reason once: what it counts, its variant, and its name.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $unit:ident $reason:ident = $name:literal,)*) => {
        kinds! {
            /// Why a packet was dropped. Each reason is a counter; none is an error.
            pub enum DropReason {
                $($(#[$doc])* $reason = $name,)*
            }
        }

        impl DropReason {
            /// Whether it counts outer datagrams or answers to them, not inner packets.
            pub const fn is_outer(self) -> bool {
                match self {
                    $(DropReason::$reason => drop_reasons!(@is_outer $unit),)*
                }
            }
        }
    };
    (@is_outer outer) => { true };
    (@is_outer inner) => { false };
}

drop_reasons! {
    /// Inner packet whose header cannot be read or contradicts its length.
    inner Malformed = "malformed",
    /// Inner source is not the address leased to the connection.
    inner ForgedSource = "forged_source",
    /// Inner destination is another client's, or some unassigned address of the tunnel network, under client isolation.
    inner Isolated = "isolated",
    /// Inner destination is multicast or broadcast.
    inner Multicast = "multicast",
    /// Inner destination is the address under which the gateway is reached from outside.
    inner OuterAddress = "outer_address",
    /// Inner destination is unspecified, loopback or link-local: never routed.
    inner Unroutable = "unroutable",
    /// No connection has the inner destination.
    inner NoRoute = "no_route",
    /// Too large for the client's path; answered with ICMP "packet too big" where that is allowed.
    inner TooBig = "too_big",
    /// The connection's queue of datagrams to send is full.
    inner DatagramQueueFull = "datagram_queue_full",
    /// The queue of packets waiting for the user's tokens is full.
    inner OverLimit = "over_limit",
    /// It waited for the user's tokens, and was dropped to shorten a standing queue (CoDel, RFC 8289).
    inner QueueDelay = "queue_delay",
    /// It waited for the user's tokens for longer than the queue's bound in time.
    inner WaitedTooLong = "waited_too_long",
    /// The mesh to the destination's shard is full.
    inner MeshFull = "mesh_full",
    /// The connection is gone or has no address yet.
    inner NotAttached = "not_attached",
    /// UDP datagram that is not QUIC, or whose connection ID is not one of ours.
    outer ForeignDatagram = "foreign_datagram",
    /// UDP datagram that some connection could not use: it did not authenticate, or was a duplicate.
    outer Undecryptable = "undecryptable",
    /// Handshake refused because too many are pending.
    outer HandshakeLimit = "handshake_limit",
    /// Pending handshake that was ended because another one needed its place.
    outer HandshakeGaveWay = "handshake_gave_way",
    /// Handshake refused because too many from the same source have failed.
    outer HandshakeRate = "handshake_rate",
    /// Handshake refused because the gateway drains or stops.
    outer NotTaken = "not_taken",
    /// Initial whose token is too old, or another address's.
    outer InvalidToken = "invalid_token",
    /// UDP datagram from an address to which its connection may not move now, or to one that is owed no more (RFC 9000, section 9.3.1).
    outer AddressChange = "address_change",
    /// Answer outside any connection (Retry, stateless reset) for which there is no room.
    outer ResponseQueueFull = "response_queue_full",
    /// ICMP "packet too big" not sent, because too many were already (RFC 4443, section 2.4 f).
    inner ReplyLimit = "reply_limit",
    /// The kernel refused a UDP send.
    inner UdpSend = "udp_send",
    /// UDP receive was cut off because it was larger than the buffer.
    inner UdpTruncated = "udp_truncated",
    /// The kernel refused a TUN write.
    inner TunWrite = "tun_write",
    /// UDP datagram that the driver had at hand when the shard panicked: received and not handled, or not sent yet.
    outer ShardPanicked = "shard_panicked",
    /// The connection's queue of datagrams received was full; the oldest gave way.
    inner ReceiveQueueFull = "receive_queue_full",
    /// The connection ended while the packet was queued to be sent on it, or waited for the tokens to be.
    inner ConnectionClosed = "connection_closed",
    /// The shard held all that it may: the oldest packets of its longest queue gave way.
    inner MemoryLimit = "memory_limit",
}

/// Packets dropped, by reason.
pub type Drops = Counts<DropReason, { DropReason::ALL.len() }>;
