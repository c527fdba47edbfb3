//! What queues take of the heap, and who loses when it is too much.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tollgate_shards::DropReason;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, udp4};

/// The packets of both clients are built side by side. What waits for the one must not keep what was for the other.
#[test]
fn packets_that_wait_for_a_client_take_no_more_memory_than_they_have_bytes() {
    const ROUNDS: usize = 200;
    let users = vec![UserSpec::default(), UserSpec::default()];
    let mut world = World::scenario(Setup { shards: 1, users, ..Setup::default() });
    let ((silent, silent_address), (busy, busy_address)) = (world.attach(0, 0), world.attach(1, 0));
    // Its window fills up and does not open again.
    world.silence(silent);
    let (to_silent, to_busy) = (udp4(SERVER, silent_address, &[1; 1300]), udp4(SERVER, busy_address, &[2; 1300]));
    let mut arrived = 0;
    let mut round = |world: &mut World| {
        world.send_down(&to_silent);
        // With that, more than a chunk.
        (0..100).for_each(|_| world.send_down(&to_busy));
        world.run(Duration::from_millis(5));
        arrived += std::mem::take(&mut world.devices[busy].received).len();
        world.devices[silent].received.clear();
    };
    (0..50).for_each(|_| round(&mut world));
    let heap = allocation_counter::measure(|| (0..ROUNDS).for_each(|_| round(&mut world)));
    assert!(arrived > 0);
    let waiting_bytes = (ROUNDS * to_silent.len()) as i64;
    assert!(heap.bytes_current > waiting_bytes / 2, "they do wait: {heap:?}");
    assert!(heap.bytes_current < waiting_bytes * 4, "{} for {waiting_bytes} bytes that wait", heap.bytes_current);
}

const NUMBERED: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// A world of one shard with so little memory that `silent` clients fill it, who have been silenced.
fn crowded(silent: usize, memory_bytes_max: usize) -> (World, Vec<(usize, IpAddr)>) {
    let users = vec![UserSpec::default(); silent];
    let mut world = World::scenario(Setup { shards: 1, users, memory_bytes_max, ..Setup::default() });
    let clients: Vec<(usize, IpAddr)> = (0..silent).map(|user| world.attach(user, 0)).collect();
    clients.iter().for_each(|&(client, _)| world.silence(client));
    (world, clients)
}

/// A packet that bears a number, in its source: so each is of a flow of its own, and nothing merges them.
fn numbered(address: IpAddr, number: usize) -> Vec<u8> {
    udp4(Ipv4Addr::from_bits(NUMBERED.to_bits() + number as u32).into(), address, &[0; 1300])
}

fn number(packet: &[u8]) -> usize {
    let source: [u8; 4] = packet[12..16].try_into().unwrap();
    (u32::from_be_bytes(source) - NUMBERED.to_bits()) as usize
}

#[test]
fn the_longest_queue_gives_way_with_its_oldest_packets_whoever_needs_the_room() {
    // Packets of each in a round.
    const SHARES: [usize; 3] = [3, 6, 2];
    const LONGEST: usize = 1;
    let (mut world, clients) = crowded(SHARES.len(), 7 << 20);
    let mut sent = [0; SHARES.len()];
    // The others get theirs last, so that it is one of them who finds no room.
    'full: loop {
        for of in [LONGEST, 0, 2] {
            for _ in 0..SHARES[of] {
                world.send_down(&numbered(clients[of].1, sent[of]));
                sent[of] += 1;
                if world.dropped(DropReason::MemoryLimit) > 0 {
                    break 'full;
                }
            }
            world.run(Duration::from_micros(10));
        }
        assert!(sent[LONGEST] < 20_000, "there is no end of memory");
    }
    let lost = world.dropped(DropReason::MemoryLimit) as usize;
    clients.iter().for_each(|&(client, _)| world.unsilence(client));
    world.run(Duration::from_secs(5));
    assert_eq!(world.dropped(DropReason::MemoryLimit) as usize, lost, "the queues have drained");
    let arrived = |of: usize| -> Vec<usize> {
        world.devices[clients[of].0].received.iter().map(|packet| number(packet)).collect()
    };
    for of in [0, 2] {
        assert_eq!(arrived(of), (0..sent[of]).collect::<Vec<_>>(), "of a shorter queue nothing is lost");
    }
    let arrived = arrived(LONGEST);
    assert!(lost > sent[LONGEST] / 4 && arrived.len() == sent[LONGEST] - lost, "{lost} of {} lost", sent[LONGEST]);
    // What had been handed to the connection before stays.
    let handed = arrived.iter().enumerate().take_while(|(index, number)| index == *number).count();
    assert!(handed < 300, "{handed} before the gap");
    assert_eq!(arrived[handed..], (handed + lost..sent[LONGEST]).collect::<Vec<_>>(), "the oldest of what waited");
}

