//! Every inner packet is accounted for, on both ends and in both directions: delivered, or dropped for a reason that is counted.

use std::time::Duration;

use tollgate_shards::{Counters, DropReason};
use tollgate_sim::LinkPlan;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, udp4};

/// Not all that is sent at once is acknowledged at once, so that some waits at either end.
const LINK: LinkPlan = LinkPlan { delay: Duration::from_millis(10), ..LinkPlan::UNDISTURBED };

/// All drops of inner packets that had arrived in a DATAGRAM frame or in a TUN frame. No test here has others of these reasons.
fn drops(counters: &Counters, reasons: &[DropReason]) -> u64 {
    reasons.iter().map(|&reason| counters.drops.of(reason)).sum()
}

/// Asserts the balance of a world without losses in between, but of packets that came after a client had gone, all of whose drops at a receiving end are for one of the reasons given.
fn assert_balance(world: &World, lost_up: &[DropReason], lost_down: &[DropReason]) {
    let closed = |counters: &Counters| counters.drops.of(DropReason::ConnectionClosed);
    let sent_up = world.sum_clients(|client| client.datagrams_sent);
    assert_eq!(world.sum_clients(|client| client.up_packets), sent_up + world.sum_clients(closed), "queued by clients");
    assert_eq!(sent_up, world.sum(|shard| shard.datagrams_received), "up");
    assert_eq!(
        world.sum(|shard| shard.datagrams_received),
        world.sum(|shard| shard.up_packets + shard.relayed_packets + drops(shard, lost_up)),
        "received by the gateway"
    );
    let sent_down = world.sum(|shard| shard.datagrams_sent);
    assert_eq!(world.sum(|shard| shard.down_packets), sent_down + world.sum(closed), "queued by the gateway");
    assert_eq!(sent_down, world.sum_clients(|client| client.datagrams_received) + world.seen.late_datagrams, "down");
    assert_eq!(
        world.sum_clients(|client| client.datagrams_received),
        world.sum_clients(|client| client.down_packets + drops(client, lost_down)),
        "received by clients"
    );
}

#[test]
fn what_is_carried_both_ways_and_across_shards_balances() {
    let mut world = World::scenario(Setup { isolate_clients: false, ..Setup::default() });
    let clients: Vec<_> = [(0, 0), (1, 1)].map(|(user, owner)| world.attach(user, owner)).into();
    for round in 0..20 {
        for &(client, address) in &clients {
            for &(_, other) in &clients {
                world.send_up(client, &udp4(address, other, &[1; 600]));
            }
            world.send_up(client, &udp4(address, SERVER, &[2; 900]));
            world.send_down(&udp4(SERVER, address, &[3; 1000]));
        }
        world.gateway.steers = round % 2 == 0;
        world.run(Duration::from_millis(3));
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.sum(|shard| shard.datagrams_received), 20 * 6);
    assert_eq!(world.sum(|shard| shard.relayed_packets), 20 * 2);
    assert_eq!(world.sum_clients(|client| client.datagrams_received), 20 * 4);
    assert_eq!(world.dropped(DropReason::NoRoute), 20 * 2, "to itself");
    assert_balance(&world, &[DropReason::NoRoute], &[]);
}

#[test]
fn a_connection_closed_by_its_client_drops_what_both_ends_had_queued() {
    let mut world = World::scenario(Setup { link: LINK, ..Setup::default() });
    let (client, address) = world.attach(0, 1);
    let (_, other_address) = world.attach(1, 0);
    for mark in 0..200 {
        world.send_up(client, &udp4(address, SERVER, &[mark; 1200]));
        world.send_down(&udp4(SERVER, address, &[mark; 1200]));
        world.send_down(&udp4(SERVER, other_address, &[mark; 1200]));
    }
    world.run(LINK.delay);
    assert!(world.sum(|shard| shard.datagrams_sent) < 400, "the congestion window holds some back");
    world.close(client);
    world.run(Duration::from_secs(10));
    let closed = |counters: &Counters| counters.drops.of(DropReason::ConnectionClosed);
    assert!(world.sum(closed) > 0 && world.sum_clients(closed) > 0);
    assert_eq!(world.sum(|shard| shard.down_packets), 400);
    assert_balance(&world, &[DropReason::NotAttached], &[DropReason::NotAttached]);
    let unattached = world.sum_clients(|client| client.drops.of(DropReason::NotAttached));
    let before = world.sum(|shard| shard.datagrams_sent);
    world.send_down(&udp4(SERVER, address, &[9; 100]));
    world.send_forged(client, &[0; 100]);
    world.run(Duration::from_secs(1));
    assert_eq!((world.sum(|shard| shard.datagrams_sent), world.sum(|shard| shard.down_packets)), (before, 400));
    assert_eq!(world.dropped(DropReason::NoRoute), 1, "the address is nobody's by now");
    assert_eq!(world.sum_clients(|client| client.drops.of(DropReason::NotAttached)), unattached + 1);
}

