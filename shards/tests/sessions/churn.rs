//! Connections that come and go.

use std::collections::BTreeSet;

use rand::RngExt as _;
use tollgate_shards::{CloseReason, ConnectionKey, User};

use crate::model::{Model, credential, user};

fn live(model: &Model) -> Vec<ConnectionKey> {
    model.live().map(|owned| owned.login.connection).collect()
}

/// Free addresses lie in no more ranges than there are addresses out, and one more for each pool.
fn check_work(model: &mut Model, pools: usize) {
    let allocator = model.allocator();
    let (ranges, held) = (allocator.free_ranges(), allocator.held() as usize);
    if ranges > held + pools {
        model.fail(format!("{ranges} ranges for {held} addresses"));
    }
}

/// So many connects and disconnects, with `connections` at a time, or as many as there are addresses.
fn churn(tunnel: &str, cycles: usize, connections: usize) -> Model {
    let mut model = Model::new(1, 2, tunnel, (0..3).map(|number| user(number, &[])).collect());
    let (mut connects, mut open) = (0, Vec::new());
    while connects < cycles {
        let target = model.random.random_range(0..2 * connections);
        if open.len() < target {
            let (shard, number) = (model.random.random_range(0..2), model.random.random_range(0..3) as u8);
            open.extend(model.login(shard, credential(number)));
            connects += 1;
        } else if !open.is_empty() {
            let pick = model.random.random_range(0..open.len());
            model.disconnect(open.swap_remove(pick));
        }
        for _ in 0..model.random.random_range(0..12) {
            model.deliver();
        }
        check_work(&mut model, 1);
        if connects % 1000 == 0 {
            model.deliver_all();
            model.check_at_rest();
            open = live(&model);
        }
    }
    model.check_empty();
    check_work(&mut model, 1);
    model
}

#[test]
fn a_small_pool_is_exhausted_and_nothing_is_lost_or_given_twice_in_100_000_connections() {
    let model = churn("198.18.0.1/28", 100_000, 13);
    assert_eq!(model.violation, None);
    let exhausted = model.closed.iter().filter(|(_, reason)| *reason == CloseReason::PoolExhausted).count();
    assert!(exhausted > 1000, "{exhausted}");
    assert_eq!(model.allocator().free_ranges(), 1);
}

#[test]
fn a_pool_of_16_million_costs_no_more_and_loses_nothing_in_100_000_connections() {
    let model = churn("10.0.0.1/8", 100_000, 200);
    assert_eq!(model.violation, None);
    assert!(model.closed.is_empty());
    assert_eq!(model.allocator().free_ranges(), 1);
}

/// As the seed's own tests exercise its registry: 20 workers, 5 users, each worker adds and removes a connection several times.
#[test]
fn twenty_workers_on_five_users_leave_nothing_behind() {
    for seed in 0..2_000 {
        let mut users: Vec<User> = (0..5).map(|number| user(number, &[])).collect();
        users[4] = user(4, &[("198.18.0.40", "198.18.0.43")]);
        let mut model = Model::new(seed, 4, "198.18.0.1/24", users);
        let mut workers = [(None, 5); 20];
        let mut ever = BTreeSet::new();
        while workers.iter().any(|(open, rounds)| open.is_some() || *rounds > 0) && model.violation.is_none() {
            let worker = model.random.random_range(0..20);
            let (open, rounds) = &mut workers[worker];
            if model.random.random_ratio(80, 100) {
                model.deliver();
            } else if let Some(connection) = open.take() {
                model.disconnect(connection);
            } else if *rounds > 0 {
                *rounds -= 1;
                let shard = model.random.random_range(0..4);
                *open = model.login(shard, credential((worker % 5) as u8));
                ever.extend(*open);
            }
            let address = [198, 18, 0, 2 + model.random.random_range(0..50) as u8].into();
            model.send_packet(address);
        }
        assert_eq!(ever.len(), 100);
        model.deliver_all();
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}
