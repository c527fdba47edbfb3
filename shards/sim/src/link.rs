//! A client's link: what becomes of a run of datagrams on its way.
//!
//! This module never looks into a datagram.

use std::time::Duration;

use bytes::BytesMut;
use tollgate_shards::packet::ecn::Ecn;

use crate::plan::LinkPlan;
use crate::random::Stream;
use crate::schedule::Time;

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
    random: Stream,
    /// When the last run arrives. None overtakes it unless the link reorders.
    last: Time,
    pub lost: u64,
    pub duplicated: u64,
    /// Datagrams that others overtook.
    pub reordered: u64,
}

impl Link {
    pub fn new(plan: LinkPlan, random: Stream) -> Self {
        Link { plan, random, last: Time::default(), lost: 0, duplicated: 0, reordered: 0 }
    }

    /// Only the delay is left.
    pub fn calm(&mut self) {
        self.plan = LinkPlan { delay: self.plan.delay, ..LinkPlan::default() };
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
        let jitter = if self.plan.jitter.is_zero() { Duration::ZERO } else { self.random.around(self.plan.jitter / 2) };
        let at = (now + self.plan.delay + jitter).max(self.last);
        self.last = at;
        let marked = ecn.is_some() && self.plan.mark_ppm > 0 && self.random.ppm(self.plan.mark_ppm);
        let ecn = if marked { Some(Ecn::Ce) } else { ecn };
        let whole = |data: &[u8]| Aggregate { segment_bytes, ecn, data: BytesMut::from(data) };
        let LinkPlan { loss_ppm, duplicate_ppm, reorder_ppm, bytes_max, .. } = self.plan;
        if bytes_max.is_none() && [loss_ppm, duplicate_ppm, reorder_ppm] == [0; 3] {
            return arrivals.push((at, whole(run)));
        }
        let mut together = BytesMut::with_capacity(run.len());
        for datagram in run.chunks(segment_bytes) {
            if bytes_max.is_some_and(|bytes_max| datagram.len() > bytes_max) || self.random.ppm(loss_ppm) {
                self.lost += 1;
                continue;
            }
            if self.random.ppm(duplicate_ppm) {
                self.duplicated += 1;
                arrivals.push((at + self.random.around(Duration::from_millis(5)), whole(datagram)));
            }
            if self.random.ppm(reorder_ppm) {
                self.reordered += 1;
                arrivals.push((at + self.random.around(Duration::from_millis(5)), whole(datagram)));
            } else {
                together.extend_from_slice(datagram);
            }
        }
        if !together.is_empty() {
            arrivals.push((at, Aggregate { segment_bytes, ecn, data: together }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(plan: LinkPlan, runs: u8) -> (Link, Vec<(Time, Aggregate)>) {
        let mut link = Link::new(plan, Stream::new(1, "link"));
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
}
