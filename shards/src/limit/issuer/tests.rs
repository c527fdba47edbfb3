use std::time::Duration;

use super::*;
use crate::limit::lease::Lease;
use crate::limit::rate::Rate;
use crate::test_time::origin;

const USER: UserIndex = UserIndex(7);
const A: LeaseId = LeaseId { holder: ShardIndex(0), number: 1 };
const B: LeaseId = LeaseId { holder: ShardIndex(1), number: 1 };
const PACKET: u64 = 1500;

fn limit(bits_per_s: u64) -> Limit {
    Limit::new(Rate::from_bits_per_s(bits_per_s).unwrap())
}

/// A issuer, its grants, and the oracle after every call.
struct Bench {
    issuer: LeaseIssuer,
    now: Instant,
    grants: VecDeque<LeaseGrant>,
}

impl Bench {
    fn full(limit: Limit) -> Self {
        let now = origin();
        Bench { issuer: LeaseIssuer::full(USER, limit, now), now, grants: VecDeque::new() }
    }

    fn empty(limit: Limit) -> Self {
        let now = origin();
        Bench { issuer: LeaseIssuer::empty(USER, limit, now), now, grants: VecDeque::new() }
    }

    fn with(&mut self, act: impl FnOnce(&mut LeaseIssuer, Instant, &mut dyn FnMut(LeaseGrant))) {
        let Bench { issuer, now, grants } = self;
        act(issuer, *now, &mut |grant| grants.push_back(grant));
        let audit = self.issuer.audit();
        assert!(audit.is_conserved() && audit.is_within_burst(), "{audit:?}");
    }

    fn report(&mut self, report: LeaseReport) {
        self.with(|issuer, now, mut grant| issuer.report(now, &report, &mut grant));
    }

    fn close(&mut self, lease: LeaseId, spent_bytes: u64) {
        let close = LeaseClose { user: USER, lease, spent_bytes };
        self.with(|issuer, now, mut grant| issuer.close(now, &close, &mut grant));
    }

    fn holder_lost(&mut self, shard: ShardIndex) {
        self.with(|issuer, now, mut grant| issuer.holder_lost(now, shard, &mut grant));
    }

    fn set_limit(&mut self, limit: Limit) {
        self.with(|issuer, now, mut grant| issuer.set_limit(now, limit, &mut grant));
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.with(|issuer, now, mut grant| issuer.handle_timeout(now, &mut grant));
    }

    /// The only grant there is: of which lease, how much in all, and whether it recalls.
    fn grant(&mut self) -> (LeaseId, u64, bool) {
        let grant = self.grants.pop_front().expect("a grant");
        assert!(self.grants.is_empty(), "more than one grant");
        assert_eq!(grant.user, USER);
        (grant.lease, grant.granted_bytes, grant.recall)
    }

    /// Who has been granted tokens.
    fn served(&mut self) -> Vec<LeaseId> {
        self.grants.drain(..).filter(|grant| !grant.recall).map(|grant| grant.lease).collect()
    }

    /// When the first request is due, from now.
    fn due(&self) -> Duration {
        self.issuer.poll_timeout().expect("somebody waits") - self.now
    }
}

/// Packets wait for so much, and so much at least; nothing has been granted so far.
fn wants(lease: LeaseId, wanted_bytes: u64, least_bytes: u64) -> LeaseReport {
    LeaseReport { user: USER, lease, granted_bytes: 0, spent_bytes: 0, returned_bytes: 0, wanted_bytes, least_bytes }
}

#[test]
fn a_lease_is_no_more_than_is_wanted_nor_than_five_milliseconds_of_the_rate_or_a_few_packets() {
    for (bits_per_s, wanted_bytes, lent_bytes) in [
        (80_000_000, u64::MAX, 50_000),
        (100_000_000_000, u64::MAX, 62_500_000),
        (80_000_000, 2_000, 2_000),
        (1_000, u64::MAX, LEASE_BYTES_MIN),
    ] {
        let mut bench = Bench::full(limit(bits_per_s));
        bench.report(wants(A, wanted_bytes, PACKET));
        assert_eq!(bench.grant(), (A, lent_bytes, false));
    }
}

