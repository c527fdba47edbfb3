//! No shard answers more packets that are too large than it may. Whether it has answered as many as it says is the balance's business.

use std::collections::BTreeMap;

use tollgate_shards::{Shard, ShardIndex};

use super::Violation;
use super::budget::Budget;
use crate::schedule::Time;

/// Answers of a shard in a second, and at once, by docs/limits.md.
const PER_S: u64 = 1000;
const BURST: u64 = 100;

/// What each shard has answered, and what it still may.
#[derive(Debug, Default)]
pub struct Replies {
    shards: BTreeMap<ShardIndex, (u64, Budget)>,
}

impl Replies {
    pub(super) fn died(&mut self, shard: ShardIndex) {
        self.shards.remove(&shard);
    }

    /// A shard's pass is over. A clock that stands gives nothing, and one that leaps no more than there was time.
    pub(super) fn after_pass(&mut self, now: Time, shard: &Shard) -> Result<(), Violation> {
        let answered = shard.counters().too_big_replies;
        let (before, budget) = self.shards.entry(shard.index()).or_insert_with(|| (0, Budget::full(PER_S, BURST, now)));
        let replies = answered.saturating_sub(std::mem::replace(before, answered));
        if budget.take(now, replies) {
            return Ok(());
        }
        let what = format!("{:?} answers {replies} packets more that are too large, beyond its rate", shard.index());
        Err(Violation::new("replies", what))
    }
}
