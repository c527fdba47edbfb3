//! A second process takes over from the first one: clients that stay lose nothing, and keep their addresses whichever of the two dies.

use tollgate_shards::{Limit, Rate};

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// Clients of the first process, each of a user of its own.
fn with_clients(shards: u16, count: usize) -> (World, Vec<(usize, IpAddr)>) {
    let users = vec![UserSpec::default(); count + 2];
    let mut world = World::scenario(Setup { shards, users, isolate_clients: false, ..Setup::default() });
    let clients = (0..count).map(|user| world.attach(user, user as u16 % shards)).collect();
    (world, clients)
}

/// Lets `time` pass while each client sends a packet each millisecond, and is sent one by the network and one by the next client. Returns how many
/// have not arrived.
fn exchange_for(world: &mut World, clients: &[(usize, IpAddr)], time: Duration) -> usize {
    let arrived = |world: &World| -> usize {
        let received = clients.iter().flat_map(|&(client, _)| &world.devices[client].received);
        let up = world.seen.tun.iter().map(|(_, packet)| packet);
        received.chain(up).map(|packet| marks(packet, 100).len()).sum()
    };
    let (before, rounds) = (arrived(world), time.as_millis() as usize);
    for _ in 0..rounds {
        for (place, &(client, address)) in clients.iter().enumerate() {
            let (_, next) = clients[(place + 1) % clients.len()];
            world.send_up(client, &udp4(address, SERVER, &[1; 100]));
            world.send_up(client, &udp4(address, next, &[2; 100]));
            world.send_down(&udp4(SERVER, address, &[3; 100]));
        }
        world.run(MS);
    }
    world.run(100 * MS);
    3 * rounds * clients.len() - (arrived(world) - before)
}

/// The new process has taken over and gets new clients.
fn upgrade(world: &mut World, count: u16) {
    world.start_successor(count);
    world.hand_over();
    world.run(10 * MS);
    assert!(world.has_taken_over());
    world.steer_to_successor();
}

/// Clients of a process that is dead are told when they send next, and do not wait until their connections are idle for too long.
fn assert_hear_of_it(world: &mut World, clients: &[(usize, IpAddr)]) {
    for &(client, address) in clients {
        world.send_up(client, &udp4(address, SERVER, &[1; 100]));
        world.run(MS);
    }
    world.run(50 * MS);
    for &(client, _) in clients {
        assert_eq!(closed(world, client), Some(&CloseCause::Reset));
    }
}

fn has(world: &World, client: usize, address: IpAddr) -> bool {
    closed(world, client).is_none() && world.devices[client].address() == Some(address)
}

#[test]
fn clients_that_stay_lose_no_packet_while_the_homes_and_new_clients_go_over() {
    for (old, new) in [(1, 1), (2, 3), (3, 2), (4, 1)] {
        let (mut world, clients) = with_clients(old, 4);
        world.delay_messages(MS / 5);
        world.start_successor(new);
        let mut lost = exchange_for(&mut world, &clients, 5 * MS);
        world.hand_over();
        lost += exchange_for(&mut world, &clients, 20 * MS);
        assert!(world.has_taken_over());
        world.steer_to_successor();
        lost += exchange_for(&mut world, &clients, 20 * MS);
        assert_eq!(lost, 0, "from {old} to {new} shards");
        assert!(clients.iter().all(|&(client, address)| has(&world, client, address)));
        assert_eq!(world.connections(), (4, 4), "the new homes count them");
    }
}

#[test]
fn new_clients_come_to_the_new_process_and_get_addresses_that_nobody_has() {
    let (mut world, clients) = with_clients(2, 4);
    upgrade(&mut world, 3);
    let before: usize = (0..2).map(|index| world.shard(index).owned_connections()).sum();
    let mut addresses: Vec<_> = clients.iter().map(|&(_, address)| address).collect();
    let late: Vec<_> = (0..12).map(|number| world.attach(number % 6, number as u16 % 2)).collect();
    addresses.extend(late.iter().map(|&(_, address)| address));
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 16, "no address twice");
    let after: usize = (0..2).map(|index| world.shard(index).owned_connections()).sum();
    assert_eq!((before, after), (4, 4));
    assert_eq!(exchange_for(&mut world, &[&clients[..], &late].concat(), 10 * MS), 0);
}

