//! No user gets more than the limit allows over any stretch of time, whichever way its packets go: up, down, and between clients.
//!
//! A packet is paid for between the moment when it was made and the moment when it arrives. So of any stretch of time, all packets that were
//! made and arrived within it were paid for within it, and come to no more than a burst and what the rate makes in that time. Stretches that
//! begin at some of the packets' making are looked at, each whenever another packet arrives. Nothing is judged while a limit changes.
//!
//! That holds across pauses of any shard: a packet that waited for a core that stood still was not paid for before it was made, nor after it
//! arrived. Where a clock leaps, every stretch that has begun by then gets the tokens of the time for which it stood on top, as many as a burst
//! (see [`tokens`](super::tokens)).
//!
//! Where a burst was made smaller, what shards have on lease may be more than it: that is spent before anything new is minted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tollgate_shards::{Limit, Users};

use super::Violation;
use crate::packets::{Arrival, Place};
use crate::plan::Plan;
use crate::schedule::Time;

const NS_PER_S: u128 = 1_000_000_000;
/// Stretches of time that are looked at for each user.
const STRETCHES_MAX: usize = 32;

/// A stretch of time.
#[derive(Debug)]
struct Stretch {
    begun: Time,
    /// What could be spent at once then: a burst, or what was left of what was on lease.
    burst_bytes: u64,
    /// What has come through so far.
    bytes: u64,
}

/// Users go by their numbers in the plan: who is taken out and comes back is somebody new to the gateway.
#[derive(Debug)]
pub struct Demand {
    numbers: BTreeMap<String, usize>,
    users: BTreeMap<usize, User>,
    /// Version of the newest snapshot given, and its limits.
    newest: u64,
    limits: BTreeMap<usize, Limit>,
    /// The largest bursts of limits that hold no more, until others do everywhere.
    former_bytes: BTreeMap<usize, u64>,
}

#[derive(Debug)]
struct User {
    limit: Limit,
    /// Since when the limit has been in force everywhere.
    since: Time,
    /// What may have been on lease then, of earlier limits.
    lent_bytes: u64,
    /// What has come through of what was made since then.
    paid_bytes: u64,
    stretches: VecDeque<Stretch>,
    /// When clocks leapt, with the tokens that came late.
    leaps: Vec<(Time, u128)>,
}

impl Demand {
    pub(super) fn new(plan: &Plan) -> Self {
        let numbers = plan.users.iter().zip(0..).map(|(user, number)| (user.name.clone(), number)).collect();
        let limited = plan.users.iter().enumerate().filter_map(|(number, user)| Some((number, user.limit?)));
        let users = limited.map(|(number, limit)| (number, User::new(limit, Time::default(), 0))).collect();
        Demand { numbers, users, newest: 0, limits: BTreeMap::new(), former_bytes: BTreeMap::new() }
    }

    /// A packet has arrived: the sender has paid for it, and the receiver too.
    pub(super) fn arrived(&mut self, now: Time, at: Place, arrival: &Arrival, plan: &Plan) -> Result<(), Violation> {
        for place in [arrival.from, at] {
            let Place::Client(device) = place else { continue };
            let number = plan.devices[device as usize].user;
            let Some(user) = self.users.get_mut(&number) else { continue };
            user.paid(now, arrival).map_err(|what| Violation::new("limits", format!("user {number} {what}")))?;
        }
        Ok(())
    }

    /// A clock leaps: what would have come meanwhile comes now.
    pub(super) fn clock_leaps(&mut self, now: Time, by: Duration) {
        for user in self.users.values_mut() {
            let Limit { rate, burst_bytes } = user.limit;
            let minted = (by.as_nanos() * u128::from(rate.bits_per_s())).div_ceil(8 * NS_PER_S);
            user.leaps.push((now, minted.min(u128::from(burst_bytes))));
        }
    }

    /// Another snapshot is on its way.
    pub(super) fn limits_change(&mut self, version: u64, users: &Users) {
        self.newest = version;
        let limited = users.users().filter_map(|(_, user)| Some((*self.numbers.get(&user.name)?, user.limit?)));
        self.limits = limited.collect();
        let (limits, former_bytes) = (&self.limits, &mut self.former_bytes);
        self.users.retain(|number, user| {
            let stays = limits.get(number) == Some(&user.limit);
            if !stays {
                let former = former_bytes.entry(*number).or_default();
                *former = user.limit.burst_bytes.max(user.lent_bytes).max(*former);
            }
            stays
        });
    }

    /// A snapshot has arrived everywhere.
    pub(super) fn limits_changed(&mut self, now: Time, version: u64) {
        if version == self.newest {
            for (&number, &limit) in &self.limits {
                let lent_bytes = self.former_bytes.remove(&number).unwrap_or_default();
                self.users.entry(number).or_insert_with(|| User::new(limit, now, lent_bytes));
            }
        }
    }
}

impl User {
    fn new(limit: Limit, since: Time, lent_bytes: u64) -> Self {
        User { limit, since, lent_bytes, paid_bytes: 0, stretches: VecDeque::new(), leaps: Vec::new() }
    }

