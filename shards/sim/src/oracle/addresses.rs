//! No two connections have one address, and nothing leaves under an address that nobody has.
//!
//! The book is kept from what the shards tell when a connection is attached and detached.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tollgate_shards::{ConnectionKey, ShardIndex, Snapshot, UserIndex};

use super::Violation;
use crate::gateway::Gateway;

#[derive(Debug, Default)]
pub struct Addresses {
    connections: BTreeMap<ConnectionKey, (UserIndex, IpAddr)>,
    holders: BTreeMap<IpAddr, ConnectionKey>,
    /// Who has lost an address in the pass that goes on. What they sent before may still come out.
    leaving: Vec<(IpAddr, ConnectionKey, UserIndex)>,
}

impl Addresses {
    pub(super) fn attached(
        &mut self,
        user: UserIndex,
        connection: ConnectionKey,
        address: IpAddr,
    ) -> Result<(), Violation> {
        if let Some(other) = self.holders.insert(address, connection) {
            return Err(violation(format!("{address} went to {connection:?} while {other:?} has it")));
        }
        match self.connections.insert(connection, (user, address)) {
            Some(_) => Err(violation(format!("{connection:?} was attached twice"))),
            None => Ok(()),
        }
    }

    pub(super) fn detached(&mut self, connection: ConnectionKey) -> Result<(), Violation> {
        match self.connections.remove(&connection) {
            Some((user, address)) => {
                self.holders.remove(&address);
                self.leaving.push((address, connection, user));
                Ok(())
            }
            None => Err(violation(format!("{connection:?} was detached and never attached"))),
        }
    }

    pub(super) fn died(&mut self, shard: ShardIndex) {
        self.connections.retain(|connection, _| connection.owner != shard);
        self.holders.retain(|_, connection| connection.owner != shard);
    }

    pub(super) fn pass_ends(&mut self) {
        self.leaving.clear();
    }

    /// Who sends from `source` through `shard`.
    pub(super) fn user_at(&self, source: IpAddr, shard: ShardIndex) -> Result<UserIndex, Violation> {
        let left = self.leaving.iter().find(|(address, key, _)| *address == source && key.owner == shard);
        let holder = self.holders.get(&source).filter(|holder| holder.owner == shard);
        match (left, holder) {
            (Some(&(_, _, user)), _) => Ok(user),
            (None, Some(holder)) => Ok(self.connections[holder].0),
            (None, None) => Err(violation(format!("{shard:?} let a packet of {source} out, which it gave to nobody"))),
        }
    }

    pub(super) fn is_attached(&self, connection: ConnectionKey) -> bool {
        self.connections.contains_key(&connection)
    }

    pub(super) fn attached_now(&self) -> impl Iterator<Item = (ConnectionKey, UserIndex, IpAddr)> + '_ {
        self.connections.iter().map(|(&connection, &(user, address))| (connection, user, address))
    }

    /// Whoever is attached may have the address by some snapshot that may still be in force.
    pub(super) fn all_allowed(&self, gateway: &Gateway) -> Result<(), Violation> {
        self.attached_now()
            .try_for_each(|(connection, user, address)| allowed(gateway.snapshots(), user, connection, address))
    }
}

/// A user may have an address by one of `snapshots`.
pub(super) fn allowed<'a>(
    mut snapshots: impl Iterator<Item = &'a Snapshot>,
    user: UserIndex,
    connection: ConnectionKey,
    address: IpAddr,
) -> Result<(), Violation> {
    if snapshots.any(|snapshot| snapshot.users.user(user).is_some() && snapshot.users.allows(user, address)) {
        return Ok(());
    }
    Err(violation(format!("{connection:?} of {user:?} is attached with {address}, which no snapshot in force allows")))
}

fn violation(what: String) -> Violation {
    Violation::new("addresses", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 9));

    fn key(owner: u16, slot: u32) -> ConnectionKey {
        ConnectionKey { owner: ShardIndex(owner), slot, generation: 1 }
    }

    #[test]
    fn an_address_that_is_given_out_twice_is_a_violation() {
        let mut book = Addresses::default();
        book.attached(UserIndex(0), key(0, 0), ADDRESS).unwrap();
        assert!(book.attached(UserIndex(0), key(1, 0), ADDRESS).is_err());
        let mut book = Addresses::default();
        book.attached(UserIndex(0), key(0, 0), ADDRESS).unwrap();
        book.detached(key(0, 0)).unwrap();
        assert!(book.attached(UserIndex(0), key(1, 0), ADDRESS).is_ok());
        assert!(book.detached(key(0, 0)).is_err(), "nobody leaves twice");
    }

    #[test]
    fn a_packet_of_nobody_or_from_the_wrong_shard_is_a_violation() {
        let mut book = Addresses::default();
        assert!(book.user_at(ADDRESS, ShardIndex(0)).is_err());
        book.attached(UserIndex(3), key(0, 0), ADDRESS).unwrap();
        assert_eq!(book.user_at(ADDRESS, ShardIndex(0)), Ok(UserIndex(3)));
        assert!(book.user_at(ADDRESS, ShardIndex(1)).is_err());
        book.detached(key(0, 0)).unwrap();
        assert_eq!(book.user_at(ADDRESS, ShardIndex(0)), Ok(UserIndex(3)), "what was sent before may still come out");
        book.pass_ends();
        assert!(book.user_at(ADDRESS, ShardIndex(0)).is_err());
    }

    #[test]
    fn a_dead_shard_holds_nothing() {
        let mut book = Addresses::default();
        book.attached(UserIndex(0), key(2, 0), ADDRESS).unwrap();
        book.died(ShardIndex(2));
        assert!(book.attached(UserIndex(0), key(1, 0), ADDRESS).is_ok());
    }
}