#[test]
fn whoever_comes_back_after_the_upgrade_has_its_address_again() {
    let (mut world, clients) = with_clients(2, 4);
    // Its address is remembered by the old process alone.
    let (early, its_address) = world.attach(5, 0);
    world.attach(4, 0);
    world.close(early);
    world.run(S);
    upgrade(&mut world, 2);
    world.close(clients[2].0);
    world.run(S);
    assert_eq!(world.attach(5, 1).1, its_address);
    assert_eq!(world.attach(2, 0).1, clients[2].1);
}

#[test]
fn when_the_old_process_has_ended_nothing_of_it_is_left() {
    let (mut world, clients) = with_clients(2, 4);
    upgrade(&mut world, 3);
    let late = world.attach(4, 0);
    clients.iter().for_each(|&(client, _)| world.close(client));
    world.run(10 * S);
    assert!(world.is_drained());
    world.end_predecessor();
    world.run(MS);
    assert_eq!((world.connections(), world.shards().count()), ((1, 1), 3));
    let again = world.attach(0, 0);
    assert_eq!(again.1, clients[0].1);
    assert_eq!(exchange_for(&mut world, &[late, again], 20 * MS), 0);
}

#[test]
fn when_the_new_process_dies_the_old_one_goes_on_with_its_clients_and_takes_new_ones() {
    for is_steered in [false, true] {
        let (mut world, clients) = with_clients(2, 4);
        world.delay_messages(MS / 5);
        world.start_successor(3);
        world.hand_over();
        world.run(10 * MS);
        let mut late = None;
        if is_steered {
            world.steer_to_successor();
            late = Some(world.attach(4, 0));
        }
        world.kill_successor();
        late.into_iter().for_each(|late| assert_hear_of_it(&mut world, &[late]));
        assert_eq!(exchange_for(&mut world, &clients, 50 * MS), 0);
        assert!(clients.iter().all(|&(client, address)| has(&world, client, address)));
        assert_eq!(world.connections(), (4, 4));
        if let Some((_, address)) = late {
            assert_eq!(world.attach(4, 0).1, address, "the lowest that is free");
        }
        let again = world.attach(5, 1);
        assert!(clients.iter().all(|&(_, address)| address != again.1));
        assert_eq!(exchange_for(&mut world, &[&clients[..], &[again]].concat(), 10 * MS), 0);
    }
}

#[test]
fn when_the_old_process_dies_its_clients_come_back_to_the_new_one_with_their_addresses() {
    for is_handed_over in [false, true] {
        let (mut world, clients) = with_clients(2, 4);
        if is_handed_over {
            upgrade(&mut world, 3);
        } else {
            world.start_successor(3);
        }
        world.kill_predecessor();
        world.run(10 * MS);
        assert!(world.has_taken_over());
        assert_hear_of_it(&mut world, &clients);
        assert_eq!(world.connections(), (0, 0));
        let again: Vec<_> = (0..4).map(|user| world.attach(user, 0)).collect();
        if is_handed_over {
            assert!(again.iter().zip(&clients).all(|(again, before)| again.1 == before.1));
        }
        assert_eq!(exchange_for(&mut world, &again, 10 * MS), 0);
    }
}

/// How much passes of what is offered at once in each of `rounds` of 10 ms, in thousands of bytes.
fn passes(world: &mut World, clients: &[(usize, IpAddr)], rounds: usize, packets: usize) -> usize {
    world.seen.tun.clear();
    for _ in 0..rounds {
        for &(client, address) in clients {
            (0..packets).for_each(|_| world.send_up(client, &udp4(address, SERVER, &[1; 972])));
        }
        world.run(10 * MS);
    }
    let is_theirs = |packet: &[u8]| clients.iter().any(|(_, address)| packet[12..16] == octets(*address));
    let passed = world.seen.tun.iter().filter(|(_, packet)| is_theirs(packet));
    passed.map(|(_, packet)| marks(packet, 972).len()).sum()
}

