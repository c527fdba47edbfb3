//! The testbed of end-to-end tests: `tollgate serve` and real Quincy clients, as programs in network namespaces, and traffic between them.

pub mod client;
pub mod control;
pub mod deployment;
pub mod gateway;
pub mod mounts;
pub mod peers;
pub mod queue;
pub mod raw;
pub mod status;
pub mod traffic;
pub mod turn;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long anything may take that has no bound of its own: the machine may be busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The gateway's program, which Cargo has put beside the folder of the test that asks.
///
/// # Panics
///
/// If it is not there.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own program");
    let program = test.ancestors().skip(2).map(|folder| folder.join("tollgate")).find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("there is no tollgate beside {}", test.display()))
}

/// Waits until `condition` holds; false when it does not within `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
