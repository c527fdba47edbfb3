//! What single connections have carried: the busiest have series of their own, and all others are in one sum that never falls.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tollgate_shards::{ConnectionKey, ConnectionUsage, Usage};

use crate::gateway::CoreUsage;

/// Connections with series of their own.
pub const CONNECTIONS_TOLD_MAX: usize = 500;

/// A connection with series of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The newest figures.
    pub newest: ConnectionUsage,
    /// What it had carried before it was told of: that stays in the sum of the others.
    before: Usage,
}

impl Told {
    /// What it has carried since it is told of.
    pub fn usage(&self) -> Usage {
        self.newest.usage.since(self.before)
    }
}

/// All connections, as of the last renewal.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What each connection has carried, whether it is told of or not.
    known: BTreeMap<ConnectionKey, Usage>,
    told: BTreeMap<ConnectionKey, Told>,
    /// All that each core's connections have carried.
    cores: Vec<Usage>,
    /// What cores do not know any more whose shards were started anew.
    forgotten: Usage,
    renewed_at: Option<Instant>,
}

impl Ledger {
    /// Whether it is time to renew it.
    pub fn is_due(&self, now: Instant, interval: Duration) -> bool {
        self.renewed_at.is_none_or(|at| at + interval <= now)
    }

    /// Goes over to what the cores have published.
    pub fn renew(&mut self, cores: &[CoreUsage], now: Instant) {
        self.renewed_at = Some(now);
        self.cores.resize(cores.len(), Usage::default());
        for (before, core) in self.cores.iter_mut().zip(cores) {
            let all = core.clients.iter().fold(core.former, |sum, client| sum + client.usage);
            self.forgotten += before.since(all);
            *before = all;
        }
        let clients: Vec<ConnectionUsage> = cores.iter().flat_map(|core| &core.clients).copied().collect();
        let known = clients.iter().map(|client| (client.connection, client.usage)).collect();
        let busiest = self.busiest(clients);
        let told = busiest.into_iter().map(|newest| {
            let key = newest.connection;
            let before = match (self.told.get(&key), self.known.get(&key)) {
                (Some(told), _) => told.before,
                (None, Some(known)) => *known,
                (None, None) => Usage::default(),
            };
            (key, Told { newest, before })
        });
        self.told = told.collect();
        self.known = known;
    }

    /// Those who have carried most since the last time, and those who were among them before others who have carried as much.
    fn busiest(&self, mut clients: Vec<ConnectionUsage>) -> Vec<ConnectionUsage> {
        clients.sort_by_cached_key(|client| {
            let before = self.known.get(&client.connection).copied().unwrap_or_default();
            let is_new = !self.told.contains_key(&client.connection);
            (Reverse(client.usage.since(before).bytes()), is_new, Reverse(client.connection))
        });
        // An address that has gone on to another connection may still be that of the one before, as far as its core has said.
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        clients.retain(|client| addresses.insert(client.address));
        clients.truncate(CONNECTIONS_TOLD_MAX);
        clients
    }

    /// The connections with series of their own.
    pub fn told(&self) -> impl Iterator<Item = &Told> {
        self.told.values()
    }

    /// What all others have carried, those who are gone included.
    pub fn others(&self) -> Usage {
        let all = self.cores.iter().fold(self.forgotten, |sum, core| sum + *core);
        let told = self.told.values().fold(Usage::default(), |sum, told| sum + told.usage());
        all.since(told)
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{CredentialKind, PathState, ShardIndex, UserIndex};

    use super::*;

    fn client(slot: u32, bytes: u64) -> ConnectionUsage {
        ConnectionUsage {
            connection: ConnectionKey { owner: ShardIndex(0), slot, generation: 1 },
            user: UserIndex(0),
            kind: CredentialKind::Certificate,
            remote: ([198, 18, 0, 1], 4433).into(),
            address: IpAddr::from((0xc613_0000 + slot).to_be_bytes()),
            usage: Usage { sent_bytes: bytes, ..Usage::default() },
            path: PathState::default(),
            queued_bytes: 0,
            began: Instant::now(),
            heard_at: Instant::now(),
        }
    }

    fn core(clients: Vec<ConnectionUsage>, former: u64) -> CoreUsage {
        CoreUsage { clients, former: Usage { sent_bytes: former, ..Usage::default() }, ..CoreUsage::default() }
    }

    /// A ledger that is held against what must hold at every renewal: the sum of the others never falls, and all that was carried is somewhere.
    #[derive(Default)]
    struct Watched {
        ledger: Ledger,
        others: u64,
    }

    impl Watched {
        fn renew(&mut self, cores: &[CoreUsage]) {
            self.ledger.renew(cores, Instant::now());
            let others = self.ledger.others().sent_bytes;
            assert!(others >= self.others, "from {} to {others}", self.others);
            self.others = others;
        }

        fn told(&self) -> Vec<(u32, u64)> {
            self.ledger.told().map(|told| (told.newest.connection.slot, told.usage().sent_bytes)).collect()
        }
    }

    #[test]
    fn a_connection_has_figures_of_its_own_and_leaves_them_to_the_others_when_it_ends() {
        let mut watched = Watched::default();
        watched.renew(&[core(vec![client(1, 100), client(2, 10)], 0)]);
        assert_eq!((watched.told(), watched.others), (vec![(1, 100), (2, 10)], 0));
        watched.renew(&[core(vec![client(2, 15)], 120)]);
        assert_eq!((watched.told(), watched.others), (vec![(2, 15)], 120));
    }

    #[test]
    fn the_busiest_have_figures_of_their_own_from_when_they_are_among_them() {
        let most = CONNECTIONS_TOLD_MAX as u32;
        let all = |first: u64, last: u64| {
            let others = (1..most).map(|slot| client(slot, 1000));
            core(others.chain([client(0, first), client(most, last)]).collect(), 0)
        };
        let mut watched = Watched::default();
        watched.renew(&[all(2000, 10)]);
        assert_eq!((watched.told().len(), watched.others), (CONNECTIONS_TOLD_MAX, 10));
        assert_eq!(watched.told()[0], (0, 2000));
        // Nobody but the last one has done anything: it comes in, and one that is idle leaves what it has to the others.
        watched.renew(&[all(2000, 500)]);
        let told = watched.told();
        assert_eq!((told.len(), told.last()), (CONNECTIONS_TOLD_MAX, Some(&(most, 490))));
        let sum: u64 = told.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(sum + watched.others, 1000 * u64::from(most - 1) + 2500);
        // Where nobody is busier than anybody else, all stay.
        watched.renew(&[all(2000, 500)]);
        assert_eq!(watched.told(), told);
    }

    #[test]
    fn what_a_shard_forgets_that_is_started_anew_stays_in_the_sum() {
        let mut watched = Watched::default();
        watched.renew(&[core(vec![client(1, 100)], 50), core(Vec::new(), 7)]);
        watched.renew(&[core(Vec::new(), 0), core(Vec::new(), 7)]);
        assert_eq!((watched.told(), watched.others), (Vec::new(), 157));
        watched.renew(&[core(vec![client(3, 5)], 1), core(Vec::new(), 8)]);
        assert_eq!((watched.told(), watched.others), (vec![(3, 5)], 159));
    }

    #[test]
    fn an_address_has_one_series_though_two_connections_may_seem_to_have_it() {
        let mut watched = Watched::default();
        let mut next = client(9, 1);
        next.address = client(1, 0).address;
        watched.renew(&[core(vec![client(1, 100)], 0), core(vec![next], 0)]);
        assert_eq!((watched.told(), watched.others), (vec![(1, 100)], 1));
    }
}
