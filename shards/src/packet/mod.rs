//! Inner IP packets: reading their headers, splitting super-packets, merging flows, answering with ICMP.
//!
//! Nothing here knows QUIC, users or shards.

pub mod arena;
pub mod checksum;
pub mod ecn;
mod flow;
pub mod fragment;
pub mod icmp;
pub mod inner;
pub mod merge;
#[cfg(test)]
pub(crate) mod oracle;
#[cfg(test)]
mod round_trip;
pub mod split;
pub mod vnet;

pub use arena::Arena;
pub use icmp::packet_too_big;
pub use inner::{DestinationClass, InnerPacket, Malformed};
pub use merge::{MergeKind, MergeLimits, Merger};
pub use split::split;
pub use vnet::VnetHeader;
