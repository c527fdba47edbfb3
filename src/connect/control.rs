//! Signals for a thread that sleeps on descriptors: a relay that wakes it up.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use crate::io::Wake;
use crate::signals::Signal;

/// The end at which the client takes signals.
#[derive(Debug)]
pub struct Control<'a> {
    signals: Receiver<Signal>,
    wake: &'a Wake,
}

impl<'a> Control<'a> {
    /// Takes signals from `signals`, after each of which `wake` is notified.
    pub fn new(signals: Receiver<Signal>, wake: &'a Wake) -> Self {
        Control { signals, wake }
    }

    /// What the client sleeps on.
    pub fn wake(&self) -> &'a Wake {
        self.wake
    }

    /// Where signals come from.
    pub fn signals(&self) -> &Receiver<Signal> {
        &self.signals
    }

    /// The next signal, if there is one.
    pub fn take(&self) -> Option<Signal> {
        self.signals.try_recv().ok()
    }

    /// The next signal, unless none comes within `patience`.
    pub fn wait(&self, patience: Duration) -> Option<Signal> {
        self.signals.recv_timeout(patience).ok()
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
            assert_eq!(control.wait(patience), Some(Signal::Report));
            drop(sender);
            assert_eq!(control.wait(patience), Some(Signal::Stop));
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
