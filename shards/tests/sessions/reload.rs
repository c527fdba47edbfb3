//! Users and pools that change while connections come and go, each shard entering a snapshot at its own time.

use std::num::NonZeroU32;

use tollgate_shards::{ConnectionLimit, User, WhenReached};

use crate::world::{Random, World, certificate, user};

pub const USERS: u8 = 6;

/// Some users of six, with pools that do not overlap but move from one user to another.
pub fn random_users(random: &mut Random) -> Vec<User> {
    let mut ranges = vec![
        ("198.18.0.2", "198.18.0.2"),
        ("198.18.0.3", "198.18.0.3"),
        ("198.18.0.4", "198.18.0.6"),
        ("198.18.0.9", "198.18.0.10"),
    ];
    let mut users = Vec::new();
    for number in 0..USERS {
        if random.percent(25) {
            continue;
        }
        let own = (!ranges.is_empty() && random.percent(50)).then(|| ranges.swap_remove(random.below(ranges.len())));
        let when_reached = if random.percent(50) { WhenReached::RefuseNew } else { WhenReached::CloseOldest };
        let connections_max = NonZeroU32::new(1 + random.below(4) as u32).unwrap();
        let connection_limit = random.percent(40).then_some(ConnectionLimit { connections_max, when_reached });
        let mut user = user(number, own.as_slice());
        user.connection_limit = connection_limit;
        if random.percent(20) {
            // A rotated certificate.
            user.certificates = vec![certificate(number + 100)];
        }
        users.push(user);
    }
    users
}

/// One random thing happens.
pub fn act(world: &mut World) {
    let shard = world.random.below(world.nodes.len());
    match world.random.below(100) {
        0..12 => {
            let number = world.random.below(usize::from(USERS)) as u8 + if world.random.percent(20) { 100 } else { 0 };
            world.login(shard, certificate(number));
        }
        12..16 => {
            let live: Vec<_> = world.live().map(|owned| owned.login.connection).collect();
            if !live.is_empty() {
                let pick = world.random.below(live.len());
                world.disconnect(live[pick]);
            }
        }
        16..17 if world.snapshots.len() < 8 => {
            let users = random_users(&mut world.random);
            world.announce(users);
        }
        17..20 => world.apply_next(shard),
        _ => {
            world.deliver();
        }
    }
}

/// All enter the last snapshot, and nothing is under way any more.
pub fn calm(world: &mut World) {
    let behind = |world: &World| world.nodes.iter().position(|node| node.version + 1 < world.snapshots.len());
    while let Some(shard) = behind(world) {
        world.apply_next(shard);
        (0..world.random.below(20)).for_each(|_| {
            world.deliver();
        });
    }
    world.deliver_all();
}

/// Nobody has an address that the owner's snapshot does not allow.
fn check_allowed(world: &mut World) {
    let forbidden = world.nodes.iter().find_map(|node| {
        let users = &world.snapshots[node.version];
        let allowed = |user, address| users.allows(user, address);
        node.connections
            .values()
            .find(|owned| owned.address.is_some_and(|address| !allowed(owned.login.user, address)))
            .copied()
    });
    if let Some(owned) = forbidden {
        world.fail(format!("not allowed: {owned:?}"));
    }
}

#[test]
fn users_and_pools_change_while_logins_race_and_every_address_has_one_holder_who_may_have_it() {
    for seed in 0..5_000 {
        let mut random = Random::new(seed);
        let users = random_users(&mut random);
        let mut world = World::new(seed, 1 + (seed % 5) as u16, "198.18.0.1/28", users);
        for _ in 0..600 {
            act(&mut world);
            let address = [198, 18, 0, 2 + world.random.below(13) as u8].into();
            world.send_packet(address);
            world.check_limits();
            check_allowed(&mut world);
        }
        calm(&mut world);
        world.check_at_rest();
        check_allowed(&mut world);
        world.check_empty();
        assert_eq!(world.violation, None, "seed {seed}");
    }
}

#[test]
fn a_login_of_a_later_snapshot_waits_for_the_home_and_one_of_an_earlier_is_refused() {
    let mut world = World::new(1, 2, "198.18.0.1/24", vec![user(1, &[])]);
    let (home, other) = {
        let home = usize::from(tollgate_shards::home_of("user2", 2).0);
        (home, 1 - home)
    };
    world.announce(vec![user(1, &[]), user(2, &[])]);
    world.apply_next(other);
    let early = world.login(other, certificate(2)).unwrap();
    world.deliver_all();
    assert!(world.nodes[other].connections[&early].address.is_none());
    world.apply_next(home);
    world.deliver_all();
    assert!(world.nodes[other].connections[&early].address.is_some());
    world.announce(vec![user(1, &[])]);
    world.apply_next(home);
    let late = world.login(other, certificate(2)).unwrap();
    world.deliver_all();
    assert!(world.closed.contains(&(late, tollgate_shards::CloseReason::Revoked)));
    world.apply_next(other);
    world.deliver_all();
    world.check_at_rest();
    assert_eq!((world.violation.as_deref(), world.live().count()), (None, 0));
}

#[test]
fn who_keeps_an_allowed_address_stays_when_the_pool_shrinks() {
    let pool = [("198.18.0.9", "198.18.0.10")];
    let mut world = World::new(1, 2, "198.18.0.1/24", vec![user(1, &pool)]);
    let first = world.login(0, certificate(1)).unwrap();
    world.deliver_all();
    world.login(1, certificate(1)).unwrap();
    world.deliver_all();
    world.announce(vec![user(1, &[("198.18.0.9", "198.18.0.9")])]);
    world.apply_next(0);
    world.apply_next(1);
    world.deliver_all();
    world.check_at_rest();
    assert_eq!(world.live().map(|owned| owned.login.connection).collect::<Vec<_>>(), [first]);
    assert_eq!(world.violation, None);
}
