//! Where an inner packet goes.
//!
//! Nothing here knows sessions.

pub mod forwarder;
pub mod policy;
pub mod routes;
