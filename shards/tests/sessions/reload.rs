//! Users and pools that change while connections come and go, each shard entering a snapshot at its own time.

use std::num::NonZeroU32;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use tollgate_shards::{ConnectionLimit, Shards, User, WhenReached, home_of};

use crate::model::{Model, credential, user};

pub const USERS: u8 = 6;

/// Some users of six, with pools that do not overlap but move from one user to another.
pub fn random_users(random: &mut Pcg64Mcg) -> Vec<User> {
    let mut ranges = vec![
        ("198.18.0.2", "198.18.0.2"),
        ("198.18.0.3", "198.18.0.3"),
        ("198.18.0.4", "198.18.0.6"),
        ("198.18.0.9", "198.18.0.10"),
    ];
    let mut users = Vec::new();
    for number in 0..USERS {
        if random.random_ratio(25, 100) {
            continue;
        }
        let own = (!ranges.is_empty() && random.random_ratio(50, 100))
            .then(|| ranges.swap_remove(random.random_range(0..ranges.len())));
        let when_reached = if random.random_ratio(50, 100) { WhenReached::RefuseNew } else { WhenReached::CloseOldest };
        let connections_max = NonZeroU32::new(1 + random.random_range(0..4) as u32).unwrap();
        let connection_limit =
            random.random_ratio(40, 100).then_some(ConnectionLimit { connections_max, when_reached });
        let mut user = user(number, own.as_slice());
        user.connection_limit = connection_limit;
        if random.random_ratio(20, 100) {
            // A rotated credential.
            user.credentials = vec![credential(number + 100)];
        }
        users.push(user);
    }
    users
}

/// One random thing happens.
pub fn act(model: &mut Model) {
    let shard = model.random.random_range(0..model.nodes.len());
    match model.random.random_range(0..100) {
        0..12 => {
            let number = model.random.random_range(0..usize::from(USERS)) as u8
                + if model.random.random_ratio(20, 100) { 100 } else { 0 };
            model.login(shard, credential(number));
        }
        12..16 => {
            let live: Vec<_> = model.live().map(|owned| owned.login.connection).collect();
            if !live.is_empty() {
                let pick = model.random.random_range(0..live.len());
                model.disconnect(live[pick]);
            }
        }
        16..17 if model.snapshots.len() < 8 => {
            let users = random_users(&mut model.random);
            model.announce(users);
        }
        17..20 => model.apply_next(shard),
        _ => {
            model.deliver();
        }
    }
}

/// All enter the last snapshot, and nothing is under way any more.
pub fn calm(model: &mut Model) {
    let behind = |model: &Model| model.nodes.iter().position(|node| node.version + 1 < model.snapshots.len());
    while let Some(shard) = behind(model) {
        model.apply_next(shard);
        (0..model.random.random_range(0..20)).for_each(|_| {
            model.deliver();
        });
    }
    model.deliver_all();
}

/// Nobody has an address that the owner's snapshot does not allow.
fn check_allowed(model: &mut Model) {
    let forbidden = model.nodes.iter().find_map(|node| {
        let users = &model.snapshots[node.version];
        let allowed = |user, address| users.allows(user, address);
        node.connections
            .values()
            .find(|owned| owned.address.is_some_and(|address| !allowed(owned.login.user, address)))
            .copied()
    });
    if let Some(owned) = forbidden {
        model.fail(format!("not allowed: {owned:?}"));
    }
}

#[test]
fn users_and_pools_change_while_logins_race_and_every_address_has_one_holder_who_may_have_it() {
    for seed in 0..5_000 {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let users = random_users(&mut random);
        let mut model = Model::new(seed, 1 + (seed % 5) as u16, "198.18.0.1/28", users);
        for _ in 0..600 {
            act(&mut model);
            let address = [198, 18, 0, 2 + model.random.random_range(0..13) as u8].into();
            model.send_packet(address);
            model.check_limits();
            check_allowed(&mut model);
        }
        calm(&mut model);
        model.check_at_rest();
        check_allowed(&mut model);
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}

#[test]
fn a_login_of_a_later_snapshot_waits_for_the_home_and_one_of_an_earlier_is_refused() {
    let mut model = Model::new(1, 2, "198.18.0.1/24", vec![user(1, &[])]);
    let (home, other) = {
        let home = usize::from(home_of("user2", Shards::alone(2)).0);
        (home, 1 - home)
    };
    model.announce(vec![user(1, &[]), user(2, &[])]);
    model.apply_next(other);
    let early = model.login(other, credential(2)).unwrap();
    model.deliver_all();
    assert!(model.nodes[other].connections[&early].address.is_none());
    model.apply_next(home);
    model.deliver_all();
    assert!(model.nodes[other].connections[&early].address.is_some());
    model.announce(vec![user(1, &[])]);
    model.apply_next(home);
    let late = model.login(other, credential(2)).unwrap();
    model.deliver_all();
    assert!(model.closed.contains(&(late, tollgate_shards::CloseReason::Revoked)));
    model.apply_next(other);
    model.deliver_all();
    model.check_at_rest();
    assert_eq!((model.violation.as_deref(), model.live().count()), (None, 0));
}

#[test]
fn who_keeps_an_allowed_address_stays_when_the_pool_shrinks() {
    let pool = [("198.18.0.9", "198.18.0.10")];
    let mut model = Model::new(1, 2, "198.18.0.1/24", vec![user(1, &pool)]);
    let first = model.login(0, credential(1)).unwrap();
    model.deliver_all();
    model.login(1, credential(1)).unwrap();
    model.deliver_all();
    model.announce(vec![user(1, &[("198.18.0.9", "198.18.0.9")])]);
    model.apply_next(0);
    model.apply_next(1);
    model.deliver_all();
    model.check_at_rest();
    assert_eq!(model.live().map(|owned| owned.login.connection).collect::<Vec<_>>(), [first]);
    assert_eq!(model.violation, None);
}
