//! A limited user's tokens at the user's home: the bucket, and what of it is on lease.
//!
//! Two invariants hold after every call. **Conservation**: minted = spent + outstanding + in the bucket + expired, exactly. **Burst**: bucket and
//! outstanding are a burst together at most; when the burst was made smaller, nothing is minted until they are. From both it follows that over any
//! window, on all shards together, no more is spent than rate times window plus burst.
//!
//! Outstanding is what was granted and of which the holder has not yet said that it was spent or is given back. So nothing that a lost message or
//! a dead holder takes with it is ever granted twice: it expires.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ids::{ShardIndex, UserIndex};
use crate::limit::bucket::{TokenBucket, units};
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseId, LeaseReport};
use crate::limit::rate::Limit;

/// A lease is worth this much of a user's time at most, in milliseconds: short enough that parked tokens starve no other owner, long enough
/// that messages are rare.
const LEASE_MS: u64 = 5;

/// What a lease may be in any case, in bytes: a few packets, so that a slow user's small ones do not cost a message each.
const LEASE_BYTES_MIN: u64 = 4096;

/// Grants smaller than this much of a user's time, in milliseconds, are not worth a message, where more is wanted.
const GRANT_MS: u64 = 1;

/// How soon a recall is repeated whose answer has not come: it, or the answer, may have been lost.
const RECALL_AGAIN: Duration = Duration::from_millis(100);
/// For how long what was granted last is left to its holder: it may not have arrived. Else grants and recalls would chase each other between
/// holders who lack tokens, and serve nobody.
const RECALL_PAUSE: Duration = Duration::from_millis(LEASE_MS);

/// One limited user's tokens.
#[derive(Debug)]
pub struct LeaseIssuer {
    user: UserIndex,
    bucket: TokenBucket,
    /// One a shard at most.
    holders: Vec<IssuedLease>,
    /// Who waits for tokens. One a holder at most.
    requests: VecDeque<Request>,
    /// The turn of the request that was granted last.
    turn: u64,
    due: Option<Instant>,
    spent_bytes: u128,
    expired_units: u128,
}

#[derive(Debug)]
struct IssuedLease {
    lease: LeaseId,
    granted_bytes: u64,
    /// As last reported, like what follows.
    spent_bytes: u64,
    returned_bytes: u64,
    granted_at: Instant,
    /// Since when it is asked to give back what is unused of so many bytes granted, until it has.
    recalled: Option<(Instant, u64)>,
    /// When its next request has its turn at the earliest: the turn of the last one that was granted, and as many bytes later as it did not give
    /// back.
    turn: u64,
}

#[derive(Debug)]
struct Request {
    lease: LeaseId,
    wanted_bytes: u64,
    least_bytes: u64,
    turn: u64,
}

/// Where all tokens of a issuer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// All that were ever minted, in units (see [`UNITS_PER_BYTE`](crate::limit::bucket::UNITS_PER_BYTE)).
    pub minted_units: u128,
    pub bucket_units: u128,
    /// Granted, and not yet known to be spent or given back, in bytes.
    pub outstanding_bytes: u64,
    pub spent_bytes: u128,
    /// Lost with their holders or to a smaller limit, in units.
    pub expired_units: u128,
    pub burst_bytes: u64,
}

impl Audit {
    /// Whether every token minted is in one place.
    pub fn is_conserved(&self) -> bool {
        let spent = self.spent_bytes * crate::limit::bucket::UNITS_PER_BYTE;
        self.minted_units == spent + units(self.outstanding_bytes) + self.bucket_units + self.expired_units
    }

    /// Whether no more than a burst can be spent at once, or else what is still outstanding of an earlier, larger one.
    pub fn is_within_burst(&self) -> bool {
        self.bucket_units == 0 || self.bucket_units + units(self.outstanding_bytes) <= units(self.burst_bytes)
    }
}

impl IssuedLease {
    fn outstanding_bytes(&self) -> u64 {
        self.granted_bytes - self.spent_bytes - self.returned_bytes
    }
}

