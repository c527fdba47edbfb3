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

#[test]
fn a_user_over_quota_is_closed_on_every_shard_and_refused_until_there_is_more() {
    for seed in 0..200 {
        let over = || vec![User { is_over_quota: true, ..user(1, &[]) }, user(2, &[])];
        let mut model = Model::new(seed, 3, "198.18.0.1/24", vec![user(1, &[]), user(2, &[])]);
        let of_first: Vec<_> = (0..3).filter_map(|shard| model.login(shard, credential(1))).collect();
        let of_second = model.login(0, credential(2)).unwrap();
        if seed % 2 == 0 {
            model.deliver_all();
        }
        model.announce(over());
        for shard in [(seed % 3) as usize, ((seed + 1) % 3) as usize, ((seed + 2) % 3) as usize] {
            model.apply_next(shard);
            (0..seed % 7).for_each(|_| _ = model.deliver());
        }
        model.deliver_all();
        let left = |model: &Model| model.live().map(|owned| owned.login.connection).collect::<Vec<_>>();
        assert_eq!(left(&model), [of_second], "seed {seed}");
        let late = model.login(1, credential(1)).unwrap();
        model.deliver_all();
        let closed = of_first.iter().chain([&late]);
        let all_for_that = closed.into_iter().all(|one| model.closed.contains(&(*one, CloseReason::OverQuota)));
        assert!(all_for_that && left(&model) == [of_second], "seed {seed}: {:?}", model.closed);
        model.announce(vec![user(1, &[]), user(2, &[])]);
        (0..3).for_each(|shard| model.apply_next(shard));
        let again = model.login(1, credential(1)).unwrap();
        model.deliver_all();
        assert!(model.nodes[1].connections[&again].address.is_some(), "seed {seed}");
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}
