//! The shell of the Tollgate gateway.

pub mod identity;
pub mod io;
pub mod lab;
pub mod netlink;
pub mod tls;
