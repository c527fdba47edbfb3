//! Which addresses are free, pool by pool.
//!
//! Free addresses are kept as ranges, so that time and memory depend on how many addresses are out, and never on how many there are.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::ids::UserIndex;
use crate::session::users::{AddressRange, Users};

/// A pool: addresses for the same users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// What of the tunnel network is nobody's own, for all who have no addresses of their own.
    Shared,
    /// One user's own addresses.
    Own(UserIndex),
}

/// The free addresses of all pools of a tunnel network. Holds no more ranges than were configured and addresses are out, together.
#[derive(Debug)]
pub struct FreeAddresses {
    tunnel: IpNet,
    /// Last address of each range, by pool and first address. Ranges of one pool are disjoint and do not touch.
    ranges: BTreeMap<(Pool, u128), u128>,
    shared_free: u128,
    /// How many it has.
    shared_total: u128,
}

impl FreeAddresses {
    /// Every address of `tunnel` but the network's, the broadcast and the gateway's own is free. Of other families than the tunnel's there are
    /// none.
    pub fn new(tunnel: IpNet, users: &Users) -> Self {
        let mut free = FreeAddresses { tunnel, ranges: BTreeMap::new(), shared_free: 0, shared_total: 0 };
        let reserved = disjoint(free.reserved().map(|address| (number(address), number(address))).into());
        let mut taken = reserved.clone();
        for (user, configured) in users.users() {
            let own = configured.pool.iter().filter(|range| range.first().is_ipv4() == tunnel.addr().is_ipv4());
            let own = disjoint(own.map(|range| (number(range.first()), number(range.last()))).collect());
            free.add(Pool::Own(user), without(&own, &reserved));
            taken.extend(own);
        }
        let all = AddressRange::new(tunnel.network(), tunnel.broadcast());
        let all: Vec<_> = all.iter().map(|range| (number(range.first()), number(range.last()))).collect();
        let shared = without(&all, &disjoint(taken));
        // A whole IPv6 address space has one more than a number holds, but its network is reserved.
        free.shared_total = shared.iter().map(|(first, last)| last - first + 1).sum();
        free.shared_free = free.shared_total;
        free.add(Pool::Shared, shared);
        free
    }

    /// How many addresses of the shared pool are free, and how many it has in all.
    pub fn shared(&self) -> (u128, u128) {
        (self.shared_free, self.shared_total)
    }

    /// The pool that an address belongs to; `None` for one that nobody may have.
    pub fn pool_of(&self, users: &Users, address: IpAddr) -> Option<Pool> {
        let foreign = address.is_ipv4() != self.tunnel.addr().is_ipv4();
        if foreign || self.reserved().contains(&address) {
            return None;
        }
        match users.claimant(address) {
            Some(user) => Some(Pool::Own(user)),
            None => self.tunnel.contains(&address).then_some(Pool::Shared),
        }
    }

    /// Takes the lowest free address of `pool`; `None` when all are out.
    pub fn take_lowest(&mut self, pool: Pool) -> Option<IpAddr> {
        let (&(_, first), &last) = self.ranges.range((pool, 0)..=(pool, u128::MAX)).next()?;
        self.cut(pool, first, last, first);
        Some(self.address(first))
    }

    /// Takes `address`, if it is in `pool` and free.
    pub fn take(&mut self, pool: Pool, address: IpAddr) -> bool {
        let taken = number(address);
        match self.ranges.range((pool, 0)..=(pool, taken)).next_back() {
            Some((&(_, first), &last)) if taken <= last => {
                self.cut(pool, first, last, taken);
                true
            }
            _ => false,
        }
    }

    /// Puts an address back into the pool that it belongs to, from which it must be out.
    pub fn put_back(&mut self, pool: Pool, address: IpAddr) {
        let returned = number(address);
        let (mut first, mut last) = (returned, returned);
        if let Some((&(_, before), &end)) = self.ranges.range((pool, 0)..(pool, returned)).next_back()
            && end + 1 == returned
        {
            first = before;
        }
        if let Some(end) = returned.checked_add(1).and_then(|after| self.ranges.remove(&(pool, after))) {
            last = end;
        }
        self.ranges.insert((pool, first), last);
        self.shared_free += u128::from(pool == Pool::Shared);
    }

    /// How many ranges there are: what time and memory depend on.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Takes `taken` out of the range from `first` to `last`.
    fn cut(&mut self, pool: Pool, first: u128, last: u128, taken: u128) {
        self.ranges.remove(&(pool, first));
        self.shared_free -= u128::from(pool == Pool::Shared);
        if first < taken {
            self.ranges.insert((pool, first), taken - 1);
        }
        if taken < last {
            self.ranges.insert((pool, taken + 1), last);
        }
    }

    fn add(&mut self, pool: Pool, ranges: Vec<(u128, u128)>) {
        self.ranges.extend(ranges.into_iter().map(|(first, last)| ((pool, first), last)));
    }

    fn reserved(&self) -> [IpAddr; 3] {
        [self.tunnel.network(), self.tunnel.broadcast(), self.tunnel.addr()]
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.tunnel {
            IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The same addresses in ranges that are ascending and neither overlap nor touch.
fn disjoint(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
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
