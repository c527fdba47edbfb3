//! What the process may have of descriptors and locked memory: asked, and raised as far as it may, before anything is opened.

use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use crate::host::raise_to_hard;

/// Locked memory that an executor takes at most, and the least that glommio starts with, in bytes.
const EXECUTOR_MEMLOCK_BYTES: u64 = 512 * 1024;
/// Descriptors of a shard: its sockets, TUN queue, poller and wake-up, and what its executor has. Some 10, with room for more.
const SHARD_DESCRIPTORS: u64 = 16;
/// Descriptors of everything else: the log, signals, the control socket and its clients, the configuration while it is read.
const OTHER_DESCRIPTORS: u64 = 64;

/// The process may not open enough descriptors.
#[derive(Debug, thiserror::Error)]
#[error(
    "{shards} shards need {needed} open descriptors, and this process may have {limit}: raise the hard limit (`ulimit -Hn`, or LimitNOFILE= \
     of a systemd unit), or lower [shards] count"
)]
pub struct DescriptorError {
    shards: usize,
    needed: u64,
    limit: u64,
}

/// Raises the soft limit of open descriptors to the hard one.
///
/// # Errors
///
/// If that is still too little for `shards` shards.
pub fn allow_descriptors(shards: usize) -> Result<(), DescriptorError> {
    let needed = SHARD_DESCRIPTORS * shards as u64 + OTHER_DESCRIPTORS;
    match raise_to_hard(Resource::Nofile) {
        Some(limit) if limit < needed => Err(DescriptorError { shards, needed, limit }),
        _ => Ok(()),
    }
}

/// Raises the soft limit of locked memory to the hard one. Says what is wrong where that is too little for `shards` executors.
pub fn allow_executors(shards: usize) -> Result<(), String> {
    // Whoever has CAP_IPC_LOCK may lock more than the limit says, but glommio looks at the limit.
    let is_unbounded =
        rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let needed = EXECUTOR_MEMLOCK_BYTES * if is_unbounded { 1 } else { shards as u64 };
    match raise_to_hard(Resource::Memlock) {
        Some(limit) if limit < needed => {
            Err(format!("{} KiB of memory may be locked, and executors need {}", limit / 1024, needed / 1024))
        }
        _ => Ok(()),
    }
}
