//! The operator's side of a drain: the order, and the sight of its end.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::operator::{AskError, ask};
use super::protocol::{Answer, Request};
use crate::gateway::State;
use crate::progress::Progress;

/// How often the gateway is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long after the time is up the gateway may still have clients: those who logged in at its end.
const GRACE: Duration = Duration::from_secs(2);

/// Why a drain did not end with all clients gone.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The order did not reach the gateway, or the gateway has ended since.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The gateway does not drain.
    #[error("{0}")]
    Refused(String),
    /// Somebody has taken it back.
    #[error("the gateway takes clients again: somebody has ordered `tollgate resume`")]
    Resumed,
    /// There are clients whom it could not send away.
    #[error("{0} clients are left although the time is up: see the gateway's log")]
    Left(u64),
}

/// Has the gateway that listens at `path` send its clients away, and waits until they are gone. Returns how many there were, and how long that
/// took. Shows how far it is on standard error. If this ends early, the gateway goes on.
///
/// # Errors
///
/// If it does not end with all clients gone.
pub fn drain(path: &Path, order: &Request) -> Result<(u64, Duration), DrainError> {
    let began = Instant::now();
    let ordered = accepted(ask(path, order)?)?;
    let count = ordered.clients.unwrap_or(0);
    let until = began + Duration::from_millis(ordered.drains_for_ms.unwrap_or(0)) + GRACE;
    let mut progress = Progress::default();
    let mut answer = ordered;
    progress.step(&answer.lines.join("; "));
    loop {
        match (answer.state, answer.clients.unwrap_or(0)) {
            (Some(State::Serving), _) => return Err(DrainError::Resumed),
            (_, 0) => break,
            (_, left) if Instant::now() > until => return Err(DrainError::Left(left)),
            _ => {}
        }
        thread::sleep(INTERVAL);
        answer = accepted(ask(path, &Request::Status { shards: false })?)?;
        progress.update(|| answer.lines.join("; "));
    }
    progress.clear();
    Ok((count, began.elapsed()))
}

fn accepted(answer: Answer) -> Result<Answer, DrainError> {
    if answer.done { Ok(answer) } else { Err(DrainError::Refused(answer.lines.join("\n"))) }
}
