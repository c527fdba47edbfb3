//! Limits to a user's connections.

use std::num::NonZeroU32;

use tollgate_shards::{CloseReason, ConnectionLimit, User, WhenReached};

use crate::world::{World, certificate, user};

const LOGINS: usize = 12;

fn limited(connections_max: u32, when_reached: WhenReached, pool: &[(&str, &str)]) -> User {
    let connections_max = NonZeroU32::new(connections_max).unwrap();
    User { connection_limit: Some(ConnectionLimit { connections_max, when_reached }), ..user(1, pool) }
}

fn crowd(seed: u64, user: User) -> World {
    let mut world = World::new(seed, 3, "198.18.0.1/24", vec![user]);
    let mut logins = 0;
    loop {
        if logins < LOGINS && world.random.percent(20) {
            let shard = world.random.below(3);
            world.login(shard, certificate(1)).unwrap();
            logins += 1;
        } else if !world.deliver() && logins == LOGINS {
            break;
        }
        world.check_limits();
    }
    world.check_at_rest();
    assert_eq!(world.violation, None, "seed {seed}");
    world
}

#[test]
fn at_the_limit_new_connections_are_refused_and_old_ones_stay() {
    for seed in 0..2_000 {
        let mut world = crowd(seed, limited(3, WhenReached::RefuseNew, &[]));
        let mut left: Vec<_> = world.live().map(|owned| owned.login.connection).collect();
        let mut first = world.arrivals[..3].to_vec();
        left.sort();
        first.sort();
        assert_eq!(left, first, "seed {seed}");
        assert!(world.closed.iter().all(|(_, reason)| *reason == CloseReason::TooManyConnections));
        // A place that has come free is taken again.
        world.disconnect(left[0]);
        world.deliver_all();
        let newcomer = world.login(2, certificate(1)).unwrap();
        world.deliver_all();
        assert!(world.nodes[2].connections[&newcomer].address.is_some());
        world.check_empty();
        assert_eq!(world.violation, None, "seed {seed}");
    }
}

#[test]
fn at_the_limit_the_oldest_connections_make_room_and_leave_their_addresses() {
    // With just as many addresses as connections, newcomers can only have those of the closed ones.
    for pool in [&[("198.18.0.9", "198.18.0.11")][..], &[]] {
        for seed in 0..2_000 {
            let mut world = crowd(seed, limited(3, WhenReached::CloseOldest, pool));
            let mut left: Vec<_> = world.live().map(|owned| owned.login.connection).collect();
            let mut last = world.arrivals[LOGINS - 3..].to_vec();
            left.sort();
            last.sort();
            assert_eq!(left, last, "seed {seed}");
            assert!(world.closed.iter().all(|(_, reason)| *reason == CloseReason::Superseded), "seed {seed}");
            world.check_empty();
            assert_eq!(world.violation, None, "seed {seed}");
        }
    }
}

#[test]
fn a_lower_limit_closes_what_is_over_it() {
    for (when_reached, survivors) in [(WhenReached::RefuseNew, [0, 1]), (WhenReached::CloseOldest, [2, 3])] {
        let mut world = World::new(1, 2, "198.18.0.1/24", vec![limited(4, when_reached, &[])]);
        let connections: Vec<_> = (0..4).filter_map(|_| world.login(1, certificate(1))).collect();
        world.deliver_all();
        world.announce(vec![limited(2, when_reached, &[])]);
        world.apply_next(0);
        world.apply_next(1);
        world.deliver_all();
        let left: Vec<_> = world.live().map(|owned| owned.login.connection).collect();
        assert_eq!(left, survivors.map(|place| connections[place]));
        world.check_empty();
        assert_eq!(world.violation, None);
    }
}
