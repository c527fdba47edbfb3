use proptest::prelude::*;

use super::*;
use crate::ids::{Reconnects, Shards};
use crate::session::topology::Topology;
use crate::session::users::{AddressRange, User};
use crate::test_time;

const ALLOCATOR: ShardIndex = ShardIndex(0);
const HOME: ShardIndex = ShardIndex(1);
const TOPOLOGY: Topology = Topology::alone(Shards::alone(2));

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

fn users(pools: &[&[AddressRange]]) -> Users {
    let users = pools.iter().enumerate().map(|(index, pool)| User {
        name: format!("user{index}"),
        pool: pool.to_vec(),
        ..User::default()
    });
    Users::new(users.collect()).unwrap()
}

fn login(user: u32, credential: u8, connection: u64) -> Login {
    let connection = ConnectionKey { owner: ShardIndex(0), slot: 0, generation: connection };
    Login {
        user: UserIndex(user),
        connection,
        credential: Fingerprint([credential; 32]),
        reconnects: Reconnects::Never,
    }
}

/// An allocator on its shard.
struct Bench {
    allocator: AddressAllocator,
    context: Context,
    connections: u64,
}

impl Bench {
    fn new(tunnel: &str, pools: &[&[AddressRange]]) -> Self {
        Bench::in_incarnation(tunnel, pools, 0)
    }

    fn in_incarnation(tunnel: &str, pools: &[&[AddressRange]], incarnation: u32) -> Self {
        let users = users(pools);
        let mut allocator = AddressAllocator::new(tunnel.parse().unwrap(), &users, 4);
        if incarnation > 0 {
            allocator = allocator.recovering(incarnation, TOPOLOGY.homes());
        }
        Bench { allocator, context: Context::new(TOPOLOGY, 0, users.into(), test_time::origin()), connections: 0 }
    }

    /// A new connection of `user` asks for an address. The answer, if there is one.
    fn ask(&mut self, user: u32, credential: u8) -> Option<(Login, Result<IpAddr, Refusal>)> {
        self.connections += 1;
        let login = login(user, credential, self.connections);
        let version = self.context.version;
        self.allocator.allocate(&mut self.context, login, HOME, version);
        self.answers().pop()
    }

    fn take(&mut self, user: u32, credential: u8) -> (Login, IpAddr) {
        let (login, address) = self.ask(user, credential).unwrap();
        (login, address.unwrap())
    }

    fn answers(&mut self) -> Vec<(Login, Result<IpAddr, Refusal>)> {
        let answer = |(to, message)| match message {
            ControlMessage::AddressAllocated { login, address } => {
                assert_eq!(to, HOME);
                Some((login, address))
            }
            _ => None,
        };
        self.context.outbox.drain(..).filter_map(answer).collect()
    }

    fn release(&mut self, (login, address): (Login, IpAddr)) -> bool {
        self.allocator.release(&mut self.context, login, address)
    }

    fn hold(&mut self, (login, address): (Login, IpAddr), home: ShardIndex) -> bool {
        self.allocator.hold(&mut self.context, login, address, home)
    }

    fn apply(&mut self, pools: &[&[AddressRange]]) {
        self.context.users = users(pools).into();
        self.context.version += 1;
        self.allocator.apply(&mut self.context);
    }

    fn all(&mut self, user: u32) -> Vec<String> {
        let mut all = Vec::new();
        while let Some((_, Ok(address))) = self.ask(user, 1) {
            all.push(address.to_string());
        }
        all
    }
}

#[test]
fn the_last_tenth_is_kept_for_users_who_have_no_address() {
    let mut bench = Bench::new("198.18.0.1/24", &[&[], &[], &[]]);
    assert_eq!(bench.all(0).len(), 228, "of 253");
    assert_eq!(bench.ask(0, 1).unwrap().1, Err(Refusal::Reserved));
    let second = bench.take(1, 2);
    assert_eq!(bench.ask(1, 2).unwrap().1, Err(Refusal::Reserved), "one each");
    assert_eq!(bench.ask(0, 1).unwrap().1, Err(Refusal::Reserved), "the third has none");
    let _third = bench.take(2, 3);
    assert_eq!(bench.all(0).len(), 23, "now everybody has one");
    assert_eq!(bench.ask(0, 1).unwrap().1, Err(Refusal::Exhausted));
    assert!(bench.release(second));
    assert_eq!(bench.ask(0, 1).unwrap().1, Err(Refusal::Reserved), "even the very last");
    assert_eq!(bench.take(1, 2).1, second.1);
    assert_eq!(bench.ask(3, 4).unwrap().1, Err(Refusal::Exhausted), "nobody knows this user");
}

