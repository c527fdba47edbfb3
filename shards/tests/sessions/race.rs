//! Many logins of one user who has one fixed address.

use std::net::IpAddr;

use rand::RngExt as _;
use tollgate_shards::CloseReason;

use crate::model::{Model, credential, user};

const FIXED: &str = "198.18.0.9";
const LOGINS: usize = 16;

/// Lets 16 logins race on 4 shards. Returns the model with nothing under way, or at the first violation.
fn race(seed: u64, confirms_early: bool) -> Model {
    let mut model = Model::new(seed, 4, "198.18.0.1/24", vec![user(1, &[(FIXED, FIXED)]), user(2, &[])]);
    model.confirms_early = confirms_early;
    let address: IpAddr = FIXED.parse().unwrap();
    let mut logins = 0;
    // In some races all log in at once, in others one has the address before the next comes.
    let haste = 1 + model.random.random_range(0..60);
    while model.violation.is_none() {
        if logins < LOGINS && model.random.random_ratio(haste, 100) {
            let shard = model.random.random_range(0..4);
            model.login(shard, credential(1)).unwrap();
            logins += 1;
        } else if model.random.random_ratio(5, 100)
            && let Some(&connection) = model.lingering().first()
        {
            model.disconnect(connection);
        } else if !model.deliver() && logins == LOGINS {
            break;
        }
        model.send_packet(address);
    }
    model.deliver_all();
    model
}

#[test]
fn a_fixed_address_has_one_holder_at_any_time_and_the_newest_login_in_the_end() {
    for seed in 0..10_000 {
        let mut model = race(seed, false);
        model.check_at_rest();
        assert_eq!(model.violation, None, "seed {seed}");
        let holders: Vec<_> = model.live().map(|owned| owned.login.connection).collect();
        assert_eq!(holders.as_slice(), &model.arrivals[LOGINS - 1..], "seed {seed}: the newest wins");
        assert!(model.closed.iter().all(|(_, reason)| *reason == CloseReason::Superseded), "seed {seed}");
        assert_eq!(model.closed.len(), LOGINS - 1);
        model.check_empty();
        assert_eq!(model.violation, None, "seed {seed}");
    }
}

/// Guards the guard: were the newcomer told before the old owner had closed its connection, the oracle of the test above would see it.
#[test]
fn two_holders_are_noticed() {
    let noticed = (0..100).filter(|&seed| race(seed, true).violation.is_some_and(|what| what.contains("both"))).count();
    assert!(noticed >= 25, "only {noticed} of 100");
}
