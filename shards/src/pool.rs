//! The addresses that can be leased, kept in one place for all shards.
//!
//! Whole-tunnel pool and users' own pools must never hand out one address twice, and "lowest free first" is a property of the whole pool, so one
//! shard, the keeper, answers for all of them. It is asked once a connection. Time and memory depend on how many addresses are out, never on how
//! many there are.
//!
//! This module knows no connections; it trusts that what is released was held.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::directory::{AddressRange, Directory, Fingerprint, UserIndex};

/// Some ranges of addresses of one family. The lowest free address goes first.
#[derive(Debug, Default)]
pub struct Pool {
    /// Disjoint, ascending.
    ranges: Vec<(u128, u128)>,
    /// Index of the range that the next never-used address comes from.
    range: usize,
    /// How many addresses of that range have been used.
    used: u128,
    /// Used before, and free again.
    released: BTreeSet<u128>,
    ipv6: bool,
    held: u64,
}

impl Pool {
    /// A pool of `ranges`, which must be of one family, without `excluded`.
    pub fn new(
        ranges: impl IntoIterator<Item = AddressRange>,
        excluded: impl IntoIterator<Item = AddressRange>,
    ) -> Self {
        let mut ipv6 = false;
        let ranges = ranges.into_iter().map(|range| {
            ipv6 = range.first().is_ipv6();
            (number(range.first()), number(range.last()))
        });
        let ranges = disjoint(ranges.collect());
        let excluded =
            disjoint(excluded.into_iter().map(|range| (number(range.first()), number(range.last()))).collect());
        Pool { ranges: without(&ranges, &excluded), ipv6, ..Pool::default() }
    }

    /// The lowest free address; `None` when all are held.
    pub fn allocate(&mut self) -> Option<IpAddr> {
        let number = self.released.pop_first().or_else(|| self.fresh())?;
        self.held += 1;
        Some(self.address(number))
    }

    /// `address`, if it is free and has been held before.
    pub fn allocate_again(&mut self, address: IpAddr) -> bool {
        let free = address.is_ipv6() == self.ipv6 && self.released.remove(&number(address));
        self.held += u64::from(free);
        free
    }

    /// Takes a held address back.
    pub fn release(&mut self, address: IpAddr) {
        self.held -= u64::from(self.released.insert(number(address)));
    }

