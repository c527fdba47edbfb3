//! What the service manager's watchdog is told: that every core answers.

use std::time::{Duration, Instant};

use crate::gateway::{Gateway, Status};
use crate::supervisor;

/// How often cores are asked in the time that the service manager waits.
const QUESTIONS: u32 = 4;

#[derive(Debug)]
pub(super) struct Watchdog {
    /// `None` where nobody waits.
    interval: Option<Duration>,
    ask_at: Instant,
}

impl Watchdog {
    pub(super) fn new(now: Instant) -> Self {
        Watchdog { interval: supervisor::watchdog().map(|limit| limit / QUESTIONS), ask_at: now }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.interval.map(|_| self.ask_at)
    }

    /// Asks the cores, when that is due and nothing else is asked of them. An order may come in between: then they are asked the next time.
    pub(super) fn handle_timeout(&mut self, gateway: &mut Gateway, now: Instant) {
        let Some(interval) = self.interval.filter(|_| self.ask_at <= now) else { return };
        self.ask_at = now + interval;
        if gateway.is_idle() {
            gateway.begin_status(now);
        }
    }

    /// Whoever asked for it.
    pub(super) fn handle_status(&self, status: &Status) {
        if self.interval.is_some() && status.unanswered.is_empty() {
            supervisor::alive();
        }
    }
}
