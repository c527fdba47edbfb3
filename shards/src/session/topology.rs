//! Which shards there are in a gateway, and which of them are homes.

use crate::ids::{ShardIndex, Shards};
use crate::session::home::home_of;

/// The shards of a gateway, as one of them sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Those of its own process.
    pub own: Shards,
    /// Those that are homes; the first of them allocates the addresses.
    homes: Shards,
}

impl Topology {
    /// That of a gateway of one process.
    pub const fn alone(own: Shards) -> Self {
        Topology { own, homes: own }
    }

    /// Every shard there is.
    pub fn all(self) -> impl Iterator<Item = ShardIndex> {
        self.own.iter()
    }

    pub fn homes(self) -> impl Iterator<Item = ShardIndex> {
        self.homes.iter()
    }

    pub fn home_of(self, name: &str) -> ShardIndex {
        home_of(name, self.homes)
    }

    /// The shard that allocates the addresses.
    pub fn allocator(self) -> ShardIndex {
        self.homes.at(0)
    }
}