    /// How many addresses are held.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The lowest address never used before.
    fn fresh(&mut self) -> Option<u128> {
        let &(first, last) = self.ranges.get(self.range)?;
        let fresh = first + self.used;
        if fresh == last {
            self.range += 1;
            self.used = 0;
        } else {
            self.used += 1;
        }
        Some(fresh)
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.ipv6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn disjoint(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// `ranges` minus `holes`, both disjoint and ascending.
fn without(ranges: &[(u128, u128)], holes: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut left = Vec::with_capacity(ranges.len() + holes.len());
    let mut holes = holes.iter().peekable();
    for &(first, last) in ranges {
        let mut start = Some(first);
        while let (Some(from), Some(&&(hole_first, hole_last))) = (start, holes.peek()) {
            if hole_first > last {
                break;
            }
            if hole_last < from {
                holes.next();
                continue;
            }
            if hole_first > from {
                left.push((from, hole_first - 1));
            }
            start = (hole_last < last).then(|| hole_last + 1);
        }
        if let Some(from) = start {
            left.push((from, last));
        }
    }
    left
}

/// The keeper of all addresses of a gateway: the tunnel network's pool and the users' own.
#[derive(Debug)]
pub struct Keeper {
    shared: Pool,
    own: FxHashMap<UserIndex, Pool>,
    remembered: FxHashMap<Fingerprint, IpAddr>,
    remembered_order: VecDeque<Fingerprint>,
    remembered_max: usize,
}

impl Keeper {
    /// All addresses of `tunnel` but the network's, the broadcast and the gateway's own are free.
    pub fn new(tunnel: IpNet, directory: &Directory, remembered_max: usize) -> Self {
        let reserved: Vec<_> = [tunnel.network(), tunnel.broadcast(), tunnel.addr()]
            .into_iter()
            .filter_map(|address| AddressRange::new(address, address))
            .collect();
        let mut own = FxHashMap::default();
        let mut taken = reserved.clone();
        for (index, user) in directory.users().iter().enumerate().filter(|(_, user)| !user.pool.is_empty()) {
            own.insert(UserIndex(index as u32), Pool::new(user.pool.iter().copied(), reserved.iter().copied()));
            taken.extend(&user.pool);
        }
        let shared = Pool::new(AddressRange::new(tunnel.network(), tunnel.broadcast()), taken);
        Keeper { shared, own, remembered: FxHashMap::default(), remembered_order: VecDeque::new(), remembered_max }
    }

    /// An address for a connection of `user` by `certificate`: the one it had last, if that is free, else the lowest.
    pub fn allocate(&mut self, user: UserIndex, certificate: Fingerprint) -> Option<IpAddr> {
        let pool = self.own.get_mut(&user).unwrap_or(&mut self.shared);
        match self.remembered.get(&certificate) {
            Some(&last) if pool.allocate_again(last) => Some(last),
            _ => pool.allocate(),
        }
    }

    /// Takes an address back and remembers who had it.
    pub fn release(&mut self, user: UserIndex, certificate: Fingerprint, address: IpAddr) {
        self.own.get_mut(&user).unwrap_or(&mut self.shared).release(address);
        if self.remembered.insert(certificate, address).is_none() {
            self.remembered_order.push_back(certificate);
            if self.remembered_order.len() > self.remembered_max {
                self.remembered_order.pop_front().and_then(|oldest| self.remembered.remove(&oldest));
            }
        }
    }

    /// How many addresses are held.
    pub fn held(&self) -> u64 {
        self.shared.held() + self.own_held()
    }

    #[expect(clippy::disallowed_methods, reason = "a sum has no order")]
    fn own_held(&self) -> u64 {
        self.own.values().map(Pool::held).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::directory::User;

    const CERTIFICATE: Fingerprint = Fingerprint([1; 32]);

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    fn keeper(tunnel: &str, pools: &[&[AddressRange]]) -> Keeper {
        let users = pools.iter().enumerate().map(|(index, pool)| User {
            name: format!("user{index}"),
            certificates: vec![],
            limit: None,
            pool: pool.to_vec(),
        });
        Keeper::new(tunnel.parse().unwrap(), &Directory::new(users.collect()).unwrap(), 4)
    }

    fn all(keeper: &mut Keeper, user: u32) -> Vec<String> {
        std::iter::from_fn(|| keeper.allocate(UserIndex(user), CERTIFICATE))
            .map(|address| address.to_string())
            .collect()
    }

    #[test]
    fn network_server_and_broadcast_are_reserved() {
        let mut keeper = keeper("198.18.0.3/29", &[&[]]);
        assert_eq!(all(&mut keeper, 0), ["198.18.0.1", "198.18.0.2", "198.18.0.4", "198.18.0.5", "198.18.0.6"]);
        assert_eq!(keeper.held(), 5);
    }

    #[test]
    fn a_users_own_addresses_go_to_nobody_else() {
        let own = [range("198.18.0.2", "198.18.0.2"), range("198.18.0.5", "198.18.0.6")];
        let mut keeper = keeper("198.18.0.1/29", &[&[], &own]);
        assert_eq!(all(&mut keeper, 0), ["198.18.0.3", "198.18.0.4"]);
        assert_eq!(all(&mut keeper, 1), ["198.18.0.2", "198.18.0.5", "198.18.0.6"]);
    }

    #[test]
    fn a_released_address_is_free_again_and_goes_to_its_last_holder() {
        let mut keeper = keeper("198.18.0.1/24", &[&[]]);
        let other = Fingerprint([2; 32]);
        let first = keeper.allocate(UserIndex(0), CERTIFICATE).unwrap();
        let second = keeper.allocate(UserIndex(0), other).unwrap();
        keeper.release(UserIndex(0), CERTIFICATE, first);
        keeper.release(UserIndex(0), other, second);
        assert_eq!(keeper.allocate(UserIndex(0), other), Some(second));
        assert_eq!(keeper.allocate(UserIndex(0), Fingerprint([3; 32])), Some(first));
        assert_eq!(keeper.allocate(UserIndex(0), CERTIFICATE).unwrap().to_string(), "198.18.0.4");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut keeper = keeper("198.18.0.1/24", &[&[]]);
        for holder in 0..100 {
            let certificate = Fingerprint([holder; 32]);
            let address = keeper.allocate(UserIndex(0), certificate).unwrap();
            keeper.release(UserIndex(0), certificate, address);
        }
        assert_eq!(keeper.remembered.len(), 4);
        assert_eq!(keeper.remembered_order.len(), 4);
    }

    #[test]
    fn a_huge_network_costs_nothing() {
        let mut keeper = keeper("fd00::1/64", &[&[]]);
        assert_eq!(keeper.allocate(UserIndex(0), CERTIFICATE), Some("fd00::2".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn no_address_is_out_twice_and_none_is_lost(steps in proptest::collection::vec((any::<bool>(), 0u32..3, 0usize..64), 1..300)) {
            let own = [range("198.18.0.8", "198.18.0.11")];
            let mut keeper = keeper("198.18.0.1/27", &[&[], &own, &[]]);
            let mut out: Vec<(u32, IpAddr)> = Vec::new();
            for (take, user, pick) in steps {
                if take {
                    match keeper.allocate(UserIndex(user), Fingerprint([user as u8; 32])) {
                        Some(address) => {
                            prop_assert!(out.iter().all(|(_, held)| *held != address));
                            prop_assert_eq!(own[0].contains(address), user == 1);
                            out.push((user, address));
                        }
                        None => prop_assert_eq!(out.iter().filter(|(holder, _)| (*holder == 1) == (user == 1)).count(), if user == 1 { 4 } else { 25 }),
                    }
                } else if !out.is_empty() {
                    let (user, address) = out.swap_remove(pick % out.len());
                    keeper.release(UserIndex(user), Fingerprint([user as u8; 32]), address);
                }
                prop_assert_eq!(keeper.held(), out.len() as u64);
            }
        }
    }
}
