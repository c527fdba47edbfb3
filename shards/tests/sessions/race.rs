//! Many logins of one user who has one fixed address.

use std::net::IpAddr;

use tollgate_shards::CloseReason;

use crate::world::{World, certificate, user};

const FIXED: &str = "198.18.0.9";
const LOGINS: usize = 16;

/// Lets 16 logins race on 4 shards. Returns the world with nothing under way, or at the first violation.
fn race(seed: u64, confirms_early: bool) -> World {
    let mut world = World::new(seed, 4, "198.18.0.1/24", vec![user(1, &[(FIXED, FIXED)]), user(2, &[])]);
    world.confirms_early = confirms_early;
    let address: IpAddr = FIXED.parse().unwrap();
    let mut logins = 0;
    // In some races all log in at once, in others one has the address before the next comes.
    let haste = 1 + world.random.below(60);
    while world.violation.is_none() {
        if logins < LOGINS && world.random.percent(haste) {
            let shard = world.random.below(4);
            world.login(shard, certificate(1)).unwrap();
            logins += 1;
        } else if world.random.percent(5)
            && let Some(&connection) = world.lingering().first()
        {
            world.disconnect(connection);
        } else if !world.deliver() && logins == LOGINS {
            break;
        }
        world.send_packet(address);
    }
    world.deliver_all();
    world
}

#[test]
fn a_fixed_address_has_one_holder_at_any_time_and_the_newest_login_in_the_end() {
    for seed in 0..10_000 {
        let mut world = race(seed, false);
        world.check_at_rest();
        assert_eq!(world.violation, None, "seed {seed}");
        let holders: Vec<_> = world.live().map(|owned| owned.login.connection).collect();
        assert_eq!(holders.as_slice(), &world.arrivals[LOGINS - 1..], "seed {seed}: the newest wins");
        assert!(world.closed.iter().all(|(_, reason)| *reason == CloseReason::Superseded), "seed {seed}");
        assert_eq!(world.closed.len(), LOGINS - 1);
        world.check_empty();
        assert_eq!(world.violation, None, "seed {seed}");
    }
}

/// Guards the guard: were the newcomer told before the old owner had closed its connection, the oracle of the test above would see it.
#[test]
fn two_holders_are_noticed() {
    let noticed = (0..100).filter(|&seed| race(seed, true).violation.is_some_and(|what| what.contains("both"))).count();
    assert!(noticed >= 25, "only {noticed} of 100");
}
