//! New clients go to the shard that has least to do, wherever their first packets come.

use std::time::Duration;

use tollgate_sim::world::{Setup, World};

fn world(shards: u16, connections_max: usize) -> World {
    World::scenario(Setup { shards, connections_max, tunnel: "198.18.0.1/20", places: true, ..Setup::default() })
}

fn owned(world: &World) -> Vec<usize> {
    world.shards().map(|shard| shard.owned_connections()).collect()
}

#[test]
fn two_clients_that_log_in_one_after_the_other_are_apart() {
    for pause in [0, 1, 20, 99, 101, 400, 900, 1500, 5000].map(Duration::from_millis) {
        for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut world = world(2, 100);
            let clients = [(0, first), (1, second)].map(|(user, at)| {
                let client = world.join(user, at);
                world.run(pause);
                client
            });
            world.run(Duration::from_secs(2));
            assert!(clients.iter().all(|&client| world.is_attached(client)));
            assert_eq!(owned(&world), [1, 1], "at {first} and {second}, {pause:?} apart");
        }
    }
}

#[test]
fn a_client_that_comes_back_is_apart_from_the_one_that_stayed() {
    let mut world = world(2, 100);
    world.join(0, 0);
    world.run(Duration::from_secs(2));
    let mut leaves = world.join(1, 0);
    for at in [0, 1, 1, 0] {
        world.run(Duration::from_secs(2));
        world.close(leaves);
        world.run(Duration::from_millis(200));
        leaves = world.join(1, at);
        world.run(Duration::from_secs(10));
        assert!(world.is_attached(leaves));
        assert_eq!(owned(&world), [1, 1]);
    }
}

/// All of one user, so that the sources of one user spread too.
#[test]
fn a_thousand_idle_clients_are_within_a_twentieth_of_even() {
    let mut world = world(4, 2000);
    for client in 0..1000_u32 {
        world.join(0, (client.wrapping_mul(0x9e37_79b9) >> 20) as u16 % 4);
        world.run(Duration::from_millis(5));
    }
    world.run(Duration::from_secs(2));
    let owned = owned(&world);
    assert_eq!(owned.iter().sum::<usize>(), 1000);
    assert!(owned.iter().all(|owned| (238..=262).contains(owned)), "{owned:?}");
}

#[test]
fn a_full_shard_gets_no_client_while_another_has_room() {
    for room_at in [0, 1] {
        let mut world = world(2, 3);
        let clients: Vec<_> = (0..6)
            .map(|_| {
                let client = world.join(0, 0);
                world.run(Duration::from_secs(2));
                client
            })
            .collect();
        assert_eq!(owned(&world), [3, 3]);
        // The first came to shard 0, the second to shard 1.
        world.close(clients[room_at]);
        world.run(Duration::from_secs(5));
        let next = world.join(1, 1 - room_at as u16);
        world.run(Duration::from_secs(2));
        assert!(world.is_attached(next));
        assert_eq!(owned(&world), [3, 3]);
    }
}

#[test]
fn a_busy_shard_gets_no_client_while_another_is_idle() {
    let mut world = world(2, 100);
    world.shard_mut(0).handle_busy(80);
    world.run(Duration::from_secs(1));
    for at in [0, 1, 0] {
        world.join(0, at);
        world.run(Duration::from_secs(2));
    }
    assert_eq!(owned(&world), [0, 3]);
    world.shard_mut(0).handle_busy(20);
    world.run(Duration::from_secs(1));
    world.join(0, 1);
    world.run(Duration::from_secs(2));
    assert_eq!(owned(&world), [1, 3]);
}
