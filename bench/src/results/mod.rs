//! What each benchmark found: the only shape of results. Tables for people, JSON for machines and the HTML page are all made of these types.
//!
//! This module measures, prints and judges nothing. Every time is in the unit that its name ends with; shares are 0 to 1.

mod load;
mod packets;
mod shaping;
mod spread;

use serde::{Deserialize, Serialize};

pub use load::{
    Churn, Direction, FlowFigures, GroupResult, Latencies, Ledger, LimitedBy, LoadResult, Ramp, Sample, ShardFigures,
    Usage,
};
pub use packets::{PacketsFigures, PacketsPoint, PacketsResult};
pub use shaping::{ShapingPoint, ShapingResult, ShapingRun};
pub use spread::{Compared, Interval95, Spread, slope};

/// A result with everything about where it came from. What a JSON file holds, and what `report` reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The format's number: [`FORMAT`].
    pub format: u32,
    /// Where, when and with what it was made.
    pub provenance: Provenance,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The format that this version writes and reads.
pub const FORMAT: u32 = 1;

/// Bytes of a gigabyte.
pub const GIGABYTE: f64 = 1e9;

/// Where, when and with what a result was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The machine.
    pub machine: crate::machine::Machine,
    /// The commit of the sources, with `-dirty` when they were changed.
    pub commit: Option<String>,
    /// Name and version of every program that took part.
    pub versions: Vec<String>,
    /// The command line.
    pub command_line: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// Whether the harness was built without optimisation, so that its figures say nothing.
    pub debug_build: bool,
}

/// What a benchmark found. `benchmark` is its name, `result` its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "benchmark", content = "result", rename_all = "snake_case")]
pub enum Finding {
    /// `load`.
    Load(LoadResult),
    /// `floor`.
    Floor(Floor),
    /// `gateway`.
    Gateway(GatewayResult),
    /// `packets`.
    Packets(PacketsResult),
    /// `scale`.
    Scale(ScaleResult),
    /// `storm`.
    Storm(StormResult),
    /// `idle`.
    Idle(IdleResult),
    /// `latency`.
    Latency(LatencyResult),
    /// `shaping`.
    Shaping(ShapingResult),
    /// `soak`.
    Soak(SoakResult),
    /// `engine`.
    Engine(EngineResult),
}

/// What kernel and cipher allow on one core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Each stage, measured by itself.
    pub stages: Vec<Stage>,
    /// The sum of a gateway core's stages from client to network, in CPU seconds per gigabyte.
    pub up_cpu_seconds_per_gigabyte: f64,
    /// The sum of a gateway core's stages from network to client.
    pub down_cpu_seconds_per_gigabyte: f64,
}

/// One stage of the floor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name, as the table shows it: `TUN write, super-packets`, `AES-256-GCM open, 1400 B` ...
    pub name: String,
    /// CPU seconds for a gigabyte of payload, over the repetitions.
    pub cpu_seconds_per_gigabyte: Spread,
    /// CPU cycles for a byte, where the machine counts cycles.
    pub cycles_per_byte: Option<f64>,
    /// Whether it is a part of the floor upwards.
    pub counts_up: bool,
    /// Whether it is a part of the floor downwards.
    pub counts_down: bool,
}

/// Two gateways in turn, each pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayResult {
    /// The name of ours.
    pub ours: String,
    /// The name of the peer.
    pub peer: String,
    /// The client's program with ours, and with the peer.
    pub clients: [String; 2],
    /// The CPU that either gateway was pinned to.
    pub gateway_cpu: usize,
    /// The CPUs that client, sender and receiver were pinned to.
    pub load_cpus: Vec<usize>,
    /// For how long each transfer was to send, in seconds.
    pub seconds: u16,
    /// Each pair's runs.
    pub pairs: Vec<Pair>,
    /// One for each kind of work: up, down, both ways.
    pub summaries: Vec<WorkSummary>,
    /// The floor, measured in the same run.
    pub floor: Option<Floor>,
}

/// A run of each gateway, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Ours: one transfer for each kind of work.
    pub ours: Vec<Transfer>,
    /// The peer's, in the same order.
    pub peer: Vec<Transfer>,
}

/// A kind of bulk work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// From client to network.
    Up,
    /// From network to client.
    Down,
    /// Both at once; bytes are the sum.
    Both,
}

/// Bytes moved through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// What was done.
    pub work: Work,
    /// Bytes of TCP payload inside the tunnel that arrived.
    pub bytes: u64,
    /// From the connection's start to the last byte's verification.
    pub seconds: f64,
    /// CPU time that the gateway's process used meanwhile, in user and kernel mode.
    pub gateway_cpu_seconds: f64,
    /// The offset of the first byte that was not the one sent; `None` when all were.
    pub corrupt_at_byte: Option<u64>,
}

impl Transfer {
    /// CPU seconds of the gateway for each gigabyte of payload.
    pub fn cpu_seconds_per_gigabyte(&self) -> f64 {
        self.gateway_cpu_seconds * GIGABYTE / self.bytes as f64
    }

    /// Payload in gigabits a second.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / GIGABYTE / self.seconds
    }

    /// The share of one CPU that the gateway used.
    pub fn cpu_share(&self) -> f64 {
        self.gateway_cpu_seconds / self.seconds
    }
}

/// What a kind of work came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkSummary {
    /// The work.
    pub work: Work,
    /// CPU seconds of the gateway for each gigabyte of payload.
    pub cpu_seconds_per_gigabyte: Compared,
    /// Payload in gigabits a second.
    pub gigabits_per_second: Compared,
    /// The share of its CPUs that the gateway used.
    pub cpu_share: Compared,
    /// Ours as a multiple of the floor, where it was measured. `Work::Both` is held against the mean of both directions.
    pub ours_to_floor: Option<Spread>,
}

