//! Orders carried out: each begins when the one before it is completed, and is answered when all cores have answered or its time is over.

use std::time::{Duration, Instant};

use tracing::info;

use super::orders::{self, Origin, StatusFor, Survey, Whom};
use super::protocol::{Answer, Place, Request};
use super::usage::Bookkeeping;
use super::{ControlLoop, DRAIN_MAX, Phase, survey, usage, watch_users_file, watched_file};
use crate::gateway::{Completed, DrainPlan, NotUpgraded, Status};
use crate::supervisor;
use crate::usage::{Ask, Day, Query};

impl ControlLoop {
    /// Ends orders that are completed, and begins the next ones as long as none is pending.
    pub(super) fn advance_orders(&mut self) {
        while let Some(completed) = self.gateway.poll_completed(Instant::now()) {
            match completed {
                Completed::SuccessorLost => self.stay(),
                Completed::Stop if matches!(self.phase, Phase::Serving | Phase::Leaving) => self.begin_stop(),
                Completed::Upgrade(Ok(upgraded)) => {
                    let process = upgraded.process;
                    if let Some((origin, answer)) = self.orders.complete(Completed::Upgrade(Ok(upgraded))) {
                        self.answer(origin, &answer);
                    }
                    self.begin_leaving(process);
                }
                Completed::Status(status) if self.phase == Phase::LastStatus => {
                    status.to_string().lines().for_each(|line| info!("{line}"));
                    info!("stopping: every client is told");
                    self.gateway.begin_stop(Instant::now());
                    self.phase = Phase::Stopping;
                }
                Completed::Status(status) => {
                    self.watchdog.handle_status(&status);
                    self.take_status(status);
                }
                completed => {
                    if let Some((origin, answer)) = self.orders.complete(completed) {
                        self.answer(origin, &answer);
                    }
                }
            }
        }
        self.bar_users();
        while let Some(next) = self.orders.begin_next() {
            if let orders::Next::Order(origin, request) = &next {
                self.record_order(*origin, request);
            }
            let answered = match (next, self.phase) {
                (orders::Next::Report, Phase::Serving | Phase::Leaving) => {
                    self.gateway.begin_status(Instant::now());
                    None
                }
                (orders::Next::Report, _) => {
                    self.orders.end_report();
                    None
                }
                (orders::Next::Order(origin, _), Phase::LastStatus | Phase::Stopping) => {
                    Some((origin, self.orders.refuse_stopping()))
                }
                (orders::Next::Order(origin, _), Phase::Leaving) => {
                    let process = self.gateway.successor().unwrap_or_default();
                    Some((origin, self.orders.refuse_reload(origin, vec![NotUpgraded::Replaced(process).to_string()])))
                }
                (orders::Next::Order(origin, request), Phase::Serving) => {
                    self.begin(origin, request).map(|answer| (origin, answer))
                }
            };
            if let Some((origin, answer)) = answered {
                self.answer(origin, &answer);
            }
        }
    }

    /// Begins an order. Returns the answer if there is one already.
    fn begin(&mut self, origin: Origin, request: Request) -> Option<Answer> {
        let ControlLoop { orders, gateway, .. } = self;
        match request {
            Request::Kick { user } => return orders.begin_kick(gateway, origin, &user),
            Request::Reload { force } => return self.begin_reload(origin, force),
            Request::Status { shards } => orders.begin_status(gateway, StatusFor::Answer(origin, shards)),
            Request::Users { after } => orders.begin_survey(gateway, Survey { origin, whom: Whom::Users { after } }),
            Request::Connections { user, after } => {
                if let Some(Err(unknown)) = user.as_ref().map(|user| gateway.find_user(user)) {
                    return Some(Answer::refused(vec![unknown.to_string()]));
                }
                orders.begin_survey(gateway, Survey { origin, whom: Whom::Connections { user, after } });
            }
            Request::Usage { user, period, since, after } => {
                if self.usage.is_none() {
                    return Some(usage::refuse());
                }
                let after = after.map(|Place { user, begin, .. }| (user, begin.unwrap_or(Day(0))));
                let whom = Whom::Usage(Query { user, period, since, after });
                orders.begin_survey(gateway, Survey { origin, whom });
            }
            Request::ForgetUsage { user } => return self.begin_usage(origin, Ask::Forget(user)),
            Request::Drain { within_ms, rate_per_s } => {
                orders.begin_status(gateway, StatusFor::Drain(origin, drain_plan(within_ms, rate_per_s)));
            }
            Request::Resume => return Some(self.resume()),
            Request::Limit { user, to } => return orders.begin_limit(gateway, origin, &user, to),
            Request::LogLevel { filter } => return Some(orders.set_log_level(filter.as_deref())),
            Request::Upgrade { program, within_ms, rate_per_s } => {
                return self.begin_upgrade(origin, program, drain_plan(within_ms, rate_per_s));
            }
        }
        None
    }

