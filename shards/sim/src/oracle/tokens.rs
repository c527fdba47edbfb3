//! No user sends more than the rate allows, over any stretch of time.
//!
//! The book is a token bucket of its own in bits times nanoseconds; it sees what goes out to the TUN, when it does. That is a part of what a
//! user pays for, so it must never be more than all of it may be. Where a limit changes, the book is generous once.
//!
//! A shard that is paused changes nothing: tokens come by its home's clock, which a pause does not stop, and never more of them than a burst.
//! What an owner holds on lease has left the bucket when it was lent, and does not expire while both live: it counts as part of the burst, so
//! that it may be spent after the longest pause of either. By a clock that stands still no tokens come, and by one that is always behind they come
//! at the same rate. Only when it leaps, the tokens of the time for which it stood come at once, no more than a burst of them: that the book
//! allows on top, to everybody, because it does not ask whose home it was.

use std::collections::BTreeMap;
use std::time::Duration;

use tollgate_shards::{Limit, Shard, UserIndex, Users};

use super::Violation;
use crate::plan::Plan;
use crate::schedule::Time;
use crate::world::World;

const NS_PER_S: u128 = 1_000_000_000;

#[derive(Debug, Default)]
pub struct Tokens {
    buckets: BTreeMap<UserIndex, Bucket>,
    /// Version of the newest snapshot given, and its limits.
    newest: u64,
    limits: BTreeMap<UserIndex, Limit>,
}

/// What a user may still send, at most.
#[derive(Debug)]
struct Bucket {
    bits_per_s: u128,
    burst: u128,
    level: u128,
    since: Time,
}

impl Tokens {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut tokens = Tokens::default();
        for (index, user) in plan.users.iter().enumerate() {
            if let Some(limit) = user.limit {
                tokens.buckets.insert(UserIndex(index as u32), Bucket::new(limit, Time::default()));
            }
        }
        tokens
    }

    /// `bytes` of a user's have left the gateway.
    pub(super) fn passed(&mut self, now: Time, user: UserIndex, bytes: u64) -> Result<(), Violation> {
        let Some(bucket) = self.buckets.get_mut(&user) else { return Ok(()) };
        bucket.refill(now);
        let cost = u128::from(bytes) * 8 * NS_PER_S;
        if bucket.level < cost {
            let missing = (cost - bucket.level).div_ceil(8 * NS_PER_S);
            let what = format!("{user:?} sends {bytes} bytes, {missing} more than the rate allows by now");
            return Err(Violation::new("tokens", what));
        }
        bucket.level -= cost;
        Ok(())
    }

    /// A clock leaps: what would have come meanwhile comes now.
    pub(super) fn clock_leaps(&mut self, by: Duration) {
        for bucket in self.buckets.values_mut() {
            bucket.level += bucket.burst.min(by.as_nanos() * bucket.bits_per_s);
        }
    }

    /// Another snapshot is on its way: until it has arrived everywhere, the higher limit holds.
    pub(super) fn limits_change(&mut self, now: Time, version: u64, users: &Users) {
        self.newest = version;
        self.limits = users.users().filter_map(|(index, user)| Some((index, user.limit?))).collect();
        for (&user, &limit) in &self.limits {
            if let Some(bucket) = self.buckets.get_mut(&user) {
                let other = Bucket::new(limit, now);
                bucket.refill(now);
                if (bucket.bits_per_s, bucket.burst) != (other.bits_per_s, other.burst) {
                    bucket.bits_per_s = bucket.bits_per_s.max(other.bits_per_s);
                    bucket.burst = bucket.burst.max(other.burst);
                    bucket.level += bucket.burst;
                }
            }
        }
        let limits = &self.limits;
        self.buckets.retain(|user, _| users.user(*user).is_none() || limits.contains_key(user));
    }

    /// A snapshot has arrived everywhere.
    pub(super) fn limits_changed(&mut self, now: Time, version: u64) {
        if version != self.newest {
            return;
        }
        // Who is gone comes back as somebody new, with a full bucket.
        let limits = &self.limits;
        self.buckets.retain(|user, _| limits.contains_key(user));
        for (&user, &limit) in &self.limits {
            let fresh = Bucket::new(limit, now);
            let bucket = self.buckets.entry(user).or_insert_with(|| Bucket::new(limit, now));
            bucket.refill(now);
            (bucket.bits_per_s, bucket.burst) = (fresh.bits_per_s, fresh.burst);
        }
    }
}

