//! Inner IP packets: reading their headers, splitting super-packets, merging flows, answering with ICMP.
//!
//! Nothing here knows QUIC, users or shards.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
mod flow;
pub mod fragment;
pub mod frame;
mod headers;
pub mod icmp;
pub mod inner;
pub mod pool;
#[cfg(test)]
mod round_trip;
pub mod split;
#[cfg(test)]
pub(crate) mod test_packets;
pub mod vnet;

pub use coalesce::{Coalescer, MergeKind, MergeLimits};
pub use icmp::packet_too_big;
pub use inner::{DestinationClass, InnerPacket, MTU_BYTES_MIN_V6, Malformed, protocol};
pub use pool::PacketPool;
pub use split::split;
pub use vnet::VnetHeader;
