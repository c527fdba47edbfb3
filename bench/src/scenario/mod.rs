//! What a load shall be: users, their connections, their traffic, and what happens to them meanwhile.
//!
//! Scenarios are TOML files; benchmarks make them in code. This module starts nothing.

mod read;
#[cfg(test)]
mod tests;
mod traffic;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::results::Direction;
pub use read::{ADDRESSES_MAX, CONNECTIONS_MAX, DURATION, FILE_BYTES_MAX, parse_duration};
pub use tollgate_config::ConfigError;
pub use traffic::{FLOWS_MAX, GROUPS_MAX};

/// A whole load. See `bench/scenarios/` for files, `bench/README.md` for their keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Its name in tables: the file's, without its ending.
    pub name: String,
    /// How long traffic runs, after every connection is up.
    pub duration: Duration,
    /// The gateway to be started for it, or the one that is there.
    pub gateway: GatewayPlan,
    /// Users and connections.
    pub users: UserPlan,
    /// The load generator itself.
    pub harness: HarnessPlan,
    /// What happens to connections while traffic runs.
    pub trouble: Trouble,
    /// Groups of traffic; a connection belongs to at most one. Connections beyond those that groups ask for are idle.
    pub traffic: Vec<TrafficPlan>,
    /// What must hold beside the ledgers, for the load to succeed.
    pub demands: Demands,
}

/// The gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayPlan {
    /// To be started, in namespaces made for the run.
    Started(StartedGateway),
    /// Somebody else's, who has its users file from `tollgate-bench identities` and runs `tollgate-bench far-end` behind it.
    Named(NamedGateway),
}

/// A gateway that is started for the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedGateway {
    /// Shards, where it has such; `None` for its default.
    pub shards: Option<u16>,
    /// The CPUs it may use; empty for the first that this process may use.
    pub cpus: Vec<usize>,
    /// Inner MTU in bytes.
    pub mtu_bytes: u16,
    /// How long a connection may be silent.
    pub idle_timeout: Duration,
    /// Where its log goes as well; by default only the last lines are kept.
    pub log: Option<PathBuf>,
}

/// A gateway that runs already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedGateway {
    /// Its outer address.
    pub address: SocketAddr,
    /// The name that its certificate carries.
    pub server_name: String,
    /// The certificates to trust, PEM.
    pub trusted_certificates: PathBuf,
    /// The folder that `tollgate-bench identities` wrote.
    pub identities: PathBuf,
    /// Where the far end listens: an address that is reached through the tunnel.
    pub far_end: SocketAddr,
    /// Inner MTU in bytes, as the gateway has it.
    pub mtu_bytes: u16,
}

/// Users and their connections.
#[derive(Debug, Clone, PartialEq)]
pub struct UserPlan {
    /// Users who connect, from 1 to 60,000 connections in all.
    pub count: u32,
    /// Connections of each.
    pub connections: u16,
    /// Users in the gateway's file who never connect.
    pub absent: u32,
    /// The bandwidth limit of each, as users files have it (`80 mbps`).
    pub limit: Option<String>,
    /// New connections a second while ramping up; `None` for as fast as they come.
    pub ramp_per_second: Option<f64>,
    /// Handshakes in progress at once, at most.
    pub handshakes_max: u32,
    /// How often a silent client says that it is there.
    pub keep_alive: Duration,
}

/// The load generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HarnessPlan {
    /// Threads for clients.
    pub threads: u16,
    /// CPUs for all threads of the harness; empty for those that the gateway does not use, or all where it uses all.
    pub cpus: Vec<usize>,
    /// How clients appear to the gateway.
    pub sources: Sources,
    /// All that is drawn by chance (losses, churn, who gets which traffic) follows from this.
    pub seed: u64,
}

/// How clients appear to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// Each from an IP address of its own: one socket a thread. Needs a namespace, so a started gateway.
    Addresses,
    /// Each from a port of its own: one socket, hence one descriptor, a client.
    Ports,
}

/// What happens to connections while traffic runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trouble {
    /// Connections that end and are made anew, a second, over all clients.
    pub churn_per_second: f64,
    /// Whether that happens only to idle connections, which no group of traffic asks for.
    pub churn_idle_only: bool,
    /// The share of outer datagrams that are lost on purpose, each way.
    pub loss: f64,
    /// Outer addresses (or ports) that change, a second, over all clients.
    pub rebinds_per_second: f64,
}

