//! Commands that go to all shards: which of them every shard has executed, with nothing under way from before.

use crate::ids::{CommandId, ShardIndex};

/// The last command that each shard, this one included, has said it has executed.
#[derive(Debug)]
pub struct Barriers {
    last: Vec<CommandId>,
}

impl Barriers {
    /// No command executed by any of `shards`.
    pub fn new(shards: u16) -> Self {
        Barriers { last: vec![CommandId::default(); usize::from(shards)] }
    }

    pub fn passed(&mut self, from: ShardIndex, command: CommandId) {
        if let Some(last) = self.last.get_mut(usize::from(from.0)) {
            *last = command.max(*last);
        }
    }

    /// A shard was started anew: it has nothing under way from before any command.
    pub fn restarted(&mut self, shard: ShardIndex) {
        let latest = self.last.iter().copied().max().unwrap_or_default();
        self.passed(shard, latest);
    }

    pub fn of(&self, shard: ShardIndex) -> CommandId {
        self.last.get(usize::from(shard.0)).copied().unwrap_or_default()
    }

    pub fn completed(&self) -> CommandId {
        self.last.iter().copied().min().unwrap_or_default()
    }
}
