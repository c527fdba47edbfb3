//! Commands that go to all shards: which of them every shard has executed, with nothing under way from before.

use std::collections::BTreeMap;

use crate::ids::{CommandId, ShardIndex, Shards};
use crate::session::topology::Topology;

/// The last command that each shard, this one included, has said it has executed.
#[derive(Debug)]
pub struct Barriers {
    last: BTreeMap<ShardIndex, CommandId>,
}

impl Barriers {
    /// No command executed by any shard.
    pub fn new(topology: Topology) -> Self {
        Barriers { last: topology.all().map(|shard| (shard, CommandId::default())).collect() }
    }

    pub fn passed(&mut self, from: ShardIndex, command: CommandId) {
        if let Some(last) = self.last.get_mut(&from) {
            *last = command.max(*last);
        }
    }

    /// A shard was started anew: it has nothing under way from before any command.
    pub fn restarted(&mut self, shard: ShardIndex) {
        let latest = self.last.values().copied().max().unwrap_or_default();
        self.passed(shard, latest);
    }

    /// Shards that know of no command, and have nothing under way from before this one.
    pub fn join(&mut self, shards: Shards, command: CommandId) {
        self.last.extend(shards.iter().map(|shard| (shard, command)));
    }

    /// Only the shards of `topology` are left.
    pub fn leave(&mut self, topology: Topology) {
        self.last.retain(|shard, _| topology.own.contains(*shard));
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
