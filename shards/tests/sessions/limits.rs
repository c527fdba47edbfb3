//! Limits to a user's connections.

use std::num::NonZeroU32;

use rand::RngExt as _;
use tollgate_shards::{CloseReason, ConnectionLimit, User, WhenReached};

use crate::model::{Model, credential, user};

const LOGINS: usize = 12;

fn limited(connections_max: u32, when_reached: WhenReached, pool: &[(&str, &str)]) -> User {
    let connections_max = NonZeroU32::new(connections_max).unwrap();
    User { connection_limit: Some(ConnectionLimit { connections_max, when_reached }), ..user(1, pool) }
}

fn crowd(seed: u64, user: User) -> Model {
    let mut model = Model::new(seed, 3, "198.18.0.1/24", vec![user]);
    let mut logins = 0;
    loop {
        if logins < LOGINS && model.random.random_ratio(20, 100) {
            let shard = model.random.random_range(0..3);
            model.login(shard, credential(1)).unwrap();
            logins += 1;
        } else if !model.deliver() && logins == LOGINS {
            break;
        }
        model.check_limits();
    }
    model.check_at_rest();
    assert_eq!(model.violation, None, "seed {seed}");
    model
}

#[test]
fn at_the_limit_new_connections_are_refused_and_old_ones_stay() {
    for seed in 0..2_000 {
        let mut model = crowd(seed, limited(3, WhenReached::RefuseNew, &[]));
        let mut left: Vec<_> = model.live().map(|owned| owned.login.connection).collect();
        let mut first = model.arrivals[..3].to_vec();
        left.sort();
        first.sort();
        assert_eq!(left, first, "seed {seed}");
        assert!(model.closed.iter().all(|(_, reason)| *reason == CloseReason::TooManyConnections));
        // A place that has come free is taken again.
        model.disconnect(left[0]);
        model.deliver_all();
        let newcomer = model.login(2, credential(1)).unwrap();
        model.deliver_all();
        assert!(model.nodes[2].connections[&newcomer].address.is_some());
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}

#[test]
fn at_the_limit_the_oldest_connections_make_room_and_leave_their_addresses() {
    // With just as many addresses as connections, newcomers can only have those of the closed ones.
    for pool in [&[("198.18.0.9", "198.18.0.11")][..], &[]] {
        for seed in 0..2_000 {
            let mut model = crowd(seed, limited(3, WhenReached::CloseOldest, pool));
            let mut left: Vec<_> = model.live().map(|owned| owned.login.connection).collect();
            let mut last = model.arrivals[LOGINS - 3..].to_vec();
            left.sort();
            last.sort();
            assert_eq!(left, last, "seed {seed}");
            assert!(model.closed.iter().all(|(_, reason)| *reason == CloseReason::Superseded), "seed {seed}");
            model.check_empty();
            assert_eq!(model.violation, None, "seed {seed}");
        }
    }
}

#[test]
fn a_lower_limit_closes_what_is_over_it() {
    for (when_reached, survivors) in [(WhenReached::RefuseNew, [0, 1]), (WhenReached::CloseOldest, [2, 3])] {
        let mut model = Model::new(1, 2, "198.18.0.1/24", vec![limited(4, when_reached, &[])]);
        let connections: Vec<_> = (0..4).filter_map(|_| model.login(1, credential(1))).collect();
        model.deliver_all();
        model.announce(vec![limited(2, when_reached, &[])]);
        model.apply_next(0);
        model.apply_next(1);
        model.deliver_all();
        let left: Vec<_> = model.live().map(|owned| owned.login.connection).collect();
        assert_eq!(left, survivors.map(|place| connections[place]));
        model.check_empty();
        assert_eq!(model.violation, None);
    }
}