#[test]
fn a_packet_of_a_slow_user_goes_in_the_nanosecond_in_which_its_tokens_are_there() {
    let mut bench = Bench::empty(limit(1_000));
    bench.report(wants(A, 10 * PACKET, PACKET));
    assert_eq!(bench.due(), Duration::from_secs(12));
    bench.wait(Duration::from_nanos(11_999_999_999));
    assert!(bench.grants.is_empty());
    bench.wait(Duration::from_nanos(1));
    assert_eq!(bench.grant(), (A, PACKET, false));
    assert_eq!(bench.issuer.poll_timeout(), None);
}

#[test]
fn who_wants_much_waits_for_a_millisecond_of_the_rate_and_not_for_a_packet() {
    let mut bench = Bench::empty(limit(100_000_000_000));
    bench.report(wants(A, u64::MAX, PACKET));
    assert_eq!(bench.due(), Duration::from_millis(1));
    bench.wait(Duration::from_millis(1));
    assert_eq!(bench.grant(), (A, 12_500_000, false));
}

#[test]
fn requests_are_served_in_turn_and_a_repeated_one_keeps_its_place() {
    let mut bench = Bench::empty(limit(80_000));
    bench.report(wants(A, PACKET, PACKET));
    bench.report(wants(B, PACKET, PACKET));
    bench.report(wants(A, PACKET, PACKET));
    bench.wait(Duration::from_millis(150));
    assert_eq!(bench.served(), [A]);
    bench.wait(Duration::from_millis(150));
    assert_eq!(bench.served(), [B]);
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.served(), [], "one request a holder");
}

#[test]
fn who_wants_little_goes_before_one_who_has_been_granted_much() {
    let mut bench = Bench::empty(limit(80_000));
    bench.report(wants(A, PACKET, PACKET));
    bench.wait(Duration::from_millis(150));
    assert_eq!(bench.served(), [A]);
    bench.report(LeaseReport { granted_bytes: PACKET, spent_bytes: PACKET, ..wants(A, PACKET, PACKET) });
    bench.report(wants(B, 100, 100));
    bench.wait(Duration::from_millis(10));
    assert_eq!(bench.served(), [B]);
    bench.wait(Duration::from_millis(150));
    assert_eq!(bench.served(), [A]);
}

#[test]
fn a_request_above_the_burst_is_served_with_the_burst() {
    let mut bench = Bench::empty(Limit { rate: Rate::from_bits_per_s(8_000).unwrap(), burst_bytes: 1_000 });
    bench.report(wants(A, 4_000, 4_000));
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.grant(), (A, 1_000, false));
}

#[test]
fn tokens_parked_at_an_idle_holder_serve_another_after_one_recall() {
    let mut bench = Bench::full(limit(1_000));
    let (mut idle, mut busy) = (Lease::new(USER, A), Lease::new(USER, B));
    // One takes what the bucket holds, bit by bit.
    while bench.issuer.audit().bucket_units > 0 {
        let granted_bytes = idle.totals.granted_bytes;
        bench.report(LeaseReport { granted_bytes, ..wants(A, LEASE_BYTES_MIN, PACKET) });
        idle.handle_grant(&bench.grants.pop_front().unwrap());
    }
    bench.wait(RECALL_PAUSE);
    assert_eq!(idle.available_bytes(), 65_536);
    bench.report(busy.poll_report(bench.now, PACKET, PACKET).unwrap());
    let recall = bench.grants.pop_front().unwrap();
    assert_eq!((recall.lease, recall.recall), (A, true));
    assert_eq!(bench.issuer.poll_timeout(), None, "nothing is minted before something comes back");
    assert!(bench.grants.is_empty(), "one recall");
    idle.handle_grant(&recall);
    bench.report(idle.poll_report(bench.now, 0, 0).unwrap());
    busy.handle_grant(&bench.grants.pop_front().unwrap());
    assert!(busy.spend(PACKET));
    assert_eq!(idle.available_bytes(), 0);
    assert_eq!(bench.issuer.audit().bucket_units, units(65_536 - PACKET));
}

