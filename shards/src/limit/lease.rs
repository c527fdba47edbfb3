//! Tokens on lease: what a home lends to an owner. All counts are cumulative for one lease, so that a lost, repeated or late message changes
//! nothing that the next one does not repair.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ids::{ShardIndex, UserIndex};

/// The name of a lease. A number never repeats at its holder, across its restarts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId {
    /// The owner shard that it is lent to.
    pub holder: ShardIndex,
    /// Ascending.
    pub number: u64,
}

/// Owner to home: how a lease stands, and what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    #[serde(skip)]
    pub user: UserIndex,
    pub lease: LeaseId,
    /// Granted in all, as far as the owner has heard.
    pub granted_bytes: u64,
    pub spent_bytes: u64,
    /// Given back unused in all.
    pub returned_bytes: u64,
    /// Wanted now; 0 when nothing is.
    pub wanted_bytes: u64,
    /// Fewer than this are of no use; 1 where tokens are asked for before a packet waits for them.
    pub least_bytes: u64,
}

/// SessionHome to owner: tokens, debited from the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    #[serde(skip)]
    pub user: UserIndex,
    pub lease: LeaseId,
    pub granted_bytes: u64,
    /// What is unused is to come back: others wait.
    pub recall: bool,
}

/// Owner to home: the owner will never spend from the lease again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseClose {
    #[serde(skip)]
    pub user: UserIndex,
    pub lease: LeaseId,
    pub spent_bytes: u64,
}

/// How soon a request is repeated whose answer has not come: it, or the answer, may have been lost.
const RETRY: Duration = Duration::from_millis(100);

/// How much more than it has spent of late an owner asks for, so that leases grow with the demand. The home bounds them.
const DEMAND_FACTOR: u64 = 4;

/// The owner's end of a lease.
#[derive(Debug)]
pub struct Lease {
    /// What was granted, spent and given back so far. Nothing is wanted in it.
    pub totals: LeaseReport,
    last_grant_bytes: u64,
    /// What was spent by the last request.
    spent_then_bytes: u64,
    /// Since when an answer is awaited.
    asked_at: Option<Instant>,
    /// Whether packets wait for the answer.
    lacking: bool,
    /// Whether what is unused is to go back.
    recalled: bool,
}

impl Lease {
    pub fn new(user: UserIndex, lease: LeaseId) -> Self {
        let (granted_bytes, spent_bytes, returned_bytes, wanted_bytes, least_bytes) = (0, 0, 0, 0, 0);
        let totals = LeaseReport { user, lease, granted_bytes, spent_bytes, returned_bytes, wanted_bytes, least_bytes };
        Lease { totals, last_grant_bytes: 0, spent_then_bytes: 0, asked_at: None, lacking: false, recalled: false }
    }

    /// Tokens held.
    pub fn available_bytes(&self) -> u64 {
        self.totals.granted_bytes - self.totals.spent_bytes - self.totals.returned_bytes
    }

    /// Spends so many tokens, or none if there are fewer.
    pub fn spend(&mut self, bytes: u64) -> bool {
        let enough = self.available_bytes() >= bytes;
        if enough {
            self.totals.spent_bytes += bytes;
        }
        enough
    }

    /// Takes what a grant brings. Where it is recalled, the next report gives back what has not been spent until then. Grants of another lease
    /// change nothing.
    pub fn handle_grant(&mut self, grant: &LeaseGrant) {
        if grant.lease != self.totals.lease {
            return;
        }
        if grant.granted_bytes > self.totals.granted_bytes {
            self.last_grant_bytes = grant.granted_bytes - self.totals.granted_bytes;
            self.totals.granted_bytes = grant.granted_bytes;
            self.asked_at = None;
            self.lacking = false;
        }
        self.recalled |= grant.recall;
    }

