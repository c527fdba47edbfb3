//! What a shard is told at its start: its place, the tunnel, the limits.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::ids::{ShardIndex, Shards};
use crate::limit::shaper::ShaperLimits;
use crate::packet::coalesce::MergeLimits;

/// A shard's bounds. Everything that grows is here.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of one shard, pending handshakes included.
    pub connections_max: usize,
    /// Handshakes in progress on one shard.
    pub handshakes_max: usize,
    /// Handshakes in progress from one source (an IPv4 address or an IPv6 /64) on one shard.
    pub handshakes_per_source_max: usize,
    /// What the shard may hold for others, in bytes: see [`Held`](crate::memory::Held).
    pub memory_bytes_max: usize,
    /// Bounds of the queues in which a limited user's packets wait for tokens, for each user, shard and direction.
    pub waiting: ShaperLimits,
    /// Packets of one message to another shard.
    pub hairpin_packets_max: usize,
    /// Addresses remembered for users who may come back.
    pub remembered_addresses_max: usize,
    /// Bounds and switches of the merging of inner packets.
    pub merge: MergeLimits,
    /// Datagrams of one UDP send. At most 64 by the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
    pub send_datagrams_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 65_536,
            handshakes_max: 256,
            handshakes_per_source_max: 32,
            memory_bytes_max: 1 << 30,
            waiting: ShaperLimits::default(),
            hairpin_packets_max: 64,
            remembered_addresses_max: 65_536,
            merge: MergeLimits::default(),
            send_datagrams_max: 64,
        }
    }
}

#[derive(Clone)]
pub struct Params {
    /// All shards of this process: no more than the layout of connection IDs has room for.
    pub shards: Shards,
    /// Those of the process before this one, where it still lives and this one takes its homes over. The two differ in their generations.
    pub predecessor: Option<Shards>,
    pub index: ShardIndex,
    /// The tunnel network; its host part is the gateway's own inner address.
    pub tunnel: IpNet,
    /// Addresses under which the gateway is reached from outside, as far as they are known at the start.
    pub outer_addresses: Vec<IpAddr>,
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// Transport parameters of every connection.
    pub transport: TransportParams,
    pub limits: Limits,
    /// How often the shard has been started anew while its siblings lived on.
    pub incarnation: u32,
    /// The time of day when the shard is made. From then on it goes with `now`.
    pub wall_clock: SystemTime,
    /// All of the shard's entropy. Must differ from shard to shard and, outside a simulator, from start to start.
    pub seed: [u8; 32],
}

/// How packets of connections are sent and lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// BBR, as quinn-proto has it. Draws from a global random source.
    Bbr,
    /// RFC 9002, appendix B.
    NewReno,
    /// None: the inner traffic controls its own (RFC 8085, section 3.1.11).
    #[default]
    Uncontrolled,
}

/// What both ends of a connection are told about its transport.
#[derive(Debug, Clone)]
pub struct TransportParams {
    /// Largest inner packet, in bytes.
    pub mtu_bytes: u16,
    /// A connection silent for this long is gone.
    pub idle_timeout: Duration,
    /// Time between keep-alives of a client; the gateway sends none.
    pub keep_alive: Option<Duration>,
    /// The round-trip time to reckon with until one is measured; `None` for the 333 ms of RFC 9002, section 6.2.2. It decides how soon a lost
    /// first packet is repeated.
    pub initial_rtt: Option<Duration>,
    /// Datagrams waiting to be sent on a connection, in bytes; what comes then is dropped.
    pub datagram_send_buffer_bytes_max: usize,
    /// Datagrams received and not yet looked at, in bytes; the oldest gives way.
    pub datagram_receive_buffer_bytes_max: usize,
    pub congestion: Congestion,
}
