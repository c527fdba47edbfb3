//! Orders to the gateway: in which order they begin, one at a time, and what is said of them when they are completed.
//!
//! This module waits for nothing and reads no file.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Instant;

use tollgate_config::{ConfigError, LogFilter, ServerConfig};
use tracing::{error, info, warn};

use super::clients::ClientId;
use super::protocol::{Answer, Place, Request};
use crate::gateway::{Completed, DrainPlan, Gateway, LimitOrder, NotUpgraded, State, Status, Upgraded};
use crate::log::{self, Kind, Log};
use crate::usage::Query;

/// Who gave an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client of the control socket, who waits for the answer.
    Client(ClientId),
    /// A signal.
    Signal,
    /// The users file, which has changed.
    UsersFile,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Client(_) => "order",
            Origin::Signal => "SIGHUP",
            Origin::UsersFile => "a change of the users file",
        })
    }
}

/// What is to begin next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A report of the status on standard output.
    Report,
    /// An order.
    Order(Origin, Request),
}

/// What has begun and is not completed.
#[derive(Debug)]
enum Pending {
    Status(StatusFor),
    /// The keeper's answer.
    Usage(Origin),
    /// Nobody waits for it.
    Bar,
    Kick(Origin),
    Limit(Origin),
    /// With lines to add to the answer.
    Reload(Origin, Vec<String>),
    Upgrade(Origin),
}

/// What a status was asked for.
#[derive(Debug)]
pub enum StatusFor {
    Report,
    /// With each shard's report, or without.
    Answer(Origin, bool),
    Drain(Origin, DrainPlan),
    Survey(Survey),
}

/// Who wants to know who is online.
#[derive(Debug)]
pub struct Survey {
    pub origin: Origin,
    pub whom: Whom,
}

/// Of whom. See [`Request`].
#[derive(Debug)]
pub enum Whom {
    Users {
        after: Option<Place>,
    },
    Connections {
        user: Option<String>,
        after: Option<Place>,
    },
    /// What they have carried in all.
    Usage(Query),
}

/// The orders that wait, and the one that is pending.
#[derive(Debug)]
pub struct Orders {
    log: Log,
    /// The log's, as configured.
    level: LogFilter,
    /// The log's by order, in place of that.
    ordered_level: Option<LogFilter>,
    /// At most one order of each client and of each other origin, and one report.
    waiting: VecDeque<Next>,
    pending: Option<Pending>,
}

impl Orders {
    /// Without any.
    pub fn new(log: Log, level: LogFilter) -> Self {
        Orders { log, level, ordered_level: None, waiting: VecDeque::new(), pending: None }
    }

    /// Adds an order. A signal or a changed file that already waits stands for this one too.
    pub fn push(&mut self, origin: Origin, request: Request) {
        let waits = |next: &Next| matches!(next, Next::Order(other, _) if *other == origin);
        if !self.waiting.iter().any(waits) {
            self.waiting.push_back(Next::Order(origin, request));
        }
    }

    /// Adds a report. One that already waits stands for this one too.
    pub fn push_report(&mut self) {
        if !self.waiting.contains(&Next::Report) {
            self.waiting.push_back(Next::Report);
        }
    }

    /// The next one, if none is pending. The caller begins it at once.
    pub fn begin_next(&mut self) -> Option<Next> {
        let next = if self.pending.is_none() { self.waiting.pop_front() } else { None };
        if next == Some(Next::Report) {
            self.pending = Some(Pending::Status(StatusFor::Report));
        }
        next
    }

    /// The report that was pending is not made.
    pub fn end_report(&mut self) {
        self.pending = None;
    }

    /// Asks for the gateway's status: the pace of a drain, too, depends on the number of clients.
    pub fn begin_status(&mut self, gateway: &mut Gateway, purpose: StatusFor) {
        gateway.begin_status(Instant::now());
        self.pending = Some(Pending::Status(purpose));
    }

    /// Asks for the gateway's status and for what its connections have carried.
    pub fn begin_survey(&mut self, gateway: &mut Gateway, survey: Survey) {
        gateway.begin_survey(Instant::now());
        self.pending = Some(Pending::Status(StatusFor::Survey(survey)));
    }

    /// What the status that has come was asked for.
    pub fn take_status(&mut self) -> Option<StatusFor> {
        match self.pending.take()? {
            Pending::Status(purpose) => Some(purpose),
            Pending::Usage(_) | Pending::Bar | Pending::Kick(_) | Pending::Limit(_) => None,
            Pending::Reload(..) | Pending::Upgrade(_) => None,
        }
    }

    /// Whether no order is pending.
    pub fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    /// Others are over their quotas.
    pub fn begin_bar(&mut self) {
        self.pending = Some(Pending::Bar);
    }

    /// The keeper of usage was asked.
    pub fn begin_usage(&mut self, origin: Origin) {
        self.pending = Some(Pending::Usage(origin));
    }

    /// Who has asked the keeper, which has answered.
    pub fn take_usage(&mut self) -> Option<Origin> {
        match self.pending.take() {
            Some(Pending::Usage(origin)) => Some(origin),
            other => {
                self.pending = other;
                None
            }
        }
    }

