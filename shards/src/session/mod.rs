//! Users, their sessions and their addresses.
//!
//! Nothing here sees a packet.

pub mod addresses;
pub mod barriers;
pub mod context;
pub mod home;
pub mod message;
pub mod snapshot;
pub mod topology;
pub mod users;
