//! The testbed of end-to-end tests: `tollgate serve` and real Quincy clients, as programs in network namespaces, and traffic between them.

pub mod client;
pub mod control;
pub mod deployment;
pub mod gateway;
pub mod mounts;
pub mod peers;
pub mod raw;
pub mod status;
pub mod traffic;
pub mod turn;

use std::path::PathBuf;

pub use crate::wait::{PATIENCE, eventually};

/// The gateway's program, which Cargo has put beside the folder of the test that asks.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own program");
    let program = test.ancestors().skip(2).map(|folder| folder.join("tollgate")).find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("there is no tollgate beside {}", test.display()))
}
