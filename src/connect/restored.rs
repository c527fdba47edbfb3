//! Telling that somebody has changed what belongs to the tunnel, without telling it too often.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tracing::warn;

/// The time between two lines, however often there is something to tell.
const INTERVAL: Duration = Duration::from_secs(10);

/// What has been put back, and when that was last said.
#[derive(Debug, Default)]
pub struct Restored {
    /// How often something was put back.
    times: u64,
    unsaid_times: u64,
    unsaid: BTreeSet<&'static str>,
    said_at: Option<Instant>,
}

impl Restored {
    /// Takes note that `parts` of the tunnel were put back at `now`, and says so unless it just has.
    pub fn note(&mut self, parts: &BTreeSet<&'static str>, interface: &str, now: Instant) {
        if parts.is_empty() {
            return;
        }
        self.times += 1;
        self.unsaid_times += 1;
        self.unsaid.extend(parts);
        if self.said_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return;
        }
        let parts = std::mem::take(&mut self.unsaid).into_iter().collect::<Vec<_>>().join(", ");
        let times = std::mem::take(&mut self.unsaid_times);
        warn!(times, "another program changed {interface} ({parts}): restored; let it leave that interface alone");
        self.said_at = Some(now);
    }

    /// How often something was put back so far.
    pub fn times(&self) -> u64 {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_again_and_again_is_told_at_intervals_and_counted() {
        let (mut restored, start) = (Restored::default(), Instant::now());
        restored.note(&BTreeSet::new(), "tg0", start);
        assert_eq!((restored.times(), restored.said_at), (0, None));
        for (second, unsaid) in [(0, 0), (1, 1), (9, 2), (10, 0)] {
            restored.note(&BTreeSet::from(["routes"]), "tg0", start + Duration::from_secs(second));
            assert_eq!(restored.unsaid_times, unsaid, "after {second} s");
        }
        assert_eq!(restored.times(), 4);
    }
}
