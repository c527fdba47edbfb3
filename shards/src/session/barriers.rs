//! Commands that go to all shards: which of them every shard has executed, with nothing under way from before.

use std::collections::BTreeMap;

use crate::ids::{CommandId, ShardIndex};
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

    pub fn of(&self, shard: ShardIndex) -> CommandId {
        self.last.get(&shard).copied().unwrap_or_default()
    }

    pub fn completed(&self) -> CommandId {
        self.last.values().copied().min().unwrap_or_default()
    }
}
