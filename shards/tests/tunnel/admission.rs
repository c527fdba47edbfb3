//! Who may come in while strangers do what they can to keep others out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tollgate_shards::DropReason;

use crate::world::{Setup, World};

fn world(shards: u16) -> World {
    let mut world = World::new(Setup { shards, ..Setup::default() });
    world.long_hellos = true;
    world
}

/// A handshake of which the first `datagrams` datagrams arrive, from `address` with its address proven, and then nothing more.
fn stuck(world: &mut World, address: SocketAddr, owner: u16, datagrams: usize) {
    let client = world.connect(0, owner);
    world.clients[client].address = address;
    world.clients[client].held = Some(Vec::new());
    world.step();
    let deliver = |world: &mut World, datagrams| {
        for datagram in world.clients[client].held.replace(Vec::new()).unwrap().iter().take(datagrams) {
            world.udp(address, datagram.len(), datagram);
        }
        world.step();
    };
    deliver(world, 1);
    let sent = world.clients[client].held.as_ref().unwrap().len();
    assert_eq!(sent, 2, "a ClientHello takes two datagrams");
    deliver(world, datagrams);
    world.kill(client);
}

fn v4(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 19, 7, host], port))
}

/// Logs in `logins` times beside what is pending, each on another shard, from `address`.
fn assert_logins(world: &mut World, address: Option<IpAddr>, logins: u16) {
    for login in 0..logins {
        let client = world.connect(1, login % 2);
        if let Some(ip) = address {
            world.clients[client].address = SocketAddr::new(ip, 50_000 + login);
        }
        world.run(Duration::from_millis(100));
        assert!(world.clients[client].machine.assignment().is_some(), "login {login} is through");
    }
}

#[test]
fn half_handshakes_from_many_sources_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        stuck(&mut world, v4((number / 8) as u8 + 1, 1000 + number), number % 2, 1);
    }
    assert!(world.dropped(DropReason::HandshakeGaveWay) > 0);
    assert_logins(&mut world, None, 8);
    assert_eq!(world.dropped(DropReason::HandshakeLimit), 0);
}

#[test]
fn half_handshakes_from_behind_the_same_nat_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..256u16 {
        stuck(&mut world, v4(1, 1000 + number), number % 2, 1);
    }
    assert_logins(&mut world, Some(v4(1, 0).ip()), 8);
    assert_logins(&mut world, None, 8);
}

#[test]
fn half_handshakes_from_an_ipv6_site_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        let ip = Ipv6Addr::new(0xfd00, 0x19, 7, number.wrapping_mul(97), 0, 0, 0, 1);
        stuck(&mut world, SocketAddr::new(ip.into(), 1000), number % 2, 1);
    }
    assert_logins(&mut world, None, 8);
    assert_logins(&mut world, Some("fd00:19:7:ffff::1".parse().unwrap()), 8);
    assert_logins(&mut world, Some("fd00:19:8::1".parse().unwrap()), 8);
}

/// They cost a sender no certificate, and each looks like an honest client that is slow.
#[test]
fn handshakes_that_are_never_finished_keep_nobody_out() {
    let mut world = world(2);
    for number in 0..640u16 {
        stuck(&mut world, v4((number / 8) as u8 + 1, 1000 + number), number % 2, 2);
    }
    assert_logins(&mut world, None, 8);
    assert_logins(&mut world, Some(v4(1, 0).ip()), 2);
}

#[test]
fn a_client_hello_may_take_two_seconds_and_the_rest_ten() {
    for (datagrams, seconds) in [(1, 2), (2, 10)] {
        let mut world = world(1);
        stuck(&mut world, v4(1, 1000), 0, datagrams);
        world.run(Duration::from_millis(seconds * 1000 - 200));
        assert_eq!(world.shards[0].handshakes_admitted(), 1, "{datagrams} datagrams");
        world.run(Duration::from_millis(400));
        assert_eq!(world.shards[0].handshakes_admitted(), 0, "{datagrams} datagrams");
    }
}

#[test]
fn a_handshake_that_gives_way_is_told_and_leaves_nothing_behind() {
    let mut world = world(1);
    for number in 0..9u16 {
        stuck(&mut world, v4(1, 1000 + number), 0, 1);
    }
    assert_eq!(world.dropped(DropReason::HandshakeGaveWay), 1);
    assert_eq!(world.shards[0].owned_connections(), 8);
    world.run(Duration::from_secs(30));
    assert_eq!(world.shards[0].owned_connections(), 0);
}
