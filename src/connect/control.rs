//! Signals, and news of this machine's network, for a thread that sleeps on descriptors and is woken up for them.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, never, select};

use crate::io::Wake;
use crate::signals::Signal;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The timeout has passed.
    Elapsed,
    /// A signal has arrived.
    Signal(Signal),
    /// This machine's network has changed.
    NetworkChanged,
    /// This machine's clock was set, or it was suspended.
    ClockChanged,
}

/// The end at which the client takes signals.
#[derive(Debug)]
pub struct Control<'a> {
    signals: Receiver<Signal>,
    network_changes: Receiver<()>,
    clock_changes: Receiver<()>,
    wake: &'a Wake,
}

impl<'a> Control<'a> {
    /// Takes signals from `signals`, after each of which `wake` is notified.
    pub fn new(signals: Receiver<Signal>, wake: &'a Wake) -> Self {
        Control { signals, network_changes: never(), clock_changes: never(), wake }
    }

    /// Takes changes of this machine's network and clock too, after each of which `wake` is notified. Their senders must live as long as
    /// this.
    #[must_use]
    pub fn with_changes(self, network_changes: Receiver<()>, clock_changes: Receiver<()>) -> Self {
        Control { network_changes, clock_changes, ..self }
    }

    /// The eventfd that ends the client's sleep.
    pub fn wake(&self) -> &'a Wake {
        self.wake
    }

    /// The channel of signals.
    pub fn signals(&self) -> &Receiver<Signal> {
        &self.signals
    }

    /// Where changes of this machine's network come from.
    pub fn network_changes(&self) -> &Receiver<()> {
        &self.network_changes
    }

    /// The next signal, if there is one.
    pub fn take(&self) -> Option<Signal> {
        self.signals.try_recv().ok()
    }

    /// Whether this machine's network has changed since this was last asked.
    pub fn take_network_change(&self) -> bool {
        self.network_changes.try_recv().is_ok()
    }

    /// Whether this machine's clock has jumped since this was last asked.
    pub fn take_clock_change(&self) -> bool {
        self.clock_changes.try_recv().is_ok()
    }

    /// Waits for whatever comes first, for `patience` at most.
    pub fn wait(&self, patience: Duration) -> Waited {
        select! {
            recv(self.signals) -> signal => Waited::Signal(signal.unwrap_or(Signal::Stop)),
            recv(self.network_changes) -> _ => Waited::NetworkChanged,
            recv(self.clock_changes) -> _ => Waited::ClockChanged,
            recv(after(patience)) -> _ => Waited::Elapsed,
        }
    }
}

/// Hands signals on from `from` to `to` and notifies `wake`, until `ended` is disconnected. Where nobody can send signals any more, nobody
/// could stop the client: that counts as [`Signal::Stop`].
pub fn relay(from: &Receiver<Signal>, ended: &Receiver<()>, to: &Sender<Signal>, wake: &Wake) {
    loop {
        let signal = select! {
            recv(from) -> signal => signal,
            recv(ended) -> _ => return,
        };
        // The receiver lives as long as the client.
        let _ = to.send(signal.unwrap_or(Signal::Stop));
        wake.notify();
        if signal.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::{bounded, unbounded};

    use super::*;

    #[test]
    fn signals_wake_and_their_senders_end_is_a_stop() {
        let (sender, from) = unbounded();
        let (to, signals) = unbounded();
        let (running, ended) = bounded(0);
        let wake = Wake::new().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| relay(&from, &ended, &to, &wake));
            let control = Control::new(signals, &wake);
            let patience = Duration::from_secs(30);
            sender.send(Signal::Report).unwrap();
            assert_eq!(control.wait(patience), Waited::Signal(Signal::Report));
            drop(sender);
            assert_eq!(control.wait(patience), Waited::Signal(Signal::Stop));
            drop(running);
        });
        assert!(wake.drain());
    }

    #[test]
    fn the_relay_ends_with_the_client() {
        let (_sender, from) = unbounded();
        let (to, _signals) = unbounded();
        let (running, ended) = bounded(0);
        let wake = Wake::new().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| relay(&from, &ended, &to, &wake));
            drop(running);
        });
    }
}