#[test]
fn who_asks_before_a_packet_waits_gives_its_tokens_to_one_whose_packets_do() {
    let mut bench = Bench::full(Limit { rate: Rate::from_bits_per_s(1_000).unwrap(), burst_bytes: 4_000 });
    bench.report(wants(A, 4_000, PACKET));
    assert_eq!(bench.grant(), (A, 4_000, false));
    // It has more than a packet's worth, and would like more still.
    bench.report(LeaseReport { granted_bytes: 4_000, spent_bytes: 2_500, ..wants(A, 4_000, 1) });
    bench.wait(RECALL_PAUSE);
    bench.report(wants(B, PACKET, PACKET));
    assert_eq!(bench.grant(), (A, 4_000, true));
    bench.report(LeaseReport { granted_bytes: 4_000, spent_bytes: 2_500, returned_bytes: 1_500, ..wants(A, 0, 0) });
    assert_eq!(bench.grant(), (B, PACKET, false));
}

#[test]
fn those_whose_packets_wait_are_recalled_only_when_nobody_can_be_served_otherwise() {
    for (burst_bytes, is_stuck) in [(65_536, false), (2_200, true)] {
        let mut bench = Bench::empty(Limit { rate: Rate::from_bits_per_s(1_000).unwrap(), burst_bytes });
        bench.wait(Duration::from_secs(16));
        bench.report(wants(A, 1_000, 1_000));
        bench.report(wants(B, 1_000, 1_000));
        assert_eq!(bench.served(), [A, B]);
        // Both hold a part of what their next packet takes.
        bench.report(LeaseReport { granted_bytes: 1_000, ..wants(A, 500, 500) });
        bench.report(LeaseReport { granted_bytes: 1_000, ..wants(B, 500, 500) });
        assert!(bench.grants.is_empty(), "what was granted last may not have arrived");
        bench.wait(RECALL_PAUSE);
        assert_eq!(bench.issuer.poll_timeout().is_none(), is_stuck);
        assert_eq!(bench.grants.iter().any(|grant| grant.recall), is_stuck);
    }
}

#[test]
fn a_recall_is_repeated_with_the_request_and_not_before() {
    let mut bench = Bench::full(limit(8_000));
    for granted_bytes in (0..65_536).step_by(4_096) {
        bench.report(LeaseReport { granted_bytes, ..wants(A, 4_096, PACKET) });
    }
    bench.grants.clear();
    bench.report(wants(B, PACKET, PACKET));
    assert_eq!(bench.due(), RECALL_PAUSE);
    bench.wait(RECALL_PAUSE);
    assert_eq!(bench.grant(), (A, 65_536, true));
    // What it said before it heard of that changes nothing.
    bench.report(LeaseReport { granted_bytes: 65_536, ..wants(A, 0, 0) });
    bench.wait(RECALL_AGAIN / 2);
    bench.report(wants(B, PACKET, PACKET));
    assert!(bench.grants.is_empty());
    bench.wait(RECALL_AGAIN / 2);
    bench.report(wants(B, PACKET, PACKET));
    assert_eq!(bench.grant(), (A, 65_536, true));
}

#[test]
fn the_remainder_of_a_closed_lease_comes_back() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(wants(A, 50_000, PACKET));
    bench.close(A, 20_000);
    let audit = bench.issuer.audit();
    assert_eq!((audit.bucket_units, audit.spent_bytes, audit.outstanding_bytes), (units(9_980_000), 20_000, 0));
    bench.close(A, 50_000);
    assert_eq!(bench.issuer.audit(), audit, "only once");
}

#[test]
fn what_a_dead_holder_held_expires() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(wants(A, 50_000, PACKET));
    bench.report(LeaseReport { granted_bytes: 50_000, spent_bytes: 20_000, ..wants(A, 0, 0) });
    bench.holder_lost(A.holder);
    let audit = bench.issuer.audit();
    assert_eq!((audit.bucket_units, audit.expired_units), (units(9_950_000), units(30_000)));
    assert_eq!(bench.issuer.leases().count(), 0);
}

#[test]
fn nobody_is_served_for_a_dead_holder() {
    let mut bench = Bench::empty(limit(80_000));
    bench.report(wants(A, PACKET, PACKET));
    bench.report(wants(B, PACKET, PACKET));
    bench.holder_lost(A.holder);
    bench.wait(bench.due());
    assert_eq!(bench.grant(), (B, PACKET, false));
}

