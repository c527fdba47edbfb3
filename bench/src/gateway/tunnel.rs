//! A gateway's process and its client's, from start to end, whatever protocol they speak.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tollgate::lab::Process;

use crate::scratch::ScratchFile;

/// How long a gateway or client may take to start.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway or client may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How many of a process's last lines go into an error.
const LAST_LINES_MAX: usize = 15;

/// A gateway with a client. Both are killed when this value is dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) gateway: Process,
    pub(super) client: Process,
    /// Sockets in the file system that the two made. Behind them, so that they go last.
    pub(super) sockets: Vec<ScratchFile>,
}

impl Tunnel {
    /// Stops the client, then the gateway.
    ///
    /// # Errors
    ///
    /// When one of them does not stop; it is killed then.
    pub(super) fn stop(mut self) -> Result<()> {
        // quincy-client says goodbye on an interrupt only.
        self.client.signal(Signal::INT)?;
        self.client.wait(STOP_TIMEOUT)?;
        self.gateway.stop(STOP_TIMEOUT)?;
        drop(self.sockets);
        Ok(())
    }

    /// What gateway and client said last, for an error.
    pub(super) fn last_lines(&self) -> String {
        let said = |process: &Process| {
            let lines = process.lines();
            let last = lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n  ");
            format!("{} said last:\n  {last}", process.name())
        };
        format!("{}\n{}", said(&self.gateway), said(&self.client))
    }
}
