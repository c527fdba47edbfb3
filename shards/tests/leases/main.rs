//! Leases under every order of events: random attach, detach, spend, lease, loss of messages, death of holders and homes, changes of the limit.
//!
//! The real [`Lease`](tollgate_shards::inspect::Lease) and [`LeaseIssuer`](tollgate_shards::inspect::LeaseIssuer); what joins them is a model. After every step
//! every token is in one place, and an ideal token bucket, which knows nothing of shards, has room for all that was spent.

mod model;
mod steady;

use std::sync::OnceLock;
use std::time::Instant;

use model::{Plant, walk};

/// In the release profile, and what is enough of them with debug assertions.
const CASES: u64 = if cfg!(debug_assertions) { 20_000 } else { 100_000 };

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin; time is virtual from here on")]
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

#[test]
fn tokens_are_conserved_and_the_rate_is_kept_in_every_order_of_events() {
    for seed in 0..CASES {
        if let Err(violation) = walk(seed, Plant::Nothing) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_walk_is_the_same_each_time() {
    for seed in 0..50 {
        assert_eq!(walk(seed, Plant::Nothing), walk(seed, Plant::Nothing));
    }
}

#[test]
fn a_guard_that_is_missing_is_found() {
    for plant in [
        Plant::DoubleGrant,
        Plant::HomeStartsFull,
        Plant::HomeMintsEarly,
        Plant::HomeMintsFromItsStart,
        Plant::HomeForgetsAtOnce,
        Plant::HomeForgetsWhatItLent,
        Plant::LostLeaseComesBack,
    ] {
        let found = (0..2_000).find_map(|seed| walk(seed, plant).err());
        assert!(found.is_some(), "{plant:?} passes for 2,000 seeds");
    }
}
