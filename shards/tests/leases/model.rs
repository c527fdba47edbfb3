//! A model of one user's tokens: the real lease issuer and leases, with a home, some owners and the channels between them modelled. One walk is some
//! dozens of random steps.
//!
//! The simulator's world takes milliseconds for what a walk does in microseconds, so that only a model comes round 100,000 times; and a fault planted
//! here stands in the model, not in the engine.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use tollgate_shards::inspect::{
    Lease, LeaseClose, LeaseGrant, LeaseId, LeaseIssuer, LeaseReport, UNITS_PER_BYTE, units,
};
use tollgate_shards::{Limit, Rate, ShardIndex, UserIndex};

use crate::origin;

const USER: UserIndex = UserIndex(0);
const STEPS: usize = 60;
/// How often each channel may be emptied, in calm and while no time passes, until nothing more is said or something is spent.
const ROUNDS_MAX: usize = 100;

/// A fault put into the model, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// An owner takes what a grant brings twice.
    DoubleGrant,
    /// A home that was started anew begins with a burst.
    HomeStartsFull,
    /// A home that was started anew grants before every owner has let go of its old leases.
    HomeMintsEarly,
    /// It grants when it may, but counts from when it was started.
    HomeMintsFromItsStart,
    /// A home forgets a user with the last connection, though the bucket is not full.
    HomeForgetsAtOnce,
    /// A home forgets what it has lent to those who are silent, and so mints it again.
    HomeForgetsWhatItLent,
    /// What a dead holder held goes back into the bucket.
    LostLeaseComesBack,
}

/// From 1 kbps to 100 gbps, every magnitude alike.
fn draw_limit(random: &mut Pcg64Mcg) -> Limit {
    let magnitude = 10u64.pow(random.random_range(3..11));
    let rate = Rate::from_bits_per_s(random.random_range(magnitude..10 * magnitude)).unwrap();
    match random.random_ratio(1, 3) {
        true => Limit::with_burst(rate, Duration::from_millis(random.random_range(1..51)), 65_536),
        false => Limit::new(rate),
    }
}

/// What any token bucket of the rate and burst would have left: it must never be overdrawn.
struct Ideal {
    limit: Limit,
    level: i128,
    at: Instant,
}

impl Ideal {
    fn accrue(&mut self, now: Instant) {
        let fresh = u128::from(self.limit.rate.bits_per_s()) * now.duration_since(self.at).as_nanos();
        let full = units(self.limit.burst_bytes) as i128;
        self.level = self.level.max((self.level + fresh as i128).min(full));
        self.at = now;
    }

    fn spend(&mut self, now: Instant, bytes: u64) -> Result<(), String> {
        self.accrue(now);
        self.level -= units(bytes) as i128;
        if self.level < 0 { Err(format!("overdrawn by {} units", -self.level)) } else { Ok(()) }
    }
}

enum Upward {
    Report(LeaseReport),
    Close(LeaseClose),
    /// The owner was started anew.
    Restarted,
    /// The owner has let go of the leases of a home that died.
    Reattached,
}

enum Downward {
    Grant(LeaseGrant),
    /// The home was started anew.
    Restarted,
    /// Another limit holds: what is left of the old lease goes back.
    Limit,
}

#[derive(Default)]
struct Owner {
    lease: Option<Lease>,
    numbers: u64,
    waiting: VecDeque<u64>,
    upward: VecDeque<Upward>,
    downward: VecDeque<Downward>,
}

impl Owner {
    fn next_id(&mut self, place: usize) -> LeaseId {
        self.numbers += 1;
        LeaseId { holder: ShardIndex(place as u16), number: self.numbers }
    }
}

enum Home {
    Lives(LeaseIssuer),
    /// Started anew; hears from owners one by one before it mints.
    Learns {
        since: Instant,
        missing: Vec<bool>,
    },
}

struct Walk {
    random: Pcg64Mcg,
    plant: Plant,
    now: Instant,
    limit: Limit,
    home: Home,
    owners: Vec<Owner>,
    ideal: Ideal,
    /// Spent from what this home has granted.
    spent_bytes: u128,
    lossy: bool,
    /// Shards die all the time.
    deadly: bool,
    /// Everything that happened, in one number.
    trace: u64,
}