/// A group of traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPlan {
    /// Its name in tables.
    pub name: String,
    /// Connections with this traffic.
    pub connections: u32,
    /// Flows of each connection, each with its own port.
    pub flows: u16,
    /// What it sends, and when.
    pub kind: TrafficKind,
    /// Which way. Of [`TrafficKind::Request`], requests go up and answers down.
    pub direction: Direction,
    /// Lengths of inner packets.
    pub sizes: Sizes,
}

/// When packets are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrafficKind {
    /// As many as the window lets: the receiver acknowledges, and this much may be on the way.
    Bulk {
        /// Bytes that may be on the way in each direction of each flow.
        window_bytes: u32,
    },
    /// At an even rate, whatever becomes of them.
    Constant {
        /// Packets a second in each direction of each flow.
        packets_per_second: f64,
        /// So many fall due together, as from a sender that leaves segmentation to the kernel. At least 1.
        train_packets: u16,
    },
    /// Requests at an even rate, each answered. Round trips are counted from when a request was due.
    Request {
        /// Requests a second of each flow.
        requests_per_second: f64,
        /// Length of an answer as an inner packet, in bytes; `None` for the request's.
        answer_bytes: Option<u16>,
    },
}

/// Lengths of inner packets in bytes, IP header included, each with its weight. Drawn in a fixed order that has each size as often as it
/// weighs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub Vec<(u16, u32)>);

/// What must hold, beside the ledgers and an undamaged order.
#[derive(Debug, Clone, PartialEq)]
pub struct Demands {
    /// The share of packets that may be lost, counted drops included; `None` for no bound.
    pub loss_max: Option<f64>,
    /// Growth of the gateway's memory for each connection that came and went, in bytes; `None` for no bound.
    pub bytes_per_churned_connection_max: Option<f64>,
    /// Whether every connection must come up and stay.
    pub all_connected: bool,
}

impl Sizes {
    /// The "simple IMIX": 7 small, 4 medium, 1 large. The large one is the tunnel's MTU.
    pub fn imix(mtu_bytes: u16) -> Self {
        Sizes(vec![(64, 7), (576, 4), (mtu_bytes, 1)])
    }

    /// One length.
    pub fn fixed(bytes: u16) -> Self {
        Sizes(vec![(bytes, 1)])
    }
}

impl Scenario {
    /// Reads the scenario in the file `path`. Paths in it are relative to the working directory.
    ///
    /// # Errors
    ///
    /// Every mistake in it, a line each: place, key, what is wrong, what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read::read(path)
    }

    /// Connections in all.
    pub fn connections(&self) -> u32 {
        self.users.count * u32::from(self.users.connections)
    }

    /// Inner MTU in bytes.
    pub fn mtu_bytes(&self) -> u16 {
        match &self.gateway {
            GatewayPlan::Started(gateway) => gateway.mtu_bytes,
            GatewayPlan::Named(gateway) => gateway.mtu_bytes,
        }
    }
}

impl Default for Scenario {
    /// One idle client of a gateway with one shard, for ten seconds.
    fn default() -> Self {
        Scenario {
            name: "load".to_owned(),
            duration: Duration::from_secs(10),
            gateway: GatewayPlan::Started(StartedGateway::default()),
            users: UserPlan::default(),
            harness: HarnessPlan::default(),
            trouble: Trouble::default(),
            traffic: Vec::new(),
            demands: Demands::default(),
        }
    }
}

impl Default for StartedGateway {
    fn default() -> Self {
        StartedGateway {
            shards: Some(1),
            cpus: Vec::new(),
            mtu_bytes: 1400,
            idle_timeout: Duration::from_secs(30),
            log: None,
        }
    }
}

impl Default for UserPlan {
    fn default() -> Self {
        UserPlan {
            count: 1,
            connections: 1,
            absent: 0,
            limit: None,
            ramp_per_second: None,
            handshakes_max: 64,
            keep_alive: Duration::from_secs(10),
        }
    }
}

impl Default for HarnessPlan {
    fn default() -> Self {
        HarnessPlan { threads: 1, cpus: Vec::new(), sources: Sources::Addresses, seed: 1 }
    }
}

impl Default for Demands {
    fn default() -> Self {
        Demands { loss_max: Some(0.0), bytes_per_churned_connection_max: None, all_connected: true }
    }
}
