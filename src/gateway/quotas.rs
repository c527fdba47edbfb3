//! Users who have carried as much as allowed for now: who they are is part of the snapshot, and the shards close and refuse them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_shards::Snapshot;

use super::Gateway;
use super::reload::Change;

/// Of those names, how many the next process is told at first: it finds the others in its file.
const TOLD_MAX: usize = 2048;
/// Names in a line.
const NAMES_MAX: usize = 10;

/// What the next process is told of those who are over their quotas.
pub fn told(over_quota: &BTreeSet<String>) -> Vec<String> {
    over_quota.iter().take(TOLD_MAX).cloned().collect()
}

/// Other users are over their quotas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barred {
    /// How many.
    pub users: usize,
    /// Connections that were closed.
    pub closed_connections: u64,
    /// Time from the command to the last shard's answer.
    pub took: Duration,
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Barred { users, closed_connections, took } = self;
        write!(
            f,
            "users over their quotas: {users}; connections closed: {closed_connections}; in force on every shard after {took:.1?}"
        )
    }
}

impl Gateway {
    /// Those who are over their quotas.
    pub fn over_quota(&self) -> &BTreeSet<String> {
        &self.over_quota
    }

    /// A line about them, where there are any.
    pub fn over_quota_line(&self) -> Option<String> {
        let mut all: Vec<String> = self.over_quota.iter().take(NAMES_MAX).map(|name| format!("{name:?}")).collect();
        let more = self.over_quota.len().saturating_sub(NAMES_MAX);
        all.extend((more > 0).then(|| format!("and {more} more")));
        (!all.is_empty()).then(|| format!("users over their quotas: {}", all.join(", ")))
    }

    /// Closes and refuses those who are `over` their quotas from now on, and no others; [`Gateway::poll_completed`] tells when that is done.
    pub fn begin_bar(&mut self, over: BTreeSet<String>, now: Instant) {
        let users = Arc::new(self.snapshot.users.with_quotas(|name| over.contains(name)));
        let (epoch, handshakes) = (self.snapshot.version + 1, self.snapshot.handshakes.listing(users.clone()));
        self.snapshot = Arc::new(Snapshot { version: epoch, users, handshakes, ..*self.snapshot });
        let change = Change::Bar { users: over.len() };
        self.over_quota = over;
        self.put_in_force(change, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_more_are_told_of_than_fit_into_the_first_words() {
        let over: BTreeSet<String> = (0..2 * TOLD_MAX).map(|number| format!("{number:0>128}")).collect();
        let bytes = postcard::to_stdvec(&told(&over)).unwrap().len();
        assert!(told(&over).len() == TOLD_MAX && bytes < 1 << 19, "{bytes} bytes");
    }
}