    fn paid(&mut self, now: Time, arrival: &Arrival) -> Result<(), String> {
        if arrival.made < self.since {
            return Ok(());
        }
        self.begin_stretch(arrival.made);
        self.paid_bytes += arrival.bytes;
        let rate = u128::from(self.limit.rate.bits_per_s());
        for Stretch { begun, burst_bytes, bytes } in
            self.stretches.iter_mut().filter(|stretch| stretch.begun <= arrival.made)
        {
            *bytes += arrival.bytes;
            let time = now - *begun;
            let minted_bytes = (time.as_nanos() * rate).div_ceil(8 * NS_PER_S);
            let late_bytes: u128 = self.leaps.iter().filter(|(at, _)| at >= begun).map(|(_, bytes)| bytes).sum();
            let allowed_bytes = u128::from(*burst_bytes) + late_bytes + minted_bytes;
            if u128::from(*bytes) > allowed_bytes {
                return Err(format!("got {bytes} bytes through in {time:?}, {allowed_bytes} are allowed"));
            }
        }
        Ok(())
    }

    /// Stretches begin at ever fewer packets, so that there are short ones and long ones.
    fn begin_stretch(&mut self, made: Time) {
        if self.stretches.len() == STRETCHES_MAX {
            // Of the older ones every other stays.
            let mut number = 0;
            self.stretches.retain(|_| {
                number += 1;
                number % 2 == 1 || number > STRETCHES_MAX / 2
            });
        }
        if self.stretches.back().is_none_or(|last| last.begun < made) {
            let burst_bytes = self.limit.burst_bytes.max(self.lent_bytes.saturating_sub(self.paid_bytes));
            self.stretches.push_back(Stretch { begun: made, burst_bytes, bytes: 0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::Rate;

    use super::*;
    use crate::plan::Features;

    const START: Time = Time { ns: 0 };

    fn at(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    fn user() -> User {
        let limit = Limit { rate: Rate::from_bits_per_s(8_000_000).unwrap(), burst_bytes: 5000 };
        User::new(limit, START, 0)
    }

    fn packet(made_ms: u64, bytes: u64) -> Arrival {
        Arrival { from: Place::Tun, made: at(made_ms), bytes }
    }

    #[test]
    fn a_byte_too_many_in_some_stretch_of_time_is_found() {
        let mut user = user();
        assert!(user.paid(at(0), &packet(0, 5000)).is_ok());
        assert!(user.paid(at(2), &packet(1, 2000)).is_ok());
        assert!(user.paid(at(100), &packet(99, 5000)).is_ok());
        assert!(user.paid(at(101), &packet(99, 3001)).is_err(), "a burst and two milliseconds after the first second");
    }

    #[test]
    fn a_packet_may_have_been_paid_for_long_before_it_arrives() {
        let mut user = user();
        assert!(user.paid(at(100), &packet(0, 5000)).is_ok());
        assert!(user.paid(at(100), &packet(100, 5000)).is_ok(), "the first one's tokens have come back since");
        assert!(user.paid(at(100), &packet(100, 1)).is_err());
    }

    #[test]
    fn a_stretch_in_which_a_clock_leaps_has_the_tokens_that_came_late() {
        let mut demand =
            Demand { users: [(0, user())].into(), ..Demand::new(&Plan::new(0, Features::of(&[]), at(0) - at(0))) };
        let paid = |demand: &mut Demand, now_ms, packet| demand.users.get_mut(&0).unwrap().paid(at(now_ms), &packet);
        assert!(paid(&mut demand, 0, packet(0, 5000)).is_ok());
        demand.clock_leaps(at(1), Duration::from_millis(2));
        assert!(paid(&mut demand, 1, packet(1, 3000)).is_ok(), "a millisecond's and two that came late");
        assert!(paid(&mut demand, 1, packet(1, 1)).is_err());
    }

    #[test]
    fn what_was_on_lease_when_the_burst_was_made_smaller_is_spent_once() {
        let mut user = User { lent_bytes: 6000, ..self::user() };
        assert!(user.paid(at(0), &packet(0, 5500)).is_ok());
        assert!(user.paid(at(1), &packet(1, 1501)).is_err(), "what was left of it and a millisecond's");
        let mut user = User { lent_bytes: 6000, ..self::user() };
        assert!(user.paid(at(0), &packet(0, 3000)).is_ok());
        assert!(user.paid(at(100), &packet(100, 5000)).is_ok());
        assert!(user.paid(at(100), &packet(100, 1)).is_err(), "a burst again");
    }

    #[test]
    fn long_stretches_are_looked_at_as_well_as_short_ones() {
        let mut user = user();
        let result = (0..10_000).try_for_each(|ms| user.paid(at(ms), &packet(ms, 1001)));
        assert!(result.is_err(), "a thousandth more than the rate, for seconds");
        let mut user = self::user();
        assert!((0..10_000).all(|ms| user.paid(at(ms), &packet(ms, 1000)).is_ok()));
    }
}