#[test]
fn a_released_address_is_free_again_and_goes_to_its_last_holder() {
    let mut bench = Bench::new("198.18.0.1/24", &[&[]]);
    let (first, second) = (bench.take(0, 1), bench.take(0, 2));
    assert!(bench.release(first) && bench.release(second));
    assert_eq!(bench.take(0, 2).1, second.1);
    assert_eq!(bench.take(0, 3).1, first.1);
    assert_eq!(bench.take(0, 1).1.to_string(), "198.18.0.4");
}

#[test]
fn a_connection_that_asks_twice_has_one_address() {
    let mut bench = Bench::new("198.18.0.1/24", &[&[]]);
    let first = bench.take(0, 1);
    bench.allocator.allocate(&mut bench.context, first.0, HOME, 0);
    assert_eq!(bench.answers(), [(first.0, Ok(first.1))]);
    assert_eq!(bench.allocator.held(), 1);
}

#[test]
fn a_home_moves_an_address_from_one_connection_to_another_but_not_from_another_home() {
    let mut bench = Bench::new("198.18.0.1/24", &[&[]]);
    let (_, address) = bench.take(0, 1);
    let newer = (login(0, 2, 99), address);
    assert!(!bench.hold(newer, ShardIndex(0)) && bench.hold(newer, HOME) && bench.release(newer));
    assert_eq!(bench.context.steers.pop_back(), Some(SteeringUpdate { address, owner: None }));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut bench = Bench::new("198.18.0.1/24", &[&[]]);
    for credential in 0..100 {
        let taken = bench.take(0, credential);
        bench.release(taken);
    }
    assert_eq!(bench.allocator.remembered.len(), 4);
    assert_eq!(bench.allocator.remembered_order.len(), 4);
}

#[test]
fn a_question_of_a_later_snapshot_waits_until_the_allocator_has_it() {
    let mut bench = Bench::new("198.18.0.1/29", &[&[]]);
    let (login, fixed) = (login(1, 1, 1), [range("198.18.0.5", "198.18.0.5")]);
    bench.allocator.allocate(&mut bench.context, login, HOME, 1);
    assert_eq!(bench.answers(), []);
    bench.apply(&[&[], &fixed]);
    assert_eq!(bench.answers(), [(login, Ok(fixed[0].first()))]);
}

#[test]
fn a_allocator_without_memory_answers_when_every_home_has_said_what_it_holds() {
    let mut bench = Bench::in_incarnation("198.18.0.1/29", &[&[]], 3);
    assert_eq!(bench.ask(0, 1), None);
    let held = (login(0, 9, 77), "198.18.0.2".parse().unwrap());
    assert!(bench.hold(held, HOME));
    bench.allocator.home_held(&mut bench.context, HOME, 3);
    assert_eq!(bench.answers(), []);
    bench.allocator.home_held(&mut bench.context, ALLOCATOR, 2);
    assert_eq!(bench.answers(), [], "what was said to an earlier incarnation is void");
    bench.allocator.home_held(&mut bench.context, ALLOCATOR, 3);
    let answers: Vec<_> = bench.answers().into_iter().map(|(_, address)| address.unwrap().to_string()).collect();
    assert_eq!(answers, ["198.18.0.3"]);
}

#[test]
fn what_a_home_without_memory_does_not_hold_again_is_free() {
    let mut bench = Bench::new("198.18.0.1/29", &[&[]]);
    let (kept, asked, lost) = (bench.take(0, 1), bench.take(0, 2), bench.take(0, 3));
    bench.allocator.shard_restarted(&mut bench.context, HOME);
    assert_eq!(bench.allocator.held(), 3, "nothing is free before the home has reported");
    assert!(bench.hold(kept, HOME));
    bench.allocator.allocate(&mut bench.context, asked.0, HOME, 0);
    assert_eq!(bench.answers(), [(asked.0, Ok(asked.1))], "the same address");
    bench.allocator.home_held(&mut bench.context, HOME, 0);
    assert_eq!(bench.allocator.held(), 2);
    assert_eq!(bench.take(0, 4).1, lost.1);
}

