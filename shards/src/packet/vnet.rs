//! The virtio header in front of every frame of a TUN queue opened with `IFF_VNET_HDR`.

/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 10;
