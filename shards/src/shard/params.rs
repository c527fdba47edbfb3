//! What a shard is told at its start: its place, the tunnel, the limits.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::ids::ShardIndex;
use crate::limit::shaper::ShaperLimits;
use crate::packet::coalesce::MergeLimits;
use crate::quic::connection_id::ConnectionIdKey;
use crate::quic::transport::TransportParams;

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
    /// How many shards there are, at most 128.
    pub shards: u16,
    /// Which of them this is.
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
    /// Shared by all shards, kept across restarts.
    pub connection_id_key: ConnectionIdKey,
    /// How often the shard has been started anew while its siblings lived on.
    pub incarnation: u32,
    /// The time of day when the shard is made. From then on it goes with `now`.
    pub wall_clock: SystemTime,
    /// All of the shard's entropy. Must differ from shard to shard and, outside a simulator, from start to start.
    pub seed: [u8; 32],
}

impl Params {
    pub fn server_address(&self) -> IpAddr {
        self.tunnel.addr()
    }
}
