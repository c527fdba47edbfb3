//! What users have carried since the last look: differences of what the cores have published.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tollgate_shards::{UserIndex, Users};

use crate::gateway::CoreUsage;
use crate::usage::{Amount, Book, Entry};

/// What has been counted of connections that there still are, by core and user: as many as have connections.
#[derive(Debug, Default)]
pub struct Ledger {
    cores: Vec<Core>,
}

#[derive(Debug, Default)]
struct Core {
    shards_before: u32,
    open: BTreeMap<UserIndex, Open>,
}

/// A user with connections on a core.
#[derive(Debug)]
struct Open {
    /// Known for as long as there are connections, also of a user who is gone.
    name: Arc<str>,
    counted: Amount,
}

impl Ledger {
    /// What has come since the last time, as of `unix_s`. Connections last until `now`.
    pub fn renew(&mut self, cores: Vec<CoreUsage>, users: &Users, now: Instant, unix_s: u64) -> Book {
        let mut book = Book::default();
        self.cores.resize_with(cores.len(), Core::default);
        for (known, core) in self.cores.iter_mut().zip(cores) {
            known.renew(core, users, now, |user, amount| book.add(user, Entry::at(unix_s, amount)));
        }
        book
    }
}

impl Core {
    fn renew(&mut self, core: CoreUsage, users: &Users, now: Instant, mut count: impl FnMut(&str, Amount)) {
        if core.shards_before != self.shards_before {
            // The connections of the shard before are gone, and nobody knows any more what they have carried since.
            self.shards_before = core.shards_before;
            self.open.values_mut().for_each(|open| open.counted = Amount::default());
        }
        let mut open: BTreeMap<UserIndex, Amount> = BTreeMap::new();
        for client in &core.clients {
            let lasted = now.saturating_duration_since(client.began);
            *open.entry(client.user).or_default() +=
                Amount { usage: client.usage, connections: 1, connected_ms: lasted.as_millis() as u64 };
        }
        let mut all = open.clone();
        for (user, ended) in core.ended {
            let connected_ms = ended.lasted.as_millis() as u64;
            *all.entry(user).or_default() +=
                Amount { usage: ended.usage, connections: ended.connections, connected_ms };
        }
        for (user, all) in all {
            let before = self.open.get(&user);
            let name = before.map_or_else(|| Arc::from(users.name(user)), |before| before.name.clone());
            let more = all.since(before.map(|before| before.counted).unwrap_or_default());
            if more != Amount::default() {
                count(&name, more);
            }
            match open.get(&user) {
                Some(counted) => _ = self.open.insert(user, Open { name, counted: *counted }),
                None => _ = self.open.remove(&user),
            }
        }
        self.open.retain(|user, _| open.contains_key(user));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tollgate_shards::{
        ConnectionKey, ConnectionUsage, CredentialKind, EndedUsage, PathState, ShardIndex, Usage, User,
    };

    use super::*;

    fn users() -> Users {
        Users::new(["alice", "bob"].map(|name| User { name: name.to_owned(), ..User::default() }).to_vec()).unwrap()
    }

    fn usage(bytes: u64) -> Usage {
        Usage { sent_bytes: bytes, received_datagrams: bytes, ..Usage::default() }
    }

    fn client(user: u32, slot: u32, bytes: u64, began: Instant) -> ConnectionUsage {
        ConnectionUsage {
            connection: ConnectionKey { owner: ShardIndex(0), slot, generation: 1 },
            user: UserIndex(user),
            kind: CredentialKind::Certificate,
            remote: ([198, 18, 0, 1], 4433).into(),
            address: [198, 19, 0, 2].into(),
            usage: usage(bytes),
            path: PathState::default(),
            queued_bytes: 0,
            began,
            heard_at: began,
        }
    }

    fn ended(user: u32, bytes: u64, connections: u64) -> (UserIndex, EndedUsage) {
        (UserIndex(user), EndedUsage { usage: usage(bytes), connections, lasted: Duration::from_secs(connections) })
    }

    /// What the cores say adds, in bytes and connections of each user.
    struct Counted {
        ledger: Ledger,
        began: Instant,
        users: Users,
    }

    impl Counted {
        fn add(&mut self, cores: Vec<CoreUsage>) -> Vec<(String, u64, u64)> {
            let now = self.began + Duration::from_secs(10);
            let book = self.ledger.renew(cores, &self.users, now, 90_000);
            let row = |(user, _, entry): (&str, _, &Entry)| {
                let Amount { usage, connections, .. } = entry.amount;
                assert_eq!(usage.sent_bytes, usage.received_datagrams);
                (user.to_owned(), usage.sent_bytes, connections)
            };
            book.rows().map(row).collect()
        }
    }

    fn row(user: &str, bytes: u64, connections: u64) -> (String, u64, u64) {
        (user.to_owned(), bytes, connections)
    }

    #[test]
    fn each_byte_of_a_connection_is_counted_once_while_it_lasts_and_when_it_ends() {
        let began = Instant::now();
        let mut counted = Counted { ledger: Ledger::default(), began, users: users() };
        let core =
            |clients, ended: Vec<_>| CoreUsage { clients, ended: ended.into_iter().collect(), ..Default::default() };
        let other = || core(vec![client(0, 5, 7, began)], Vec::new());
        let all = vec![core(vec![client(0, 1, 10, began), client(1, 2, 20, began)], Vec::new()), other()];
        assert_eq!(counted.add(all), [row("alice", 17, 2), row("bob", 20, 1)]);
        assert_eq!(
            counted.add(vec![core(vec![client(0, 1, 15, began), client(1, 2, 20, began)], Vec::new()), other()]),
            [row("alice", 5, 0)]
        );
        // Alice's ends with 18 and another begins and ends with 2; bob's ends as it was.
        let all = vec![core(Vec::new(), vec![ended(0, 20, 2), ended(1, 20, 1)]), other()];
        assert_eq!(counted.add(all), [row("alice", 5, 1)]);
        let all = vec![core(vec![client(0, 3, 1, began)], vec![ended(1, 3, 1)]), other()];
        assert_eq!(counted.add(all), [row("alice", 1, 1), row("bob", 3, 1)]);
    }

    #[test]
    fn what_a_shard_had_that_has_panicked_stays_counted_and_the_next_one_begins_at_nothing() {
        let began = Instant::now();
        let mut counted = Counted { ledger: Ledger::default(), began, users: users() };
        let core = |shards_before, bytes| CoreUsage {
            clients: vec![client(0, 1, bytes, began)],
            shards_before,
            ..CoreUsage::default()
        };
        assert_eq!(counted.add(vec![core(0, 100)]), [row("alice", 100, 1)]);
        assert_eq!(counted.add(vec![core(1, 150)]), [row("alice", 150, 1)]);
        assert_eq!(counted.add(vec![core(1, 151)]), [row("alice", 1, 0)]);
    }

    #[test]
    fn a_user_who_is_gone_from_the_files_keeps_the_name_while_there_are_connections() {
        let began = Instant::now();
        let mut counted = Counted { ledger: Ledger::default(), began, users: users() };
        let core = |bytes| vec![CoreUsage { clients: vec![client(1, 1, bytes, began)], ..CoreUsage::default() }];
        assert_eq!(counted.add(core(1)), [row("bob", 1, 1)]);
        for _ in 0..2 {
            counted.users = counted.users.succeed(Vec::new()).unwrap();
        }
        let gone = CoreUsage { ended: [ended(1, 9, 1)].into(), ..CoreUsage::default() };
        assert_eq!(counted.add(vec![gone]), [row("bob", 8, 0)]);
    }

    #[test]
    fn the_time_of_a_connection_is_counted_once_though_it_ended_before_the_last_look() {
        let began = Instant::now();
        let (mut ledger, users) = (Ledger::default(), users());
        let mut connected_ms = |cores, after| {
            let book = ledger.renew(cores, &users, began + Duration::from_secs(after), 90_000);
            book.rows().map(|(_, _, entry)| entry.amount.connected_ms).sum::<u64>()
        };
        let lives = || vec![CoreUsage { clients: vec![client(0, 1, 1, began)], ..CoreUsage::default() }];
        assert_eq!([connected_ms(lives(), 4), connected_ms(lives(), 6)], [4_000, 2_000]);
        let (user, usage) = ended(0, 1, 1);
        let lasted = Duration::from_millis(5_900);
        let gone = CoreUsage { ended: [(user, EndedUsage { lasted, ..usage })].into(), ..CoreUsage::default() };
        assert_eq!(connected_ms(vec![gone], 7), 0);
    }
}
