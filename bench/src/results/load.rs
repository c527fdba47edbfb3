//! What `load` found, and the benchmarks that are made of loads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A direction of inner traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From clients to the network behind the gateway.
    Up,
    /// From there to clients.
    Down,
    /// Both at once.
    Both,
}

/// What a load found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// The scenario's name.
    pub scenario: String,
    /// The gateway's name.
    pub gateway: String,
    /// Users that had connections.
    pub users: u32,
    /// How the connections came about.
    pub ramp: Ramp,
    /// Connections that came and went while traffic ran.
    pub churn: Churn,
    /// How long traffic was measured, in seconds.
    pub seconds: f64,
    /// One for each group of traffic, in the scenario's order.
    pub groups: Vec<GroupResult>,
    /// Every inner packet from clients to the network, from the run's first to its last.
    pub up: Ledger,
    /// Every inner packet from the network to clients.
    pub down: Ledger,
    /// What the gateway's process used while traffic was measured; `None` of a gateway elsewhere.
    pub gateway_usage: Option<Usage>,
    /// What the harness used meanwhile: clients, far end and all.
    pub harness_usage: Usage,
    /// The far end's part of the harness's CPU time, in seconds; 0 of one elsewhere.
    #[serde(default)]
    pub far_end_cpu_seconds: f64,
    /// What kept the traffic from being more.
    pub limited_by: LimitedBy,
    /// What the gateway itself says; `None` of a peer.
    pub shards: Option<ShardFigures>,
    /// How things were over time, once a second or less often.
    pub samples: Vec<Sample>,
    /// Every figure that is not as the scenario demands, in words. Empty exactly when the load succeeded.
    pub failures: Vec<String>,
}

/// How the connections came about.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ramp {
    /// Connections wanted.
    pub wanted: u32,
    /// Connections that got an address.
    pub connected: u32,
    /// From the first packet to the last address, in seconds.
    pub seconds: f64,
    /// CPU time of the gateway meanwhile, in seconds.
    pub gateway_cpu_seconds: Option<f64>,
}

/// Connections that came and went while traffic ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Churn {
    /// Handshakes that led to an address, those of the ramp included.
    pub connected: u64,
    /// Connections closed on purpose.
    pub closed: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// Connections that ended although nobody wanted it.
    pub lost: u64,
    /// Changes of a client's outer address.
    pub rebound: u64,
}

/// What a group of traffic came to while it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupResult {
    /// Its name.
    pub name: String,
    /// Connections with this traffic.
    pub connections: u32,
    /// From clients to the network.
    pub up: FlowFigures,
    /// From the network to clients.
    pub down: FlowFigures,
    /// Round trips, counted from when each request was due; `None` where nothing is answered.
    pub round_trip: Option<Latencies>,
}

/// Counts of all flows of a group in one direction, from the run's first packet to its last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowFigures {
    /// Inner packets given to the tunnel.
    pub sent_packets: u64,
    /// Inner packets that came out of it, each counted once.
    pub received_packets: u64,
    /// Bytes of those, inner headers included.
    pub received_bytes: u64,
    /// Sent, but never received.
    pub lost_packets: u64,
    /// Received after one that was sent later.
    pub reordered_packets: u64,
    /// Received more than once.
    pub duplicated_packets: u64,
    /// Received with a byte that was not sent.
    pub corrupted_packets: u64,
    /// Inner bits a second while traffic was measured.
    pub bits_per_second: f64,
    /// The most that any one user received in any whole second, in bits; 0 where no user is limited.
    pub user_peak_bits_per_second: f64,
}

/// Where every packet of one direction went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Packets that one end gave to the tunnel.
    pub sent: u64,
    /// Packets that the other end got out of it.
    pub received: u64,
    /// Packets counted as dropped, by place and reason: `client: datagram_queue_full`, `gateway: no_route`, `kernel: tun0 queue` ...
    pub drops: BTreeMap<String, u64>,
    /// `sent` - `received` - drops. 0 exactly when both ends agree.
    pub unaccounted: i64,
}

/// A distribution of round trips.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// How many.
    pub count: u64,
    /// The shortest, in nanoseconds.
    pub min_ns: u64,
    /// The median.
    pub p50_ns: u64,
    /// 90 % were no longer.
    pub p90_ns: u64,
    /// 99 % were no longer.
    pub p99_ns: u64,
    /// 99.9 % were no longer.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// The whole distribution for plots: (share, nanoseconds), shares rising from 0 to 1.
    pub quantiles: Vec<(f64, u64)>,
}

/// What a process used over a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user and kernel mode, in seconds.
    pub cpu_seconds: f64,
    /// The share of the CPUs that it may use, 0 to 1.
    pub cpu_share: f64,
    /// Resident memory at the end, in bytes.
    pub memory_bytes: u64,
    /// Open descriptors at the end.
    pub descriptors: u64,
}

/// What kept the traffic from being more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// The scenario: everything that was to be sent was sent.
    Scenario,
    /// The gateway: it had no CPU time left.
    Gateway,
    /// This harness: it had no CPU time left, or could not keep its schedule. The figures say nothing of the gateway's limit.
    Harness,
    /// Neither: the windows of bulk flows, a rate limit, or the network between.
    Window,
}

/// What a Tollgate gateway says of itself, over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardFigures {
    /// Shards.
    pub shards: u16,
    /// TUN frames and datagrams that arrived at a wrong shard.
    pub crossed: u64,
    /// TUN frames and datagrams in all.
    pub arrived: u64,
    /// Messages between shards.
    pub messages: u64,
    /// Addresses held at the end.
    pub addresses_held: u64,
    /// Sessions at the end.
    pub sessions: u64,
    /// Connections at the end.
    pub connections: u64,
}

/// How things were at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since traffic began.
    pub seconds: f64,
    /// Handshakes completed so far.
    pub handshakes: u64,
    /// Connections up.
    pub connections: u64,
    /// Inner packets received so far, both ends together.
    pub received_packets: u64,
    /// The gateway's CPU time so far, in seconds.
    pub gateway_cpu_seconds: f64,
    /// The gateway's resident memory, in bytes.
    pub gateway_memory_bytes: u64,
    /// The gateway's open descriptors.
    pub gateway_descriptors: u64,
    /// Addresses held; 0 of a peer.
    pub addresses_held: u64,
    /// Inner bits received since the last sample, a second.
    pub bits_per_second: f64,
}

impl LoadResult {
    /// Inner bits that arrived each second while traffic was measured, both directions together.
    pub fn carried_bits_per_second(&self) -> f64 {
        self.groups.iter().map(|group| group.up.bits_per_second + group.down.bits_per_second).sum()
    }

    /// CPU seconds of the gateway for each gigabyte of inner packets that arrived, while traffic was measured; `None` of a gateway
    /// elsewhere, or when nothing arrived.
    pub fn gateway_cpu_seconds_per_gigabyte(&self) -> Option<f64> {
        self.per_gigabyte(self.gateway_usage?)
    }

    /// The same of the harness.
    pub fn harness_cpu_seconds_per_gigabyte(&self) -> Option<f64> {
        self.per_gigabyte(self.harness_usage)
    }

    fn per_gigabyte(&self, usage: Usage) -> Option<f64> {
        let gigabytes = self.carried_bits_per_second() * self.seconds / 8e9;
        (gigabytes > 0.0).then(|| usage.cpu_seconds / gigabytes)
    }
}

impl Ledger {
    /// Whether both ends agree to the packet.
    pub fn is_exact(&self) -> bool {
        self.unaccounted == 0
    }
}
