//! Signals as messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals as SignalIterator;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// The signals of a gateway. The descriptor is readable while some wait.
#[derive(Debug)]
pub struct SignalSource(SignalDelivery<UnixStream, SignalOnly>);

/// The signals that have come. Several of one number are one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PendingSignals {
    /// SIGINT or SIGTERM: end, with goodbyes.
    pub stop: bool,
    /// SIGUSR1: report the status.
    pub report: bool,
    /// SIGHUP: reload the configuration. Without a [`SignalSource`] it ends the program.
    pub reload: bool,
}

impl SignalSource {
    /// Installs the handlers.
    ///
    /// # Errors
    ///
    /// If they cannot be installed, or descriptors run out.
    pub fn open() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, [SIGINT, SIGTERM, SIGUSR1, SIGHUP])?;
        Ok(SignalSource(delivery))
    }

    /// Takes the signals that have come. Never blocks.
    pub fn take(&mut self) -> PendingSignals {
        let mut pending = PendingSignals::default();
        for signal in self.0.pending() {
            match signal {
                SIGUSR1 => pending.report = true,
                SIGHUP => pending.reload = true,
                _ => pending.stop = true,
            }
        }
        pending
    }
}

impl AsFd for SignalSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// What a signal asks of a running command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End, with goodbyes.
    Stop,
    /// Print the counters (SIGUSR1).
    Report,
}

/// SIGINT and SIGTERM to stop, SIGUSR1 to report, received by a thread.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub fn signals() -> io::Result<Receiver<Signal>> {
    receive(&[SIGINT, SIGTERM])
}

fn receive(stopping: &[i32]) -> io::Result<Receiver<Signal>> {
    let mut signals = SignalIterator::new(stopping.iter().chain(&[SIGUSR1]))?;
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
pub fn terminal_signals() -> io::Result<Receiver<Signal>> {
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
