//! A gateway started for a run, and everything around it: configuration files for any number of users, namespaces, and what is observed
//! from outside while it runs.
//!
//! ```text
//!  clients: 198.18.64.0/18, all local --- gateway: 198.18.0.1 [TUN 198.19.128.1/17] --- network: far end at 198.19.0.2
//! ```
//!
//! Any gateway that reads Quincy's files can be started. This module makes no traffic but pings, and judges nothing.

pub mod faults;
mod files;
mod gateway;
mod kernel;
mod network;

pub use files::{FilesPlan, GatewayFiles};
pub use gateway::{Contender, Gateway, GatewaySample, Kind};
pub use kernel::{KernelDrops, PACKETS_OF_A_DROP_MAX, Place};
pub(crate) use kernel::{counters, queues};
pub use network::{CLIENTS_V4, GATEWAY_TUN, Network, TUNNEL_ADDRESSES};

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity};
use tollgate::lab::SERVICE_V4;

/// The port that a started gateway listens on.
pub const PORT: u16 = 55_555;

/// Where a started gateway listens.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), PORT);

/// The CPUs that this process may use, in order.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn usable_cpus() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// Says why a test ends early. Where nothing may be skipped, in CI, that is a failure.
#[cfg(test)]
pub(crate) fn skip(missing: &str) {
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "nothing may be skipped here: {missing}");
    eprintln!("skipped: {missing}");
}

/// Ends a test early where namespaces cannot be made.
#[cfg(test)]
macro_rules! require_namespaces_or_skip {
    () => {
        if let Err(missing) = tollgate::lab::privileges().and_then(|()| tollgate::lab::require_tun()) {
            return $crate::deployment::skip(&missing.to_string());
        }
    };
}
#[cfg(test)]
pub(crate) use require_namespaces_or_skip;
