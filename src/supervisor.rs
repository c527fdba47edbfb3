//! What the service manager is told (sd_notify(3)). Without one, nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// The gateway serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// It is `process` from now on.
pub fn main_process(process: u32) {
    notify(&[NotifyState::MainPid(process)]);
}

/// What it is about, for people.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// It works.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How long the service manager waits to hear that before it ends the gateway; `None` where it does not.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager was not told");
    }
}
