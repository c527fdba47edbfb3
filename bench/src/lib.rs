//! The load-test harness of Tollgate.
//!
//! Everything is measured from outside, on the real programs, in network namespaces made for the run. Each benchmark is a module with
//! `Options` (its command line) and `run`; what it found is a type of [`results`], which tables, JSON and the HTML page are made of.

#![forbid(unsafe_code)]

pub mod contenders;
pub mod cpus;
pub mod deployment;
pub mod engine;
pub mod experiment;
pub mod far_end;
pub mod floor;
pub mod gateway;
pub mod identities;
pub mod idle;
pub mod latency;
pub mod load;
pub mod machine;
pub mod packets;
pub mod peers;
pub mod progress;
pub mod record;
pub mod report;
pub mod results;
pub mod scale;
pub mod scenario;
pub mod scratch;
pub mod shaping;
pub mod soak;
pub mod storm;
pub mod targets;
pub mod units;
