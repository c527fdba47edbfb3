//! What end-to-end tests share: `tollgate serve`, `tollgate connect` and real Quincy clients as programs in network namespaces, and traffic
//! between them; what goes wrong on the way; clients that misbehave, in packets of their own making; and the documents, whose commands are
//! held against the programs.

#![allow(missing_docs, reason = "a comment stands where the name does not say it")]

pub mod client;
pub mod control;
pub mod datagrams;
pub mod deployment;
pub mod faults;
pub mod gateway;
pub mod initials;
pub mod mounts;
pub mod pages;
pub mod peers;
pub mod queries;
pub mod raw;
pub mod relay;
pub mod scrape;
pub mod site;
pub mod status;
pub mod traffic;
pub mod tunnels;
pub mod turn;

use std::path::PathBuf;

pub use tollgate_testkit::wait::{PATIENCE, eventually};

/// The gateway's program, which Cargo has put beside the folder of the test that asks.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own program");
    let program = test.ancestors().skip(2).map(|folder| folder.join("tollgate")).find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("there is no tollgate beside {}", test.display()))
}
