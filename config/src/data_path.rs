//! The table `[data_path]`: how packets are moved. The defaults are the measured best; each is a switch for networks and kernels where it is not.

use std::time::Duration;

use crate::document::{Report, Table};

/// Longest time that work may gather, in microseconds.
pub const COALESCE_US_MAX: u64 = 5000;

/// Longest time that an idle core may go on looking, in microseconds.
pub const BUSY_POLL_US_MAX: u64 = 1_000_000;

/// The table `[data_path]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPath {
    /// How long a busy core lets work gather at most before it looks again. Zero never waits.
    pub coalesce: Duration,
    /// How long a core goes on looking for packets after the last one before it sleeps. Zero sleeps at once.
    pub busy_poll: Duration,
    /// Whether clients' TCP acknowledgements are left out where a later one says the same and more.
    pub thin_acks: bool,
    /// Whether the kernel may hand over runs of UDP datagrams in one piece (`UDP_GRO`).
    pub gro: bool,
    /// Whether runs of UDP datagrams are sent in one piece (`UDP_SEGMENT`).
    pub gso: bool,
    /// Whether TCP super-packets cross the TUN device.
    pub tso: bool,
    /// Whether UDP super-packets cross the TUN device.
    pub uso: bool,
}

impl Default for DataPath {
    fn default() -> Self {
        DataPath {
            coalesce: Duration::from_micros(400),
            busy_poll: Duration::ZERO,
            thin_acks: true,
            gro: true,
            gso: true,
            tso: true,
            uso: true,
        }
    }
}

/// Reads the table.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>) -> DataPath {
    let mut data_path = DataPath::default();
    if let Some(us) = table.integer(report, "coalesce_us", 0..=COALESCE_US_MAX, "microseconds") {
        data_path.coalesce = Duration::from_micros(us);
    }
    if let Some(us) = table.integer(report, "busy_poll_us", 0..=BUSY_POLL_US_MAX, "microseconds") {
        data_path.busy_poll = Duration::from_micros(us);
    }
    let switches = [
        ("thin_acks", &mut data_path.thin_acks),
        ("gro", &mut data_path.gro),
        ("gso", &mut data_path.gso),
        ("tso", &mut data_path.tso),
        ("uso", &mut data_path.uso),
    ];
    for (key, switch) in switches {
        *switch = table.boolean(report, key).unwrap_or(*switch);
    }
    table.finish(report);
    data_path
}
