//! Ctrl-C, as something to look at between two steps.

use std::cell::Cell;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::DemoError;
use crate::signals::Signal;

/// Whether the demo shall end.
pub(super) struct Interrupt {
    signals: Receiver<Signal>,
    raised: Cell<bool>,
}

impl Interrupt {
    pub(super) fn new(signals: Receiver<Signal>) -> Self {
        Interrupt { signals, raised: Cell::new(false) }
    }

    /// Fails, now and ever after, once a signal to stop has come.
    pub(super) fn check(&self) -> Result<(), DemoError> {
        if self.raised.get() || self.signals.try_iter().any(|signal| signal == Signal::Stop) {
            self.raised.set(true);
            return Err(DemoError::Interrupted);
        }
        Ok(())
    }

    /// Waits for a signal.
    pub(super) fn wait(&self, timeout: Duration) -> Option<Signal> {
        self.signals.recv_timeout(timeout).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_signal_to_stop_interrupts_and_it_does_so_for_good() {
        let (sender, signals) = crossbeam_channel::unbounded();
        let interrupt = Interrupt::new(signals);
        sender.send(Signal::Report).unwrap();
        interrupt.check().unwrap();
        sender.send(Signal::Stop).unwrap();
        sender.send(Signal::Report).unwrap();
        for _ in 0..2 {
            assert!(matches!(interrupt.check(), Err(DemoError::Interrupted)));
        }
    }
}
