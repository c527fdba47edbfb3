//! The shell of the Tollgate gateway: the only code that knows glommio, descriptors, system calls and the clock.
//!
//! [`gateway`] and [`connect`] are its two programs; both run a machine of `tollgate-shards` with a [`pump`] over [`io`]. [`control`] takes orders
//! for a gateway that runs. [`lab`] builds the network namespaces in which [`demo`], tests and benchmarks run them.
//!
//! Nothing prints past [`output`] and [`log`]: `print!` panics where its output is closed or full, and waits where nobody reads it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod connect;
pub mod control;
pub mod demo;
pub mod gateway;
pub mod host;
pub mod identity;
pub mod io;
pub mod lab;
pub mod log;
pub mod netlink;
pub mod output;
pub mod pump;
pub mod signals;
pub mod tls;
