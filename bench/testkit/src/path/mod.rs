//! What lies between a client and a gateway: a NAT, a long way with a narrow place.

pub(crate) mod aggregate;
mod codel;
mod ecn;
pub mod long_path;
pub mod relay;
