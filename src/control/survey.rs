//! Who is online and how much, as an answer says it: some rows at a time. It comes from what the shards publish for metrics too.
//!
//! This module asks no shard.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tollgate_shards::{ConnectionUsage, Usage, Users};
use tracing::{Level, enabled};

use super::protocol::{Answer, ConnectionRow, Place, ROWS_MAX, UserRow};
use crate::gateway::{CoreUsage, OrderedLimits};
use crate::handshakes::Mode;

/// Two clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    now: Instant,
    unix: Duration,
}

impl Clocks {
    fn read() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clocks { now: Instant::now(), unix }
    }

    /// A moment that was, in seconds since 1970.
    fn unix_s(self, at: Instant) -> u64 {
        self.unix.saturating_sub(self.now.duration_since(at)).as_secs()
    }
}

/// A connection and its user's name, by which it is sorted.
type Online<'g> = (&'g str, &'g ConnectionUsage);

/// All connections, in the order of rows.
fn online<'g>(users: &'g Users, cores: &'g [CoreUsage]) -> Vec<Online<'g>> {
    let clients = cores.iter().flat_map(|core| &core.clients);
    let mut online: Vec<Online<'_>> = clients.map(|client| (users.name(client.user), client)).collect();
    online.sort_unstable_by_key(|(user, client)| (*user, client.address, std::cmp::Reverse(client.began)));
    // An address that has gone on to another connection may still be that of the one before, as far as its core has said.
    online.dedup_by_key(|(user, client)| (*user, client.address));
    online
}

/// Users who are online, or are among those whose limits are by `order` or who are `over` their quotas, from behind `after` on.
pub fn users(
    users: &Users,
    order: &OrderedLimits,
    over: &BTreeSet<String>,
    cores: &[CoreUsage],
    after: Option<&Place>,
) -> Answer {
    let (online, clocks) = (online(users, cores), Clocks::read());
    let mut all: BTreeMap<&str, &[Online<'_>]> =
        online.chunk_by(|(first, _), (second, _)| first == second).map(|user| (user[0].0, user)).collect();
    let lines = vec![format!("users online: {}, connections: {}", all.len(), online.len())];
    let others = order.names().chain(over.iter().map(String::as_str));
    others.for_each(|name| _ = all.entry(name).or_default());
    let row = |&(name, connections): &(&str, &[Online<'_>])| {
        let usage = connections.iter().fold(Usage::default(), |sum, (_, client)| sum + client.usage);
        let since = connections.iter().map(|(_, client)| client.began).min();
        let limit = users.find_name(name).and_then(|user| users.user(user)?.limit);
        UserRow {
            user: name.to_owned(),
            connections: connections.len() as u64,
            usage,
            limit_bits_per_s: limit.map(|limit| limit.rate.bits_per_s()),
            is_ordered: order.contains(name),
            is_over_quota: over.contains(name),
            since_unix_s: since.map(|at| clocks.unix_s(at)),
        }
    };
    let behind = after.map_or(Bound::Unbounded, |after| Bound::Excluded(&after.user[..]));
    let all: Vec<_> = all.range::<str, _>((behind, Bound::Unbounded)).map(|(name, user)| (*name, *user)).collect();
    let (rows, is_last) = page(&all, row);
    let next = rows.last().filter(|_| !is_last).map(|row| Place { user: row.user.clone(), address: None, begin: None });
    Answer { done: true, lines, users: Some(rows), next, ..Answer::default() }
}

/// Connections, from behind `after` on: those of `user`, or of all.
pub fn connections(users: &Users, cores: &[CoreUsage], user: Option<&str>, after: Option<&Place>) -> Answer {
    let (mut online, clocks) = (online(users, cores), Clocks::read());
    online.retain(|(name, _)| user.is_none_or(|user| user == *name));
    let lines = vec![format!("connections: {}", online.len())];
    // As in the log.
    let shows_outer = enabled!(target: "tollgate::gateway::events", Level::DEBUG);
    let row = |(name, client): &Online<'_>| ConnectionRow {
        user: (*name).to_owned(),
        address: client.address,
        shard: client.connection.owner.place() as u16,
        mode: Mode::of(client.kind).to_string(),
        since_unix_s: clocks.unix_s(client.began),
        heard_ms: clocks.now.duration_since(client.heard_at).as_millis() as u64,
        rtt_us: client.path.rtt.as_micros() as u64,
        rtt_min_us: client.path.rtt_min.as_micros() as u64,
        window_bytes: client.path.window_bytes,
        mtu_bytes: client.path.mtu_bytes,
        sent_packets: client.path.sent_packets,
        lost_packets: client.path.lost_packets,
        congestion_events: client.path.congestion_events,
        queued_bytes: client.queued_bytes as u64,
        usage: client.usage,
        outer: shows_outer.then_some(client.remote),
    };
    let is_before = |(name, client): &Online<'_>| {
        after.is_some_and(|after| (*name, Some(client.address)) <= (&after.user[..], after.address))
    };
    let behind = online.partition_point(is_before);
    let (rows, is_last) = page(&online[behind..], row);
    let next = rows.last().filter(|_| !is_last);
    let next = next.map(|row| Place { user: row.user.clone(), address: Some(row.address), begin: None });
    Answer { done: true, lines, connections: Some(rows), next, ..Answer::default() }
}

