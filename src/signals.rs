//! Signals as messages.
//!
//! This module acts on none of them.

use crossbeam_channel::{Receiver, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
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

/// SIGHUP, which ends a command that does not ask for this. Several that nobody has taken yet are one.
///
/// # Errors
///
/// If the handler cannot be installed.
pub fn hangups() -> std::io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGHUP])?;
    let (sender, receiver) = bounded(1);
    std::thread::Builder::new().name("tollgate-hangups".to_owned()).spawn(move || {
        for _ in signals.forever() {
            // The one that waits stands for this one too.
            let _ = sender.try_send(());
        }
    })?;
    Ok(receiver)
}