    /// Closes the connections of `user`. Returns the answer if there is one already.
    pub fn begin_kick(&mut self, gateway: &mut Gateway, origin: Origin, user: &str) -> Option<Answer> {
        match gateway.begin_kick(user, Instant::now()) {
            Ok(()) => {
                self.pending = Some(Pending::Kick(origin));
                None
            }
            Err(error) => Some(refuse_kick(&error)),
        }
    }

    /// Gives `user` another limit. Returns the answer if there is one already.
    pub fn begin_limit(&mut self, gateway: &mut Gateway, origin: Origin, user: &str, to: LimitOrder) -> Option<Answer> {
        match gateway.begin_limit(user, to, Instant::now()) {
            Ok(()) => {
                self.pending = Some(Pending::Limit(origin));
                None
            }
            Err(error) => Some(refuse_limit(&error)),
        }
    }

    /// Has the log say what `filter` lets through, or what the file does. A reload with another `[log] level` ends that.
    pub fn set_log_level(&mut self, filter: Option<&str>) -> Answer {
        let began = Instant::now();
        let ordered = match filter.map(LogFilter::parse).transpose() {
            Ok(ordered) => ordered,
            Err(wrong) => {
                let levels = "write off, error, warn, info, debug or trace, or parts of the program as in \"info,tollgate_shards=debug\"";
                return Answer::refused(vec![format!("a level {wrong}: {levels}")]);
            }
        };
        let level = ordered.as_ref().unwrap_or(&self.level);
        if !self.log.set(level) {
            return Answer::refused(vec!["RUST_LOG governs the log: start the gateway without it".to_owned()]);
        }
        let line = match &ordered {
            Some(level) => format!("log level: {level}, by order; the file says {}", self.level),
            None => format!("log level: {level}, as the file says"),
        };
        info!("{line}");
        self.ordered_level = ordered;
        let took_ms = Some(began.elapsed().as_secs_f64() * 1e3);
        Answer { done: true, lines: vec![line], log_level: self.log_level(), took_ms, ..Answer::default() }
    }

    fn log_level(&self) -> Option<String> {
        self.ordered_level.as_ref().map(LogFilter::to_string)
    }

    /// `answer` with what holds by order in place of the files.
    pub fn with_ordered(&self, gateway: &Gateway, mut answer: Answer) -> Answer {
        answer.log_level = self.log_level();
        answer.lines.extend(
            self.ordered_level.iter().map(|level| format!("log level by order, in place of the file's: {level}")),
        );
        answer.lines.extend(gateway.limits().line());
        answer.lines.extend(gateway.over_quota_line());
        answer
    }

    /// Puts `next` in force, with those who are over its quotas. Returns the answer if there is one already: nothing has changed then.
    pub fn begin_reload(
        &mut self,
        gateway: &mut Gateway,
        origin: Origin,
        (next, over_quota): (ServerConfig, BTreeSet<String>),
        force: bool,
    ) -> Option<Answer> {
        let level = next.log.level.clone();
        let mut lines = next.warnings.clone();
        if let Err(error) = gateway.begin_reload(next, over_quota, force, Instant::now()) {
            return Some(self.refuse_reload(origin, error.0));
        }
        // Even where a shard has not said so yet, the configuration is in force from here on.
        let is_same_level = std::mem::replace(&mut self.level, level) == self.level;
        if !is_same_level {
            self.ordered_level = None;
            if !self.log.set(&self.level) {
                lines.push("RUST_LOG governs the log: what [log] says has no effect".to_owned());
            }
        }
        self.pending = Some(Pending::Reload(origin, lines));
        None
    }

    /// An upgrade has begun.
    pub fn begin_upgrade(&mut self, origin: Origin) {
        self.pending = Some(Pending::Upgrade(origin));
    }

