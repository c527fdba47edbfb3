//! What a load found. Times are in the unit that their names end with; shares are 0 to 1.

use std::collections::BTreeMap;

use serde::Serialize;

use super::flow::wire::FlowCounts;
use super::scenario::Direction;
use crate::measure::round_trips::Latencies;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadResult {
    pub scenario: String,
    pub gateway: String,
    /// Users that had connections.
    pub users: u32,
    pub ramp: Ramp,
    /// Connections that came and went while traffic ran.
    pub churn: Churn,
    /// How long traffic was measured.
    pub seconds: f64,
    /// One for each group of traffic, in the scenario's order.
    pub groups: Vec<GroupResult>,
    /// Every inner packet from clients to the network, from the run's first to its last.
    pub up: Account,
    /// Every inner packet from the network to clients.
    pub down: Account,
    /// What the gateway's process used while traffic was measured.
    pub gateway_usage: Usage,
    /// What the harness used meanwhile: clients, responder and all.
    pub harness_usage: Usage,
    /// The responder's part of the harness's CPU time.
    pub responder_cpu_seconds: f64,
    /// How busy the gateway's CPUs were, whoever was billed for it: receiving interrupts are others'. The part of a CPU, over all of them.
    pub gateway_cpus_busy: f64,
    /// Inner packets for each outer datagram, while traffic was measured: what stands behind every cost of a packet. `None` of a peer.
    pub batch: Option<f64>,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Ramp {
    pub wanted: u32,
    pub connected: u32,
    /// From the first packet to the last address.
    pub seconds: f64,
    pub gateway_cpu_seconds: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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

/// What a group of traffic came to, from the run's first packet to its last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupResult {
    pub name: String,
    pub connections: u32,
    /// From clients to the network.
    pub up: FlowFigures,
    /// From the network to clients.
    pub down: FlowFigures,
    /// Round trips, counted from when each request was due; `None` where nothing is answered.
    pub round_trip: Option<Latencies>,
}

/// All flows of a group in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct FlowFigures {
    /// What one end sent and the other received.
    #[serde(flatten)]
    pub counts: FlowCounts,
    /// Sent, but never received.
    pub lost_packets: u64,
    /// Inner bits a second while traffic was measured.
    pub bits_per_second: f64,
    /// The most that any one user received in any whole second, in bits; 0 where no user is limited.
    pub user_peak_bits_per_second: f64,
}

/// Where every packet of one direction went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account {
    /// Packets that one end gave to the tunnel.
    pub sent: u64,
    /// Packets that the other end got out of it.
    pub received: u64,
    /// Packets counted as dropped, by place and reason: `client: datagram_queue_full`, `gateway: no_route`, `kernel: tun0 queue` ...
    pub drops: BTreeMap<String, u64>,
    /// `sent` - `received` - drops. 0 exactly when both ends agree.
    pub unaccounted: i64,
}

/// What a process used over a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// CPU time in user and kernel mode.
    pub cpu_seconds: f64,
    /// The share of the CPUs that it may use.
    pub cpu_share: f64,
    /// Resident memory at the end.
    pub memory_bytes: u64,
    /// Open descriptors at the end.
    pub descriptors: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// The scenario: everything that was to be sent was sent.
    Scenario,
    /// The gateway: it had no CPU time left.
    Gateway,
    /// This harness: it had no CPU time left, or could not keep its schedule. The figures say nothing of the gateway's limit.
    Harness,
    /// Neither: the windows of bulk flows, a rate limit, or the network between.
    #[default]
    Window,
}

/// What a Tollgate gateway says of itself, over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ShardFigures {
    pub shards: u16,
    /// TUN frames and datagrams that arrived at a wrong shard.
    pub crossed: u64,
    /// TUN frames and datagrams in all.
    pub arrived: u64,
    /// Of the end: addresses held, sessions, connections.
    pub addresses_held: u64,
    pub sessions: u64,
    pub connections: u64,
}

/// How things were at one moment, `seconds` after traffic began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    pub seconds: f64,
    /// Handshakes completed so far.
    pub handshakes: u64,
    /// Connections up.
    pub connections: u64,
    /// The gateway's CPU time so far.
    pub gateway_cpu_seconds: f64,
    pub gateway_memory_bytes: u64,
    pub gateway_descriptors: u64,
    /// Inner bits received since the last sample, a second.
    pub bits_per_second: f64,
}

impl LoadResult {
    /// Inner bits that arrived each second while traffic was measured, both directions together.
    pub fn carried_bits_per_second(&self) -> f64 {
        self.groups.iter().map(GroupResult::bits_per_second).sum()
    }

    /// CPU seconds for each gigabyte of inner packets that arrived, while traffic was measured; `None` when nothing arrived.
    pub fn cpu_seconds_per_gigabyte(&self, usage: Usage) -> Option<f64> {
        let gigabytes = self.carried_bits_per_second() * self.seconds / 8e9;
        (gigabytes > 0.0).then(|| usage.cpu_seconds / gigabytes)
    }

    /// Packets of all groups that did not arrive.
    pub fn lost_packets(&self) -> u64 {
        self.groups.iter().map(|group| group.up.lost_packets + group.down.lost_packets).sum()
    }
}

impl GroupResult {
    /// Both directions together.
    pub fn bits_per_second(&self) -> f64 {
        self.up.bits_per_second + self.down.bits_per_second
    }

    /// Both ways, with their names.
    pub fn ways(&self) -> [(&'static str, &FlowFigures); 2] {
        [("up", &self.up), ("down", &self.down)]
    }
}

impl Direction {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Both => "both ways",
        }
    }
}
