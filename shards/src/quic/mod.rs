//! QUIC towards the clients: who may begin a handshake, connections and their IDs, paths, timers.
//!
//! Nothing here knows users or sessions.

pub mod admission;
pub mod close_code;
pub mod congestion;
pub mod connection_id;
pub mod connections;
pub mod endpoint;
pub mod failures;
mod handshake_ends;
pub mod in_flight;
pub mod initial;
pub mod intake;
pub mod keys;
pub mod moves;
pub mod path_mtu;
pub mod peer;
pub mod placement;
pub mod responses;
pub mod retry;
mod setup;
pub mod timers;
pub mod transport;
pub mod tunnel_connection;
pub mod wall_clock;
