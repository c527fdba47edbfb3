//! Which CPU each shard runs on.
//!
//! This module starts nothing.

use std::io;

use tollgate_config::{ShardCount, Shards};

use super::GatewayError;

/// Shards where their number is not configured, at most: a connection ID names one in seven bits.
const SHARDS_AUTO_MAX: usize = 128;

/// The CPU of each shard.
///
/// # Errors
///
/// If the configuration names a CPU that this process may not use.
pub fn place(config: &Shards) -> Result<Vec<usize>, GatewayError> {
    let affinity = rustix::thread::sched_getaffinity(None).map_err(io::Error::from)?;
    let allowed: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
    let cpus: Vec<usize> = match &config.cpus {
        Some(cpus) => cpus.iter().map(|&cpu| usize::from(cpu)).collect(),
        None => allowed.clone(),
    };
    if let Some(&cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(GatewayError::Cpu { cpu, allowed: list(&allowed) });
    }
    let count = match config.count {
        ShardCount::Auto => cpus.len().min(SHARDS_AUTO_MAX),
        ShardCount::Fixed(count) => usize::from(count.get()),
    };
    Ok(cpus.into_iter().cycle().take(count).collect())
}

/// `cpus`, for people.
pub fn list(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