/// Walks. Returns what identifies the walk, or what went wrong.
pub fn walk(seed: u64, plant: Plant) -> Result<u64, String> {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let now = origin();
    let limit = draw_limit(&mut random);
    let owners = (0..random.random_range(1..9)).map(|_| Owner::default()).collect();
    let mut walk = Walk {
        plant,
        now,
        limit,
        home: Home::Lives(LeaseIssuer::full(USER, limit, now)),
        owners,
        ideal: Ideal { limit, level: units(limit.burst_bytes) as i128, at: now },
        spent_bytes: 0,
        lossy: random.random_ratio(1, 2),
        deadly: random.random_ratio(1, 4),
        random,
        trace: 0,
    };
    for _ in 0..STEPS {
        walk.step()?;
        walk.forget();
        walk.check()?;
    }
    walk.calm_down()?;
    Ok(walk.trace)
}

impl Walk {
    fn step(&mut self) -> Result<(), String> {
        let place = self.random.random_range(0..self.owners.len());
        match self.random.random_range(0..40) {
            0..4 => self.attach(place),
            4 => self.detach(place),
            5 if self.deadly || self.random.random_ratio(1, 3) => self.owner_dies(place),
            6 if self.deadly || self.random.random_ratio(1, 6) => self.home_dies(),
            7 if self.random.random_ratio(1, 3) => self.change_limit(),
            8..20 => {
                let packets = self.random.random_range(1..41);
                return self.packets_arrive(place, packets);
            }
            20..34 => {
                for _ in 0..self.random.random_range(1..5) {
                    self.deliver_up(place, self.lossy)?;
                    self.deliver_down(place, self.lossy)?;
                    self.check()?;
                }
            }
            _ => return self.time_passes(),
        }
        Ok(())
    }

    fn attach(&mut self, place: usize) {
        let owner = &mut self.owners[place];
        if owner.lease.is_none() {
            owner.lease = Some(Lease::new(USER, owner.next_id(place)));
        }
    }

    fn detach(&mut self, place: usize) {
        let owner = &mut self.owners[place];
        if let Some(lease) = owner.lease.take() {
            owner.upward.push_back(Upward::Close(lease.close()));
        }
        owner.waiting.clear();
    }

    fn owner_dies(&mut self, place: usize) {
        let owner = &mut self.owners[place];
        // What it had said last may never arrive.
        let heard = self.random.random_range(0..owner.upward.len() + 1);
        owner.upward.truncate(heard);
        owner.upward.push_back(Upward::Restarted);
        owner.lease = None;
        owner.waiting.clear();
        if matches!(self.home, Home::Learns { .. }) {
            owner.upward.push_back(Upward::Reattached);
        }
    }

    fn home_dies(&mut self) {
        let missing = vec![self.plant != Plant::HomeMintsEarly; self.owners.len()];
        for owner in &mut self.owners {
            let heard = self.random.random_range(0..owner.downward.len() + 1);
            owner.downward.truncate(heard);
            owner.downward.push_back(Downward::Restarted);
            // What is under way to the old home reaches the new one, or nobody.
            if self.random.random_ratio(1, 2) {
                owner.upward.clear();
            }
        }
        self.home = Home::Learns { since: self.now, missing };
        self.begin_to_mint();
    }

    fn begin_to_mint(&mut self) {
        if let Home::Learns { since, missing } = &self.home
            && missing.iter().all(|missing| !missing)
        {
            self.home = Home::Lives(match self.plant {
                Plant::HomeStartsFull | Plant::HomeMintsEarly => LeaseIssuer::full(USER, self.limit, self.now),
                Plant::HomeMintsFromItsStart => LeaseIssuer::empty(USER, self.limit, *since),
                _ => LeaseIssuer::empty(USER, self.limit, self.now),
            });
            self.spent_bytes = 0;
        }
    }

    /// A home forgets a user who is gone, once a new issuer would hold as much.
    fn forget(&mut self) {
        let Home::Lives(issuer) = &self.home else { return };
        let gone = self.owners.iter().all(|owner| owner.lease.is_none());
        let full = issuer.full_at().is_some_and(|at| at <= self.now);
        if self.plant == Plant::HomeForgetsWhatItLent && self.random.random_ratio(1, 8)
            || gone && full
            || gone && self.plant == Plant::HomeForgetsAtOnce
        {
            self.home = Home::Lives(LeaseIssuer::full(USER, self.limit, self.now));
            self.spent_bytes = 0;
        }
    }