    /// What to say to the home now, `waiting_bytes` waiting of which the next packet has `head_bytes`, and what could be spent being spent: a
    /// request, when that packet lacks tokens, or ahead of need when less than half of the last grant is left. One at a time, and again after
    /// 100 ms. Or that tokens come back which were recalled.
    pub fn poll_report(&mut self, now: Instant, waiting_bytes: u64, head_bytes: u64) -> Option<LeaseReport> {
        if std::mem::take(&mut self.recalled) {
            self.totals.returned_bytes += self.available_bytes();
            // Nothing is asked for ahead of need while others wait for just that.
            self.last_grant_bytes = 0;
            self.asked_at = None;
            if waiting_bytes == 0 {
                self.lacking = false;
                return Some(self.report(0, 0));
            }
        }
        let available = self.available_bytes();
        self.lacking = waiting_bytes > 0 && available < head_bytes;
        let ahead = self.totals.spent_bytes > self.spent_then_bytes && available < self.last_grant_bytes / 2;
        let under_way = self.asked_at.is_some_and(|at| !self.lacking || now < at + RETRY);
        if under_way || !(self.lacking || ahead) {
            return None;
        }
        let demand = DEMAND_FACTOR * (self.totals.spent_bytes - self.spent_then_bytes);
        let least = if self.lacking { head_bytes - available } else { 1 };
        self.spent_then_bytes = self.totals.spent_bytes;
        self.asked_at = Some(now);
        Some(self.report(waiting_bytes.saturating_sub(available).saturating_add(demand).max(least), least))
    }