/// Time and memory depend on the ranges that the free addresses lie in, and those on how many addresses are out: the same steps on pools of 10
/// and of 16 million addresses meet the same ranges.
#[test]
fn a_larger_pool_costs_nothing() {
    let sizes = ["10.152.150.129", "10.255.255.250"];
    let [mut smaller, mut larger] = sizes.map(|last| Bench::new("10.0.0.1/8", &[&[range("10.0.0.2", last)]]));
    let mut out = Vec::new();
    for step in 0u64..2000 {
        if step % 3 < 2 {
            let taken = smaller.take(0, (step % 251) as u8);
            assert_eq!(larger.take(0, (step % 251) as u8), taken);
            out.push(taken);
        } else {
            let taken = out.swap_remove((step * 7919) as usize % out.len());
            assert!(smaller.release(taken) && larger.release(taken));
        }
        assert_eq!(smaller.allocator.free_ranges(), larger.allocator.free_ranges());
        assert!(smaller.allocator.free_ranges() <= out.len() + 2);
    }
    let mut huge = Bench::new("fd00::1/64", &[&[]]);
    assert_eq!(huge.take(0, 1).1, "fd00::2".parse::<IpAddr>().unwrap());
}

proptest! {
    #[test]
    fn no_address_is_out_twice_and_none_is_lost(
        steps in proptest::collection::vec((0u8..22, 0u32..3, 0usize..64), 1..300),
    ) {
        let pools = [
            [&[][..], &[range("198.18.0.8", "198.18.0.11")][..], &[]],
            [&[range("198.18.0.10", "198.18.0.14")][..], &[], &[range("198.18.0.20", "198.18.0.20")]],
            [&[], &[], &[range("198.18.0.6", "198.18.0.30")][..]],
        ];
        let mut bench = Bench::new("198.18.0.1/27", &pools[0]);
        let mut out: Vec<(Login, IpAddr)> = Vec::new();
        for (step, user, pick) in steps {
            match step {
                0..11 => {
                    let (login, address) = bench.ask(user, user as u8).unwrap();
                    let free = |address: &IpAddr| {
                        bench.context.users.allows(login.user, *address) && out.iter().all(|(_, held)| held != address)
                    };
                    let hosts = || (2..31).map(|host| IpAddr::from([198, 18, 0, host]));
                    let left = hosts().filter(free).count();
                    let shares = |user: u32| bench.context.users.user(UserIndex(user)).unwrap().pool.is_empty();
                    let has_one = |user: u32| out.iter().any(|(login, _)| login.user == UserIndex(user));
                    let total = hosts().filter(|&address| bench.context.users.claimant(address).is_none()).count();
                    let others_lack = (0..3).any(|other| shares(other) && !has_one(other));
                    let is_kept = shares(user) && has_one(user) && others_lack && left <= (total / 10).max(1);
                    let expected = if left == 0 {
                        Err(Refusal::Exhausted)
                    } else if is_kept {
                        Err(Refusal::Reserved)
                    } else {
                        Ok(())
                    };
                    prop_assert_eq!(address.map(|_| ()), expected);
                    if let Ok(address) = address {
                        prop_assert!(free(&address));
                        out.push((login, address));
                    }
                }
                11..19 if !out.is_empty() => {
                    let taken = out.swap_remove(pick % out.len());
                    prop_assert!(bench.release(taken) && !bench.release(taken), "once");
                }
                19 => bench.apply(&pools[pick % 3]),
                20.. if !out.is_empty() => {
                    // Another connection of the same user has it now.
                    let place = pick % out.len();
                    let (former, address) = out[place];
                    let taken = (login(former.user.0, 9, 1000 + former.connection.generation), address);
                    prop_assert!(bench.hold(taken, HOME) && bench.hold(taken, HOME) && !bench.release((former, address)));
                    out[place] = taken;
                }
                _ => {}
            }
            prop_assert_eq!(bench.allocator.held(), out.len() as u64);
        }
        out.into_iter().for_each(|taken| assert!(bench.release(taken)));
        bench.apply(&pools[0]);
        prop_assert_eq!(bench.allocator.free_ranges(), 3);
    }
}
