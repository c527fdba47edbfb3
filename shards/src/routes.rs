//! Inner address -> who has it. Every shard holds all routes.
//!
//! This module never decides who gets an address.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::connection_id::ShardIndex;

/// A connection, from any shard's view. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// The shard that the connection's IDs steer to.
    pub owner: ShardIndex,
    /// Its place at the owner.
    pub slot: u32,
    /// Tells successive connections in one place apart.
    pub generation: u32,
}

/// All routes. Bounded by the addresses of the pool.
#[derive(Debug, Default)]
pub struct Routes(FxHashMap<IpAddr, ConnectionKey>);

impl Routes {
    /// Who has `address`.
    pub fn find(&self, address: IpAddr) -> Option<ConnectionKey> {
        self.0.get(&address).copied()
    }

    /// Gives `address` to `connection`, whoever had it.
    pub fn insert(&mut self, address: IpAddr, connection: ConnectionKey) {
        self.0.insert(address, connection);
    }

    /// Takes `address` from `connection`; changes nothing if somebody else has it by now.
    pub fn remove(&mut self, address: IpAddr, connection: ConnectionKey) {
        if self.0.get(&address) == Some(&connection) {
            self.0.remove(&address);
        }
    }

    /// How many addresses have a route.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no address has a route.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
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
        assert!(routes.is_empty());
    }
}
