//! A gateway started for a run, and everything around it: namespaces, files, and what is observed from outside while it runs.
//!
//! ```text
//!  clients: 198.18.64.0/18, all local --- gateway: 198.18.0.1 [TUN 198.19.128.1/17] --- network: responder at 198.19.0.2
//! ```

mod gateway;
mod kernel;
pub mod network;
mod scratch;

pub use gateway::{GatewayFiles, GatewayPlan, GatewaySample, RunningGateway};
pub use kernel::{KernelDrops, PACKETS_OF_A_DROP_MAX, Place, counter, queue_drops};
pub use network::CLIENTS_V4;

use std::net::{IpAddr, SocketAddr};

use tollgate_testkit::{SERVICE_V4, deploy::PORT};

/// Where a started gateway listens.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), PORT);
