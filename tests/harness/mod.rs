//! What the end-to-end tests share: a gateway and real Quincy clients in network namespaces, and the traffic between them.

pub mod client;
pub mod control;
pub mod deployment;
pub mod gateway;
pub mod peers;
pub mod queue;
pub mod raw;
pub mod status;
pub mod traffic;
pub mod turn;

use std::time::{Duration, Instant};

/// How long anything may take that has no bound of its own: the machine may be busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
