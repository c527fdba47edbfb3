//! When each connection wants to be woken. One entry a connection, bounded by the connections.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::io::WakeReason;

/// The entry of one connection, kept with the connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimerEntry(pub Option<(Instant, WakeReason)>);

/// The armed deadlines of all connections of a shard.
///
/// An entry is moved only to an earlier time. A connection whose deadline moved away (as loss timers do with every acknowledgement) is woken
/// once in vain, which costs less than moving the entry for every batch.
#[derive(Debug, Default)]
pub struct TimerQueue(BTreeSet<(Instant, u32)>);

impl TimerQueue {
    /// Sees to it that `slot` is woken at `at` or earlier.
    pub fn arm(&mut self, slot: u32, armed: &mut TimerEntry, at: Instant, reason: WakeReason) {
        if let Some((already, _)) = armed.0 {
            if already <= at {
                return;
            }
            self.0.remove(&(already, slot));
        }
        self.0.insert((at, slot));
        armed.0 = Some((at, reason));
    }

    pub fn disarm(&mut self, slot: u32, armed: &mut TimerEntry) {
        if let Some((at, _)) = armed.0.take() {
            self.0.remove(&(at, slot));
        }
    }

    /// Takes out the next connection whose time has come. The caller clears its `TimerEntry`.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let &(at, slot) = self.0.first()?;
        (at <= now).then(|| {
            self.0.pop_first();
            slot
        })
    }

    pub fn next(&self) -> Option<(Instant, u32)> {
        self.0.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test_time::origin;

    #[test]
    fn a_connection_has_one_entry_which_only_moves_earlier() {
        let now = origin();
        let later = |ms| now + Duration::from_millis(ms);
        let (mut deadlines, mut armed) = (TimerQueue::default(), TimerEntry::default());
        deadlines.arm(3, &mut armed, later(20), WakeReason::Connection);
        deadlines.arm(3, &mut armed, later(30), WakeReason::Connection);
        deadlines.arm(3, &mut armed, later(10), WakeReason::Handshake);
        assert_eq!(deadlines.next(), Some((later(10), 3)));
        assert_eq!(armed.0, Some((later(10), WakeReason::Handshake)));
        assert_eq!(deadlines.pop_due(later(9)), None);
        assert_eq!(deadlines.pop_due(later(10)), Some(3));
        assert_eq!(deadlines.next(), None);
        armed.0 = None;
        deadlines.arm(3, &mut armed, later(30), WakeReason::Connection);
        deadlines.disarm(3, &mut armed);
        assert_eq!(deadlines.next(), None);
    }
}
