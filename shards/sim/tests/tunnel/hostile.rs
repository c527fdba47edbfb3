//! Users with a certificate who mean harm, beside others who do not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::DropReason;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::{SERVER, udp4};

/// Of every kind: from others' addresses, to where nothing is carried, at odds with themselves, with options, fragments, extension headers, ICMP.
fn nothing_forged_arrives(tunnel: &'static str, is_isolated: bool, packets: usize) {
    let users = vec![UserSpec::default(); 4];
    let mut world = World::scenario(Setup { tunnel, isolate_clients: is_isolated, users, ..Setup::default() });
    let clients: Vec<usize> = (0..4).map(|user| world.attach(user, user as u16 % 2).0).collect();
    world.seen.tun.clear();
    clients.iter().for_each(|&client| world.devices[client].received.clear());
    let mut forger = world.forger(clients[0]);
    let mut sent: BTreeMap<DropReason, u64> = BTreeMap::new();
    for number in 0..packets {
        let (packet, reason) = forger.forge();
        *sent.entry(reason).or_default() += 1;
        world.send_forged(clients[0], &packet);
        // No more than the queues of client and gateway take.
        if number % 500 == 499 {
            world.run(Duration::from_millis(1));
        }
    }
    world.run(Duration::from_secs(1));
    assert!(world.seen.tun.is_empty(), "{} are out, such as {:02x?}", world.seen.tun.len(), world.seen.tun[0]);
    assert!(clients.iter().all(|&client| world.devices[client].received.is_empty()));
    let dropped = sent.keys().map(|&reason| (reason, world.dropped(reason))).collect();
    assert_eq!(sent, dropped, "each for its reason");
    assert!(sent.len() >= 4, "{sent:?}");
}

#[test]
fn a_million_forged_packets_arrive_nowhere() {
    for (tunnel, is_isolated) in
        [("198.18.0.1/24", true), ("198.18.0.1/24", false), ("fd00:77::1/120", true), ("fd00:77::1/120", false)]
    {
        nothing_forged_arrives(tunnel, is_isolated, 250_000);
    }
}

/// How a client comes to take nothing any more.
#[derive(Debug, Clone, Copy)]
enum Stall {
    /// Nothing of what it says arrives.
    Unheard,
    /// It is gone without a word.
    Gone,
    /// It reads, and acknowledges nothing.
    NeverAcknowledges,
}

const CLIENTS: usize = 100;

/// What each of a hundred clients but the first gets of its traffic, in packets, while the first may stall and is sent sixty times as much.
fn delivered_beside(stall: Option<Stall>, memory_bytes_max: usize) -> Vec<usize> {
    // The queue of one connection, and what its packets cost beside.
    const QUEUED_BYTES_MAX: u64 = (4 << 20) * 6 / 5;
    let users = vec![UserSpec::default(); CLIENTS];
    let setup = Setup { shards: 1, users, memory_bytes_max, ..Setup::default() };
    let mut world = World::scenario(setup);
    let cheats = matches!(stall, Some(Stall::NeverAcknowledges));
    let clients: Vec<usize> = (0..CLIENTS)
        .map(|user| if user == 0 { world.connect_cheat(0, 0, cheats) } else { world.connect(user, 0) })
        .collect();
    world.run(Duration::from_secs(2));
    let addresses: Vec<IpAddr> = clients.iter().map(|&client| world.devices[client].address().unwrap()).collect();
    match stall {
        Some(Stall::Unheard) => world.silence(clients[0]),
        Some(Stall::Gone) => world.kill(clients[0]),
        Some(Stall::NeverAcknowledges) | None => {}
    }
    for _ in 0..120 {
        (0..60).for_each(|_| world.send_down(&udp4(SERVER, addresses[0], &[1; 1300])));
        for &address in &addresses[1..] {
            world.send_down(&udp4(SERVER, address, &[2; 1000]));
        }
        world.run(Duration::from_millis(20));
        let held = world.shard(0).held();
        assert!(held.total_bytes() <= held.limit_bytes && held.queued_bytes <= QUEUED_BYTES_MAX, "{stall:?}: {held:?}");
    }
    world.run(Duration::from_secs(1));
    clients[1..]
        .iter()
        .map(|&client| world.devices[client].received.iter().map(|packet| packets(packet)).sum())
        .collect()
}

/// Packets that a frame of theirs is made of.
fn packets(frame: &[u8]) -> usize {
    (frame.len() - 28).div_ceil(1000)
}

#[test]
fn ninety_nine_clients_get_their_packets_beside_one_that_stalls() {
    // Where the bound of its queue is reached first, and where that of all memory is: half of it is what 100 connections take.
    for memory_bytes_max in [32 << 20, 8 << 20] {
        let undisturbed = delivered_beside(None, memory_bytes_max);
        for stall in [Stall::Unheard, Stall::Gone, Stall::NeverAcknowledges] {
            let delivered = delivered_beside(Some(stall), memory_bytes_max);
            for (client, (delivered, undisturbed)) in delivered.iter().zip(&undisturbed).enumerate() {
                let what = format!("{delivered} of {undisturbed} packets, client {client}, {memory_bytes_max} bytes");
                assert!(delivered * 100 >= undisturbed * 95, "{stall:?}: {what}");
            }
        }
    }
}
