//! What is asked of a TUN device, and what it is.

use serde::{Deserialize, Serialize};

/// Settings of a TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunOptions {
    /// Whether TCP super-packets may cross the device (TSO).
    pub tso: bool,
    /// Whether UDP super-packets may cross the device (USO). Kernel 6.2 and later.
    pub uso: bool,
    /// Frames that each queue holds for a slow shard before it drops (`txqueuelen`), super-packets counted once.
    pub queue_frames_max: u32,
}

impl Default for TunOptions {
    fn default() -> TunOptions {
        TunOptions { tso: true, uso: true, queue_frames_max: 1000 }
    }
}

/// What the kernel hands over unfinished, on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// Packets whose TCP or UDP checksum is still to be completed. The others need it.
    pub checksum: bool,
    /// TCP super-packets of both families.
    pub tso: bool,
    /// UDP super-packets of both families.
    pub uso: bool,
}

impl Offloads {
    pub(super) fn flags(self) -> libc::c_uint {
        let flags = |on: bool, flags| if on { flags } else { 0 };
        flags(self.checksum, libc::TUN_F_CSUM)
            | flags(self.tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6)
            | flags(self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

/// What a device is, beside its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunFacts {
    /// As the kernel has it.
    pub name: String,
    /// Of the interface.
    pub index: u32,
    /// What the kernel hands over unfinished.
    pub offloads: Offloads,
    /// Frames that each queue holds before it drops.
    pub queue_frames_max: u32,
    /// Whether it was made beforehand, and stays.
    pub is_adopted: bool,
}