#[test]
fn a_connection_closed_by_the_gateway_or_by_silence_drops_what_was_queued() {
    for stop in [true, false] {
        let mut world = World::scenario(Setup { link: LINK, ..Setup::default() });
        let (client, address) = world.attach(0, 1);
        if !stop {
            world.kill(client);
        }
        for mark in 0..200 {
            world.send_down(&udp4(SERVER, address, &[mark; 1200]));
        }
        world.step();
        if stop {
            world.stop();
        }
        world.run(Duration::from_secs(60));
        let (sent, closed) = (world.sum(|shard| shard.datagrams_sent), world.dropped(DropReason::ConnectionClosed));
        assert!(sent > 0 && closed > 0, "{sent} and {closed}");
        assert_eq!(sent + closed, 200);
        assert_eq!(world.shard(1).owned_connections(), 0);
    }
}

#[test]
fn what_a_receive_queue_has_no_room_for_is_counted() {
    let mut world = World::scenario(Setup { datagram_receive_buffer_bytes: 5000, ..Setup::default() });
    let (client, address) = world.attach(0, 0);
    world.silence(client);
    for mark in 0..8 {
        world.send_up(client, &udp4(address, SERVER, &[mark; 1200]));
    }
    world.step();
    let held = world.devices[client].held.take().unwrap();
    assert_eq!(held.len(), 8, "one packet a datagram");
    let remote = world.devices[client].outer;
    world.seen.tun.clear();
    for datagram in held {
        world.udp(remote, &datagram);
    }
    world.run(Duration::from_secs(1));
    let lost = world.dropped(DropReason::ReceiveQueueFull);
    assert_eq!(world.sum(|shard| shard.up_packets), 8 - lost);
    assert!((4..8).contains(&lost), "{lost}");
    let first = world.seen.tun[0].1[28];
    assert_eq!(u64::from(first), lost, "the oldest gave way");
    assert_balance(&world, &[DropReason::ReceiveQueueFull], &[]);
    // Downwards: all that the gateway may send at once reaches the client in one step.
    for mark in 0..8 {
        world.send_down(&udp4(SERVER, address, &[mark; 1200]));
    }
    world.run(Duration::from_secs(1));
    let lost = world.client(client).tunnel.counters().drops.of(DropReason::ReceiveQueueFull);
    assert!(lost > 0);
    assert_balance(&world, &[DropReason::ReceiveQueueFull], &[DropReason::ReceiveQueueFull]);
}

#[test]
fn what_waits_for_tokens_when_its_connection_closes_is_counted() {
    for devices in [1, 2] {
        let users = vec![UserSpec { limit_bits_per_s: Some(800_000), home: Some(1), ..UserSpec::default() }];
        let mut world = World::scenario(Setup { users, ..Setup::default() });
        let (client, address) = world.attach(0, 0);
        if devices == 2 {
            world.attach(0, 0);
        }
        // The burst is 100,000 bytes.
        for mark in 0..10 {
            for _ in 0..10 {
                world.send_up(client, &udp4(address, SERVER, &[mark; 1200]));
                world.send_down(&udp4(SERVER, address, &[mark; 1200]));
            }
            world.run(Duration::from_millis(20));
        }
        let passed = world.sum(|shard| shard.up_packets + shard.down_packets);
        assert!(passed < 200, "some wait: {passed}");
        world.close(client);
        world.run(Duration::from_secs(10));
        assert_eq!(world.sum(|shard| shard.down_packets), 100);
        assert!(world.dropped(DropReason::ConnectionClosed) > 0 && world.dropped(DropReason::NotAttached) > 0);
        assert_eq!(world.dropped(DropReason::OverLimit), 0);
        assert_balance(&world, &[DropReason::NotAttached], &[]);
    }
}

#[test]
fn a_super_packet_for_nobody_counts_as_the_packets_it_stands_for() {
    let mut world = World::scenario(Setup::default());
    world.attach(0, 0);
    let nobody = "198.18.0.99".parse().unwrap();
    let mut frame = [&[0; 10][..], &udp4(SERVER, nobody, &[1; 2500])].concat();
    // A run of UDP datagrams (`VIRTIO_NET_HDR_GSO_UDP_L4`) of 1,000 bytes.
    frame[1] = 5;
    frame[4..6].copy_from_slice(&1000u16.to_ne_bytes());
    frame[6..8].copy_from_slice(&20u16.to_ne_bytes());
    world.send_down_frame(&frame);
    assert_eq!(world.dropped(DropReason::NoRoute), 3);
}
