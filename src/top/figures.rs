//! What has come between two samples, as rates.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tollgate_shards::{DropReason, Usage};

use super::Sample;

/// In which order users are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Those who carry most now come first.
    #[default]
    Rate,
    /// Those whose connections have carried most come first.
    Total,
    /// By name.
    Name,
}

impl Order {
    /// The next one, in turn.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Order::Rate => Order::Total,
            Order::Total => Order::Name,
            Order::Name => Order::Rate,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Order::Rate => "rate",
            Order::Total => "total",
            Order::Name => "name",
        }
    }
}

/// What a shard does.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardFigures {
    /// The shard's place.
    pub shard: u16,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// The part of the time in which it had work, 0 to 1.
    pub busy: f64,
    /// Inner packets' bits a second from clients.
    pub up_bits_per_s: f64,
    /// Those to clients.
    pub down_bits_per_s: f64,
    /// Packets dropped a second.
    pub drops_per_s: f64,
    /// Clients that it carries.
    pub clients: u64,
}

/// What a user does.
#[derive(Debug, Clone, PartialEq)]
pub struct UserFigures {
    /// The user's name.
    pub user: String,
    /// Connections.
    pub connections: u64,
    /// UDP payload's bits a second from the client.
    pub from_bits_per_s: f64,
    /// Those to the client.
    pub to_bits_per_s: f64,
    /// What the connections have carried in all.
    pub usage: Usage,
    /// The limit in force.
    pub limit_bits_per_s: Option<u64>,
}

/// All that is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// How the gateway stands.
    pub lines: Vec<String>,
    /// In order.
    pub shards: Vec<ShardFigures>,
    /// In the order that was asked for.
    pub users: Vec<UserFigures>,
    /// Which order that is.
    pub order: Order,
    /// Reasons for which packets were dropped: in a second now, and in all. Those of now come first.
    pub drops: Vec<(DropReason, f64, u64)>,
}

impl Figures {
    /// What has come from `before` to `now`. What went back, as where a shard or a user began anew, has not moved.
    pub fn between(before: &Sample, now: &Sample, order: Order) -> Self {
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let rate = |before: u64, now: u64| {
            if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        let mut drops: BTreeMap<DropReason, (u64, u64)> = BTreeMap::new();
        let mut shards = Vec::with_capacity(now.shards.len());
        for report in &now.shards {
            let earlier = before.shards.iter().find(|earlier| earlier.shard == report.shard);
            // One that has not been there is not compared with nothing.
            let earlier = earlier.unwrap_or(report);
            let (was, is) = (&earlier.counters, &report.counters);
            for (reason, packets) in is.drops.iter() {
                let of_reason = drops.entry(reason).or_default();
                *of_reason = (of_reason.0 + was.drops.of(reason), of_reason.1 + packets);
            }
            shards.push(ShardFigures {
                shard: report.shard,
                cpu: report.cpu,
                busy: (rate(earlier.busy_ms, report.busy_ms) / 1e3).min(1.0),
                up_bits_per_s: 8.0 * rate(was.up_bytes, is.up_bytes),
                down_bits_per_s: 8.0 * rate(was.down_bytes, is.down_bytes),
                drops_per_s: rate(was.drops.total(), is.drops.total()),
                clients: report.clients as u64,
            });
        }
        let earlier: BTreeMap<&str, Usage> = before.users.iter().map(|row| (&row.user[..], row.usage)).collect();
        let users = now.users.iter().filter(|row| row.connections > 0).map(|row| {
            let was = earlier.get(&row.user[..]).copied().unwrap_or(row.usage);
            UserFigures {
                user: row.user.clone(),
                connections: row.connections,
                from_bits_per_s: 8.0 * rate(was.received_bytes, row.usage.received_bytes),
                to_bits_per_s: 8.0 * rate(was.sent_bytes, row.usage.sent_bytes),
                usage: row.usage,
                limit_bits_per_s: row.limit_bits_per_s,
            }
        });
        let mut users: Vec<UserFigures> = users.collect();
        match order {
            // They come by name.
            Order::Name => {}
            Order::Total => users.sort_by_key(|user| Reverse(user.usage.bytes())),
            Order::Rate => {
                let both = |user: &UserFigures| user.from_bits_per_s + user.to_bits_per_s;
                users.sort_by(|first, second| both(second).total_cmp(&both(first)));
            }
        }
        let drops = drops.into_iter().filter(|(_, (_, packets))| *packets > 0);
        let mut drops: Vec<_> = drops.map(|(reason, (was, is))| (reason, rate(was, is), is)).collect();
        drops.sort_by(|first, second| second.1.total_cmp(&first.1).then(second.2.cmp(&first.2)));
        Figures { lines: now.lines.clone(), shards, users, order, drops }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::control::protocol::UserRow;
    use crate::gateway::Report;

    fn report(shard: u16, bytes: u64, drops: u64) -> Report {
        let mut report = Report { shard, busy_ms: bytes / 1000, ..Report::default() };
        (report.counters.up_bytes, report.counters.down_bytes) = (bytes, 2 * bytes);
        report.counters.drops.add(DropReason::NoRoute, drops);
        report.counters.drops.add(DropReason::Isolated, 5);
        report
    }

    fn user(name: &str, bytes: u64) -> UserRow {
        let usage = Usage { received_bytes: bytes, sent_bytes: 3 * bytes, ..Usage::default() };
        let (limit_bits_per_s, is_ordered, since_unix_s) = (None, false, None);
        UserRow {
            user: name.to_owned(),
            connections: 1,
            usage,
            limit_bits_per_s,
            is_ordered,
            is_over_quota: false,
            since_unix_s,
        }
    }

    fn sample(at: Instant, shards: Vec<Report>, users: Vec<UserRow>) -> Sample {
        Sample { at, lines: vec!["serving".to_owned()], shards, users }
    }

    #[test]
    fn rates_are_of_the_time_between_two_samples() {
        let start = Instant::now();
        let before = sample(start, vec![report(0, 1_000_000, 4)], vec![user("a", 9_000), user("b", 100)]);
        let later = start + Duration::from_secs(2);
        let now = sample(
            later,
            vec![report(0, 2_000_000, 24), report(1, 7, 0)],
            vec![user("a", 9_100), user("b", 1_100), user("c", 500)],
        );
        let figures = Figures::between(&before, &now, Order::Rate);
        let first = &figures.shards[0];
        assert_eq!((first.up_bits_per_s, first.down_bits_per_s, first.drops_per_s), (4e6, 8e6, 10.0));
        assert_eq!(first.busy, 0.5);
        assert_eq!((figures.shards[1].up_bits_per_s, figures.shards[1].drops_per_s), (0.0, 0.0), "it is new");
        let names = |figures: &Figures| figures.users.iter().map(|user| user.user.clone()).collect::<Vec<_>>().concat();
        assert_eq!(names(&figures), "bac");
        assert_eq!((figures.users[0].from_bits_per_s, figures.users[0].to_bits_per_s), (4000.0, 12_000.0));
        assert_eq!(names(&Figures::between(&before, &now, Order::Total)), "abc");
        assert_eq!(figures.drops, [(DropReason::NoRoute, 10.0, 24), (DropReason::Isolated, 0.0, 10)]);
        let still = Figures::between(&now, &now, Order::Name);
        assert!(still.shards.iter().all(|shard| shard.busy == 0.0 && shard.up_bits_per_s == 0.0));
    }
}
