//! The table `[data_path]`.

use std::time::Duration;

use crate::kind::{microseconds, switch};
use crate::schema::{RESTART, table};

/// Longest time that work may gather, in microseconds.
const COALESCE_US_MAX: u64 = 5000;

/// Longest time that an idle core may go on looking, in microseconds.
const BUSY_POLL_US_MAX: u64 = 1_000_000;

table! {
    /// How packets are moved. The defaults are the measured best; each is a switch for networks and kernels where it is not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DataPath of Tollgate {
        /// How long a busy core lets packets gather at most before it looks at them, in microseconds: larger batches cost less CPU. A core with
        /// little to do never waits; 0 never waits at all.
        "coalesce_us" => coalesce: Duration = Duration::from_micros(400), microseconds(0..=COALESCE_US_MAX), RESTART;
        /// How long a core goes on looking for packets after the last one before it sleeps, in microseconds. It saves the wake-up, and uses up the
        /// core. Only where each shard has a core of its own; for the shortest round trips set coalesce_us = 0 too.
        "busy_poll_us" => busy_poll: Duration = Duration::ZERO, microseconds(0..=BUSY_POLL_US_MAX), RESTART;
        /// Whether a TCP acknowledgement from a client is left out when the next one, right behind it, says the same and more.
        "thin_acks" => thin_acks: bool = true, switch(), RESTART;
        /// Whether the kernel may hand over runs of UDP datagrams in one piece.
        "gro" => gro: bool = true, switch(), RESTART;
        /// Whether runs of UDP datagrams are sent in one piece.
        "gso" => gso: bool = true, switch(), RESTART;
        /// Whether TCP super-packets cross the TUN device, where the kernel can.
        "tso" => tso: bool = true, switch(), RESTART;
        /// Whether UDP super-packets cross the TUN device, where the kernel can.
        "uso" => uso: bool = true, switch(), RESTART;
    }
}
