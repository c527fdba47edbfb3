//! What is handed to the thread that keeps records, and how: nobody waits for it but the end of the process, for a bounded time.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;
use tollgate_config::ServerConfig;
use tollgate_shards::{Event, Told, Users};
use tracing::warn;

use super::audit::{Given, Refused};
use super::clerk::Clerk;
use super::sessions::{Ending, Published, Session};
use crate::log::{Kind, Limits, Verdict};

/// Reports that wait for the thread, of a few hundred bytes each; further ones are lost, and counted.
pub const REPORTS_MAX: usize = 16_384;
/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The same moment by two clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub at: Instant,
    pub time: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Moment { at: Instant::now(), time: SystemTime::now() }
    }
}

/// Something to keep.
#[derive(Debug)]
pub(super) enum Report {
    Begun {
        took_over_from: Option<u32>,
    },
    Began(Session),
    Ended(Session, Ending),
    Refused(Refused),
    /// There is a refusal that was only counted.
    Withheld,
    Order(Given),
    Answered {
        number: u64,
        done: bool,
        lines: Vec<String>,
    },
    /// What the cores have published last.
    Carried(Vec<Published>, Arc<Users>),
    /// Files are to be opened anew.
    Reopen,
    /// The process ends; another one may serve on.
    End {
        is_replaced: bool,
    },
}

/// What others have of the thread that keeps records.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

pub(super) struct Shared {
    reports: Sender<(Moment, Report)>,
    /// Reports that found no room.
    pub lost: AtomicU64,
    /// What strangers may have written.
    pub limits: Limits,
    orders: AtomicU64,
    ended: Receiver<()>,
}

type Reports = (Sender<(Moment, Report)>, Receiver<(Moment, Report)>);

fn queue() -> Reports {
    bounded(REPORTS_MAX)
}

impl Shared {
    fn new(reports: Sender<(Moment, Report)>, ended: Receiver<()>) -> Self {
        let (lost, orders) = (AtomicU64::new(0), AtomicU64::new(0));
        Shared { reports, lost, limits: Limits::default(), orders, ended }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Starts the thread, if `config` wants records.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(config: &ServerConfig) -> io::Result<Option<Self>> {
        if !config.audit.enabled && !config.events.enabled {
            return Ok(None);
        }
        let (sender, reports) = queue();
        let (running, ended) = bounded(0);
        let shared = Arc::new(Shared::new(sender, ended));
        let mut clerk = Clerk::new(config, shared.clone());
        thread::Builder::new().name("tollgate-records".to_owned()).spawn(move || {
            clerk.run(&reports);
            drop(running);
        })?;
        Ok(Some(Recorder(shared)))
    }

    /// The gateway serves, in the place of another process where it took over from one.
    pub fn begin(&self, took_over_from: Option<u32>) {
        self.report(Report::Begun { took_over_from });
    }

    /// Takes what a shard tells of one of `users`, or of a stranger.
    pub fn tell(&self, told: &Told, users: &Users) {
        let Some(peer) = told.peer else { return };
        let name = |user| users.name(user);
        let mut why = None;
        let (kind, user) = match &told.event {
            Event::Attached { user, connection, address } => {
                return self.report(Report::Began(Session::of(name(*user), *connection, *address, &peer)));
            }
            Event::Detached { user, connection, reason, .. } => {
                let (Some(address), Some(end)) = (peer.address, peer.end) else { return };
                let session = Session::of(name(*user), *connection, address, &peer);
                return self.report(Report::Ended(session, Ending { end: Some(end), reason: reason.clone() }));
            }
            Event::UnknownCredential { .. } => (Kind::UnknownCredential, None),
            Event::PoolExhausted { user } | Event::PoolReserved { user } => (Kind::NoAddress, Some(*user)),
            Event::TooManyConnections { user } => (Kind::TooManyConnections, Some(*user)),
            Event::OverQuota { user } => (Kind::OverQuota, Some(*user)),
            Event::HandshakeFailed { reason } => {
                why = Some(reason);
                (Kind::HandshakeFailed, None)
            }
            Event::PathNarrowed { .. } | Event::CertificateEnds { .. } | Event::Forgotten { .. } => return,
        };
        match self.0.limits.judge(kind) {
            Verdict::Admitted => {
                let (user, reason) = (user.map(|user| name(user).to_owned()), why.cloned());
                self.report(Report::Refused(Refused { kind, user, reason, peer }));
            }
            Verdict::FirstWithheld => self.report(Report::Withheld),
            Verdict::Withheld => {}
        }
    }

    /// Takes an order, as it came. Returns its number, for [`Recorder::answered`].
    pub fn order(&self, request: Value, by: super::By) -> u64 {
        let number = self.0.orders.fetch_add(1, Ordering::Relaxed) + 1;
        self.report(Report::Order(Given { number, request, by }));
        number
    }

    /// Takes what became of an order.
    pub fn answered(&self, number: u64, done: bool, lines: &[String]) {
        self.report(Report::Answered { number, done, lines: super::audit::excerpts(lines) });
    }

    /// Takes what the cores have published last. What is not taken is in the next one.
    pub fn carried(&self, cores: Vec<Published>, users: Arc<Users>) {
        let _ = self.0.reports.try_send((Moment::now(), Report::Carried(cores, users)));
    }

    /// Has files opened anew.
    pub fn reopen(&self) {
        self.report(Report::Reopen);
    }

    /// Waits until all is written, but not for long. `is_replaced` says whether another process serves on.
    pub fn finish(&self, is_replaced: bool) {
        let last = (Moment::now(), Report::End { is_replaced });
        let is_taken = self.0.reports.send_timeout(last, LAST_LINES).is_ok();
        if !is_taken || self.0.ended.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
            warn!("the last records may not be written: the disk takes too long");
        }
    }

    fn report(&self, report: Report) {
        if self.0.reports.try_send((Moment::now(), report)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tollgate_shards::{CredentialKind, Peer};

    use super::*;
    use crate::log::LINES_BURST;

    /// One whose thread takes nothing.
    fn recorder() -> (Recorder, Receiver<(Moment, Report)>) {
        let (sender, reports) = queue();
        (Recorder(Arc::new(Shared::new(sender, bounded(0).1))), reports)
    }

    #[test]
    fn reports_that_a_busy_thread_has_no_room_for_are_lost_and_counted_and_nobody_waits() {
        let (recorder, reports) = recorder();
        (0..REPORTS_MAX + 7).for_each(|_| recorder.reopen());
        assert_eq!((reports.len(), recorder.0.lost.load(Ordering::Relaxed)), (REPORTS_MAX, 7));
    }

    #[test]
    fn of_a_flood_of_refusals_few_are_reported_and_the_others_counted_by_kind() {
        const FLOOD: u64 = 10_000;
        let (recorder, reports) = recorder();
        let remote = SocketAddr::from(([198, 18, 0, 1], 4433));
        let peer = Some(Peer::stranger(remote, CredentialKind::Certificate));
        for _ in 0..FLOOD {
            let event = Event::HandshakeFailed { reason: "nothing".to_owned() };
            recorder.tell(&Told { event, peer }, &Users::default());
        }
        let refused = reports.try_iter().filter(|(_, report)| matches!(report, Report::Refused(_))).count() as u64;
        let withheld: Vec<_> = recorder.0.limits.take_withheld().collect();
        assert!((LINES_BURST..FLOOD / 10).contains(&refused), "{refused}");
        assert_eq!(withheld, [(Kind::HandshakeFailed, FLOOD - refused)]);
    }
}
