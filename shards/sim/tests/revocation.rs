//! Of a user who was sent away nothing passes once that is acknowledged, whatever the delays of messages and orders.
//!
//! A part of the combinations has its turn here; `tollgate-sim --revocations --seeds 0..216` goes through all, with certificates and with keys.

use tollgate_sim::revocation::{self, WORLDS};
use tollgate_sim::{Options, Planted};

#[test]
fn nothing_of_a_user_who_was_sent_away_passes_after_the_acknowledgement() {
    // A step that meets all kinds of worlds, and one with keys.
    for number in (0..WORLDS).step_by(25).chain([WORLDS + 40]) {
        let facts =
            revocation::run(number, Options::default()).unwrap_or_else(|found| panic!("world {number}: {found}"));
        assert!(facts.packets_delivered > 1000, "{facts:?}");
        assert!(facts.orders >= 64, "{facts:?}");
    }
}

#[test]
fn an_acknowledgement_that_does_not_wait_for_what_is_under_way_is_found() {
    let options = Options { planted: Some(Planted::EarlyAcknowledgement), ..Options::default() };
    let found = (0..4).find_map(|number| revocation::run(number, options).err()).expect("some world finds it");
    assert_eq!(found.oracle, "packets", "{found}");
    assert!(found.what.contains("sent away"), "{found}");
}