impl LeaseIssuer {
    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match (self.requests.is_empty(), self.holders.iter().any(|holder| holder.recalled.is_some())) {
            (true, _) => "content",
            (false, false) => "scarce",
            (false, true) => "recalling",
        }
    }

    /// The issuer of a user who has been silent for long.
    pub fn full(user: UserIndex, limit: Limit, now: Instant) -> Self {
        LeaseIssuer::with(user, TokenBucket::full(limit, now))
    }

    /// The issuer of a user whose former issuer was lost: nothing in it, and tokens come from `since` on.
    pub fn empty(user: UserIndex, limit: Limit, since: Instant) -> Self {
        LeaseIssuer::with(user, TokenBucket::empty(limit, since))
    }

    /// The issuer of a user whose former issuer held so much, or a burst where that is less, and has nothing on lease any more.
    pub fn holding(user: UserIndex, limit: Limit, level_bytes: u64, now: Instant) -> Self {
        let mut bucket = TokenBucket::full(limit, now);
        bucket.take(limit.burst_bytes.saturating_sub(level_bytes));
        LeaseIssuer {
            expired_units: units(limit.burst_bytes.saturating_sub(level_bytes)),
            ..LeaseIssuer::with(user, bucket)
        }
    }

    /// What the bucket will hold at `now`, in whole bytes, beside what is on lease.
    pub fn level_bytes_at(&self, now: Instant) -> u64 {
        let mut bucket = self.bucket.clone();
        bucket.mint(now, self.outstanding_bytes());
        bucket.level_bytes()
    }

    fn with(user: UserIndex, bucket: TokenBucket) -> Self {
        LeaseIssuer {
            user,
            bucket,
            holders: Vec::new(),
            requests: VecDeque::new(),
            turn: 0,
            due: None,
            spent_bytes: 0,
            expired_units: 0,
        }
    }

    pub fn limit(&self) -> Limit {
        self.bucket.limit()
    }

    /// An owner says how its lease stands, and what it wants.
    pub fn report(&mut self, now: Instant, report: &LeaseReport, grant: &mut impl FnMut(LeaseGrant)) {
        self.mint(now);
        let Some(holder) = self.holder(now, report) else { return };
        let spent = report.spent_bytes.max(holder.spent_bytes).min(holder.granted_bytes - holder.returned_bytes);
        let newly_spent = spent - holder.spent_bytes;
        holder.spent_bytes = spent;
        let returned = report.returned_bytes.max(holder.returned_bytes).min(holder.granted_bytes - spent);
        let newly_returned = returned - holder.returned_bytes;
        holder.returned_bytes = returned;
        holder.turn = holder.turn.saturating_sub(newly_returned);
        // What it said before it heard of the recall is no answer.
        holder.recalled.take_if(|(_, recalled_bytes)| spent + returned >= *recalled_bytes);
        debug_assert!(
            report.spent_bytes <= spent && report.returned_bytes <= returned,
            "more accounted for than granted"
        );
        let granted_bytes = holder.granted_bytes;
        self.spent_bytes += u128::from(newly_spent);
        self.put_back(newly_returned);
        if report.wanted_bytes > 0 && report.granted_bytes < granted_bytes {
            // It wants what is on its way, or was lost on it. Said again, it suffices, or leads to another request.
            grant(LeaseGrant { user: self.user, lease: report.lease, granted_bytes, recall: false });
            self.requests.retain(|request| request.lease != report.lease);
        } else {
            self.request(report);
        }
        self.serve(now, grant);
    }

    /// An owner will never spend from a lease again.
    pub fn close(&mut self, now: Instant, close: &LeaseClose, grant: &mut impl FnMut(LeaseGrant)) {
        self.mint(now);
        let Some(place) = self.holders.iter().position(|holder| holder.lease == close.lease) else { return };
        let holder = self.holders.swap_remove(place);
        let spent = close.spent_bytes.max(holder.spent_bytes).min(holder.granted_bytes - holder.returned_bytes);
        self.spent_bytes += u128::from(spent - holder.spent_bytes);
        self.put_back(holder.granted_bytes - holder.returned_bytes - spent);
        self.requests.retain(|request| request.lease != close.lease);
        self.serve(now, grant);
    }

    /// A shard has died, and with it whatever it held.
    pub fn holder_lost(&mut self, now: Instant, shard: ShardIndex, grant: &mut impl FnMut(LeaseGrant)) {
        self.mint(now);
        self.expire_holder(shard);
        self.serve(now, grant);
    }

    /// Another limit holds from now on.
    pub fn set_limit(&mut self, now: Instant, limit: Limit, grant: &mut impl FnMut(LeaseGrant)) {
        self.mint(now);
        self.take_limit(limit);
        self.serve(now, grant);
    }

    /// Serves the requests whose tokens have come.
    pub fn handle_timeout(&mut self, now: Instant, grant: &mut impl FnMut(LeaseGrant)) {
        self.mint(now);
        self.serve(now, grant);
    }

    /// When tokens come that somebody waits for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// When the bucket will hold a burst, if nobody spends: from then on nothing is lost if the issuer is forgotten. `None` while tokens are on
    /// lease.
    pub fn full_at(&self) -> Option<Instant> {
        self.bucket.ready_at(self.limit().burst_bytes, self.outstanding_bytes())
    }

    /// Where all tokens are, as of the last call with a time.
    pub fn audit(&self) -> Audit {
        Audit {
            minted_units: self.bucket.minted_units(),
            bucket_units: self.bucket.level_units(),
            outstanding_bytes: self.outstanding_bytes(),
            spent_bytes: self.spent_bytes,
            expired_units: self.expired_units,
            burst_bytes: self.limit().burst_bytes,
        }
    }

    /// Every lease, with what was granted on it in all, in bytes.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.holders.iter().map(|holder| (holder.lease, holder.granted_bytes))
    }

    fn outstanding_bytes(&self) -> u64 {
        self.holders.iter().map(IssuedLease::outstanding_bytes).sum()
    }

    /// Tokens come back unused. After the burst was made smaller there may be no room for them.
    fn put_back(&mut self, bytes: u64) {
        self.bucket.put_back(bytes);
        self.take_limit(self.limit());
    }

    fn take_limit(&mut self, limit: Limit) {
        self.expired_units += self.bucket.set_limit(limit, self.outstanding_bytes());
    }

    fn mint(&mut self, now: Instant) {
        self.bucket.mint(now, self.outstanding_bytes());
    }

    /// The holder of the lease that is reported, taken in if the lease is new; `None` if its holder has given it up, or if what was granted on it
    /// was not granted here.
    fn holder(&mut self, now: Instant, report: &LeaseReport) -> Option<&mut IssuedLease> {
        let lease = report.lease;
        let known =
            self.holders.iter().find(|holder| holder.lease.holder == lease.holder).map(|holder| holder.lease.number);
        match known {
            Some(number) if number > lease.number => return None,
            Some(number) if number == lease.number => {}
            _ if report.granted_bytes > 0 => return None,
            _ => {
                // A new lease where an older one was never closed: that one's last word is lost.
                self.expire_holder(lease.holder);
                self.holders.push(IssuedLease {
                    lease,
                    granted_bytes: 0,
                    spent_bytes: 0,
                    returned_bytes: 0,
                    granted_at: now,
                    recalled: None,
                    turn: 0,
                });
            }
        }
        self.holders.iter_mut().find(|holder| holder.lease == lease)
    }

    fn expire_holder(&mut self, shard: ShardIndex) {
        if let Some(place) = self.holders.iter().position(|holder| holder.lease.holder == shard) {
            self.expired_units += units(self.holders.swap_remove(place).outstanding_bytes());
        }
        self.requests.retain(|request| request.lease.holder != shard);
    }

    /// Notes what a report wants. One that is repeated keeps its place.
    fn request(&mut self, report: &LeaseReport) {
        let &LeaseReport { lease, wanted_bytes, least_bytes, .. } = report;
        let place = self.requests.iter().position(|request| request.lease == lease);
        match place {
            Some(place) if wanted_bytes == 0 => {
                self.requests.remove(place);
            }
            Some(place) => {
                let turn = self.requests[place].turn;
                self.requests[place] = Request { lease, wanted_bytes, least_bytes, turn };
            }
            None if wanted_bytes == 0 => {}
            None => {
                let holder = self.holders.iter().find(|holder| holder.lease == lease);
                // Who has not asked for long saves nothing up.
                let turn = holder.map_or(0, |holder| holder.turn).max(self.turn);
                self.requests.push_back(Request { lease, wanted_bytes, least_bytes, turn });
            }
        }
    }

    /// The place of the request whose turn it is: of those who wait, the one of whom has been granted the least since it began to wait for tokens
    /// (start-time fair queueing). So a shard with small packets gets as many bytes as one with large ones, and a ping goes first.
    fn first_request(&self) -> Option<usize> {
        (0..self.requests.len()).min_by_key(|&place| self.requests[place].turn)
    }

    /// Grants what the bucket holds to those who wait, by turns.
    fn serve(&mut self, now: Instant, grant: &mut impl FnMut(LeaseGrant)) {
        let Limit { rate, burst_bytes } = self.limit();
        let worth = |ms: u64| (u128::from(rate.bits_per_s()) * u128::from(ms) / 8000) as u64;
        let lease_bytes_max = worth(LEASE_MS).max(LEASE_BYTES_MIN);
        self.due = None;
        while let Some(place) = self.first_request() {
            let Request { lease, wanted_bytes, least_bytes, turn } = self.requests[place];
            let least_bytes = least_bytes.clamp(1, burst_bytes);
            let wanted_bytes = wanted_bytes.min(lease_bytes_max).clamp(least_bytes, burst_bytes);
            // More than this will not come while others hold what they hold.
            let room_bytes = burst_bytes.saturating_sub(self.outstanding_bytes());
            let worthwhile_bytes = wanted_bytes.min(worth(GRANT_MS)).min(room_bytes).max(least_bytes);
            let level_bytes = self.bucket.level_bytes();
            if level_bytes < worthwhile_bytes {
                let recall_at = self.recall(now, lease, worthwhile_bytes > room_bytes, grant);
                let ready_at = self.bucket.ready_at(worthwhile_bytes, self.outstanding_bytes());
                self.due = [recall_at, ready_at].into_iter().flatten().min();
                return;
            }
            let bytes = wanted_bytes.min(level_bytes);
            self.bucket.take(bytes);
            self.requests.remove(place);
            self.turn = turn;
            if let Some(holder) = self.holders.iter_mut().find(|holder| holder.lease == lease) {
                holder.turn = turn + bytes;
                holder.granted_bytes += bytes;
                holder.granted_at = now;
                grant(LeaseGrant { user: self.user, lease, granted_bytes: holder.granted_bytes, recall: false });
            }
        }
    }

    /// Asks all who hold tokens to give them back. Those whose packets wait as well hold less than a packet each: they are asked only where nobody
    /// can be served otherwise. Returns when the next one may be asked.
    fn recall(
        &mut self,
        now: Instant,
        waiting: LeaseId,
        stuck: bool,
        grant: &mut impl FnMut(LeaseGrant),
    ) -> Option<Instant> {
        let mut recall_at = None;
        for holder in &mut self.holders {
            let lease = holder.lease;
            let lacks = self.requests.iter().any(|request| request.lease == lease && request.least_bytes > 1);
            let spared = lacks && !stuck;
            let is_asked = holder.recalled.is_some_and(|(at, _)| now < at + RECALL_AGAIN);
            if lease == waiting || spared || is_asked || holder.outstanding_bytes() == 0 {
                continue;
            }
            let may_be_asked_at = holder.granted_at + RECALL_PAUSE;
            if now < may_be_asked_at {
                recall_at = recall_at.into_iter().chain([may_be_asked_at]).min();
                continue;
            }
            holder.recalled = Some((now, holder.granted_bytes));
            grant(LeaseGrant { user: self.user, lease, granted_bytes: holder.granted_bytes, recall: true });
        }
        recall_at
    }
}

#[cfg(test)]
mod tests;