    /// The answer to the order that is pending, which the gateway has `completed`.
    pub fn complete(&mut self, completed: Completed) -> Option<(Origin, Answer)> {
        match (self.pending.take()?, completed) {
            (Pending::Kick(origin), Completed::Kick(Ok(kicked))) => {
                if log::admits(Kind::Kicked) {
                    info!("{kicked}, by order");
                }
                let answer = Answer {
                    done: true,
                    lines: vec![kicked.to_string()],
                    closed_connections: Some(kicked.closed_connections),
                    took_ms: Some(kicked.took.as_secs_f64() * 1e3),
                    ..Answer::default()
                };
                Some((origin, answer))
            }
            (Pending::Kick(origin), Completed::Kick(Err(unanswered))) => Some((origin, refuse_kick(&unanswered))),
            (Pending::Limit(origin), Completed::Limit(Ok(limited))) => {
                info!("{limited}");
                let (epoch, took_ms) = (Some(limited.epoch), Some(limited.took.as_secs_f64() * 1e3));
                let lines = vec![limited.to_string()];
                Some((origin, Answer { done: true, lines, epoch, took_ms, ..Answer::default() }))
            }
            (Pending::Limit(origin), Completed::Limit(Err(unanswered))) => Some((origin, refuse_limit(&unanswered))),
            (Pending::Bar, Completed::Bar(barred)) => {
                match barred {
                    Ok(barred) => info!("{barred}"),
                    Err(unanswered) => error!("users over their quotas may still have connections: {unanswered}"),
                }
                None
            }
            (Pending::Reload(origin, more), Completed::Reload(Ok(reloaded))) => {
                let mut lines = vec![reloaded.to_string()];
                lines.extend(more);
                lines.iter().for_each(|line| info!("reloaded on {origin}: {line}"));
                let answer = Answer {
                    done: true,
                    lines,
                    epoch: Some(reloaded.epoch),
                    closed_connections: Some(reloaded.closed_connections),
                    took_ms: Some(reloaded.took.as_secs_f64() * 1e3),
                    ..Answer::default()
                };
                Some((origin, answer))
            }
            (Pending::Reload(origin, _), Completed::Reload(Err(unanswered))) => {
                Some((origin, self.refuse_reload(origin, vec![unanswered.to_string()])))
            }
            (Pending::Upgrade(origin), Completed::Upgrade(Ok(Upgraded { process, took }))) => {
                let line = format!(
                    "process {process} serves after {took:.1?}; this one keeps the clients that it has until they are sent away"
                );
                info!("upgraded: {line}");
                let took_ms = Some(took.as_secs_f64() * 1e3);
                Some((
                    origin,
                    Answer { done: true, lines: vec![line], process: Some(process), took_ms, ..Answer::default() },
                ))
            }
            (Pending::Upgrade(origin), Completed::Upgrade(Err(error))) => Some((origin, self.refuse_upgrade(&error))),
            _ => None,
        }
    }

    /// Logs why there was no upgrade, and makes that an answer.
    pub fn refuse_upgrade(&self, error: &NotUpgraded) -> Answer {
        error!("not upgraded: {error}");
        Answer::refused(vec![error.to_string()])
    }

    /// Logs each reason why there was no reload on the occasion of `origin`, and makes them an answer.
    pub fn refuse_reload(&self, origin: Origin, reasons: Vec<String>) -> Answer {
        reasons.iter().for_each(|reason| error!("not reloaded on {origin}: {reason}"));
        Answer::refused(reasons)
    }

    /// The answer to orders that come while the gateway stops.
    pub fn refuse_stopping(&self) -> Answer {
        Answer::refused(vec!["the gateway is stopping".to_owned()])
    }

    /// Gives up the pending order, and returns its answer.
    pub fn abandon(&mut self) -> Option<(Origin, Answer)> {
        match self.pending.take()? {
            Pending::Status(StatusFor::Report) | Pending::Bar => None,
            Pending::Status(
                StatusFor::Answer(origin, _) | StatusFor::Drain(origin, _) | StatusFor::Survey(Survey { origin, .. }),
            )
            | Pending::Usage(origin)
            | Pending::Kick(origin)
            | Pending::Limit(origin)
            | Pending::Reload(origin, _)
            | Pending::Upgrade(origin) => Some((origin, self.refuse_stopping())),
        }
    }
}

/// How the gateway stands.
pub fn standing(gateway: &Gateway, status: &Status) -> Answer {
    let (state, clients) = (gateway.state(), status.clients());
    let left = gateway.drains_for(Instant::now());
    let line = match (state, left.filter(|_| clients > 0)) {
        (State::Serving, _) => format!("serving; clients: {clients}"),
        (State::Draining, None) => "drained; clients: 0, and none is taken until `tollgate resume`".to_owned(),
        (State::Draining, Some(left)) => {
            format!("draining; clients left: {clients}, the last one for {:.1} s", left.as_secs_f64())
        }
    };
    Answer {
        done: true,
        lines: std::iter::once(line).chain(missing(gateway, status)).chain(status.panics()).collect(),
        state: Some(state),
        clients: Some(clients),
        drains_for_ms: left.map(|left| left.as_millis() as u64),
        ..Answer::default()
    }
}

/// A line for each part of the gateway that a status lacks.
pub fn missing(gateway: &Gateway, status: &Status) -> Vec<String> {
    let before = gateway.predecessor().map(|(process, clients)| {
        let clients = clients.map_or_else(|| "some".to_owned(), |clients| clients.to_string());
        format!("process {process}, which this one has taken over from, still has clients: {clients}")
    });
    let silent = status.unanswered.iter().map(|shard| format!("shard {shard} does not answer"));
    before.into_iter().chain(silent).collect()
}

fn refuse_limit(reason: &impl fmt::Display) -> Answer {
    warn!("a user's limit was not changed by order: {reason}");
    Answer::refused(vec![reason.to_string()])
}

fn refuse_kick(reason: &impl fmt::Display) -> Answer {
    if log::admits(Kind::NotKicked) {
        warn!("an order to kick was not carried out: {reason}");
    }
    Answer::refused(vec![reason.to_string()])
}

/// Every problem of a configuration, as `tollgate check` prints them.
pub fn reasons(error: &ConfigError) -> Vec<String> {
    let mut reasons: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
    if error.omitted() > 0 {
        reasons.push(format!("and {} more problems", error.omitted()));
    }
    reasons
}