/// As many rows as an answer may have, and whether those are all.
fn page<T, R>(all: &[T], row: impl Fn(&T) -> R) -> (Vec<R>, bool) {
    (all.iter().take(ROWS_MAX).map(row).collect(), all.len() <= ROWS_MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tollgate_shards::{ConnectionKey, CredentialKind, Limit, PathState, Rate, ShardIndex, User, UserIndex};

    use super::*;
    use crate::control::protocol::{ANSWER_BYTES_MAX, encode};
    use crate::gateway::LimitOrder;

    fn users_named(names: &[String]) -> Users {
        let limit = Some(Limit::new(Rate::from_bits_per_s(1_000_000).unwrap()));
        Users::new(names.iter().map(|name| User { name: name.clone(), limit, ..User::default() }).collect()).unwrap()
    }

    /// A connection of the user with that index.
    fn client(user: u32, address: u32, bytes: u64) -> ConnectionUsage {
        ConnectionUsage {
            connection: ConnectionKey { owner: ShardIndex(1), slot: address, generation: 1 },
            user: UserIndex(user),
            kind: CredentialKind::Certificate,
            address: IpAddr::from((0xc613_0000 + address).to_be_bytes()),
            remote: ([198, 18, 0, 1], 4433).into(),
            usage: Usage { sent_bytes: bytes, ..Usage::default() },
            path: PathState::default(),
            queued_bytes: 0,
            began: Instant::now(),
            heard_at: Instant::now(),
        }
    }

    fn core(clients: Vec<ConnectionUsage>) -> CoreUsage {
        CoreUsage { clients, ..CoreUsage::default() }
    }

    #[test]
    fn a_user_has_what_all_connections_on_all_shards_have_carried() {
        let all = users_named(&["bob".to_owned(), "alice".to_owned(), "idle".to_owned()]);
        let cores = [core(vec![client(0, 1, 10), client(1, 2, 20)]), core(vec![client(0, 3, 5)])];
        let mut order = OrderedLimits::default();
        order.set("idle", LimitOrder::Unlimited);
        let answer = users(&all, &order, &BTreeSet::from(["idle".to_owned()]), &cores, None);
        let told: Vec<_> = answer.users.iter().flatten().collect();
        let figures = told.iter().map(|row| (&row.user[..], row.connections, row.usage.sent_bytes));
        assert_eq!(figures.collect::<Vec<_>>(), [("alice", 1, 20), ("bob", 2, 15), ("idle", 0, 0)]);
        assert_eq!((told[0].limit_bits_per_s, told[0].is_ordered, answer.next), (Some(1_000_000), false, None));
        assert_eq!((told[2].is_ordered, told[2].is_over_quota, told[2].since_unix_s), (true, true, None));
        assert_eq!(answer.lines, ["users online: 2, connections: 3"]);
        let only = connections(&all, &cores, Some("bob"), None);
        let addresses: Vec<_> = only.connections.iter().flatten().map(|row| row.address.to_string()).collect();
        assert_eq!(addresses, ["198.19.0.1", "198.19.0.3"]);
    }

    #[test]
    fn an_address_that_has_gone_on_is_told_once_as_that_of_the_newer_connection() {
        let all = users_named(&["alice".to_owned()]);
        let older = client(0, 1, 10);
        let newer = ConnectionUsage { began: older.began + Duration::from_secs(1), ..client(0, 1, 3) };
        for clients in [vec![older, newer], vec![newer, older]] {
            let answer = connections(&all, &[core(clients)], None, None);
            let sent: Vec<_> = answer.connections.iter().flatten().map(|row| row.usage.sent_bytes).collect();
            assert_eq!(sent, [3]);
        }
    }

    #[test]
    fn all_come_once_over_several_answers_and_the_longest_answers_are_within_their_bound() {
        let count = 2 * ROWS_MAX as u32 + 1;
        // As long as a name may be, and nothing of it is written as it is.
        let names: Vec<String> = (0..count).map(|number| format!("{number:0>8}{}", "\"".repeat(120))).collect();
        let all = users_named(&names);
        let longest = |number| ConnectionUsage {
            kind: CredentialKind::NoiseKey(tollgate_noise::Kind::ALL[2]),
            address: format!("fd00:1111:2222:3333:4444:5555:6666:{number:x}").parse().unwrap(),
            remote: "[fd00:1111:2222:3333:4444:5555:6666:7777]:55555".parse().unwrap(),
            usage: Usage {
                sent_bytes: u64::MAX,
                received_bytes: u64::MAX / 4000,
                sent_datagrams: u64::MAX / 4000,
                received_datagrams: u64::MAX / 4000,
            },
            path: PathState {
                rtt: Duration::from_secs(1 << 40),
                rtt_min: Duration::from_secs(1 << 40),
                window_bytes: u64::MAX,
                mtu_bytes: u16::MAX,
                sent_packets: u64::MAX,
                lost_packets: u64::MAX,
                congestion_events: u64::MAX,
            },
            queued_bytes: usize::MAX,
            ..client(number, number, 0)
        };
        let cores = [core((0..count).map(longest).collect())];
        let (mut names_told, mut addresses_told, mut after, mut answers) = (Vec::new(), Vec::new(), None, 0);
        loop {
            let answer = connections(&all, &cores, None, after.as_ref());
            assert!(encode(&answer).len() < ANSWER_BYTES_MAX);
            addresses_told.extend(answer.connections.into_iter().flatten().map(|row| row.address));
            answers += 1;
            after = answer.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((addresses_told.len(), answers), (count as usize, 3));
        addresses_told.sort_unstable();
        addresses_told.dedup();
        assert_eq!(addresses_told.len(), count as usize);
        let cores = [core((0..count).map(|number| client(number, number, 0)).collect())];
        loop {
            let answer = users(&all, &OrderedLimits::default(), &BTreeSet::new(), &cores, after.as_ref());
            assert!(encode(&answer).len() < ANSWER_BYTES_MAX);
            names_told.extend(answer.users.into_iter().flatten().map(|row| row.user));
            after = answer.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(names_told, names);
    }
}
