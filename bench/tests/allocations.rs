//! While it forwards, the engine allocates nothing for a packet: what is allocated is for a whole batch, and as much in every round.
//!
//! Counted by an allocator, over real shards and a real client in memory; only the gateway's part counts.

use std::hint::black_box;

use tollgate_bench::engine::fixture::{self, Fixture};

/// Rounds until every queue and buffer has grown as long as it gets.
const WARM_UP_ROUNDS: usize = 64;
/// Rounds that are counted.
const ROUNDS: usize = 64;

/// What the engine allocated in some rounds, and how many packets it forwarded.
#[derive(Debug, Default, Clone, Copy)]
struct Allocated {
    allocations: u64,
    packets: u64,
}

impl Allocated {
    fn during(rounds: usize, fixture: &mut dyn Fixture) -> Self {
        let mut all = Allocated::default();
        for _ in 0..rounds {
            let counted = &mut |fixture: &mut dyn Fixture| {
                let mut packets = 0;
                let heap = allocation_counter::measure(|| packets = fixture.work());
                all.allocations += heap.count_total;
                all.packets += packets;
                packets
            };
            fixture::round(fixture, counted).unwrap();
        }
        all
    }

    fn for_each_packet(&self) -> f64 {
        self.allocations as f64 / self.packets as f64
    }
}

/// Counts what the benchmark `name` allocates in its steady state.
fn steady(name: &str) -> Allocated {
    let mut fixture = (fixture::find(name).unwrap().make)().unwrap();
    Allocated::during(WARM_UP_ROUNDS, &mut *fixture);
    let allocated = Allocated::during(ROUNDS, &mut *fixture);
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
    struct Copying;
    impl Fixture for Copying {
        fn prepare(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
        fn work(&mut self) -> u64 {
            (0..44).map(|packet: u64| black_box(vec![packet; 100])).map(|copy| copy.len() as u64 / 100).sum()
        }
        fn conclude(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
    }
    assert!(Allocated::during(2, &mut Copying).for_each_packet() >= 1.0);
}
