//! The shell of the Tollgate gateway: the only code that knows glommio, descriptors, system calls and the clock.
//!
//! [`gateway`] and [`connect`] are its two programs; both run a machine of `tollgate-shards` by [`packet_io`] over [`io`]. [`control`] takes orders
//! for a gateway that runs. `demo`, a default feature, shows both at work.
//!
//! Nothing prints past [`output`] and [`log`]: `print!` panics where its output is closed or full, and waits where nobody reads it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod connect;
pub mod control;
#[cfg(feature = "demo")]
pub mod demo;
pub mod doctor;
pub mod gateway;
pub mod handshakes;
pub mod host;
pub mod identity;
pub mod io;
pub mod log;
pub mod noise;
pub mod output;
pub mod packet_io;
pub mod progress;
pub mod records;
pub mod signals;
pub mod supervisor;
pub mod tls;
pub mod top;
mod trace;
pub mod upgrade;
pub mod usage;
pub mod whole_file;

pub use tollgate_netlink as netlink;