    fn change_limit(&mut self) {
        self.limit = draw_limit(&mut self.random);
        self.ideal.accrue(self.now);
        let (limit, now) = (self.limit, self.now);
        let held = match &mut self.home {
            Home::Lives(issuer) => {
                let owners = &mut self.owners;
                issuer.set_limit(now, limit, &mut |grant| send(owners, grant));
                issuer.audit().outstanding_bytes
            }
            // What owners still hold from the old home.
            Home::Learns { .. } => self.held_bytes(),
        };
        let room = units(self.limit.burst_bytes.max(held)) as i128;
        self.ideal.level = self.ideal.level.min(room);
        self.ideal.limit = self.limit;
        self.owners.iter_mut().for_each(|owner| owner.downward.push_back(Downward::Limit));
    }

    fn packets_arrive(&mut self, place: usize, packets: u64) -> Result<(), String> {
        if self.owners[place].lease.is_none() {
            return Ok(());
        }
        let large = self.random.random_ratio(1, 2);
        for _ in 0..packets {
            let bytes = if large { 1400 } else { self.random.random_range(20..=1500) };
            self.owners[place].waiting.push_back(bytes);
        }
        self.owners[place].waiting.truncate(400);
        self.serve(place)
    }

    /// An owner sends what it can pay for, and asks for more.
    fn serve(&mut self, place: usize) -> Result<(), String> {
        let now = self.now;
        let owner = &mut self.owners[place];
        let Some(lease) = &mut owner.lease else { return Ok(()) };
        while let Some(&bytes) = owner.waiting.front()
            && lease.spend(bytes)
        {
            owner.waiting.pop_front();
            self.ideal.spend(now, bytes)?;
            self.spent_bytes += u128::from(bytes);
            self.trace = self.trace.rotate_left(5) ^ bytes;
        }
        let (waiting, head) = (owner.waiting.iter().sum(), owner.waiting.front().copied().unwrap_or(0));
        if let Some(report) = lease.poll_report(now, waiting, head) {
            owner.upward.push_back(Upward::Report(report));
        }
        Ok(())
    }

    fn deliver_up(&mut self, place: usize, lossy: bool) -> Result<(), String> {
        let Some(message) = self.owners[place].upward.pop_front() else { return Ok(()) };
        let lost = lossy && self.random.random_ratio(1, 4);
        let (owners, now) = (&mut self.owners, self.now);
        let shard = ShardIndex(place as u16);
        match (message, &mut self.home) {
            (Upward::Report(report), Home::Lives(issuer)) if !lost => {
                issuer.report(now, &report, &mut |grant| send(owners, grant));
            }
            (Upward::Close(close), Home::Lives(issuer)) => {
                issuer.close(now, &close, &mut |grant| send(owners, grant));
            }
            (Upward::Restarted, Home::Lives(issuer)) => {
                if self.plant == Plant::LostLeaseComesBack {
                    let lease = issuer.leases().find(|(lease, _)| lease.holder == shard);
                    if let Some((lease, _)) = lease {
                        let close = LeaseClose { user: USER, lease, spent_bytes: 0 };
                        issuer.close(now, &close, &mut |grant| send(owners, grant));
                    }
                }
                issuer.holder_lost(now, shard, &mut |grant| send(owners, grant));
            }
            (Upward::Reattached | Upward::Restarted, Home::Learns { missing, .. }) => {
                missing[place] = false;
                self.begin_to_mint();
            }
            _ => {}
        }
        Ok(())
    }

    fn deliver_down(&mut self, place: usize, lossy: bool) -> Result<(), String> {
        let lost = lossy && self.random.random_ratio(1, 4);
        let owner = &mut self.owners[place];
        match owner.downward.pop_front() {
            Some(Downward::Grant(_)) if lost => {}
            Some(Downward::Grant(mut grant)) => {
                let Some(lease) = &mut owner.lease else { return Ok(()) };
                if self.plant == Plant::DoubleGrant {
                    grant.granted_bytes += grant.granted_bytes.saturating_sub(lease.totals.granted_bytes);
                }
                lease.handle_grant(&grant);
                self.serve(place)?;
            }
            Some(Downward::Restarted) => {
                let id = owner.next_id(place);
                if let Some(lease) = &mut owner.lease {
                    lease.expire(id);
                }
                owner.upward.push_back(Upward::Reattached);
                self.serve(place)?;
            }
            Some(Downward::Limit) => {
                let id = owner.next_id(place);
                if let Some(lease) = &mut owner.lease {
                    owner.upward.push_back(Upward::Close(lease.close()));
                    lease.expire(id);
                }
                self.serve(place)?;
            }
            None => {}
        }
        Ok(())
    }

