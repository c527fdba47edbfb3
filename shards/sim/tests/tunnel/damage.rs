//! What makes no sense is counted, and harms nobody.

use quinn_proto::Dir;

use super::*;

#[test]
fn damaged_and_random_datagrams_are_counted_and_harm_nobody() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    world.run(Duration::from_secs(3));
    world.silence(client);
    world.send_up(client, &udp4(address, SERVER, &[1; 1000]));
    world.step();
    let genuine = world.devices[client].held.take().unwrap().remove(0);
    let remote = world.devices[client].outer;
    let before = world.dropped(DropReason::Undecryptable) + world.dropped(DropReason::ForeignDatagram);
    let mut sent = 0;
    for bit in (0..genuine.len() * 8).step_by(61) {
        let mut damaged = genuine.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        world.udp(remote, &damaged);
        world.step();
        sent += 1;
    }
    for length in (1..genuine.len()).step_by(31) {
        world.udp(remote, &genuine[..length]);
        world.step();
        sent += 1;
    }
    let mut state = 1u64;
    for length in 1..400usize {
        let noise: Vec<u8> = (0..length * 3).map(|_| next(&mut state)).collect();
        world.udp(remote, &noise);
        world.step();
        sent += 1;
    }
    world.run(Duration::from_secs(1));
    let counted = world.dropped(DropReason::Undecryptable) + world.dropped(DropReason::ForeignDatagram) - before;
    let answered: u64 = world.shards().map(|shard| shard.counters().stateless_responses).sum();
    assert!(
        counted + answered >= sent && counted > sent * 9 / 10,
        "{counted} dropped and {answered} answered of {sent}"
    );
    exchange(&mut world, client, address, 20);
}

#[test]
fn malformed_inner_packets_are_counted_and_harm_nobody() {
    let mut world = World::scenario(Setup::default());
    let (client, address) = world.attach(0, 0);
    world.seen.tun.clear();
    let genuine = udp4(address, SERVER, &[1; 100]);
    let mut malformed: Vec<Vec<u8>> = (0..genuine.len()).map(|length| genuine[..length].to_vec()).collect();
    malformed.push([&genuine[..], &[0]].concat());
    malformed.push(vec![0x00; 60]);
    malformed.push(vec![0xff; 60]);
    let sent = malformed.len() as u64;
    for packet in &malformed {
        world.send_forged(client, packet);
        world.run(Duration::from_millis(20));
    }
    assert_eq!(world.dropped(DropReason::Malformed), sent);
    assert!(world.seen.tun.is_empty());
    for packet in &malformed {
        if packet.len() >= 20 {
            world.send_down(packet);
        }
    }
    exchange(&mut world, client, address, 20);
}

fn next(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 24) as u8
}

/// Few enough for quinn-proto to keep them all.
#[test]
fn pieces_of_a_handshake_that_is_over_end_the_connection() {
    let mut world = World::scenario(Setup::default());
    let client = world.connect_cheat(0, 0, false);
    world.run(Duration::from_secs(1));
    // A byte each, with gaps between (RFC 9000, section 19.6).
    let frames = |first: u16| -> Vec<u8> {
        (first..first + 16)
            .flat_map(|piece| [&[0x06][..], &(0x4000 + 2 * piece).to_be_bytes(), &[1, b'x']].concat())
            .collect()
    };
    (0..4).for_each(|packet| world.send_frames(client, &frames(1 + 16 * packet)));
    world.run(Duration::from_secs(1));
    assert_eq!(closed(&world, client), None, "64 are borne");
    (4..9).for_each(|packet| world.send_frames(client, &frames(1 + 16 * packet)));
    world.run(Duration::from_secs(1));
    let expected = CloseCause::Gateway { code: 8, reason: "too many CRYPTO frames".to_owned() };
    assert_eq!(closed(&world, client), Some(&expected));
}

#[test]
fn a_client_can_open_no_stream() {
    let mut world = World::scenario(Setup::default());
    let (client, _) = world.attach(0, 0);
    let mut streams = world.client_mut(client).tunnel.connection_mut().streams();
    assert_eq!((streams.open(Dir::Bi), streams.open(Dir::Uni)), (None, None));
}
