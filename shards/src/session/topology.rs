//! Which shards there are in a gateway, and which of them are homes.

use crate::ids::{ShardIndex, Shards};
use crate::session::home::home_of;

/// The shards of a gateway, as one of them sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Those of its own process.
    pub own: Shards,
    /// Those of the process beside.
    pub sibling: Option<Shards>,
    /// Those that are homes; the first of them allocates the addresses. Always all of one process.
    homes: Shards,
}

impl Topology {
    /// That of a gateway of one process.
    pub const fn alone(own: Shards) -> Self {
        Topology { own, sibling: None, homes: own }
    }

    /// That of a process which takes over the homes of the one before it.
    pub const fn succeeding(own: Shards, before: Shards) -> Self {
        Topology { own, sibling: Some(before), homes: own }
    }

    /// The homes are those of another process from now on.
    pub fn hand_over(&mut self, to: Shards) {
        (self.sibling, self.homes) = (Some(to), to);
    }

    /// The other process is no more.
    pub fn lose_sibling(&mut self) {
        *self = Topology::alone(self.own);
    }

    /// Every shard there is.
    pub fn all(self) -> impl Iterator<Item = ShardIndex> {
        self.own.iter().chain(self.sibling.into_iter().flat_map(Shards::iter))
    }

    pub fn homes(self) -> impl Iterator<Item = ShardIndex> {
        self.homes.iter()
    }

    pub fn is_home(self, shard: ShardIndex) -> bool {
        self.homes.contains(shard)
    }

    pub fn home_of(self, name: &str) -> ShardIndex {
        home_of(name, self.homes)
    }

    /// The shard that allocates the addresses.
    pub fn allocator(self) -> ShardIndex {
        self.homes.at(0)
    }
}
