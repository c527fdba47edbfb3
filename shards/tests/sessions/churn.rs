//! Connections that come and go.

use std::collections::BTreeSet;

use tollgate_shards::{CloseReason, ConnectionKey, User};

use crate::world::{World, certificate, user};

fn live(world: &World) -> Vec<ConnectionKey> {
    world.live().map(|owned| owned.login.connection).collect()
}

/// Free addresses lie in no more ranges than there are addresses out, and one more for each pool.
fn check_work(world: &mut World, pools: usize) {
    let allocator = world.nodes[0].allocator.as_ref().unwrap();
    let (ranges, held) = (allocator.free_ranges(), allocator.held() as usize);
    if ranges > held + pools {
        world.fail(format!("{ranges} ranges for {held} addresses"));
    }
}

/// So many connects and disconnects, with `connections` at a time, or as many as there are addresses.
fn churn(tunnel: &str, cycles: usize, connections: usize) -> World {
    let mut world = World::new(1, 2, tunnel, (0..3).map(|number| user(number, &[])).collect());
    let (mut connects, mut open) = (0, Vec::new());
    while connects < cycles {
        let target = world.random.below(2 * connections);
        if open.len() < target {
            let (shard, number) = (world.random.below(2), world.random.below(3) as u8);
            open.extend(world.login(shard, certificate(number)));
            connects += 1;
        } else if !open.is_empty() {
            let pick = world.random.below(open.len());
            world.disconnect(open.swap_remove(pick));
        }
        for _ in 0..world.random.below(12) {
            world.deliver();
        }
        check_work(&mut world, 1);
        if connects % 1000 == 0 {
            world.deliver_all();
            world.check_at_rest();
            open = live(&world);
        }
    }
    world.check_empty();
    check_work(&mut world, 1);
    world
}

#[test]
fn a_small_pool_is_exhausted_and_nothing_is_lost_or_given_twice_in_100_000_connections() {
    let world = churn("198.18.0.1/28", 100_000, 13);
    assert_eq!(world.violation, None);
    let exhausted = world.closed.iter().filter(|(_, reason)| *reason == CloseReason::PoolExhausted).count();
    assert!(exhausted > 1000, "{exhausted}");
    assert_eq!(world.nodes[0].allocator.as_ref().unwrap().free_ranges(), 1);
}

#[test]
fn a_pool_of_16_million_costs_no_more_and_loses_nothing_in_100_000_connections() {
    let world = churn("10.0.0.1/8", 100_000, 200);
    assert_eq!(world.violation, None);
    assert!(world.closed.is_empty());
    assert_eq!(world.nodes[0].allocator.as_ref().unwrap().free_ranges(), 1);
}

/// As the seed's own tests exercise its registry: 20 workers, 5 users, each worker adds and removes a connection several times.
#[test]
fn twenty_workers_on_five_users_leave_nothing_behind() {
    for seed in 0..2_000 {
        let mut users: Vec<User> = (0..5).map(|number| user(number, &[])).collect();
        users[4] = user(4, &[("198.18.0.40", "198.18.0.43")]);
        let mut world = World::new(seed, 4, "198.18.0.1/24", users);
        let mut workers = [(None, 5); 20];
        let mut ever = BTreeSet::new();
        while workers.iter().any(|(open, rounds)| open.is_some() || *rounds > 0) && world.violation.is_none() {
            let worker = world.random.below(20);
            let (open, rounds) = &mut workers[worker];
            if world.random.percent(80) {
                world.deliver();
            } else if let Some(connection) = open.take() {
                world.disconnect(connection);
            } else if *rounds > 0 {
                *rounds -= 1;
                let shard = world.random.below(4);
                *open = world.login(shard, certificate((worker % 5) as u8));
                ever.extend(*open);
            }
            let address = [198, 18, 0, 2 + world.random.below(50) as u8].into();
            world.send_packet(address);
        }
        assert_eq!(ever.len(), 100);
        world.deliver_all();
        world.check_empty();
        assert_eq!(world.violation, None, "seed {seed}");
    }
}
