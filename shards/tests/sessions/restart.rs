//! Shards that die at any moment and are started anew.

use crate::reload::{act, calm, random_users};
use crate::world::{Random, World, certificate, user};

#[test]
fn shards_die_at_any_moment_and_no_address_is_out_twice_and_none_is_lost() {
    for seed in 0..5_000 {
        let mut random = Random::new(seed);
        let users = random_users(&mut random);
        let mut world = World::new(seed, 2 + (seed % 4) as u16, "198.18.0.1/28", users);
        for _ in 0..5 {
            for _ in 0..150 {
                act(&mut world);
                if world.random.below(60) == 0 {
                    let shard = world.random.below(world.nodes.len());
                    world.restart(shard);
                }
                world.check_limits();
            }
            if world.random.percent(50) {
                calm(&mut world);
                world.check_at_rest();
            }
        }
        calm(&mut world);
        world.check_at_rest();
        world.check_empty();
        assert_eq!(world.violation, None, "seed {seed}");
    }
}

#[test]
fn whoever_is_connected_keeps_the_address_when_home_or_allocator_die() {
    for shard in 0..3 {
        let mut world = World::new(7, 3, "198.18.0.1/24", (0..8).map(|number| user(number, &[])).collect());
        for number in 0..8 {
            world.login((shard + 1) % 3, certificate(number)).unwrap();
            world.login((shard + 2) % 3, certificate(number)).unwrap();
        }
        world.deliver_all();
        let before = world.beliefs.clone();
        world.restart(shard);
        world.deliver_all();
        world.check_at_rest();
        assert_eq!((world.beliefs.clone(), before.len()), (before, 16));
        let late = world.login(shard, certificate(3)).unwrap();
        world.deliver_all();
        assert!(world.nodes[shard].connections[&late].address.is_some(), "life goes on");
        world.check_empty();
        assert_eq!(world.violation, None);
    }
}
