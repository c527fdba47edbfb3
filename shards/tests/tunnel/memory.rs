//! What queues take of the heap.

use std::time::Duration;

use crate::SERVER;
use crate::world::{Setup, UserSpec, World, udp4};

/// The packets of both clients are built side by side. What waits for the one must not keep what was for the other.
#[test]
fn packets_that_wait_for_a_client_take_no_more_memory_than_they_have_bytes() {
    const ROUNDS: usize = 200;
    let users = vec![UserSpec::default(), UserSpec::default()];
    let mut world = World::new(Setup { shards: 1, users, ..Setup::default() });
    let ((silent, silent_address), (busy, busy_address)) = (world.attach(0, 0), world.attach(1, 0));
    // Nothing is heard of it any more, so its window fills up and does not open again.
    world.clients[silent].held = Some(Vec::new());
    let (to_silent, to_busy) = (udp4(SERVER, silent_address, &[1; 1300]), udp4(SERVER, busy_address, &[2; 1300]));
    let mut arrived = 0;
    let mut round = |world: &mut World| {
        world.send_down(&to_silent);
        // With that, more than a chunk.
        (0..100).for_each(|_| world.send_down(&to_busy));
        world.run(Duration::from_millis(5));
        arrived += std::mem::take(&mut world.clients[busy].received).len();
        world.clients[silent].received.clear();
    };
    (0..50).for_each(|_| round(&mut world));
    let heap = allocation_counter::measure(|| (0..ROUNDS).for_each(|_| round(&mut world)));
    assert!(arrived > 0);
    let waiting_bytes = (ROUNDS * to_silent.len()) as i64;
    assert!(heap.bytes_current > waiting_bytes / 2, "they do wait: {heap:?}");
    assert!(heap.bytes_current < waiting_bytes * 4, "{} for {waiting_bytes} bytes that wait", heap.bytes_current);
}
