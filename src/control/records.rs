//! What the control plane has kept in the records: orders with who gave them, and what the cores publish of sessions.

use std::time::{Duration, Instant};

use super::ControlLoop;
use super::orders::Origin;
use super::protocol::{Answer, Request};
use crate::gateway::CoreUsage;
use crate::records::{By, Published, Recorder};

/// How often sessions are held against what cores have published of them.
const INTERVAL: Duration = Duration::from_secs(1);

/// The control plane's part of the records.
#[derive(Debug)]
pub(super) struct Records {
    /// `None` where none are kept.
    recorder: Option<Recorder>,
    carried_at: Instant,
    /// The number of the order that is not answered, if it is kept.
    order: Option<u64>,
}

impl Records {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Records { recorder, carried_at: Instant::now(), order: None }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.recorder.as_ref().map(|_| self.carried_at)
    }

    pub(super) fn begin(&self, took_over_from: Option<u32>) {
        self.recorder.iter().for_each(|recorder| recorder.begin(took_over_from));
    }

    /// What was said to the order before this.
    pub(super) fn answered(&mut self, answer: &Answer) {
        if let (Some(number), Some(recorder)) = (self.order.take(), &self.recorder) {
            recorder.answered(number, answer.done, &answer.lines);
        }
    }
}

impl ControlLoop {
    /// Hands on what the cores have published of sessions, when that is due.
    pub(super) fn record_sessions(&mut self, now: Instant) {
        let Records { recorder: Some(recorder), carried_at, .. } = &mut self.records else { return };
        if *carried_at <= now {
            *carried_at = now + INTERVAL;
            let published = |CoreUsage { published, clients, .. }| Published { at: published, clients };
            recorder.carried(self.gateway.usage().into_iter().map(published).collect(), self.gateway.users().clone());
        }
    }

    /// An order begins.
    pub(super) fn record_order(&mut self, origin: Origin, request: &Request) {
        let Some(recorder) = &self.records.recorder else { return };
        if matches!(request, Request::Reload { .. }) {
            recorder.reopen();
        }
        self.records.order = request.changes_something().then(|| {
            let by = match origin {
                Origin::Client(client) => By { via: "control socket", process: self.clients.process(client) },
                Origin::Signal => By { via: "signal", process: None },
                Origin::UsersFile => By { via: "users file", process: None },
            };
            recorder.order(serde_json::to_value(request).unwrap_or_default(), by)
        });
    }

    /// The gateway ends: what is known is written.
    pub(super) fn end_records(&self) {
        let is_replaced = self.gateway.successor().is_some();
        self.records.recorder.iter().for_each(|recorder| recorder.finish(is_replaced));
    }
}
