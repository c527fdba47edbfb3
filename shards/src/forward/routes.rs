//! Inner address -> who has it. Every shard holds all routes.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::ids::{ConnectionKey, ShardIndex, Shards};

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

    /// Forgets every route to a connection that `owner` had before its `incarnation`. The allocator may have told of later ones already.
    #[expect(clippy::disallowed_methods, reason = "what is forgotten does not depend on the order")]
    pub fn forget_before(&mut self, owner: ShardIndex, incarnation: u32) {
        let stays = |connection: &ConnectionKey| connection.owner != owner || connection.incarnation() >= incarnation;
        self.known.retain(|_, connection| stays(connection));
        self.doubtful.retain(|_, connection| stays(connection));
    }

    /// Forgets every route to a connection of `owners`. Returns the addresses, in order.
    pub fn forget_all_of(&mut self, owners: Shards) -> Vec<IpAddr> {
        let mut forgotten = Vec::new();
        for routes in [&mut self.known, &mut self.doubtful] {
            let theirs = routes.extract_if(|_, connection| owners.contains(connection.owner));
            forgotten.extend(theirs.map(|(address, _)| address));
        }
        forgotten.sort_unstable();
        forgotten
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

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        if self.doubtful.is_empty() { "known" } else { "doubtful" }
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

    #[test]
    fn a_shard_that_hears_late_of_a_death_keeps_the_routes_of_the_next_life() {
        let of = |incarnation: u64, slot| ConnectionKey { generation: incarnation << 32 | 1, ..key(slot) };
        let address = |host| IpAddr::from([198, 18, 0, host]);
        let mut routes = Routes::default();
        routes.insert(address(1), of(1, 1));
        routes.doubt();
        routes.insert(address(2), of(1, 2));
        routes.insert(address(3), of(2, 3));
        routes.insert(address(4), ConnectionKey { owner: ShardIndex(1), ..of(1, 4) });
        for incarnation in [1, 2] {
            routes.forget_before(ShardIndex(0), incarnation);
            let known = [1, 2, 3, 4].map(|host| routes.find(address(host)).is_some());
            assert_eq!(known, [incarnation == 1, incarnation == 1, true, true], "{incarnation}");
        }
    }
}
