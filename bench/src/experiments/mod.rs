//! One file for each command: what it asks of loads or tunnels, and what it makes of their figures.

pub mod compare;
pub mod floor;
pub mod handshakes;
pub mod idle;
pub mod latency;
pub mod modes;
pub mod packets;
pub mod scale;
pub mod shaping;
mod tunnel;
