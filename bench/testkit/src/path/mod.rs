//! What lies between a client and a gateway: a NAT, a long way with a narrow place.

mod codel;
pub(crate) mod datagram;
pub mod relay;