#[test]
fn a_new_lease_of_a_holder_ends_the_one_before() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(wants(A, 50_000, PACKET));
    bench.grants.clear();
    let next = LeaseId { number: 2, ..A };
    bench.report(wants(next, PACKET, PACKET));
    assert_eq!(bench.grant(), (next, PACKET, false));
    let audit = bench.issuer.audit();
    assert_eq!((audit.outstanding_bytes, audit.expired_units), (PACKET, units(50_000)));
    // What the old one may still have to say changes nothing.
    bench.report(LeaseReport { granted_bytes: 50_000, spent_bytes: 10_000, ..wants(A, PACKET, PACKET) });
    bench.close(A, 10_000);
    assert!(bench.grants.is_empty());
    assert_eq!(bench.issuer.audit(), audit);
}

#[test]
fn a_lease_of_another_ledger_is_none_of_this_one() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(LeaseReport { granted_bytes: 9_000, spent_bytes: 3_000, ..wants(A, PACKET, PACKET) });
    assert!(bench.grants.is_empty());
    assert_eq!(bench.issuer.leases().count(), 0);
}

#[test]
fn an_older_report_that_comes_late_changes_no_count() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(wants(A, 50_000, PACKET));
    let new = LeaseReport { granted_bytes: 50_000, spent_bytes: 20_000, returned_bytes: 5_000, ..wants(A, 0, 0) };
    bench.report(new);
    let audit = bench.issuer.audit();
    bench.report(LeaseReport { spent_bytes: 10_000, returned_bytes: 0, ..new });
    assert_eq!(bench.issuer.audit(), audit);
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "more accounted for than granted"))]
fn more_settled_than_granted_is_a_bug_of_ours_that_mints_nothing() {
    let mut bench = Bench::full(limit(80_000_000));
    bench.report(wants(A, 50_000, PACKET));
    bench.report(LeaseReport { granted_bytes: 50_000, spent_bytes: 40_000, returned_bytes: 30_000, ..wants(A, 0, 0) });
    assert_eq!(bench.issuer.audit().bucket_units, units(9_960_000));
}

#[test]
fn another_limit_holds_from_its_time_on() {
    let mut bench = Bench::empty(limit(80_000_000));
    bench.now += Duration::from_millis(100);
    bench.set_limit(limit(8_000_000));
    assert_eq!(bench.issuer.audit().bucket_units, units(1_000_000), "minted at the rate before");
    bench.set_limit(limit(800_000));
    let audit = bench.issuer.audit();
    assert_eq!((audit.bucket_units, audit.expired_units), (units(100_000), units(900_000)));
}

#[test]
fn a_waiting_request_is_served_when_the_limit_is_raised() {
    let mut bench = Bench::empty(limit(1_000));
    bench.report(wants(A, PACKET, PACKET));
    bench.set_limit(limit(1_200_000));
    assert_eq!(bench.due(), Duration::from_millis(10));
}

#[test]
fn a_ledger_is_full_again_only_when_a_new_one_would_hold_no_more() {
    let mut bench = Bench::full(limit(80_000_000));
    assert!(bench.issuer.full_at().is_some_and(|at| at <= bench.now));
    bench.report(wants(A, 50_000, PACKET));
    assert_eq!(bench.issuer.full_at(), None);
    bench.close(A, 20_000);
    assert_eq!(bench.issuer.full_at(), Some(bench.now + Duration::from_millis(2)));
}

#[test]
fn an_empty_ledger_may_begin_to_mint_later() {
    let now = origin();
    let since = now + Duration::from_secs(1);
    let issuer = LeaseIssuer::empty(USER, limit(80_000), since);
    let mut bench = Bench { issuer, now, grants: VecDeque::new() };
    bench.report(wants(A, PACKET, PACKET));
    assert_eq!(bench.due(), Duration::from_millis(1_150));
    bench.wait(Duration::from_millis(1_149));
    assert!(bench.grants.is_empty());
    bench.wait(Duration::from_millis(1));
    assert_eq!(bench.grant(), (A, PACKET, false));
}
