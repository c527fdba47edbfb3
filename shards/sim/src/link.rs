//! A client's link: what becomes of a run of datagrams on its way.
//!
//! This module never looks into a datagram.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use tollgate_shards::packet::ecn::Ecn;

use crate::plan::{Becomes, Bottleneck, Direction, LinkChange, LinkPlan};
use crate::random::Stream;
use crate::schedule::Time;

/// Datagrams that leave a bottleneck within this time of each other may arrive in one run.
const TOGETHER: Duration = Duration::from_millis(1);
/// Most bits of a datagram that flip.
const FLIPS_MAX: u64 = 16;

/// Some datagrams of one sender that arrive together, each of `segment_bytes` but the last, which may be shorter.
#[derive(Debug)]
pub struct Aggregate {
    /// Length of each datagram but the last, in bytes.
    pub segment_bytes: usize,
    pub ecn: Option<Ecn>,
    pub data: BytesMut,
}

/// One direction of a client's link.
#[derive(Debug)]
pub struct Link {
    plan: LinkPlan,
    /// What becomes of it yet.
    changes: VecDeque<LinkChange>,
    random: Stream,
    damage: Stream,
    dark_until: Time,
    /// When the wire behind the bottleneck has sent what is in the queue.
    busy_until: Time,
    /// When the last run arrives. None overtakes it unless the link reorders.
    last: Time,
    pub lost: u64,
    pub duplicated: u64,
    /// Datagrams that others overtook.
    pub reordered: u64,
    pub corrupted: u64,
}

impl Link {
    /// One direction of the link of the `number`-th device in the run of `seed`.
    pub fn new(direction: Direction, plan: LinkPlan, changes: &[LinkChange], (seed, number): (u64, u64)) -> Self {
        let names = match direction {
            Direction::Up => ["link.up", "link.up.damage"],
            _ => ["link.down", "link.down.damage"],
        };
        let [random, damage] = names.map(|name| Stream::numbered(seed, name, number));
        Link {
            plan,
            changes: changes.iter().filter(|change| change.direction.covers(direction)).copied().collect(),
            random,
            damage,
            dark_until: Time::default(),
            busy_until: Time::default(),
            last: Time::default(),
            lost: 0,
            duplicated: 0,
            reordered: 0,
            corrupted: 0,
        }
    }

    /// Only the delay is left.
    pub fn calm(&mut self) {
        self.plan = LinkPlan { delay: self.plan.delay, ..LinkPlan::default() };
        self.changes.clear();
        self.dark_until = Time::default();
    }

    /// Carries a run of datagrams. What arrives, and when, goes into `arrivals`.
    pub fn carry(
        &mut self,
        now: Time,
        segment_bytes: usize,
        ecn: Option<Ecn>,
        run: &[u8],
        arrivals: &mut Vec<(Time, Aggregate)>,
    ) {
        self.change(now);
        let LinkPlan { delay, jitter, loss_ppm, duplicate_ppm, reorder_ppm, mark_ppm, corrupt_ppm, .. } = self.plan;
        let jitter = if jitter.is_zero() { Duration::ZERO } else { self.random.around(jitter / 2) };
        let marked = ecn.is_some() && mark_ppm > 0 && self.random.ppm(mark_ppm);
        let ecn = if marked { Some(Ecn::Ce) } else { ecn };
        let whole = |data: &[u8]| Aggregate { segment_bytes, ecn, data: BytesMut::from(data) };
        self.last = (now + delay + jitter).max(self.last);
        if self.treats_all_alike(now) {
            return arrivals.push((self.last, whole(run)));
        }
        let mut together = BytesMut::with_capacity(run.len());
        let mut first = Time::default();
        for datagram in run.chunks(segment_bytes) {
            let vanishes = now < self.dark_until
                || self.plan.bytes_max.is_some_and(|bytes_max| datagram.len() > bytes_max)
                || self.random.ppm(loss_ppm);
            let Some(sent) = self.send(now, datagram.len()).filter(|_| !vanishes) else {
                self.lost += 1;
                continue;
            };
            let at = (sent + delay + jitter).max(self.last);
            if !together.is_empty() && at > first + TOGETHER {
                arrivals.push((self.last, whole(&together.split())));
            }
            self.last = at;
            if self.random.ppm(duplicate_ppm) {
                self.duplicated += 1;
                arrivals.push((at + self.random.around(Duration::from_millis(5)), whole(datagram)));
            }
            if corrupt_ppm > 0 && self.damage.ppm(corrupt_ppm) {
                self.corrupted += 1;
                arrivals.push((at, self.corrupt(whole(datagram))));
            } else if self.random.ppm(reorder_ppm) {
                self.reordered += 1;
                arrivals.push((at + self.random.around(Duration::from_millis(5)), whole(datagram)));
            } else {
                if together.is_empty() {
                    first = at;
                }
                together.extend_from_slice(datagram);
            }
        }
        if !together.is_empty() {
            arrivals.push((self.last, Aggregate { segment_bytes, ecn, data: together }));
        }
    }

    /// Lets come what has become of the link by now.
    fn change(&mut self, now: Time) {
        while let Some(change) = self.changes.pop_front_if(|change| now.since_start() >= change.at) {
            match change.what {
                Becomes::DarkUntil(end) => self.dark_until = self.dark_until.max(Time::default() + end),
                Becomes::AtMost(bytes) => self.plan.bytes_max = Some(bytes),
            }
        }
    }

    fn treats_all_alike(&self, now: Time) -> bool {
        let LinkPlan { loss_ppm, duplicate_ppm, reorder_ppm, corrupt_ppm, bytes_max, bottleneck, .. } = self.plan;
        let any_ppm = [loss_ppm, duplicate_ppm, reorder_ppm, corrupt_ppm] != [0; 4];
        !any_ppm && bytes_max.is_none() && bottleneck.is_none() && now >= self.dark_until
    }

