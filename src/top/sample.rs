//! How a gateway stands at a moment.

use std::path::Path;
use std::time::Instant;

use crate::control::protocol::UserRow;
use crate::control::{AskError, Request, ask, ask_for_all};
use crate::gateway::Report;

/// What `status` and `users` answer.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When that was.
    pub at: Instant,
    /// For people.
    pub lines: Vec<String>,
    /// Each shard's counters.
    pub shards: Vec<Report>,
    /// Users who are online.
    pub users: Vec<UserRow>,
}

/// Why a gateway does not say how it stands.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// It does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It does not want to.
    #[error("{0}")]
    Refused(String),
}

impl Sample {
    /// Asks the gateway that listens at `path`.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn take(path: &Path) -> Result<Self, SampleError> {
        let status = ask(path, &Request::Status { shards: true })?;
        let at = Instant::now();
        let users = ask_for_all(path, |after| Request::Users { after })?;
        for answer in [&status, &users] {
            if !answer.done {
                return Err(SampleError::Refused(answer.lines.join("\n")));
            }
        }
        let (shards, users) = (status.shards.unwrap_or_default(), users.users.unwrap_or_default());
        Ok(Sample { at, lines: status.lines, shards, users })
    }
}
