//! Signals as messages.

use crossbeam_channel::{Receiver, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// What somebody outside wants of a running command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End, with goodbyes.
    Stop,
    /// Print the counters (SIGUSR1).
    Report,
}

/// SIGINT and SIGTERM to stop, SIGUSR1 to report.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub fn signals() -> std::io::Result<Receiver<Signal>> {
    receive(&[SIGINT, SIGTERM])
}

fn receive(stopping: &[i32]) -> std::io::Result<Receiver<Signal>> {
    let mut signals = Signals::new(stopping.iter().chain(&[SIGUSR1]))?;
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

/// The same for a command that belongs to a terminal: SIGHUP, which comes when that closes, stops it too, unless it was started with SIGHUP
/// ignored (nohup).
///
/// # Errors
///
/// If the handlers cannot be installed.
pub fn terminal_signals() -> std::io::Result<Receiver<Signal>> {
    let stopping: &[i32] = if is_ignored(SIGHUP) { &[SIGINT, SIGTERM] } else { &[SIGINT, SIGTERM, SIGHUP] };
    receive(stopping)
}

/// Whether this process was told to ignore a signal when it was started.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & (1 << (signal - 1)) != 0
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
