//! The testkit: private network namespaces with real kernel traffic, for the demo, the end-to-end tests and the benchmarks.
//!
//! A namespace is held by a descriptor and has no name in the file system, children die with the process that started them: whatever
//! happens, nothing is left behind. System calls only, no external tools. The interfaces, addresses and routes of the namespace that the
//! process was started in are never touched, and all addresses lie in 198.18.0.0/15 (RFC 2544) and fd00::/8.
//!
//! It does not know the gateway: it starts programs and looks at them from outside.

#![allow(missing_docs, reason = "a comment stands where the name does not say it")]

pub mod chance;
pub mod deploy;
mod error;
mod netns;
pub mod packet;
mod traffic;
pub mod wait;
pub mod worker;

pub use error::LabError;
pub use netns::*;
pub use traffic::{bulk, ping};
