//! Orders to be replaced by another process: the control plane's part of an upgrade, as the one that is replaced.

use std::io;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use tracing::warn;

use super::event_loop::Interest;
use super::orders::Origin;
use super::protocol::Answer;
use super::{ControlLoop, Phase, watch_users_file, watched_file};
use crate::gateway::{DrainPlan, NotUpgraded, Status};
use crate::supervisor;
use crate::upgrade::Listeners;

/// How often it is looked whether all clients have left.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long after the time is up clients may still be leaving.
const GRACE: Duration = Duration::from_secs(2);

/// How the clients leave once another process serves.
#[derive(Debug)]
pub(super) struct Leaving {
    drain: DrainPlan,
    /// What was left of the time of a drain before, which goes on if the other process dies.
    drained: Option<Duration>,
    /// When nobody waits for them any more. `None` until they have been told to leave.
    until: Option<Instant>,
    look_at: Instant,
}

impl Leaving {
    pub(super) fn poll_timeout(&self) -> Instant {
        self.look_at
    }
}

impl ControlLoop {
    /// Starts the process that is to take over. Returns the answer if there is one already.
    pub(super) fn begin_upgrade(
        &mut self,
        origin: Origin,
        program: Option<PathBuf>,
        drain: DrainPlan,
    ) -> Option<Answer> {
        let now = Instant::now();
        let begun = self.lend().map_err(NotUpgraded::from);
        let begun = begun.and_then(|listeners| self.gateway.begin_upgrade(program, listeners, now));
        if let Err(error) = begun {
            return Some(self.orders.refuse_upgrade(&error));
        }
        self.orders.begin_upgrade(origin);
        self.leaving = Some(Leaving { drain, drained: self.gateway.drains_for(now), until: None, look_at: now });
        None
    }

    /// Copies of the listening sockets.
    fn lend(&self) -> io::Result<Listeners> {
        let control = self.acceptor.as_ref().map(|acceptor| acceptor.lend()).transpose()?;
        Ok(Listeners { control, metrics: self.metrics.lend()? })
    }

    /// Another process serves: this one has the clients that it has until they have left.
    pub(super) fn begin_leaving(&mut self, process: u32) {
        supervisor::main_process(process);
        self.phase = Phase::Leaving;
        self.renew_usage(Instant::now());
        self.users_file = None;
        self.metrics.replace(None);
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.set_shared(true);
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.look_at = Instant::now();
        }
    }

    /// That process is dead: this one serves again.
    pub(super) fn stay(&mut self) {
        supervisor::main_process(process::id());
        self.phase = Phase::Serving;
        self.renew_usage(Instant::now());
        match self.leaving.take().and_then(|leaving| leaving.drained) {
            Some(within) => {
                let pace = DrainPlan { within, rate_per_s: None };
                self.gateway.begin_drain(pace, &Status::default(), Instant::now());
            }
            None => {
                self.gateway.resume();
            }
        }
        if let Some(acceptor) = &mut self.acceptor {
            acceptor.set_shared(false);
            if let Err(error) = acceptor.want(Interest::Input) {
                warn!("the control socket is of no use any more: {error}");
            }
        }
        match self.metrics.prepare(&self.gateway.config().metrics, &self.event_loop) {
            Ok(listening) => self.metrics.replace(listening.flatten()),
            Err(error) => warn!("{error}"),
        }
        self.users_file = watch_users_file(watched_file(self.gateway.config()), self.gateway.host(), &self.event_loop)
            .inspect_err(|error| warn!("the users file is not watched any more: {error}"))
            .unwrap_or_default();
    }

    /// Looks whether clients are left, when that is due.
    pub(super) fn look_whether_left(&mut self, now: Instant) {
        if self.phase == Phase::Leaving
            && let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.look_at <= now)
        {
            leaving.look_at = now + INTERVAL;
            if self.gateway.is_idle() {
                self.gateway.begin_status(now);
            }
        }
    }

    /// Has the clients leave, and ends when they have.
    pub(super) fn see_them_leave(&mut self, status: &Status, now: Instant) {
        let Some(leaving) = &mut self.leaving else { return };
        self.gateway.tell_left(status.clients());
        let Some(until) = leaving.until else {
            self.gateway.begin_drain(leaving.drain, status, now);
            leaving.until = self.gateway.drains_for(now).map(|time| now + time + GRACE);
            return;
        };
        let is_empty = status.unanswered.is_empty() && status.shards.iter().all(|shard| shard.owned_connections == 0);
        if is_empty || until <= now {
            self.begin_stop();
        }
    }
}