    /// When to call [`Lease::poll_report`] again though nothing has happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.asked_at.filter(|_| self.lacking).map(|at| at + RETRY)
    }

    /// The home has died: what was held is void, and everything begins anew under another name.
    pub fn expire(&mut self, id: LeaseId) {
        *self = Lease::new(self.totals.user, id);
    }

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match (self.lacking, self.asked_at, self.available_bytes()) {
            (true, ..) => "lacking",
            (false, Some(_), _) => "asked_ahead",
            (false, None, 0) => "empty",
            (false, None, _) => "held",
        }
    }

    /// The last word on this lease.
    pub fn close(&self) -> LeaseClose {
        let LeaseReport { user, lease, spent_bytes, .. } = self.totals;
        LeaseClose { user, lease, spent_bytes }
    }

    fn report(&self, wanted_bytes: u64, least_bytes: u64) -> LeaseReport {
        LeaseReport { wanted_bytes, least_bytes, ..self.totals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    const ID: LeaseId = LeaseId { holder: ShardIndex(3), number: 5 };
    const PACKET: u64 = 1500;

    fn lease() -> Lease {
        Lease::new(UserIndex(0), ID)
    }

    fn grant(granted_bytes: u64, recall: bool) -> LeaseGrant {
        LeaseGrant { user: UserIndex(0), lease: ID, granted_bytes, recall }
    }

    #[test]
    fn a_packet_that_lacks_tokens_asks_for_what_waits() {
        let (mut lease, now) = (lease(), origin());
        assert_eq!(lease.poll_report(now, 0, 0), None, "nothing waits");
        lease.handle_grant(&grant(1_000, false));
        assert!(!lease.spend(PACKET));
        let report = lease.poll_report(now, 4_000, PACKET).unwrap();
        assert_eq!((report.wanted_bytes, report.least_bytes, report.granted_bytes), (3_000, 500, 1_000));
    }

    #[test]
    fn a_request_is_repeated_when_no_answer_comes_and_not_before() {
        let (mut lease, now) = (lease(), origin());
        assert!(lease.poll_report(now, PACKET, PACKET).is_some());
        assert_eq!(lease.poll_report(now + RETRY / 2, PACKET, PACKET), None);
        assert_eq!(lease.poll_timeout(), Some(now + RETRY));
        assert!(lease.poll_report(now + RETRY, PACKET, PACKET).is_some());
        assert_eq!(lease.poll_timeout(), Some(now + 2 * RETRY));
    }

    #[test]
    fn nothing_is_repeated_when_nothing_waits_any_more() {
        let (mut lease, now) = (lease(), origin());
        assert!(lease.poll_report(now, PACKET, PACKET).is_some());
        assert_eq!(lease.poll_report(now + 2 * RETRY, 0, 0), None);
        assert_eq!(lease.poll_timeout(), None);
    }

    #[test]
    fn more_is_asked_for_before_it_is_needed_by_who_spends() {
        let (mut lease, now) = (lease(), origin());
        lease.handle_grant(&grant(10_000, false));
        assert!(lease.spend(5_000));
        assert_eq!(lease.poll_report(now, 0, 0), None, "half is left");
        assert!(lease.spend(100));
        let report = lease.poll_report(now, 0, 0).unwrap();
        assert_eq!((report.wanted_bytes, report.least_bytes, report.spent_bytes), (DEMAND_FACTOR * 5_100, 1, 5_100));
        assert!(lease.spend(100));
        assert_eq!(lease.poll_report(now + 2 * RETRY, 0, 0), None, "one at a time");
        lease.handle_grant(&grant(30_400, false));
        assert!(lease.spend(200));
        assert_eq!(lease.poll_report(now, 0, 0), None, "there is enough again");
    }

    #[test]
    fn who_does_not_spend_asks_for_nothing_more() {
        let (mut lease, now) = (lease(), origin());
        lease.handle_grant(&grant(10_000, false));
        assert!(lease.spend(9_000));
        assert!(lease.poll_report(now, 0, 0).is_some());
        lease.handle_grant(&grant(10_001, false));
        lease.handle_grant(&grant(20_000, false));
        assert_eq!(lease.poll_report(now, 0, 0), None);
    }

    #[test]
    fn a_grant_that_comes_twice_or_late_brings_nothing() {
        let mut lease = lease();
        lease.handle_grant(&grant(3_000, false));
        lease.handle_grant(&grant(5_000, false));
        lease.handle_grant(&grant(5_000, false));
        lease.handle_grant(&grant(3_000, false));
        assert_eq!((lease.totals.granted_bytes, lease.available_bytes()), (5_000, 5_000));
    }

    #[test]
    fn a_grant_of_another_lease_brings_nothing() {
        let mut lease = lease();
        for lease_id in [LeaseId { number: 4, ..ID }, LeaseId { holder: ShardIndex(2), ..ID }] {
            lease.handle_grant(&LeaseGrant { lease: lease_id, ..grant(5_000, true) });
        }
        assert_eq!(lease.totals.granted_bytes, 0);
        assert_eq!(lease.poll_report(origin(), 0, 0), None, "nor is it recalled");
    }

    #[test]
    fn what_is_unused_goes_back_when_it_is_recalled() {
        let (mut lease, now) = (lease(), origin());
        lease.handle_grant(&grant(5_000, false));
        assert!(lease.spend(2_000));
        lease.handle_grant(&grant(5_000, true));
        let report = lease.poll_report(now, 0, 0).unwrap();
        assert_eq!((report.spent_bytes, report.returned_bytes, report.wanted_bytes), (2_000, 3_000, 0));
        assert!(!lease.spend(1));
        assert_eq!(lease.poll_report(now, 0, 0), None, "said once");
    }

    #[test]
    fn who_lacks_tokens_gives_its_own_back_and_asks_for_the_whole_packet() {
        let (mut lease, now) = (lease(), origin());
        lease.handle_grant(&grant(1_000, false));
        assert!(lease.poll_report(now, PACKET, PACKET).is_some());
        lease.handle_grant(&grant(1_000, true));
        let report = lease.poll_report(now, PACKET, PACKET).unwrap();
        assert_eq!((report.returned_bytes, report.wanted_bytes, report.least_bytes), (1_000, PACKET, PACKET));
    }
}
