//! Upgrades that cannot be: the old process goes on as if nothing had been, and says why in one line.

use std::time::Instant;

use tollgate_test_support::deployment::Plan;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::turn;

use crate::site::{GATEWAY, Site};

/// A gateway that is refused an upgrade with what `prepare` does to its files, and serves afterwards.
fn refused(site: &Site, options: &[&str], words: &[&str]) {
    let login = |user| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None);
    let mut staying = site.topology.gateway.run(|| login("alice"));
    let said = site.upgrade_in_vain(options);
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    staying.turn();
    let late = site.topology.gateway.run(|| login("bob"));
    assert!(staying.closed.is_none() && late.closed.is_none(), "{:?}", staying.closed);
    assert!(site.order_done(&["status"]).starts_with("serving; clients: "));
    assert!(site.first().lives());
    site.assert_no_panic();
    [staying, late].into_iter().for_each(TestTunnel::close);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_program_that_does_not_take_over_leaves_the_old_one_as_it_was() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    refused(&site, &["--binary", "/nowhere/tollgate"], &["/nowhere/tollgate cannot be started"]);
    refused(&site, &["--binary", "/bin/false"], &["goes on", "exit status: 1"]);
    // One that says nothing and one that speaks of something else.
    for (script, words) in [
        ("kill -9 $$", ["goes on", "SIGKILL"]),
        ("echo 'some words of its own, which are no frames' >&0\nsleep 5", ["goes on", "it was ended"]),
    ] {
        refused(&site, &["--binary", &site.write_program(script)], &words);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_program_that_says_nothing_is_ended_after_half_a_minute() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let program = site.write_program("exec sleep 100");
    let began = Instant::now();
    refused(&site, &["--binary", &program], &["it takes too long; it was ended"]);
    assert!((29..45).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_configuration_that_cannot_be_is_named_by_the_new_process() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    for (from, to, words) in [
        ("isolate_clients = true", "isolate_clients = \"perhaps\"", ["isolate_clients", "goes on"]),
        (
            "198.19.128.1/24",
            "198.19.129.1/24",
            ["tunnel_network (\"198.19.128.1/24\" -> \"198.19.129.1/24\")", "restart"],
        ),
    ] {
        site.deployment.edit_server(from, to);
        refused(&site, &[], &words);
        site.deployment.edit_server(to, from);
    }
    let serving = site.upgrade(&["--within", "0s"]);
    assert_ne!(serving, site.first());
}
