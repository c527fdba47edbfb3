//! Usage over the lives of a gateway: it agrees with what clients have sent and received, whichever processes count and write.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use crate::site::{GATEWAY, Site};

/// After so long all that was counted is on the disk, whoever is killed then: a second until it is handed on, twice in an upgrade, and two until it is written.
const WRITTEN: Duration = Duration::from_secs(6);

fn site() -> Site {
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let file = deployment.path("kept/usage");
    let table = format!("[usage]\nenabled = true\nfile = \"{}\"\n[control]", file.display());
    deployment.edit_server("[control]", &table);
    Site::start_deployed(topology, deployment, |_| {})
}

/// What clients and gateway say of one user: datagrams and bytes from the client, then to it.
type Carried = [[u64; 2]; 2];

/// What the gateway has counted of `user` in all, and the number of connections.
fn counted(site: &Site, user: &str) -> (Carried, u64) {
    let answer: Value = serde_json::from_str(&site.order_done(&["usage", user, "--json"])).unwrap();
    let Some(row) = answer["usage"].as_array().and_then(|rows| rows.first()) else { return ([[0; 2]; 2], 0) };
    let number = |key: String| row[key].as_u64().unwrap();
    let ways = ["received", "sent"].map(|way| ["datagrams", "bytes"].map(|what| number(format!("{way}_{what}"))));
    (ways, number("connections".to_owned()))
}

/// What was counted once nothing moves any more, and what the client has sent and received then.
fn settled(site: &Site, user: &str, client: &mut TestTunnel) -> (Carried, Carried) {
    let mut before = None;
    let mut rests = || {
        for _ in 0..100 {
            client.turn();
            thread::sleep(Duration::from_millis(13));
        }
        let now = (counted(site, user).0, [client.udp_sent, client.udp_received]);
        (before.replace(now) == Some(now)).then_some(now)
    };
    let mut rested = None;
    assert!(eventually(PATIENCE, || {
        rested = rests();
        rested.is_some()
    }));
    rested.unwrap()
}

fn difference(after: Carried, before: Carried) -> Carried {
    [0, 1].map(|way| [0, 1].map(|what| after[way][what] - before[way][what]))
}

/// Has the client send packets, and holds what is counted against what it has sent and received.
fn assert_counted(site: &Site, user: &str, client: &mut TestTunnel) {
    let (before, had) = settled(site, user, client);
    let address = client.address.unwrap();
    for _ in 0..100 {
        client.send_packet(&udp_packet(address, SERVER_V4.into(), &[0; 472]));
    }
    let (after, has) = settled(site, user, client);
    assert_eq!(difference(after, before), difference(has, had));
    assert!(after[0][0] >= before[0][0] + 100, "{before:?}, {after:?}");
}

/// Starts a gateway in the place of one that was told to end, or killed.
fn restart(site: &mut Site) {
    assert!(site.first().is_gone_within(PATIENCE));
    // The last of its threads may end later than the first.
    assert!(eventually(PATIENCE, || UnixStream::connect(site.deployment.path("control")).is_err()));
    site.assert_no_panic();
    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn usage_agrees_with_the_clients_over_churn_a_reload_an_upgrade_and_kills() {
    let _turn = turn::together();
    let mut site = site();
    let login = |site: &Site, user: &str| {
        site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None))
    };
    for number in 1..=3 {
        login(&site, "bob").close();
        assert!(eventually(PATIENCE, || counted(&site, "bob").1 == number), "{:?}", counted(&site, "bob"));
    }
    let mut alice = login(&site, "alice");
    assert_counted(&site, "alice", &mut alice);
    site.order_done(&["reload"]);
    assert_counted(&site, "alice", &mut alice);

    // She stays with the old process, which tells the new one.
    let new = site.upgrade(&["--within", "1h"]);
    assert_counted(&site, "alice", &mut alice);
    let mut bob = login(&site, "bob");
    assert_counted(&site, "bob", &mut bob);
    let both = [settled(&site, "alice", &mut alice).0, settled(&site, "bob", &mut bob).0];
    thread::sleep(WRITTEN);
    new.signal(Signal::KILL);
    assert!(eventually(PATIENCE, || site.order(&["status"]).done));
    // The old one has the file again when it has heard of that.
    assert!(eventually(PATIENCE, || counted(&site, "alice").0 == both[0]), "{both:?}, {:?}", counted(&site, "alice"));
    assert_eq!(counted(&site, "bob").0, both[1]);
    assert_counted(&site, "alice", &mut alice);

    let carried = settled(&site, "alice", &mut alice).0;
    thread::sleep(WRITTEN);
    site.first().signal(Signal::KILL);
    restart(&mut site);
    assert!(
        eventually(PATIENCE, || counted(&site, "alice").0 == carried),
        "{carried:?}, {:?}",
        counted(&site, "alice")
    );
    assert_eq!((counted(&site, "bob").0, counted(&site, "bob").1), (both[1], 4));
    let mut alice = login(&site, "alice");
    assert_counted(&site, "alice", &mut alice);

    // What is there at a clean stop is written at once.
    let carried = settled(&site, "alice", &mut alice).0;
    site.first().signal(Signal::TERM);
    restart(&mut site);
    let kept = || counted(&site, "alice").0;
    assert!(
        eventually(PATIENCE, || kept()[0] == carried[0] && kept()[1][0] >= carried[1][0]),
        "{carried:?}, {:?}",
        kept()
    );
    assert!(kept()[1][0] <= carried[1][0] + 3, "its goodbye alone came on top: {carried:?}, {:?}", kept());
    site.assert_no_panic();
}
