//! The end of a connection whatever else comes in the same batch.

use tollgate_shards::{Congestion, Machine, Output, Received};
use tollgate_sim::LinkPlan;

use super::*;

/// More than a shard writes to its TUN queue before it looks at further connections.
const PACKETS: usize = 600;

#[test]
fn a_connection_that_times_out_in_a_full_batch_with_a_packet_for_it_is_told_to_its_home() {
    let mut world = World::scenario(Setup {
        shards: 1,
        send_datagrams_max: PACKETS,
        congestion: Congestion::Uncontrolled,
        ..Setup::default()
    });
    let (sender, from) = world.attach(0, 0);
    let (leaver, address) = world.attach(1, 0);
    world.kill(leaver);
    world.run(Duration::from_secs(27));
    world.silence(sender);
    for port in 0..PACKETS as u16 {
        // No two can be merged.
        world.send_up(sender, &udp((from, 3000 + port), (SERVER, 2222), &[1; 100]));
    }
    world.step();
    let said = world.take_held(sender);
    let (remote, local_ip) = (world.devices[sender].outer, Some(tollgate_sim::world::GATEWAY.ip()));
    let now = world.instant() + Duration::from_secs(2);
    let shard = world.shard_mut(0);
    assert_eq!(shard.owned_connections(), 2);
    for datagram in &said {
        let data = datagram[..].into();
        shard.handle_udp(now, Received { remote, local_ip, ecn: None, segment_bytes: datagram.len(), data });
    }
    shard.handle_timeout(now);
    shard.handle_frame(now, &[&[0; 10], &udp4(SERVER, address, &[2; 100])[..]].concat());
    let (mut buf, mut frames) = (Vec::new(), 0);
    // One pass, and what it has left to the next.
    for _ in 0..2 {
        loop {
            buf.clear();
            match shard.poll_output(now, true, Some(&mut buf)) {
                Some(Output::Frame(_)) => frames += 1,
                Some(_) => {}
                None => break,
            }
        }
        shard.handle_timeout(now);
    }
    assert!(frames > 512, "the batch was not full: {frames}");
    assert_eq!((shard.owned_connections(), shard.counters().connections), (1, 1), "its home knows that it is gone");
}

/// More than a window holds, and all of it the same connection's.
fn overload(mut send: impl FnMut(&[u8; 1200])) {
    (0..400).for_each(|_| send(&[7; 1200]));
}

#[test]
fn whoever_has_more_to_send_than_its_window_holds_says_goodbye_all_the_same() {
    for congestion in [Congestion::Cubic, Congestion::NewReno, Congestion::Uncontrolled] {
        let link = LinkPlan { delay: Duration::from_millis(40), ..LinkPlan::UNDISTURBED };
        let mut world = World::scenario(Setup { shards: 1, congestion, link, ..Setup::default() });
        let (client, address) = world.attach(0, 0);
        overload(|payload| world.send_up(client, &udp4(address, SERVER, payload)));
        world.run(Duration::from_millis(1));
        world.close(client);
        world.run(Duration::from_millis(100));
        assert_eq!(world.connections(), (0, 0), "{congestion:?}");

        let (client, address) = world.attach(0, 0);
        overload(|payload| world.send_down(&udp4(SERVER, address, payload)));
        world.run(Duration::from_millis(1));
        world.stop();
        world.run(Duration::from_millis(100));
        let expected = CloseCause::Gateway { code: 1, reason: "Server shutdown".to_owned() };
        assert_eq!(closed(&world, client), Some(&expected), "{congestion:?}");
    }
}

#[test]
fn a_client_that_has_vanished_is_gone_in_time_though_no_datagram_leaves() {
    let mut world = World::scenario(Setup { shards: 1, ..Setup::default() });
    let (client, address) = world.attach(0, 0);
    world.send_down(&udp4(SERVER, address, &[7; 1000]));
    world.step();
    world.kill(client);
    world.block(0, true);
    world.run(Duration::from_secs(31));
    assert_eq!((world.connections(), world.addresses_held()), ((0, 0), 0));
    // Even what is closing dies out.
    world.run(Duration::from_secs(5));
    assert_eq!(world.shard(0).owned_connections(), 0);
}