/// One offered load over many shards, over many clients, and over many clients of which few send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleResult {
    /// The gateway.
    #[serde(default)]
    pub gateway: String,
    /// The load offered in each point, in bits of inner packets a second, both directions together.
    pub offered_bits_per_second: f64,
    /// Packets that fall due together. 0 in results that are older than this figure: each alone, or what had become late.
    #[serde(default)]
    pub train_packets: u16,
    /// More and more shards on the same CPUs; the number of clients stays.
    pub by_shards: Vec<ScalePoint>,
    /// More and more clients; the number of shards stays.
    pub by_clients: Vec<ScalePoint>,
    /// More and more clients of which only some send; the number of shards stays.
    #[serde(default)]
    pub by_idle_clients: Vec<ScalePoint>,
}

/// One point of `scale`: the same load, `rounds` times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalePoint {
    /// Shards.
    pub shards: u16,
    /// Clients.
    pub clients: u32,
    /// How many of them send. 0 in results that are older than this figure: all do.
    #[serde(default)]
    pub active_clients: u32,
    /// CPU seconds of the gateway for each gigabyte of inner packets.
    pub cpu_seconds_per_gigabyte: Spread,
    /// The same, divided by the first point's of the same round.
    pub to_first: Spread,
    /// Inner packets and datagrams that crossed shards, as a share of all; `None` of a peer.
    pub crossed_share: Option<f64>,
    /// Inner bits a second that arrived, both directions together.
    pub carried_bits_per_second: Spread,
    /// Packets that did not arrive.
    pub lost_packets: u64,
    /// Whether the harness kept traffic from being more in any round, so that the point says little of the gateway.
    pub harness_limited: bool,
}

/// Handshakes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StormResult {
    /// One for each gateway: ours, then peers.
    pub gateways: Vec<StormFigures>,
}

/// How a gateway takes a storm of handshakes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StormFigures {
    /// The gateway.
    pub name: String,
    /// Full mTLS handshakes, address included, for each CPU second of the gateway, with nothing else to do.
    pub handshakes_per_cpu_second: Spread,
    /// Handshakes a second that were reached alone.
    pub handshakes_per_second: Spread,
    /// Handshakes a second that were reached while forwarding.
    pub handshakes_per_second_forwarding: Spread,
    /// Bits a second forwarded before the storm and during it.
    pub forwarded_bits_per_second: [Spread; 2],
    /// What forwarding lost to the storm: 1 - during / before.
    pub forwarding_lost_share: Spread,
    /// Handshakes that failed.
    pub failed: u64,
}

/// What idle connections cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdleResult {
    /// One for each gateway: ours, then peers.
    pub gateways: Vec<IdleFigures>,
}

/// What a gateway's idle connections cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdleFigures {
    /// The gateway.
    pub name: String,
    /// Connections at the end.
    pub connections: u64,
    /// Users that it knew at the end.
    pub users: u64,
    /// Resident memory of the gateway while it had no connection and one user, in bytes.
    pub empty_bytes: u64,
    /// Resident memory for each known user without a connection, in bytes.
    pub bytes_per_user: f64,
    /// Resident memory for each idle connection, in bytes.
    pub bytes_per_connection: f64,
    /// Memory after so many connections, as measured on the way.
    pub steps: Vec<(u64, u64)>,
    /// Seconds between keep-alives of a connection.
    pub keep_alive_seconds: f64,
    /// The share of one CPU that the gateway used while all were idle.
    pub cpu_share: f64,
}

/// Round trips through the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyResult {
    /// For each gateway and load.
    pub points: Vec<LatencyPoint>,
}

/// Round trips of one gateway under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyPoint {
    /// The gateway.
    pub gateway: String,
    /// `idle`, `half` or `saturated`.
    pub load: String,
    /// Inner bits a second carried meanwhile, both directions together, probes excluded.
    pub carried_bits_per_second: f64,
    /// The round trips, counted from when each request was due and not from when it was sent.
    pub round_trip: Latencies,
    /// Probes that were not answered.
    pub lost: u64,
    /// Whether the harness was at its limit or late, so that round trips may be its own.
    pub harness_limited: bool,
}

/// Hours of churn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SoakResult {
    /// The load's own result, with its samples over time.
    pub load: LoadResult,
    /// Growth of the gateway's memory for each connection that came and went, in bytes: slope of the samples after the warm-up.
    pub bytes_per_churned_connection: f64,
    /// Growth of the gateway's open descriptors over the same time.
    pub descriptors_growth: i64,
    /// Addresses held at the end beyond the connections there were; `None` of a peer.
    pub addresses_left: Option<i64>,
    /// Sessions left at the end beyond the users connected; `None` of a peer.
    pub sessions_left: Option<i64>,
}

/// The engine without input and output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineResult {
    /// One for each benchmark.
    pub benchmarks: Vec<EngineFigure>,
    /// The compiler, whose version the counts depend on.
    pub compiler: String,
}

/// One benchmark of the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineFigure {
    /// Its name.
    pub name: String,
    /// What it does once: `packet`, `handshake` ...
    pub unit: String,
    /// Instructions for each unit.
    pub instructions: f64,
    /// The recorded count that it is held against, where there is one.
    pub recorded: Option<f64>,
    /// Whether it is more than the allowed share above the recorded one.
    pub exceeds: bool,
}
