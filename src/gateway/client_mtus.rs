//! The MTUs of clients' paths, from the shards to the control plane: for the routes of clients whose paths carry less than the TUN device.
//!
//! A shard hands over what it knows and never waits. Each entry is a state, not a step: only the newest of a connection counts, and the order
//! between connections that have had the same address does not matter.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tollgate_shards::packet::MTU_BYTES_MIN_V6;
use tollgate_shards::{ClientMtu, ConnectionKey, ShardIndex};

use super::waker::Notify;
use crate::io::Wake;

/// The MTUs of connections' paths, by the address that each has or had; `None` is no less than the device's, or a connection that is gone. At
/// most one entry a connection.
type States = BTreeMap<(IpAddr, ConnectionKey), Option<u16>>;

/// Where states wait until the control plane takes them.
#[derive(Debug, Clone, Default)]
struct Mailbox(Arc<Mutex<States>>);

/// A shard's end of the mailbox.
pub struct ClientMtuSender<W = Wake> {
    mailbox: Mailbox,
    wake: Arc<W>,
    /// States that could not be handed over yet.
    held: States,
}

impl Mailbox {
    fn take(&self) -> States {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<W: Notify> ClientMtuSender<W> {
    /// Takes note of a change.
    pub fn hold(&mut self, ClientMtu { address, connection, mtu_bytes }: ClientMtu) {
        self.held.insert((address, connection), mtu_bytes);
    }

    /// Forgets what is held, of connections that are gone with their shard.
    pub fn forget(&mut self) {
        self.held.clear();
    }

    /// Hands over what is held, unless somebody is just at the same place. Returns whether something is left.
    pub fn flush(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let mut states = match self.mailbox.0.try_lock() {
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

/// The MTU of each client, by the connections that have its address.
#[derive(Debug, Default)]
pub struct ClientMtus {
    mailbox: Mailbox,
    clients: BTreeMap<IpAddr, BTreeMap<ConnectionKey, u16>>,
}

impl ClientMtus {
    /// An end for one shard; `wake` wakes the control plane.
    pub fn sender<W>(&self, wake: Arc<W>) -> ClientMtuSender<W> {
        ClientMtuSender { mailbox: self.mailbox.clone(), wake, held: States::new() }
    }

    /// Takes what has been handed over. Returns the new MTU of each route that it changes; `None` for no route.
    pub fn changes(&mut self) -> Vec<(IpAddr, Option<u32>)> {
        let states = self.mailbox.take();
        states.into_iter().filter_map(|((address, connection), mtu)| self.apply(address, connection, mtu)).collect()
    }

    /// The connections that `owner` had before its `incarnation` are gone. Returns what that changes, after what was handed over before.
    pub fn forget_before(&mut self, owner: ShardIndex, incarnation: u32) -> Vec<(IpAddr, Option<u32>)> {
        let mut changes = self.changes();
        let is_gone = |connection: &ConnectionKey| connection.owner == owner && connection.incarnation() < incarnation;
        let known = self.clients.iter().flat_map(|(&address, mtus)| mtus.keys().map(move |&key| (address, key)));
        let gone: Vec<_> = known.filter(|(_, connection)| is_gone(connection)).collect();
        changes.extend(gone.into_iter().filter_map(|(address, connection)| self.apply(address, connection, None)));
        changes
    }

    fn apply(
        &mut self,
        address: IpAddr,
        connection: ConnectionKey,
        mtu_bytes: Option<u16>,
    ) -> Option<(IpAddr, Option<u32>)> {
        let mtus = self.clients.entry(address).or_default();
        let before = mtus.values().min().copied();
        match mtu_bytes {
            Some(mtu_bytes) => drop(mtus.insert(connection, mtu_bytes)),
            None => drop(mtus.remove(&connection)),
        }
        let after = mtus.values().min().copied();
        if mtus.is_empty() {
            self.clients.remove(&address);
        }
        // The kernel takes no less for IPv6 (RFC 8200, section 5).
        let least = if address.is_ipv6() { MTU_BYTES_MIN_V6 as u32 } else { 0 };
        (before != after).then(|| (address, after.map(|bytes| u32::from(bytes).max(least))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_state_of_each_connection_counts_in_any_order() {
        let (mut mtus, wake) = (ClientMtus::default(), Arc::new(Wake::new().unwrap()));
        let mut shards = [0, 1].map(|_| mtus.sender(wake.clone()));
        let address: IpAddr = "198.19.128.9".parse().unwrap();
        let mut tell = |shard: u16, generation, mtu_bytes| {
            let connection = ConnectionKey { owner: ShardIndex(shard), slot: 0, generation };
            let shard = &mut shards[usize::from(shard)];
            shard.hold(ClientMtu { address, connection, mtu_bytes });
            assert!(!shard.flush(), "nobody is at the same place");
        };
        tell(0, 1, Some(1300));
        tell(0, 1, Some(1290));
        assert_eq!(mtus.changes(), [(address, Some(1290))], "one change for both");
        // The address has gone on to another shard, whose word comes before the old owner's last.
        tell(1, 1, Some(1310));
        assert_eq!(mtus.changes(), [], "the smaller one still holds");
        tell(0, 1, None);
        assert_eq!(mtus.changes(), [(address, Some(1310))]);
        tell(0, 2, None);
        assert_eq!(mtus.changes(), []);
        tell(1, 1, None);
        assert_eq!(mtus.changes(), [(address, None)]);
        assert!(mtus.clients.is_empty());
    }

    #[test]
    fn a_shard_that_panicked_takes_the_routes_of_its_clients_with_it_and_no_others() {
        let mut mtus = ClientMtus::default();
        let mut sender = mtus.sender(Arc::new(Wake::new().unwrap()));
        let [mine, others, shared]: [IpAddr; 3] =
            ["198.19.128.9", "198.19.128.10", "198.19.128.11"].map(|address| address.parse().unwrap());
        let key = |shard, incarnation: u64| ConnectionKey {
            owner: ShardIndex(shard),
            slot: 0,
            generation: incarnation << 32 | 1,
        };
        for (address, connection, mtu_bytes) in
            [(others, key(0, 0), 1300), (shared, key(1, 0), 1290), (shared, key(1, 1), 1310)]
        {
            sender.hold(ClientMtu { address, connection, mtu_bytes: Some(mtu_bytes) });
        }
        sender.flush();
        assert_eq!(mtus.changes().len(), 2);
        // One that the control plane has not taken, and one that the shard has not handed over.
        sender.hold(ClientMtu { address: mine, connection: key(1, 0), mtu_bytes: Some(1300) });
        sender.flush();
        sender.hold(ClientMtu { address: others, connection: key(1, 0), mtu_bytes: Some(1200) });
        sender.forget();
        let changes = mtus.forget_before(ShardIndex(1), 1);
        assert_eq!(changes, [(mine, Some(1300)), (mine, None), (shared, Some(1310))]);
        assert!(!sender.flush() && mtus.changes().is_empty());
        assert_eq!(mtus.clients.keys().copied().collect::<Vec<_>>(), [others, shared]);
    }

    #[test]
    fn a_route_of_ipv6_has_no_less_than_the_kernel_takes() {
        let mut mtus = ClientMtus::default();
        let connection = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 1 };
        let address: IpAddr = "fd00:19:80::9".parse().unwrap();
        assert_eq!(mtus.apply(address, connection, Some(1264)), Some((address, Some(1280))));
    }

    #[test]
    fn a_shard_that_finds_the_place_taken_keeps_what_it_has_and_goes_on() {
        let mtus = ClientMtus::default();
        let mut shard = mtus.sender(Arc::new(Wake::new().unwrap()));
        let connection = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: 1 };
        shard.hold(ClientMtu { address: "198.19.128.9".parse().unwrap(), connection, mtu_bytes: Some(1300) });
        let taken = mtus.mailbox.0.lock().unwrap();
        assert!(shard.flush());
        drop(taken);
        assert!(!shard.flush());
        assert_eq!(mtus.mailbox.take().len(), 1);
    }
}