    /// Makes use of a status that was asked for.
    fn take_status(&mut self, status: Status) {
        match self.orders.take_status() {
            None if self.phase == Phase::Leaving => self.see_them_leave(&status, Instant::now()),
            None => {}
            Some(StatusFor::Report) => self.reports.print(status.to_json()),
            Some(StatusFor::Answer(origin, with_shards)) => {
                let mut answer = self.orders.with_ordered(&self.gateway, orders::standing(&self.gateway, &status));
                answer.lines.extend(self.usage.as_ref().and_then(Bookkeeping::line));
                self.answer(origin, &if with_shards { answer.with_shards(status) } else { answer });
            }
            Some(StatusFor::Survey(Survey { origin, whom: Whom::Usage(query) })) => {
                self.renew_usage(Instant::now());
                if let Some(answer) = self.begin_usage(origin, Ask::Rows(query)) {
                    self.answer(origin, &answer);
                }
            }
            Some(StatusFor::Survey(Survey { origin, whom })) => {
                let (users, order, cores) = (self.gateway.users(), self.gateway.limits(), self.gateway.usage());
                let mut answer = match &whom {
                    Whom::Users { after } => {
                        survey::users(users, order, self.gateway.over_quota(), &cores, after.as_ref())
                    }
                    Whom::Connections { user, after } => {
                        survey::connections(users, &cores, user.as_deref(), after.as_ref())
                    }
                    Whom::Usage(_) => return,
                };
                answer.lines.extend(orders::missing(&self.gateway, &status));
                self.answer(origin, &answer);
            }
            Some(StatusFor::Drain(origin, pace)) => {
                self.gateway.begin_drain(pace, &status, Instant::now());
                let answer = orders::standing(&self.gateway, &status);
                answer.lines.iter().for_each(|line| info!("{line}"));
                supervisor::status("draining: no new clients are taken");
                self.answer(origin, &answer);
            }
        }
    }

    /// Ends a drain.
    fn resume(&mut self) -> Answer {
        if !self.gateway.resume() {
            return Answer::refused(vec!["the gateway does not drain: it takes clients".to_owned()]);
        }
        info!("taking clients again, by order");
        supervisor::status("serving");
        let lines = vec!["taking clients again".to_owned()];
        Answer { done: true, lines, state: Some(self.gateway.state()), ..Answer::default() }
    }

    /// Reads the configuration again and puts it in force. Returns the answer if there is one already.
    fn begin_reload(&mut self, origin: Origin, force: bool) -> Option<Answer> {
        let next = match (self.load)(&self.gateway.host().opener()) {
            Ok(next) => next,
            Err(error) => return Some(self.orders.refuse_reload(origin, orders::reasons(&error))),
        };
        let wanted = watched_file(&next);
        let is_watched = wanted.as_deref() == self.users_file.as_ref().map(|watch| watch.path());
        let watch = if is_watched {
            Ok(None)
        } else {
            watch_users_file(wanted, self.gateway.host(), &self.event_loop).map(Some)
        };
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => return Some(self.orders.refuse_reload(origin, vec![error.to_string()])),
        };
        let listening = match self.metrics.prepare(&next.metrics, &self.event_loop) {
            Ok(listening) => listening,
            Err(error) => return Some(self.orders.refuse_reload(origin, vec![error.to_string()])),
        };
        let over_quota = self.over_quotas_of(&next);
        let refused = self.orders.begin_reload(&mut self.gateway, origin, (next, over_quota), force);
        if refused.is_none() {
            self.apply_quotas();
            watch.into_iter().for_each(|watch| self.users_file = watch);
            listening.into_iter().for_each(|listening| self.metrics.replace(listening));
        }
        refused
    }

    pub(super) fn answer(&mut self, origin: Origin, answer: &Answer) {
        self.records.answered(answer);
        if let Origin::Client(client) = origin {
            self.clients.answer(client, answer, Instant::now());
            while let Some((client, request)) = self.clients.poll_request() {
                self.orders.push(Origin::Client(client), request);
            }
        }
    }
}

/// The drain that was ordered, as far as it may be.
fn drain_plan(within_ms: u64, rate_per_s: Option<u32>) -> DrainPlan {
    DrainPlan { within: Duration::from_millis(within_ms).min(DRAIN_MAX), rate_per_s }
}
