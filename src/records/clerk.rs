//! The thread that keeps records: it makes lines of reports.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tollgate_config::ServerConfig;
use tollgate_shards::ConnectionKey;

use super::audit::Given;
use super::paper::Paper;
use super::recorder::{Moment, Report, Shared};
use super::sessions::{Change, Session, Sessions};
use super::{accounting, audit};

/// How long refusals are only counted before their number is told.
const WITHHELD: Duration = Duration::from_secs(1);
/// Reports between two looks at what is due.
const REPORTS_AT_ONCE: usize = 1024;
/// Where names of users are.
pub const USER_NAMES: &str = "/etc/passwd";
/// How much of it is read, in bytes.
const USER_NAMES_BYTES_MAX: u64 = 1 << 20;

pub(super) struct Clerk {
    shared: Arc<Shared>,
    sessions: Sessions,
    papers: Papers,
    withheld_at: Option<Instant>,
}

/// What is written.
struct Papers {
    gateway: String,
    audit: Option<Paper>,
    events: Option<Paper>,
    /// When the process began, in milliseconds since 1970: connections of two processes have different names.
    began_ms: u128,
}

impl Papers {
    /// What the connection is called. No other one of this gateway is.
    fn id(&self, ConnectionKey { owner, slot: _, generation }: ConnectionKey) -> String {
        format!("{:x}-{}-{generation:x}", self.began_ms, owner.0)
    }

    fn session(&mut self, session: &Session, change: Change<'_>, now: Moment) {
        let id = self.id(session.connection);
        if let Some(events) = &mut self.events {
            events.push(now.time, &accounting::session(session, change, id.clone(), &self.gateway, now));
        }
        if let Some(line) = audit::session(session, change, id, now.at) {
            self.audit(now, &line);
        }
    }

    fn audit(&mut self, now: Moment, line: &str) {
        self.audit.iter_mut().for_each(|audit| audit.push(now.time, line));
    }

    fn accounting(&mut self, is_on: bool, now: Moment) {
        if let Some(events) = &mut self.events {
            events.push(now.time, &accounting::accounting(is_on, &self.gateway, now));
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Paper> {
        self.audit.iter_mut().chain(&mut self.events)
    }
}

impl Clerk {
    pub fn new(config: &ServerConfig, shared: Arc<Shared>) -> Self {
        let (audit, events) = (&config.audit, &config.events);
        let papers = Papers {
            gateway: config.name.clone(),
            audit: audit.enabled.then(|| Paper::file("lines of the audit log", &audit.file.path, audit.sync)),
            events: events.enabled.then(|| match &events.socket {
                Some(path) => Paper::socket("events of sessions", path),
                None => Paper::file("events of sessions", &events.file.path, events.sync),
            }),
            began_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(),
        };
        Clerk { shared, sessions: Sessions::new(events.interim_interval), papers, withheld_at: None }
    }

    /// Keeps records until the process ends.
    pub fn run(&mut self, reports: &Receiver<(Moment, Report)>) {
        loop {
            let due = self.papers.each().filter_map(|paper| paper.poll_timeout()).chain(self.withheld_at).min();
            let first = match due {
                Some(at) => reports.recv_deadline(at),
                None => reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            let mut has_ended = false;
            for (moment, report) in first.into_iter().chain(reports.try_iter().take(REPORTS_AT_ONCE)) {
                has_ended |= matches!(report, Report::End { .. });
                self.take(moment, report);
            }
            let now = Instant::now();
            let lost = self.shared.lost.swap(0, Ordering::Relaxed);
            if has_ended || self.withheld_at.is_some_and(|at| at <= now) {
                self.tell_withheld();
            }
            if lost > 0 {
                self.papers.each().for_each(|paper| paper.lose(lost));
                // The report of a refusal that was only counted may be among them.
                self.withheld_at.get_or_insert(now + WITHHELD);
            }
            self.papers.each().for_each(|paper| paper.write(now));
            if has_ended {
                return self.papers.each().for_each(|paper| paper.sync(now));
            }
        }
    }

    fn take(&mut self, now: Moment, report: Report) {
        let Clerk { sessions, papers, .. } = self;
        let tell = &mut |session: &Session, change: Change<'_>| papers.session(session, change, now);
        match report {
            Report::Began(session) => sessions.begin(session, now.at, tell),
            Report::Ended(session, ending) => sessions.end(&session, &ending, tell),
            Report::Carried(cores, users) => sessions.carried(&cores, &users, now.at, tell),
            Report::Begun { took_over_from } => {
                papers.audit(now, &audit::start(took_over_from));
                if took_over_from.is_none() {
                    papers.accounting(true, now);
                }
            }
            Report::Refused(refused) => papers.audit(now, &audit::refused(&refused)),
            Report::Withheld => self.withheld_at = Some(now.at + WITHHELD),
            Report::Order(given) => {
                papers.audit(now, &audit::order(&given, name(&given)));
            }
            Report::Answered { number, done, lines } => papers.audit(now, &audit::answer(number, done, &lines)),
            Report::Reopen => papers.each().for_each(|paper| paper.reopen(now)),
            Report::End { is_replaced } => {
                sessions.finish(tell);
                papers.audit(now, &audit::stop(is_replaced));
                if !is_replaced {
                    papers.accounting(false, now);
                }
            }
        }
    }

    fn tell_withheld(&mut self) {
        self.withheld_at = None;
        let now = Moment::now();
        for (kind, count) in self.shared.limits.take_withheld() {
            self.papers.audit(now, &audit::more_refused(kind, count));
        }
    }
}

/// The name of the user who gave an order, where the machine's own list has it.
fn name(given: &Given) -> Option<String> {
    let uid = given.by.process?.uid.to_string();
    let mut text = String::new();
    File::open(USER_NAMES).ok()?.take(USER_NAMES_BYTES_MAX).read_to_string(&mut text).ok()?;
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&uid)).then(|| name.to_owned())
    };
    text.lines().find_map(named)
}
