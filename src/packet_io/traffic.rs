//! What passes moved.

use serde::{Deserialize, Serialize};

/// What passes moved, in system calls and what they carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// UDP messages received, aggregates counted once.
    pub udp_receives: u64,
    /// UDP datagrams received.
    pub udp_received_datagrams: u64,
    /// UDP sends, runs counted once.
    pub udp_sends: u64,
    /// UDP datagrams sent.
    pub udp_sent_datagrams: u64,
    /// UDP sends of data.
    pub udp_data_sends: u64,
    /// UDP datagrams in those.
    pub udp_data_datagrams: u64,
    /// TUN frames read.
    pub tun_reads: u64,
    /// Data-carrying ones, and the bytes of those.
    pub tun_data_reads: u64,
    /// Bytes of the data-carrying frames read.
    pub tun_data_read_bytes: u64,
    /// TUN frames written.
    pub tun_writes: u64,
    /// Data-carrying ones.
    pub tun_data_writes: u64,
    /// Bytes of the data-carrying frames written.
    pub tun_data_write_bytes: u64,
    /// UDP receives that failed.
    pub udp_receive_errors: u64,
    /// Super-packets that the kernel refused on the TUN queue, and whose packets went one by one.
    pub tun_refused_merges: u64,
    /// TUN reads that failed.
    pub tun_read_errors: u64,
    /// Times the poller failed.
    pub poll_errors: u64,
    /// Descriptors given up because they were out of order.
    pub lost_descriptors: u64,
    /// Passes of the event loop.
    pub passes: u64,
    /// Sleeps of the event loop.
    pub sleeps: u64,
}