#[test]
fn a_clients_own_queue_is_bounded_and_loses_the_newest() {
    let (mut world, clients) = crowded(1, 64 << 20);
    let (client, address) = clients[0];
    let mut sent = 0;
    while world.dropped(DropReason::DatagramQueueFull) < 100 {
        world.send_down(&numbered(address, sent));
        sent += 1;
        world.step();
        assert!(sent < 10_000, "there is no end of the queue");
    }
    let queued_bytes = world.shard(0).held().queued_bytes;
    assert!((3 << 20..6 << 20).contains(&queued_bytes), "{queued_bytes}");
    world.unsilence(client);
    world.run(Duration::from_secs(30));
    let arrived: Vec<_> = world.devices[client].received.iter().map(|packet| number(packet)).collect();
    assert!(arrived.iter().copied().eq(0..sent - 100), "{} of {sent} arrived", arrived.len());
}

#[test]
fn what_another_client_sends_to_one_that_takes_nothing_is_bounded_as_well() {
    for owner in [0, 1] {
        let users = vec![UserSpec::default(); 2];
        let mut world = World::scenario(Setup { isolate_clients: false, users, ..Setup::default() });
        let ((silent, silent_address), (sender, source)) = (world.attach(0, 0), world.attach(1, owner));
        world.silence(silent);
        let packet = udp4(source, silent_address, &[0; 1300]);
        let mut sent = 0;
        while world.dropped(DropReason::DatagramQueueFull) < 100 {
            (0..20).for_each(|_| world.send_up(sender, &packet));
            sent += 20;
            world.run(Duration::from_millis(1));
            assert!(sent < 10_000, "there is no end of the queue");
        }
        let queued_bytes = world.shard(0).held().queued_bytes;
        assert!((3 << 20..6 << 20).contains(&queued_bytes), "{queued_bytes}");
    }
}

/// Where no more fits than what each connection was handed, where a few packets wait beside, and where many do.
#[test]
fn room_for_a_packet_is_found_in_a_few_steps_however_many_queues_there_are() {
    for memory_bytes_max in [1 << 19, 4 << 20, 5 << 20, 8 << 20] {
        let (packets, steps, lost) = steps_to_find_room(memory_bytes_max);
        println!("{steps} steps for {packets} packets, of whom {lost} were lost, at {memory_bytes_max} bytes");
        assert!(lost > packets / 2, "{lost} of {packets} were lost at {memory_bytes_max} bytes");
        assert!(steps <= 3 * packets, "{steps} steps for {packets} packets at {memory_bytes_max} bytes");
    }
}

fn steps_to_find_room(memory_bytes_max: usize) -> (u64, u64, u64) {
    const CLIENTS: usize = 40;
    const PACKETS: u64 = 4_000;
    let (mut world, clients) = crowded(CLIENTS, memory_bytes_max);
    let mut sent = 0;
    let mut send = |world: &mut World, packets: u64| {
        for _ in 0..packets {
            world.send_down(&numbered(clients[sent % CLIENTS].1, sent));
            sent += 1;
            if sent.is_multiple_of(CLIENTS) {
                world.run(Duration::from_micros(10));
            }
        }
    };
    while world.dropped(DropReason::MemoryLimit) == 0 {
        send(&mut world, 100);
    }
    let of = |world: &World| (world.shard(0).inspect().longest_queue_steps(), world.dropped(DropReason::MemoryLimit));
    let (steps, lost) = of(&world);
    send(&mut world, PACKETS);
    let (steps_then, lost_then) = of(&world);
    (PACKETS, steps_then - steps, lost_then - lost)
}

/// What they were handed cannot be taken back, so it must not be all that there is room for.
#[test]
fn a_client_who_reads_gets_its_packets_beside_silent_ones_who_fill_the_memory() {
    const PACKETS: usize = 300;
    let (mut world, mut clients) = crowded(41, 4 << 20);
    let (live, live_address) = clients.remove(0);
    world.unsilence(live);
    let mut sent = 0;
    while world.dropped(DropReason::MemoryLimit) < 2_000 {
        clients.iter().for_each(|&(_, address)| world.send_down(&numbered(address, sent)));
        sent += 1;
        world.run(Duration::from_micros(10));
    }
    for packet in 0..PACKETS {
        world.send_down(&numbered(live_address, packet));
        clients.iter().for_each(|&(_, address)| world.send_down(&numbered(address, sent)));
        world.run(Duration::from_millis(1));
    }
    let received = world.devices[live].received.iter().map(|packet| number(packet));
    assert_eq!(received.collect::<Vec<_>>(), (0..PACKETS).collect::<Vec<_>>());
}
