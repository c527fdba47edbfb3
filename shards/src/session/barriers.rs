//! Commands that go to all shards: which of them every shard has executed, with nothing under way from before.

use std::collections::BTreeMap;

use crate::ids::{CommandId, ShardIndex, Shards};
use crate::session::topology::Topology;

/// The last command that each shard, this one included, has said it has executed.
#[derive(Debug)]
pub struct Barriers {
    last: BTreeMap<ShardIndex, CommandId>,
    /// The same of shards that are not known yet: nothing waits for them.
    early: BTreeMap<ShardIndex, CommandId>,
}

impl Barriers {
    /// No command executed by any shard.
    pub fn new(topology: Topology) -> Self {
        let last = topology.all().map(|shard| (shard, CommandId::default())).collect();
        Barriers { last, early: BTreeMap::new() }
    }

    /// A shard has executed a command. One of the process that takes over may say so before this shard hears that it is to [`join`](Barriers::join).
    pub fn passed(&mut self, from: ShardIndex, command: CommandId) {
        let known = if self.last.contains_key(&from) { &mut self.last } else { &mut self.early };
        let last = known.entry(from).or_default();
        *last = command.max(*last);
    }

    /// A shard was started anew: it has nothing under way from before any command.
    pub fn restarted(&mut self, shard: ShardIndex) {
        let latest = self.last.values().copied().max().unwrap_or_default();
        self.passed(shard, latest);
    }

    /// Shards that know of no command, and have nothing under way from before this one.
    pub fn join(&mut self, shards: Shards, command: CommandId) {
        for shard in shards.iter() {
            let early = self.early.remove(&shard).unwrap_or_default();
            self.last.insert(shard, command.max(early).max(self.of(shard)));
        }
    }

    /// Only the shards of `topology` are left.
    pub fn leave(&mut self, topology: Topology) {
        self.last.retain(|shard, _| topology.own.contains(*shard));
        self.early.clear();
    }

    /// Whether all of `shards` have executed a command, with nothing under way from before it.
    pub fn have_all_passed(&self, shards: Shards, command: CommandId) -> bool {
        shards.iter().all(|shard| self.of(shard) >= command)
    }

    pub fn of(&self, shard: ShardIndex) -> CommandId {
        self.last.get(&shard).copied().unwrap_or_default()
    }

    pub fn completed(&self) -> CommandId {
        self.last.values().copied().min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    #[test]
    fn what_a_shard_has_executed_before_it_is_known_counts() {
        let (own, to) = (Shards::alone(1), Shards { generation: Generation::Odd, count: 2 });
        let mut barriers = Barriers::new(Topology::alone(own));
        barriers.passed(to.at(1), CommandId(2));
        barriers.join(to, CommandId(1));
        barriers.passed(own.at(0), CommandId(2));
        assert_eq!(barriers.completed(), CommandId(1));
        barriers.passed(to.at(0), CommandId(2));
        assert_eq!(barriers.completed(), CommandId(2));
    }

    #[test]
    fn nothing_waits_for_a_shard_that_dies_before_it_is_known() {
        let (own, to) = (Shards::alone(1), Shards { generation: Generation::Odd, count: 1 });
        let mut barriers = Barriers::new(Topology::alone(own));
        barriers.passed(to.at(0), CommandId(1));
        barriers.passed(own.at(0), CommandId(2));
        assert_eq!(barriers.completed(), CommandId(2));
    }
}
