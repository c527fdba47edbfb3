//! A queue that stands is shortened (RFC 8289): where a limited user's packets wait for tokens in numbers, on and on, some of them are dropped for it.

use std::collections::BTreeMap;
use std::time::Duration;

use tollgate_shards::{DropReason, Shard, ShardIndex, UserIndex};

use super::Violation;
use crate::plan::{Feature, Plan};
use crate::schedule::Time;

/// So many packets and bytes are a queue in any case: more than the few of each flow that never make one.
const PACKETS: usize = 64;
const BYTES: usize = 32 * 1024;
/// A queue that stands for so long must have been shortened: ten times what senders have to react, and as long where rates are lowest.
const TIME_MAX: Duration = Duration::from_secs(4);
/// Whoever does not look at its queues for so long cannot shorten them.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Where nothing else happens, packets that are marked instead of dropped arrive.
const BESIDE: [Feature; 8] = [
    Feature::Limits,
    Feature::Bursts,
    Feature::Peers,
    Feature::Jitter,
    Feature::Reordering,
    Feature::Ticks,
    Feature::MeshDelay,
    Feature::Misrouting,
];

#[derive(Debug)]
pub struct Standing {
    users: u32,
    /// Since when each user's queue stands at each shard without having been shortened.
    since: BTreeMap<(ShardIndex, UserIndex), Time>,
    /// How often queues of each shard were shortened, and when it looked at them last.
    last: BTreeMap<ShardIndex, (u64, Time)>,
}

impl Standing {
    pub(super) fn new(plan: &Plan) -> Self {
        let is_judged = plan.features.has(Feature::Limits)
            && Feature::all().all(|feature| BESIDE.contains(&feature) || !plan.features.has(feature));
        Standing {
            users: if is_judged { plan.users.len() as u32 } else { 0 },
            since: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// A packet has arrived that was marked, wherever it had to wait: instead of being dropped.
    pub(crate) fn marked(&mut self) {
        self.since.clear();
    }

    /// A shard's pass is over.
    pub(super) fn after_pass(&mut self, now: Time, shard: &Shard) -> Result<(), Violation> {
        if self.users == 0 {
            return Ok(());
        }
        let (index, shortened) = (shard.index(), shard.counters().drops.of(DropReason::QueueDelay));
        let (shortened_then, looked_at) = self.last.insert(index, (shortened, now)).unwrap_or((0, now));
        if shortened != shortened_then || now - looked_at > PAUSE_MAX {
            self.since.retain(|(at, _), _| *at != index);
        }
        let is_empty = shard.held().waiting_bytes < BYTES as u64;
        for user in (0..self.users).map(UserIndex) {
            let (packets, bytes) = if is_empty { (0, 0) } else { shard.inspect().waiting(user) };
            if packets < PACKETS || bytes < BYTES {
                self.since.remove(&(index, user));
                continue;
            }
            let since = *self.since.entry((index, user)).or_insert(now);
            if now - since > TIME_MAX {
                let what = format!("{packets} packets of {user:?} or as many wait at {index:?} since {since} s");
                return Err(Violation::new("standing", what));
            }
        }
        Ok(())
    }
}
