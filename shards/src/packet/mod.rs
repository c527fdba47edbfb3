//! Inner IP packets: reading their headers, splitting super-packets, merging flows, answering with ICMP.
//!
//! Nothing here knows QUIC, users or shards.

pub mod vnet;
