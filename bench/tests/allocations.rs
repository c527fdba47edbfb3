//! While it forwards, the engine allocates nothing for a packet: what is allocated is for a whole batch, and as much in every round.
//!
//! Counted by an allocator, over real shards and a real client in memory; only the gateway's part counts.

use std::hint::black_box;

use tollgate_bench::engine::fixture::{self, Fixture, Measure};

/// Rounds until every queue and buffer has grown as long as it gets.
const WARM_UP_ROUNDS: usize = 64;
/// Rounds that are counted.
const ROUNDS: usize = 64;

/// What the engine allocated in some rounds, and how many packets it forwarded.
#[derive(Debug)]
struct Allocated {
    allocations: u64,
    packets: u64,
}

impl Allocated {
    fn during(rounds: usize, fixture: &mut Fixture) -> Self {
        let (mut allocations, mut packets) = (0, 0);
        for _ in 0..rounds {
            let counted = fixture(&mut |work| allocations += allocation_counter::measure(work).count_total);
            packets += counted.unwrap();
        }
        Allocated { allocations, packets }
    }

    fn for_each_packet(&self) -> f64 {
        self.allocations as f64 / self.packets as f64
    }
}

/// Counts what the benchmark `name` allocates in its steady state.
fn steady(name: &str) -> Allocated {
    let mut fixture = (fixture::find(name).unwrap().make)().unwrap();
    Allocated::during(WARM_UP_ROUNDS, &mut fixture);
    let allocated = Allocated::during(ROUNDS, &mut fixture);
    println!("{name}: {allocated:?}, {:.3} for each packet", allocated.for_each_packet());
    allocated
}

#[test]
fn packets_from_a_client_share_their_allocations() {
    // quinn-proto notes each range of packets that it still has to acknowledge.
    assert!(steady("up_1400").for_each_packet() <= 0.05);
    assert!(steady("up_100").for_each_packet() <= 0.05);
}

#[test]
fn packets_to_a_client_share_their_allocations() {
    // quinn-proto keeps a record of each packet that is not acknowledged, in the nodes of a B-tree.
    assert!(steady("down_1400").for_each_packet() <= 0.2);
    assert!(steady("cross_down_1400").for_each_packet() <= 0.2);
    assert!(steady("down_100").for_each_packet() <= 0.05);
}

#[test]
fn splitting_merging_and_summing_up_allocate_nothing() {
    for name in ["split", "merge_tcp", "merge_udp", "checksum"] {
        assert_eq!(steady(name).allocations, 0, "{name}");
    }
}

#[test]
fn an_allocation_for_each_packet_would_be_counted() {
    let mut copying: Fixture = Box::new(|measure: Measure<'_>| {
        measure(&mut || (0..44).for_each(|packet: u64| drop(black_box(vec![packet; 100]))));
        Ok(44)
    });
    assert!(Allocated::during(2, &mut copying).for_each_packet() >= 1.0);
}
