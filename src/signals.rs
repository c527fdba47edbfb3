//! Signals as messages.
//!
//! This module acts on none of them.

use crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// What somebody outside wants of a running command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End, with goodbyes.
    Stop,
    /// Say how things stand.
    Report,
}

/// SIGINT and SIGTERM to stop, SIGUSR1 to report.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub fn signals() -> std::io::Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let (sender, receiver) = unbounded();
    std::thread::Builder::new().name("tollgate-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let wanted = if signal == SIGUSR1 { Signal::Report } else { Signal::Stop };
            if sender.send(wanted).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
