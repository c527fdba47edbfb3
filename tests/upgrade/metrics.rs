//! Metrics during an upgrade: they are those of the process that serves, and nobody who scrapes is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::scrape::Scrape;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::{Topology, TopologyPlan};

use crate::site::{GATEWAY, Site};

fn site() -> Site {
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", "[metrics]\nenabled = true\n[control]");
    Site::start_deployed(topology, deployment, |_| {})
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn no_scrape_is_refused_while_one_process_takes_over_from_the_other() {
    let _turn = turn::together();
    let site = site();
    let login = || site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let staying = login();
    let is_over = AtomicBool::new(false);
    let (scrapes, served_by_both) = thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut scrapes, mut upgrading) = (0, [false; 2]);
            while !is_over.load(Ordering::Relaxed) {
                let scrape = Scrape::fetch(&site.topology.gateway).unwrap();
                upgrading[scrape.value("tollgate_upgrading") as usize] = true;
                scrapes += 1;
            }
            (scrapes, upgrading)
        });
        site.upgrade(&["--within", "1s"]);
        site.wait_for_one();
        is_over.store(true, Ordering::Relaxed);
        scraper.join().unwrap()
    });
    assert!(scrapes > 10 && served_by_both == [true, true], "{scrapes} scrapes, {served_by_both:?}");
    drop(staying);
    let scrape = || Scrape::fetch(&site.topology.gateway).unwrap();
    assert_eq!((scrape().value("tollgate_upgrading"), scrape().sum("tollgate_clients")), (0.0, 0.0));
    let _late = login();
    assert!(eventually(PATIENCE, || scrape().sum("tollgate_clients") == 1.0), "{:?}", scrape());
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_old_process_serves_metrics_again_when_the_new_one_dies() {
    let _turn = turn::together();
    let site = site();
    let _staying = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let new = site.upgrade(&["--within", "1h"]);
    let upgrading = || Scrape::fetch(&site.topology.gateway).map(|scrape| scrape.value("tollgate_upgrading")).ok();
    assert_eq!(upgrading(), Some(1.0));
    new.signal(Signal::KILL);
    assert!(eventually(PATIENCE, || upgrading() == Some(0.0)), "{:?}", site.gateway.process.lines());
    site.assert_no_panic();
}
