//! Owners that send steadily, with messages that take their time: what of the rate gets through, who gets how much, and how many messages it
//! costs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tollgate_shards::inspect::{Lease, LeaseGrant, LeaseId, LeaseIssuer, LeaseReport};
use tollgate_shards::{Limit, Rate, ShardIndex, UserIndex};

use crate::origin;

const USER: UserIndex = UserIndex(0);
const PACKET_BYTES: u64 = 1400;

/// From one shard to another, and as often does anything happen at all.
const TICK: Duration = Duration::from_micros(100);

/// What a limited user may have waiting at an owner.
const WAITING_BYTES_MAX: u64 = 512 * 1024;

struct Owner {
    lease: Lease,
    offered_bits_per_s: u64,
    packet_bytes: u64,
    /// Of a packet that is not whole yet, in bits times nanoseconds.
    fraction: u128,
    waiting_packets: u64,
    sent_bytes: u64,
    /// For how long packets waited.
    waited: Duration,
}

struct Steady {
    start: Instant,
    now: Instant,
    issuer: LeaseIssuer,
    owners: Vec<Owner>,
    reports: VecDeque<LeaseReport>,
    grants: VecDeque<LeaseGrant>,
    messages: u64,
}

impl Steady {
    fn new(bits_per_s: u64, offered_bits_per_s: &[u64]) -> Self {
        let limit = Limit::new(Rate::from_bits_per_s(bits_per_s).unwrap());
        let owners = offered_bits_per_s.iter().enumerate().map(|(place, &offered_bits_per_s)| Owner {
            lease: Lease::new(USER, LeaseId { holder: ShardIndex(place as u16), number: 1 }),
            offered_bits_per_s,
            packet_bytes: PACKET_BYTES,
            fraction: 0,
            waiting_packets: 0,
            sent_bytes: 0,
            waited: Duration::ZERO,
        });
        let start = origin();
        Steady {
            start,
            now: start,
            issuer: LeaseIssuer::full(USER, limit, start),
            owners: owners.collect(),
            reports: VecDeque::new(),
            grants: VecDeque::new(),
            messages: 0,
        }
    }

    /// Runs for `time`. Figures are of this time only.
    fn run(&mut self, time: Duration) {
        self.messages = 0;
        self.owners.iter_mut().for_each(|owner| (owner.sent_bytes, owner.waited) = (0, Duration::ZERO));
        self.start = self.now;
        while self.now < self.start + time {
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        let Steady { now, issuer, owners, reports, grants, .. } = self;
        let mut sent = Vec::new();
        for report in reports.drain(..) {
            issuer.report(*now, &report, &mut |grant| sent.push(grant));
        }
        issuer.handle_timeout(*now, &mut |grant| sent.push(grant));
        for grant in grants.drain(..) {
            owners[usize::from(grant.lease.holder.0)].lease.handle_grant(&grant);
        }
        grants.extend(sent);
        for owner in owners {
            reports.extend(owner.tick(*now));
        }
        self.messages += (self.reports.len() + self.grants.len()) as u64;
    }

    fn sent_bytes(&self) -> u64 {
        self.owners.iter().map(|owner| owner.sent_bytes).sum()
    }

    /// Of what the rate allows in the time of the last run.
    fn share_of_rate(&self) -> f64 {
        let allowed = self.issuer.limit().rate.bits_per_s() as f64 * self.time().as_secs_f64() / 8.0;
        self.sent_bytes() as f64 / allowed
    }

    /// How long the last run took.
    fn time(&self) -> Duration {
        self.now - self.start
    }
}

impl Owner {
    fn tick(&mut self, now: Instant) -> Option<LeaseReport> {
        let packet = u128::from(self.packet_bytes) * 8_000_000_000;
        self.fraction += u128::from(self.offered_bits_per_s) * TICK.as_nanos();
        self.waiting_packets += (self.fraction / packet) as u64;
        self.fraction %= packet;
        self.waiting_packets = self.waiting_packets.min(WAITING_BYTES_MAX / self.packet_bytes);
        while self.waiting_packets > 0 && self.lease.spend(self.packet_bytes) {
            self.waiting_packets -= 1;
            self.sent_bytes += self.packet_bytes;
        }
        if self.waiting_packets > 0 {
            self.waited += TICK;
        }
        let head_bytes = if self.waiting_packets > 0 { self.packet_bytes } else { 0 };
        self.lease.poll_report(now, self.waiting_packets * self.packet_bytes, head_bytes)
    }
}

#[test]
fn a_fast_user_below_the_limit_needs_few_messages_and_no_packet_waits_for_one() {
    let mut steady = Steady::new(10_000_000_000, &[5_000_000_000]);
    // Until leases have grown.
    steady.run(Duration::from_millis(20));
    steady.run(Duration::from_secs(1));
    assert_eq!(steady.owners[0].waited, Duration::ZERO);
    assert!((0.4999..0.5001).contains(&steady.share_of_rate()), "{}", steady.share_of_rate());
    assert!(steady.messages < steady.sent_bytes() / 1_000_000, "{} messages", steady.messages);
}

#[test]
fn at_the_limit_owners_share_all_of_the_rate_alike() {
    for (rate, owners, secs) in [(64_000, 8, 100), (80_000_000, 4, 10), (80_000_000, 8, 10), (5_000_000_000, 8, 2)] {
        let mut steady = Steady::new(rate, &vec![rate; owners]);
        // The burst is gone then.
        steady.run(Duration::from_secs(10));
        steady.run(Duration::from_secs(secs));
        let share = steady.share_of_rate();
        assert!((0.995..1.005).contains(&share), "{rate} over {owners}: {share}");
        let mean_bytes = steady.sent_bytes() / owners as u64;
        for owner in &steady.owners {
            assert!(owner.sent_bytes.abs_diff(mean_bytes) <= mean_bytes / 50, "{} of {mean_bytes}", owner.sent_bytes);
        }
        // Each millisecond somebody asks, is granted, is recalled because somebody else waits, and answers.
        let messages_max = steady.time().as_millis() as u64 * 5;
        assert!(steady.messages <= messages_max, "{rate} over {owners}: {} messages", steady.messages);
    }
}

#[test]
fn a_small_flow_beside_bulk_on_another_shard_gets_all_it_asks_for_and_soon() {
    let mut steady = Steady::new(80_000_000, &[160_000_000, 1_000_000]);
    steady.run(Duration::from_secs(2));
    steady.run(Duration::from_secs(2));
    let share = steady.share_of_rate();
    assert!((0.995..1.005).contains(&share), "{share}");
    let small = &steady.owners[1];
    assert!(small.sent_bytes.abs_diff(250_000) < 2 * PACKET_BYTES, "{}", small.sent_bytes);
    let packets = (small.sent_bytes / PACKET_BYTES) as u32;
    assert!(small.waited < packets * Duration::from_millis(2), "{:?} over {packets} packets", small.waited);
}

#[test]
fn owners_share_alike_whatever_the_length_of_their_packets() {
    for (rate, packet_bytes) in [(20_000_000, 100), (1_000_000, 100), (1_000_000, 60)] {
        let mut steady = Steady::new(rate, &[rate; 2]);
        steady.owners[1].packet_bytes = packet_bytes;
        steady.run(Duration::from_secs(10));
        steady.run(Duration::from_secs(10));
        let [first, second] = [0, 1].map(|place| steady.owners[place].sent_bytes);
        assert!(steady.share_of_rate() > 0.97, "{rate}, {packet_bytes}: {first}, {second}");
        assert!(first.abs_diff(second) < (first + second) / 20, "{rate}, {packet_bytes}: {first}, {second}");
    }
}
