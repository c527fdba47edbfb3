//! How shards tell what their clients' paths carry, for the routes of those that carry less than the TUN device.
//!
//! A shard hands over what it knows and never waits. Each entry is a state, not a step: the newest of a connection is all that counts, and of
//! several connections that have had an address the order does not matter.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tollgate_shards::packet::MTU_BYTES_MIN_V6;
use tollgate_shards::{ClientMtu, ConnectionKey};

use crate::io::Wake;

/// What connections' paths carry, by the address that each has or had; `None` is no less than the device, or a connection that is gone. At
/// most one entry a connection.
type States = BTreeMap<(IpAddr, ConnectionKey), Option<u16>>;

/// Where what shards know waits until it is taken.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<States>>);

/// A shard's way of handing over what it knows.
pub struct Mtus {
    known: Known,
    wake: Arc<Wake>,
    /// States that the other thread has not taken yet.
    held: States,
}

impl Known {
    /// Takes all that has been handed over.
    fn take(&self) -> States {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Mtus {
    /// A way to `known` for one shard; `wake` wakes who takes from it.
    pub fn new(known: Known, wake: Arc<Wake>) -> Self {
        Mtus { known, wake, held: States::new() }
    }

    /// Takes note of a change.
    pub fn hold(&mut self, ClientMtu { address, connection, mtu_bytes }: ClientMtu) {
        self.held.insert((address, connection), mtu_bytes);
    }

    /// Hands over what is held, unless somebody is just at the same place. Returns whether something is left.
    pub fn flush(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let mut states = match self.known.0.try_lock() {
            Ok(states) => states,
            Err(TryLockError::Poisoned(states)) => states.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        states.append(&mut self.held);
        drop(states);
        self.wake.notify();
        false
    }
}

/// What each address carries, by the connections that have it.
#[derive(Debug, Default)]
pub struct Carried {
    known: Known,
    clients: BTreeMap<IpAddr, BTreeMap<ConnectionKey, u16>>,
}

impl Carried {
    /// Of what is handed over to `known`.
    pub fn new(known: Known) -> Self {
        Carried { known, clients: BTreeMap::new() }
    }

    /// Takes what has been handed over, and says for each address that it changes what its route's MTU is to be; `None` for no route.
    pub fn changes(&mut self) -> Vec<(IpAddr, Option<u32>)> {
        let states = self.known.take();
        states.into_iter().filter_map(|((address, connection), mtu)| self.apply(address, connection, mtu)).collect()
    }

    fn apply(
        &mut self,
        address: IpAddr,
        connection: ConnectionKey,
        mtu_bytes: Option<u16>,
    ) -> Option<(IpAddr, Option<u32>)> {
        let carried = self.clients.entry(address).or_default();
        let before = carried.values().min().copied();
        match mtu_bytes {
            Some(mtu_bytes) => drop(carried.insert(connection, mtu_bytes)),
            None => drop(carried.remove(&connection)),
        }
        let after = carried.values().min().copied();
        if carried.is_empty() {
            self.clients.remove(&address);
        }
        // The kernel takes no less for IPv6 (RFC 8200, section 5).
        let least = if address.is_ipv6() { MTU_BYTES_MIN_V6 as u32 } else { 0 };
        (before != after).then(|| (address, after.map(|bytes| u32::from(bytes).max(least))))
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::ShardIndex;

    use super::*;

    #[test]
    fn the_newest_state_of_each_connection_counts_in_any_order() {
        let (known, wake) = (Known::default(), Arc::new(Wake::new().unwrap()));
        let mut shards = [0, 1].map(|_| Mtus::new(known.clone(), wake.clone()));
        let mut carried = Carried::new(known);
        let address: IpAddr = "198.19.128.9".parse().unwrap();
        let mut tell = |shard: u16, generation, mtu_bytes| {
            let connection = ConnectionKey { owner: ShardIndex(shard), slot: 0, generation };
            let shard = &mut shards[usize::from(shard)];
            shard.hold(ClientMtu { address, connection, mtu_bytes });
            assert!(!shard.flush(), "nobody is at the same place");
        };
        tell(0, 1, Some(1300));
        tell(0, 1, Some(1290));
        assert_eq!(carried.changes(), [(address, Some(1290))], "one change for both");
        // The address has gone on to another shard, whose word comes before the old owner's last.
        tell(1, 1, Some(1310));
        assert_eq!(carried.changes(), [], "the smaller one still holds");
        tell(0, 1, None);
        assert_eq!(carried.changes(), [(address, Some(1310))]);
        tell(0, 2, None);
        assert_eq!(carried.changes(), []);
        tell(1, 1, None);
        assert_eq!(carried.changes(), [(address, None)]);
        assert!(carried.clients.is_empty());
    }

    #[test]
    fn a_route_of_ipv6_has_no_less_than_the_kernel_takes() {
        let mut carried = Carried::default();
        let connection = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 1 };
        let address: IpAddr = "fd00:19:80::9".parse().unwrap();
        assert_eq!(carried.apply(address, connection, Some(1264)), Some((address, Some(1280))));
    }

    #[test]
    fn a_shard_that_finds_the_place_taken_keeps_what_it_has_and_goes_on() {
        let known = Known::default();
        let mut shard = Mtus::new(known.clone(), Arc::new(Wake::new().unwrap()));
        let connection = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 1 };
        shard.hold(ClientMtu { address: "198.19.128.9".parse().unwrap(), connection, mtu_bytes: Some(1300) });
        let taken = known.0.lock().unwrap();
        assert!(shard.flush());
        drop(taken);
        assert!(!shard.flush());
        assert_eq!(known.take().len(), 1);
    }
}
