//! Shards that die at any moment and are started anew.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::model::{Model, credential, user};
use crate::reload::{act, calm, random_users};

#[test]
fn shards_die_at_any_moment_and_no_address_is_out_twice_and_none_is_lost() {
    for seed in 0..5_000 {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let users = random_users(&mut random);
        let mut model = Model::new(seed, 2 + (seed % 4) as u16, "198.18.0.1/28", users);
        for _ in 0..5 {
            for _ in 0..150 {
                act(&mut model);
                if model.random.random_range(0..60) == 0 {
                    let shard = model.random.random_range(0..model.nodes.len());
                    model.restart(shard);
                }
                model.check_limits();
            }
            if model.random.random_ratio(50, 100) {
                calm(&mut model);
                model.check_at_rest();
            }
        }
        calm(&mut model);
        model.check_at_rest();
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}

#[test]
fn whoever_is_connected_keeps_the_address_when_home_or_allocator_die() {
    for shard in 0..3 {
        let mut model = Model::new(7, 3, "198.18.0.1/24", (0..8).map(|number| user(number, &[])).collect());
        for number in 0..8 {
            model.login((shard + 1) % 3, credential(number)).unwrap();
            model.login((shard + 2) % 3, credential(number)).unwrap();
        }
        model.deliver_all();
        let before = model.beliefs.clone();
        model.restart(shard);
        model.deliver_all();
        model.check_at_rest();
        assert_eq!((model.beliefs.clone(), before.len()), (before, 16));
        let late = model.login(shard, credential(3)).unwrap();
        model.deliver_all();
        assert!(model.nodes[shard].connections[&late].address.is_some(), "life goes on");
        model.check_empty();
        assert_eq!(model.violation, None);
    }
}
