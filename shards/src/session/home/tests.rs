use std::time::Duration;

use super::*;
use crate::ids::{Fingerprint, Reconnects};
use crate::limit::lease::{LeaseGrant, LeaseId};
use crate::limit::rate::{BURST_BYTES_MIN, Limit, Rate};
use crate::session::users::{AddressRange, User, Users};
use crate::test_time;

/// Of the home. The only other shard, which is owner and allocator, is 0.
const HERE: ShardIndex = ShardIndex(1);
const ALLOCATOR: ShardIndex = ShardIndex(0);
const TOPOLOGY: Topology = Topology::alone(Shards::alone(2));
const USER: UserIndex = UserIndex(0);
const BITS_PER_S: u64 = 80_000;

fn limit() -> Limit {
    Limit::new(Rate::from_bits_per_s(BITS_PER_S).unwrap())
}

fn user(limit: Option<Limit>) -> User {
    User { name: "alice".to_owned(), credentials: vec![Fingerprint([1; 32])], limit, ..User::default() }
}

fn users(limit: Option<Limit>) -> Users {
    Users::new(vec![user(limit)]).unwrap()
}

struct Bench {
    home: SessionHome,
    context: Context,
}

impl Bench {
    fn new(limit: Option<Limit>, incarnation: u32) -> Self {
        let now = test_time::origin();
        let context = Context::new(TOPOLOGY, 0, users(limit).into(), now);
        Bench { home: SessionHome::new(HERE, TOPOLOGY, incarnation, now), context }
    }

    fn attach(&mut self, number: u64, address: Option<IpAddr>) -> Login {
        let connection = ConnectionKey { owner: ALLOCATOR, slot: 0, generation: number };
        let login = Login { user: USER, connection, credential: Fingerprint([1; 32]), reconnects: Reconnects::Never };
        self.home.attach(&mut self.context, login, 0, address, Duration::ZERO);
        login
    }

    fn detach(&mut self, login: Login) {
        self.home.detach(&mut self.context, login.user, login.connection);
    }

    fn apply(&mut self, limit: Option<Limit>) {
        self.context.users = users(limit).into();
        self.context.version += 1;
        self.home.apply(&mut self.context);
    }

    /// An owner of a new lease wants so many bytes.
    fn report(&mut self, number: u64, spent_bytes: u64, wanted_bytes: u64) -> Vec<LeaseGrant> {
        let report = LeaseReport {
            user: USER,
            lease: LeaseId { holder: ALLOCATOR, number },
            granted_bytes: spent_bytes,
            spent_bytes,
            returned_bytes: 0,
            wanted_bytes,
            least_bytes: wanted_bytes.min(1),
        };
        self.home.report_lease(&mut self.context, &report);
        self.grants()
    }

    fn close_lease(&mut self, number: u64, spent_bytes: u64) {
        let close = LeaseClose { user: USER, lease: LeaseId { holder: ALLOCATOR, number }, spent_bytes };
        self.home.close_lease(&mut self.context, &close);
    }

    fn messages(&mut self) -> Vec<ControlMessage> {
        self.context.outbox.drain(..).filter(|(to, _)| *to != HERE).map(|(_, message)| message).collect()
    }

    fn grants(&mut self) -> Vec<LeaseGrant> {
        let grant = |message| match message {
            ControlMessage::Tokens(grant) => Some(grant),
            _ => None,
        };
        self.messages().into_iter().filter_map(grant).collect()
    }

    fn sleep(&mut self, time: Duration) {
        self.context.now += time;
        self.home.handle_timeout(&mut self.context);
    }

    fn counts(&self) -> (usize, usize, usize) {
        (self.home.connections(), self.home.users(), self.home.sessions().count())
    }
}

#[test]
fn reconnecting_does_not_refill_a_burst() {
    let mut bench = Bench::new(Some(limit()), 0);
    let mut spent = 0;
    // Five connections in turn spend all that they get within no time.
    for number in 1..=5 {
        let login = bench.attach(number, None);
        bench.home.address_allocated(&mut bench.context, login, Ok("198.18.0.2".parse().unwrap()));
        let mut granted = 0;
        while let Some(grant) = bench.report(number, granted, BURST_BYTES_MIN).pop() {
            granted = grant.granted_bytes;
        }
        spent += granted;
        bench.close_lease(number, granted);
        bench.detach(login);
        assert_eq!(bench.counts(), (0, 0, 1), "the session is kept");
        bench.messages();
    }
    assert!(spent <= BURST_BYTES_MIN && spent > BURST_BYTES_MIN - 4096, "{spent}");
    assert!(bench.home.sessions().all(|(_, session)| session.issuer().unwrap().audit().is_conserved()));
    // It is forgotten when its bucket is full, and not before.
    let full = Duration::from_nanos(BURST_BYTES_MIN * 8_000_000_000 / BITS_PER_S);
    bench.sleep(full - Duration::from_secs(1));
    assert_eq!(bench.counts(), (0, 0, 1));
    assert!(bench.home.poll_timeout().unwrap() <= bench.context.now + Duration::from_secs(1));
    bench.sleep(Duration::from_secs(1));
    assert_eq!((bench.counts(), bench.home.poll_timeout()), ((0, 0, 0), None));
}