    /// To the next time that somebody waits for, or some other.
    fn time_passes(&mut self) -> Result<(), String> {
        let next = self.next_timeout();
        self.now = match next {
            Some(at) if self.random.random_ratio(1, 2) => at.max(self.now),
            _ => self.now + Duration::from_nanos(self.random.next_u64() >> self.random.random_range(25..60)),
        };
        self.timeouts()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let home = match &self.home {
            Home::Lives(issuer) => issuer.poll_timeout(),
            Home::Learns { .. } => None,
        };
        let owners = self.owners.iter().filter_map(|owner| owner.lease.as_ref()?.poll_timeout());
        owners.chain(home).min()
    }

    fn timeouts(&mut self) -> Result<(), String> {
        let (owners, now) = (&mut self.owners, self.now);
        if let Home::Lives(issuer) = &mut self.home {
            issuer.handle_timeout(now, &mut |grant| send(owners, grant));
        }
        (0..self.owners.len()).try_for_each(|place| self.serve(place))
    }

    fn held_bytes(&self) -> u64 {
        self.owners.iter().flat_map(|owner| &owner.lease).map(Lease::available_bytes).sum()
    }

    fn check(&self) -> Result<(), String> {
        for lease in self.owners.iter().flat_map(|owner| &owner.lease) {
            if lease.totals.granted_bytes
                != lease.totals.spent_bytes + lease.totals.returned_bytes + lease.available_bytes()
            {
                return Err(format!("{lease:?} does not add up"));
            }
        }
        let Home::Lives(issuer) = &self.home else { return Ok(()) };
        let audit = issuer.audit();
        if !audit.is_conserved() || !audit.is_within_burst() {
            return Err(format!("{audit:?}"));
        }
        for lease in self.owners.iter().flat_map(|owner| &owner.lease) {
            let granted = issuer.leases().find(|(id, _)| *id == lease.totals.lease).map_or(0, |(_, granted)| granted);
            if granted < lease.totals.granted_bytes {
                return Err(format!("{lease:?} has more than the {granted} granted"));
            }
        }
        let held = self.held_bytes();
        if held > audit.outstanding_bytes {
            return Err(format!("{held} held of {audit:?}"));
        }
        // What owners have spent is known at home, or not known yet, or was never to be known.
        let unknown = units(audit.outstanding_bytes - held) + audit.expired_units;
        let spent = self.spent_bytes * UNITS_PER_BYTE;
        let known = audit.spent_bytes * UNITS_PER_BYTE;
        if !(known..=known + unknown).contains(&spent) {
            return Err(format!("{} spent by owners, {audit:?}", self.spent_bytes));
        }
        Ok(())
    }

    /// Nothing is lost any more: everything that waits must go, in the time that its tokens take.
    fn calm_down(&mut self) -> Result<(), String> {
        let waiting: u64 = self.owners.iter().flat_map(|owner| &owner.waiting).sum();
        let patience = Duration::from_secs_f64(waiting as f64 * 8.0 / self.limit.rate.bits_per_s() as f64)
            + Duration::from_millis(200 * (1 + self.owners.len() as u64));
        let end = self.now + patience;
        for _ in 0..1_000_000 {
            let (mut rounds, mut trace) = (0, self.trace);
            while self.owners.iter().any(|owner| !owner.upward.is_empty() || !owner.downward.is_empty()) {
                rounds = if std::mem::replace(&mut trace, self.trace) == self.trace { rounds + 1 } else { 0 };
                if rounds > ROUNDS_MAX {
                    return Err("messages chase each other while no time passes".to_owned());
                }
                for place in 0..self.owners.len() {
                    self.deliver_up(place, false)?;
                    self.deliver_down(place, false)?;
                    self.check()?;
                }
            }
            if self.owners.iter().all(|owner| owner.waiting.is_empty()) {
                return Ok(());
            }
            match self.next_timeout() {
                Some(at) if at <= end => self.now = at.max(self.now + Duration::from_nanos(1)),
                next => return Err(format!("packets wait in vain after {patience:?}; next is {next:?} of {end:?}")),
            }
            self.timeouts()?;
        }
        Err("the walk does not come to rest".to_owned())
    }
}

fn send(owners: &mut [Owner], grant: LeaseGrant) {
    owners[usize::from(grant.lease.holder.0)].downward.push_back(Downward::Grant(grant));
}
