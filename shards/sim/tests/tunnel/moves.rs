//! Clients whose addresses change, and those who only say so.

use std::net::SocketAddr;
use std::time::Duration;

use tollgate_shards::DropReason;
use tollgate_sim::world::{Setup, World};

use crate::{SERVER, udp4};

fn world() -> World {
    World::scenario(Setup { shards: 1, ..Setup::default() })
}

/// What the gateway sends to a forged address, and what came from there, while a client bounces between that and its own in a download.
fn bounce(world: &mut World, forged: SocketAddr, bounces: u16, pause: Duration) -> (u64, u64) {
    let (client, address) = world.attach(0, 0);
    let own = world.devices[client].outer;
    let before = world.seen.sent_to(forged);
    let mut came = 0;
    for _ in 0..bounces {
        for from in [forged, own] {
            world.move_to(client, from);
            world.silence(client);
            world.send_up(client, &udp4(address, SERVER, &[1; 8]));
            world.step();
            for datagram in world.devices[client].held.take().unwrap() {
                came += if from == forged { datagram.len() as u64 } else { 0 };
                world.udp(from, &datagram);
            }
            // Nothing reaches the client at the forged address.
            world.move_to(client, own);
            for _ in 0..20 {
                world.send_down(&udp4(SERVER, address, &[2; 1300]));
            }
            world.run(pause);
        }
    }
    (came, world.seen.sent_to(forged) - before)
}

#[test]
fn a_download_is_not_reflected_to_a_forged_address() {
    for forged in ["198.19.200.1:4000", "198.19.1.1:4000"] {
        for (bounces, pause_ms) in [(40, 5), (40, 100), (20, 1000)] {
            let mut world = world();
            let (came, went) = bounce(&mut world, forged.parse().unwrap(), bounces, Duration::from_millis(pause_ms));
            println!("{forged}, every {pause_ms} ms: {went} bytes for {came}");
            assert!(went <= 3 * came, "{went} bytes for {came}");
        }
    }
}

/// It knows no answer, since nothing reaches it at the forged address: only the gateway's QUIC knows what the right one is. What comes late from its
/// own address counts for nothing at the forged one.
#[test]
fn a_made_up_answer_to_a_challenge_proves_no_address() {
    const PATH_RESPONSE: u8 = 0x1b;
    let (mut world, forged) = (world(), "198.19.200.1:4000".parse().unwrap());
    let client = world.connect_cheat(0, 0, false);
    world.run(Duration::from_secs(2));
    let address = world.devices[client].address().expect("the client gets an address");
    let own = world.devices[client].outer;
    world.silence(client);
    for _ in 0..6 {
        world.send_up(client, &udp4(address, SERVER, &[1; 1300]));
        world.step();
    }
    let late = world.take_held(client);
    let mut came = 0;
    // The first one moves the connection.
    for _ in 0..2 {
        world.send_frames(client, &[PATH_RESPONSE, 1, 2, 3, 4, 5, 6, 7, 8]);
        world.send_up(client, &udp4(address, SERVER, &[1; 8]));
        world.step();
        for datagram in world.take_held(client) {
            came += datagram.len() as u64;
            world.udp(forged, &datagram);
        }
    }
    late.iter().for_each(|datagram| world.udp(own, datagram));
    for _ in 0..20 {
        world.send_down(&udp4(SERVER, address, &[2; 1000]));
        world.run(Duration::from_millis(1));
    }
    let went = world.seen.sent_to(forged);
    assert!(went > 0 && went <= 3 * came + 1450, "{went} bytes for {came}");
}

#[test]
fn a_client_that_rebinds_every_few_seconds_goes_on_at_once() {
    let mut world = world();
    let (client, address) = world.attach(0, 0);
    for rebound in 0..20u16 {
        world.move_to(client, SocketAddr::from(([198, 19, 100, 1], 40_000 + rebound)));
        world.send_up(client, &udp4(address, SERVER, &[1; 8]));
        world.run(Duration::from_millis(1));
        world.devices[client].received.clear();
        for _ in 0..100 {
            world.send_down(&udp4(SERVER, address, &[2; 1000]));
            world.run(Duration::from_millis(10));
        }
        assert_eq!(world.devices[client].received.len(), 100, "after {rebound} changes");
        world.run(Duration::from_secs(1));
    }
    assert_eq!(world.dropped(DropReason::AddressChange), 0);
}