/// A home's tokens after a pass: tokens are in one place each, and no more of them than a burst.
pub(super) fn conserved(shard: &Shard) -> Result<(), Violation> {
    for tokens in shard.inspect().tokens() {
        if !tokens.audit.is_conserved() || !tokens.audit.is_within_burst() {
            return Err(Violation::new("tokens", format!("{:?} has lost or made tokens: {tokens:?}", shard.index())));
        }
    }
    Ok(())
}

/// Both ends of every lease: nobody spends what was not granted.
pub(super) fn ends_agree(world: &World) -> Result<(), Violation> {
    let tokens = world.gateway.cores.iter().flat_map(|core| core.shard().inspect().tokens());
    let granted: BTreeMap<_, _> = tokens
        .flat_map(|tokens| tokens.leases.into_iter().map(move |(lease, bytes)| ((tokens.user, lease), bytes)))
        .collect();
    for lease in world.gateway.cores.iter().flat_map(|core| core.shard().inspect().leases()) {
        // A home that has died and come back does not know the leases of its former life until they end.
        let known = granted.get(&(lease.user, lease.lease)).copied();
        let gone = lease.spent_bytes + lease.returned_bytes;
        if gone > lease.granted_bytes || known.is_some_and(|granted| lease.granted_bytes > granted) {
            let what = format!("{lease:?} goes beyond what its home has granted: {known:?}");
            return Err(Violation::new("tokens", what));
        }
    }
    Ok(())
}

impl Bucket {
    fn new(limit: Limit, now: Time) -> Self {
        let burst = u128::from(limit.burst_bytes) * 8 * NS_PER_S;
        Bucket { bits_per_s: u128::from(limit.rate.bits_per_s()), burst, level: burst, since: now }
    }

    /// More than the burst is left only where a limit has changed or a clock has leapt.
    fn refill(&mut self, now: Time) {
        let minted = (now - self.since).as_nanos() * self.bits_per_s;
        self.level = self.level.max(self.burst.min(self.level + minted));
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{Rate, User};

    use super::*;

    fn limit(bits_per_s: u64, burst_bytes: u64) -> Limit {
        Limit { rate: Rate::from_bits_per_s(bits_per_s).unwrap(), burst_bytes }
    }

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    fn tokens(limit: Limit) -> Tokens {
        Tokens { buckets: [(UserIndex(0), Bucket::new(limit, at(0)))].into(), ..Tokens::default() }
    }

    #[test]
    fn a_byte_more_than_the_rate_allows_is_a_violation() {
        let mut tokens = tokens(limit(8_000_000, 5000));
        assert!(tokens.passed(at(0), UserIndex(0), 5000).is_ok());
        assert!(tokens.passed(at(0), UserIndex(0), 1).is_err());
        assert!(tokens.passed(at(2), UserIndex(0), 2000).is_ok());
        assert!(tokens.passed(at(3), UserIndex(0), 1001).is_err());
        assert!(tokens.passed(at(3), UserIndex(1), 1 << 40).is_ok(), "no limit");
    }

    #[test]
    fn a_clock_that_leaps_brings_what_it_held_up_and_no_more_than_a_burst() {
        let mut tokens = tokens(limit(8_000_000, 5000));
        assert!(tokens.passed(at(0), UserIndex(0), 5000).is_ok());
        tokens.clock_leaps(Duration::from_millis(2));
        assert!(tokens.passed(at(0), UserIndex(0), 2000).is_ok());
        tokens.clock_leaps(Duration::from_secs(2));
        assert!(tokens.passed(at(0), UserIndex(0), 5001).is_err());
        assert!(tokens.passed(at(0), UserIndex(0), 5000).is_ok());
    }

    #[test]
    fn a_lower_limit_holds_once_it_has_arrived_everywhere() {
        let mut tokens = tokens(limit(8_000_000, 5000));
        let slower = User { name: "user".to_owned(), limit: Some(limit(8_000, 2000)), ..User::default() };
        tokens.limits_change(at(0), 1, &Users::new(vec![slower]).unwrap());
        assert!(tokens.passed(at(0), UserIndex(0), 10_000).is_ok(), "generous once");
        assert!(tokens.passed(at(1), UserIndex(0), 1000).is_ok(), "the old rate may still hold");
        tokens.limits_changed(at(1), 1);
        assert!(tokens.passed(at(2), UserIndex(0), 2).is_err());
        assert!(tokens.passed(at(3), UserIndex(0), 2).is_ok());
    }
}
