//! `tollgate trace`: what happens to the connections of one user, as somebody sees it who looks often. It asks as any operator does.

mod event;
mod qlog;

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use self::event::events;
use self::qlog::Qlog;
use crate::control::protocol::ConnectionRow;
use crate::control::{AskError, Request, ask_for_all};
use crate::log::say_last;
use crate::output::print;
use crate::signals::Signal;

/// Whom to follow, and how.
#[derive(Debug)]
pub struct Plan {
    /// The user's name.
    pub user: String,
    /// How long; without end where there is none.
    pub length: Option<Duration>,
    /// How often to look.
    pub interval: Duration,
    /// Print JSON, an object a line.
    pub json: bool,
    /// A file for events in qlog's sequential form (draft-ietf-quic-qlog-main-schema).
    pub qlog: Option<PathBuf>,
}

/// Why there is no trace, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The gateway does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The gateway does not want to.
    #[error("{0}")]
    Refused(String),
    /// The file of events.
    #[error("{} cannot be written: {source}; name another file by --qlog", path.display())]
    Qlog {
        /// The path of the file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Standard output.
    #[error("the trace cannot be printed: {0}")]
    Output(#[from] io::Error),
}

/// Follows a user of the gateway that listens at `path`, until the time is up or a signal comes.
///
/// # Errors
///
/// If the gateway does not answer, or nothing can be written.
pub fn run(path: &Path, plan: &Plan, signals: &Receiver<Signal>) -> Result<(), TraceError> {
    let began = Instant::now();
    let mut qlog = plan.qlog.as_deref().map(|file| open(file, &plan.user, began)).transpose()?;
    let mut before: Option<(Instant, Vec<ConnectionRow>)> = None;
    loop {
        let now = look(path, &plan.user)?;
        let at = Instant::now();
        if before.is_none() && now.is_empty() {
            say_last(&format!("tollgate: {:?} has no connection yet", plan.user));
        }
        let (since, former) = before.as_ref().map_or((Duration::ZERO, &[][..]), |(then, rows)| (at - *then, &rows[..]));
        for event in events(former, &now, since) {
            print(&if plan.json { event.json(SystemTime::now()) } else { event.text(SystemTime::now()) })?;
            if let Some((file, qlog)) = &mut qlog {
                qlog.tell(&event, at).map_err(|source| TraceError::Qlog { path: file.clone(), source })?;
            }
        }
        before = Some((at, now));
        let left = plan.length.map(|length| (began + length).saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        // From look to look, not from answer to look.
        let next = (at + plan.interval).saturating_duration_since(Instant::now());
        if signals.recv_timeout(next.min(left.unwrap_or(next))) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    match qlog {
        Some((path, qlog)) => qlog.finish().map_err(|source| TraceError::Qlog { path, source }),
        None => Ok(()),
    }
}

fn look(path: &Path, user: &str) -> Result<Vec<ConnectionRow>, TraceError> {
    let answer = ask_for_all(path, |after| Request::Connections { user: Some(user.to_owned()), after })?;
    if !answer.done {
        return Err(TraceError::Refused(answer.lines.join("\n")));
    }
    Ok(answer.connections.unwrap_or_default())
}

fn open(path: &Path, user: &str, began: Instant) -> Result<(PathBuf, Qlog), TraceError> {
    let fail = |source| TraceError::Qlog { path: path.to_owned(), source };
    let file = File::create(path).map_err(fail)?;
    Ok((path.to_owned(), Qlog::begin(Box::new(BufWriter::new(file)), user, began).map_err(fail)?))
}