#[test]
fn a_home_without_memory_grants_what_comes_after_everybody_has_spoken_and_no_burst() {
    let mut bench = Bench::new(Some(limit()), 1);
    bench.sleep(Duration::from_secs(1));
    let login = bench.attach(1, Some("198.18.0.2".parse().unwrap()));
    assert!(bench.home.is_recovering());
    bench.home.reattached(&mut bench.context, ALLOCATOR, 0, 1);
    assert!(!bench.home.is_recovering());
    // Until now an owner may have spent what an earlier home had lent it.
    assert_eq!(bench.report(1, 0, u64::MAX), []);
    bench.sleep(Duration::from_secs(1));
    let granted = bench.report(1, 0, u64::MAX).pop().unwrap().granted_bytes;
    assert!(granted > 0 && granted <= BITS_PER_S / 8, "{granted}");
    // A lease that was granted by the home before is not this one's.
    assert_eq!(bench.report(2, 5000, 1000), []);
    bench.close_lease(1, granted);
    bench.detach(login);
    assert_eq!(bench.counts(), (0, 0, 1), "the bucket is not full");
}

#[test]
fn a_home_without_memory_asks_for_no_address_before_everybody_has_spoken() {
    let mut bench = Bench::new(None, 2);
    let resumed = bench.attach(1, Some("198.18.0.2".parse().unwrap()));
    let newcomer = bench.attach(2, None);
    let messages = bench.messages();
    assert!(matches!(messages[..], [ControlMessage::HoldAddress { login, .. }] if login == resumed), "{messages:?}");
    bench.home.reattached(&mut bench.context, ALLOCATOR, 7, 1);
    assert!(bench.home.is_recovering(), "that was for an earlier incarnation");
    bench.home.reattached(&mut bench.context, ALLOCATOR, 7, 2);
    let messages = bench.messages();
    assert!(
        matches!(
            messages[..],
            [ControlMessage::AllocateAddress { login, .. }, ControlMessage::Held { allocator_incarnation: 7, .. }] if login == newcomer
        ),
        "{messages:?}"
    );
}

#[test]
fn limits_come_change_and_go_with_the_snapshot() {
    let mut bench = Bench::new(None, 0);
    let login = bench.attach(1, None);
    let bits = |bench: &Bench| {
        let session = bench.home.sessions().next().unwrap().1;
        session.issuer().map(|issuer| issuer.limit().rate.bits_per_s())
    };
    assert_eq!(bits(&bench), None);
    bench.apply(Some(limit()));
    assert_eq!(bits(&bench), Some(BITS_PER_S));
    assert!(!bench.report(1, 0, 1000).is_empty());
    bench.apply(Some(Limit::new(Rate::from_bits_per_s(9000).unwrap())));
    assert_eq!(bits(&bench), Some(9000));
    bench.apply(None);
    assert_eq!(bits(&bench), None);
    assert_eq!(bench.report(1, 0, 1000), []);
    bench.detach(login);
    bench.home.address_allocated(&mut bench.context, login, Err(Refusal::Exhausted));
    assert_eq!(bench.counts(), (0, 0, 0));
}

#[test]
fn whoever_waits_gets_the_address_of_a_closed_connection_only_if_it_is_still_allowed() {
    let [before, after]: [IpAddr; 2] = ["198.18.0.2", "198.18.0.3"].map(|address| address.parse().unwrap());
    let fixed = |address| {
        let pool = vec![AddressRange::new(address, address).unwrap()];
        Users::new(vec![User { pool, ..user(None) }]).unwrap().into()
    };
    for allowed in [before, after] {
        let mut bench = Bench::new(None, 0);
        bench.context.users = fixed(before);
        let older = bench.attach(1, None);
        bench.home.address_allocated(&mut bench.context, older, Ok(before));
        let newer = bench.attach(2, None);
        bench.home.address_allocated(&mut bench.context, newer, Err(Refusal::Exhausted));
        bench.context.users = fixed(allowed);
        bench.context.version += 1;
        bench.home.apply(&mut bench.context);
        bench.messages();
        bench.detach(older);
        let (mut is_admitted, mut asks) = (false, false);
        for message in bench.messages() {
            is_admitted |=
                matches!(message, ControlMessage::Admit { connection, .. } if connection == newer.connection);
            asks |= matches!(message, ControlMessage::AllocateAddress { login, .. } if login == newer);
        }
        assert_eq!((is_admitted, asks), (allowed == before, allowed == after));
    }
}

#[test]
fn what_nobody_knows_changes_nothing() {
    let mut bench = Bench::new(Some(limit()), 0);
    let connection = ConnectionKey { owner: ALLOCATOR, slot: 0, generation: 1 };
    let login =
        Login { user: UserIndex(77), connection, credential: Fingerprint([9; 32]), reconnects: Reconnects::Never };
    bench.detach(login);
    assert_eq!(bench.report(1, 0, 1000), []);
    bench.close_lease(1, 0);
    bench.home.address_allocated(&mut bench.context, login, Err(Refusal::Exhausted));
    bench.home.reattached(&mut bench.context, ALLOCATOR, 0, 0);
    assert!(bench.messages().is_empty());
    assert_eq!((bench.counts(), bench.home.poll_timeout()), ((0, 0, 0), None));
}

#[test]
fn the_same_login_twice_is_one_connection() {
    let mut bench = Bench::new(None, 0);
    bench.attach(1, None);
    assert_eq!(bench.messages().len(), 1);
    bench.attach(1, None);
    assert!(bench.messages().is_empty());
    assert_eq!(bench.counts(), (1, 1, 1));
}
