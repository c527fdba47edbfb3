//! Tests of the mesh with the kernel's descriptors and threads. `tests/models` has those of all orders of steps.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tollgate_shards::{ConnectionKey, ControlMessage, Message, PacketMessage, ShardIndex};

use super::mesh::{MESSAGES_MAX, Mesh};
use super::waker::Waker;
use crate::io::{UdpOptions, UdpSocket, Wake};
use crate::packet_io::PacketIo;

fn waker() -> Waker {
    Waker::new(Wake::new().unwrap())
}

fn mesh(shards: usize) -> (Vec<Mesh>, Vec<Waker>) {
    let wakers: Vec<_> = (0..shards).map(|_| waker()).collect();
    (Mesh::between(&wakers, MESSAGES_MAX), wakers)
}

fn route(host: u32) -> Message {
    let connection = ConnectionKey { owner: ShardIndex(0), slot: host, generation: 0 };
    Message::Control(ControlMessage::Route { address: IpAddr::from([198, 18, 0, 1]), connection })
}

fn slots(mesh: &mut Mesh) -> Vec<u32> {
    let mut slots = Vec::new();
    while mesh.receive(|message| {
        if let Message::Control(ControlMessage::Route { connection, .. }) = message {
            slots.push(connection.slot);
        }
    }) {}
    slots
}

#[test]
fn messages_reach_their_shard_in_order() {
    let (mut ends, _bells) = mesh(3);
    for host in 0..10 {
        assert_eq!(ends[0].send(ShardIndex(2), route(host)), 0);
    }
    ends[0].flush();
    assert!(slots(&mut ends[1]).is_empty());
    assert_eq!(slots(&mut ends[2]), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_full_channel_loses_packets_but_no_control_message_and_keeps_the_order() {
    let (mut ends, _bells) = mesh(2);
    let total = MESSAGES_MAX as u32 + 50;
    for host in 0..total {
        assert_eq!(ends[0].send(ShardIndex(1), route(host)), 0);
    }
    assert_eq!(
        ends[0].send(ShardIndex(1), Message::Packet(PacketMessage::Frame(Bytes::new()))),
        1,
        "a packet is lost and counted"
    );
    assert!(ends[0].flush(), "the rest is held");
    let mut received = slots(&mut ends[1]);
    // There is room now, but not before those that are held.
    assert_eq!(ends[0].send(ShardIndex(1), route(total)), 0);
    assert!(!ends[0].flush());
    received.extend(slots(&mut ends[1]));
    assert_eq!(received, (0..=total).collect::<Vec<_>>());
}

#[test]
fn only_a_sleeper_is_woken_and_once_a_batch() {
    let (mut ends, wakers) = mesh(2);
    ends[0].send(ShardIndex(1), route(1));
    ends[0].flush();
    assert!(!wakers[1].descriptor().drain(), "awake: it will look by itself");
    assert!(wakers[1].fall_asleep(|| true));
    ends[0].send(ShardIndex(1), route(2));
    ends[0].send(ShardIndex(1), route(3));
    ends[0].flush();
    assert!(wakers[1].descriptor().drain());
    ends[0].flush();
    assert!(!wakers[1].descriptor().drain());
}

fn packet_io(waker: &Waker) -> PacketIo {
    let socket = UdpSocket::for_remote("127.0.0.1:9".parse().unwrap(), &UdpOptions::default()).unwrap();
    PacketIo::new(socket, None, waker.descriptor()).unwrap()
}

#[test]
fn shards_that_ring_and_sleep_all_the_time_lose_no_ring() {
    const SHARDS: usize = 4;
    const ROUNDS: u64 = 5_000;
    let (ends, wakers) = mesh(SHARDS);
    let done = AtomicUsize::new(0);
    // Two balls go round, so that shards sleep most of the time and are woken at every moment of it.
    let run = |index: usize, mut end: Mesh| {
        let waker = &wakers[index];
        let mut packet_io = packet_io(waker);
        let next = ShardIndex(((index + 1) % SHARDS) as u16);
        if index.is_multiple_of(2) {
            end.send(next, route(0));
        }
        let (mut balls, mut slept) = (0, 0);
        while done.load(Ordering::SeqCst) < SHARDS {
            let mut came = 0;
            let more = end.receive(|_| came += 1);
            if balls < ROUNDS && balls + came >= ROUNDS && done.fetch_add(1, Ordering::SeqCst) + 1 == SHARDS {
                wakers.iter().for_each(Waker::wake);
            }
            balls += came;
            for _ in 0..came {
                end.send(next, route(0));
            }
            end.flush();
            if more {
                continue;
            }
            let (start, limit) = (Instant::now(), Duration::from_secs(20));
            if waker.fall_asleep(|| end.is_idle() && done.load(Ordering::SeqCst) < SHARDS) {
                slept += 1;
                packet_io.sleep(start, Some(start + limit));
            }
            waker.end_sleep(packet_io.take_woken());
            assert!(start.elapsed() < limit, "shard {index} slept for {limit:?}; nothing waits: {}", end.is_idle());
        }
        slept
    };
    let slept: u64 = std::thread::scope(|scope| {
        let run = &run;
        let shards: Vec<_> =
            ends.into_iter().enumerate().map(|(index, end)| scope.spawn(move || run(index, end))).collect();
        shards.into_iter().map(|shard| shard.join().unwrap()).sum()
    });
    assert!(slept > ROUNDS / 4, "{slept} sleeps are no trial");
}
