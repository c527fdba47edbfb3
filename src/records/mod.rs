//! Records of who did what, which name clients: the audit log, and the events of sessions for accounting. Both are lines of JSON, and come from the
//! same reports.
//!
//! Cores and the control plane hand reports to a thread of its own and wait for nothing. It knows which sessions are open, so that each has one
//! begin and one end in the records, whatever was lost on the way.

mod accounting;
mod audit;
mod clerk;
mod journal;
mod local_socket;
mod paper;
mod recorder;
mod sessions;

use std::path::Path;

use tollgate_config::ServerConfig;

pub use audit::{By, Process};
pub use recorder::{REPORTS_MAX, Recorder};
pub use sessions::Published;

/// The files that the thread makes, writes and has moved away, as `config` names them.
pub fn files(config: &ServerConfig) -> impl Iterator<Item = &Path> {
    let audit = config.audit.enabled.then_some(&*config.audit.file.path);
    let events = (config.events.enabled && config.events.socket.is_none()).then_some(&*config.events.file.path);
    [audit, events].into_iter().flatten()
}

/// The file that it reads: names of users, who give orders.
pub fn read_file(config: &ServerConfig) -> Option<&'static str> {
    config.audit.enabled.then_some(clerk::USER_NAMES)
}