/// The bucket goes on from one home to the other: nothing comes twice, and nobody waits for what it had.
#[test]
fn a_limited_user_has_one_limit_over_both_processes() {
    let limited = UserSpec { limit_bits_per_s: Some(8_000_000), ..UserSpec::default() };
    let mut world = World::scenario(Setup { users: vec![limited; 2], ..Setup::default() });
    let spender = world.attach(0, 0);
    let saver = world.attach(1, 0);
    let before = passes(&mut world, &[spender], 100, 22);
    assert!((1900..=2010).contains(&before), "{before}: a burst and a second's worth");
    upgrade(&mut world, 2);
    let after = passes(&mut world, &[spender], 50, 22);
    assert!((450..=530).contains(&after), "{after}: half a second's worth");
    assert_eq!(passes(&mut world, &[saver], 5, 100), 500, "it had saved a burst");
    let late = world.attach(0, 0);
    let of_both = passes(&mut world, &[spender, late], 50, 30);
    assert!((1400..=1530).contains(&of_both), "{of_both}: a burst and half a second's worth, over both");
}

#[test]
fn users_have_their_limits_and_addresses_where_the_new_process_numbers_them_otherwise() {
    let limited = UserSpec { limit_bits_per_s: Some(8_000_000), ..UserSpec::default() };
    let mut world = World::scenario(Setup { users: vec![limited, UserSpec::default()], ..Setup::default() });
    let clients = [world.attach(0, 0), world.attach(1, 1)];
    assert!((1900..=2010).contains(&passes(&mut world, &clients[..1], 100, 22)));
    world.change_users(|_| {});
    upgrade(&mut world, 3);
    let after = passes(&mut world, &clients[..1], 50, 22);
    assert!((450..=530).contains(&after), "{after}: half a second's worth");
    assert_eq!(passes(&mut world, &clients[1..], 20, 22), 440);
    let late = [world.attach(0, 1), world.attach(1, 0)];
    let of_both = passes(&mut world, &[clients[0], late[0]], 50, 30);
    assert!((1400..=1530).contains(&of_both), "{of_both}: a burst and half a second's worth, over both");
    assert_eq!(passes(&mut world, &late[1..], 20, 22), 440);
    world.close(clients[0].0);
    world.run(S);
    assert_eq!(world.attach(0, 0).1, clients[0].1, "the one that it had");
}

#[test]
fn the_limits_of_the_homes_process_hold_at_both() {
    let limit = || Limit::new(Rate::from_bits_per_s(8_000_000).unwrap());
    for was_limited in [true, false] {
        let limit_bits_per_s = was_limited.then_some(8_000_000);
        let users = vec![UserSpec { limit_bits_per_s, ..UserSpec::default() }];
        let mut world = World::scenario(Setup { users, ..Setup::default() });
        let early = world.attach(0, 0);
        let is_all = |world: &mut World, client| passes(world, &[client], 100, 30) == 3000;
        assert_eq!(is_all(&mut world, early), !was_limited);
        world.change_users(|user| user.limit = (!was_limited).then(limit));
        upgrade(&mut world, 2);
        let passed = passes(&mut world, &[early], 100, 30);
        match was_limited {
            true => assert_eq!(passed, 3000, "no limit holds any more"),
            false => assert!((1900..=2010).contains(&passed), "{passed}: a burst and a second's worth"),
        }
        let late = world.attach(0, 1);
        let of_both = passes(&mut world, &[early, late], 50, 30);
        assert!(if was_limited { of_both == 3000 } else { (1400..=1530).contains(&of_both) }, "{of_both} of both");
        world.kill_successor();
        world.run(10 * MS);
        let passed = passes(&mut world, &[early], 100, 30);
        assert!(if was_limited { (900..=1110).contains(&passed) } else { passed == 3000 }, "{passed} as before");
    }
}
