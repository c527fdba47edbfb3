//! Waiting for what other processes and the kernel do.

use std::thread;
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
        thread::sleep(Duration::from_millis(2));
    }
}