    /// When a datagram has gone through the bottleneck; `None` if the queue has no room for it.
    fn send(&mut self, now: Time, bytes: usize) -> Option<Time> {
        let Some(Bottleneck { bits_per_s, queue_bytes_max }) = self.plan.bottleneck else { return Some(now) };
        let time = |bytes: u64| Duration::from_nanos(bytes * 8_000_000_000 / bits_per_s);
        if self.busy_until - now > time(queue_bytes_max) {
            return None;
        }
        self.busy_until = self.busy_until.max(now) + time(bytes as u64);
        Some(self.busy_until)
    }

    fn corrupt(&mut self, mut aggregate: Aggregate) -> Aggregate {
        for _ in 0..self.damage.log_uniform(1, FLIPS_MAX) {
            let place = self.damage.index(aggregate.data.len());
            aggregate.data[place] ^= 1 << self.damage.between(0, 8);
        }
        aggregate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(plan: LinkPlan, runs: u8) -> (Link, Vec<(Time, Aggregate)>) {
        let mut link = Link::new(Direction::Up, plan, &[], (1, 0));
        let mut arrivals = Vec::new();
        for run in 0..runs {
            link.carry(Time { ns: u64::from(run) * 1000 }, 3, Some(Ecn::Ect0), &[run; 8], &mut arrivals);
        }
        (link, arrivals)
    }

    #[test]
    fn runs_stay_whole_and_in_order_unless_the_link_is_bad() {
        let jitter = Duration::from_millis(2);
        let (_, arrivals) = carried(LinkPlan { delay: jitter, jitter, ..LinkPlan::default() }, 100);
        assert!(arrivals.is_sorted_by_key(|(at, _)| *at));
        let runs: Vec<_> = arrivals.iter().map(|(_, aggregate)| (aggregate.data[0], aggregate.data.len())).collect();
        assert_eq!(runs, (0..100).map(|run| (run, 8)).collect::<Vec<_>>());
    }

    #[test]
    fn a_bad_link_loses_doubles_reorders_and_marks_and_counts_it() {
        let plan = LinkPlan {
            loss_ppm: 200_000,
            duplicate_ppm: 200_000,
            reorder_ppm: 200_000,
            mark_ppm: 500_000,
            ..LinkPlan::default()
        };
        let (link, arrivals) = carried(plan, 100);
        let datagrams: usize = arrivals.iter().map(|(_, aggregate)| aggregate.data.len().div_ceil(3)).sum();
        assert_eq!(datagrams as u64, 300 - link.lost + link.duplicated);
        assert!(link.lost > 0 && link.duplicated > 0 && link.reordered > 0);
        assert!(arrivals.iter().any(|(_, aggregate)| aggregate.ecn == Some(Ecn::Ce)));
        assert!(!arrivals.is_sorted_by_key(|(at, _)| *at));
    }
    #[test]
    fn behind_a_bottleneck_delay_grows_and_what_finds_the_queue_full_is_lost() {
        // A millisecond for each datagram of 3 bytes, and room for ten.
        let bottleneck = Some(Bottleneck { bits_per_s: 24_000, queue_bytes_max: 30 });
        let (link, arrivals) = carried(LinkPlan { bottleneck, ..LinkPlan::default() }, 100);
        let datagrams: usize = arrivals.iter().map(|(_, aggregate)| aggregate.data.len().div_ceil(3)).sum();
        assert_eq!((datagrams as u64, arrivals.is_sorted_by_key(|(at, _)| *at)), (300 - link.lost, true));
        let (last, _) = arrivals.last().unwrap();
        assert!((11..13).contains(&datagrams), "{datagrams}");
        assert!((10..12).contains(&last.since_start().as_millis()), "{last}");
    }

    #[test]
    fn a_link_goes_dark_and_narrow_in_its_direction_and_comes_back_in_calm() {
        let ms = Duration::from_millis;
        let change = |at, direction, what| LinkChange { at: ms(at), direction, what };
        let changes = [
            change(1, Direction::Down, Becomes::DarkUntil(ms(100))),
            change(2, Direction::Both, Becomes::DarkUntil(ms(4))),
            change(6, Direction::Up, Becomes::AtMost(2)),
        ];
        let mut link = Link::new(Direction::Up, LinkPlan::default(), &changes, (1, 0));
        let pass = |link: &mut Link, at| {
            let mut arrivals = Vec::new();
            link.carry(Time::default() + ms(at), 3, None, &[0; 8], &mut arrivals);
            arrivals.iter().map(|(_, aggregate)| aggregate.data.len()).sum::<usize>()
        };
        assert_eq!([1, 2, 3, 4, 5, 6].map(|at| pass(&mut link, at)), [8, 0, 0, 8, 8, 2]);
        link.calm();
        assert_eq!(pass(&mut link, 7), 8);
    }

    #[test]
    fn a_datagram_that_is_corrupted_keeps_its_length_and_no_other_is_touched() {
        let (link, arrivals) = carried(LinkPlan { corrupt_ppm: 200_000, ..LinkPlan::default() }, 100);
        let bytes: usize = arrivals.iter().map(|(_, aggregate)| aggregate.data.len()).sum();
        assert_eq!(bytes, 800);
        let is_whole = |aggregate: &Aggregate| aggregate.data.iter().all(|&byte| byte == aggregate.data[0]);
        let changed = arrivals.iter().filter(|(_, aggregate)| !is_whole(aggregate)).count() as u64;
        // The shortest have two bytes, in which flips may cancel out or agree.
        assert!(changed > 20 && changed <= link.corrupted && changed * 10 >= link.corrupted * 9, "{changed}");
    }
}
