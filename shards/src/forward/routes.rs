//! Inner address -> who has it. Every shard holds all routes.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::ids::{ConnectionKey, ShardIndex};

/// All routes. Bounded by the addresses of the pool.
#[derive(Debug, Default)]
pub struct Routes {
    known: FxHashMap<IpAddr, ConnectionKey>,
    /// Told by a allocator that has died, and not yet by the one in its place. They hold until that one has told all.
    doubtful: FxHashMap<IpAddr, ConnectionKey>,
}

impl Routes {
    pub fn find(&self, address: IpAddr) -> Option<ConnectionKey> {
        self.known.get(&address).or_else(|| self.doubtful.get(&address)).copied()
    }

    /// Gives `address` to `connection`, whoever had it.
    pub fn insert(&mut self, address: IpAddr, connection: ConnectionKey) {
        self.known.insert(address, connection);
    }

    /// Forgets every route to a connection of `owner`.
    #[expect(clippy::disallowed_methods, reason = "what is forgotten does not depend on the order")]
    pub fn forget_owner(&mut self, owner: ShardIndex) {
        self.known.retain(|_, connection| connection.owner != owner);
        self.doubtful.retain(|_, connection| connection.owner != owner);
    }

    /// The allocator has died: whatever it told may be out of date.
    #[expect(clippy::disallowed_methods, reason = "all of them go to one place")]
    pub fn doubt(&mut self) {
        self.doubtful.extend(self.known.drain());
    }

    /// The allocator has told all routes.
    pub fn told(&mut self) {
        self.doubtful.clear();
    }

    /// Takes `address` from `connection`; changes nothing if somebody else has it by now.
    pub fn remove(&mut self, address: IpAddr, connection: ConnectionKey) {
        for routes in [&mut self.known, &mut self.doubtful] {
            if routes.get(&address) == Some(&connection) {
                routes.remove(&address);
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "sorted at once")]
    pub fn all(&self) -> Vec<(IpAddr, ConnectionKey)> {
        let mut all: Vec<_> = self.known.iter().map(|(&address, &connection)| (address, connection)).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(slot: u32) -> ConnectionKey {
        ConnectionKey { owner: ShardIndex(0), slot, generation: 0 }
    }

    #[test]
    fn an_old_holder_cannot_take_the_route_of_the_new_one() {
        let address = IpAddr::from([198, 18, 0, 2]);
        let mut routes = Routes::default();
        routes.insert(address, key(1));
        routes.insert(address, key(2));
        routes.remove(address, key(1));
        assert_eq!(routes.find(address), Some(key(2)));
        routes.remove(address, key(2));
        assert_eq!(routes.all(), []);
    }
}
