//! Orders while both processes live: they hold in both.

use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};

use crate::site::{GATEWAY, Site};

/// Turns `client` until it is closed, and fails if it is not.
fn assert_is_closed(client: &mut TestTunnel) {
    let end = Instant::now() + PATIENCE;
    while client.closed.is_none() {
        assert!(Instant::now() < end, "it is not closed");
        client.turn();
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_kick_and_a_reload_close_connections_of_both_processes() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let login = |user| site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None));
    let mut before = ["alice", "bob"].map(login);
    site.upgrade(&["--within", "1h"]);
    let mut after = ["alice", "bob"].map(login);
    let said = site.order_done(&["kick", "alice"]);
    assert!(said.starts_with("2 connections of user 'alice' closed"), "{said}");
    assert_is_closed(&mut before[0]);
    assert_is_closed(&mut after[0]);
    // A user less.
    site.deployment.write_users(&[("alice".to_owned(), None)]);
    let said = site.order_done(&["reload"]);
    assert!(said.contains("2 connections closed; epoch 1 is in force"), "{said}");
    assert_is_closed(&mut before[1]);
    assert_is_closed(&mut after[1]);
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_limit_by_order_goes_on_in_the_new_process_and_in_the_old_one_where_the_new_one_dies() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let staying = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    site.order_done(&["limit", "alice", "80 kbps"]);
    let new = site.upgrade(&["--within", "1h"]);
    let said = site.order_done(&["status"]);
    assert!(said.contains("\"alice\" 80 kbps"), "{said}");
    // Orders of now are the old process's too.
    let said = site.order_done(&["limit", "alice", "90 kbps"]);
    assert!(said.contains("90 kbps, by order; in force on every shard"), "{said}");
    site.order_done(&["limit", "bob", "none"]);
    new.signal(Signal::KILL);
    let says = || site.order(&["status"]).said.contains("\"alice\" 90 kbps, \"bob\" none");
    assert!(eventually(PATIENCE, says), "{}", site.gateway.process.last_lines());
    let said = site.order_done(&["limit", "alice", "--file"]);
    assert!(said.starts_with("limit of user 'alice': none, as the files say"), "{said}");
    drop(staying);
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_second_upgrade_waits_for_the_end_of_the_first() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let staying = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    site.upgrade(&["--within", "1h"]);
    let said = site.upgrade_in_vain(&[]);
    assert!(said.contains("the upgrade before is not over") && said.contains("still has clients"), "{said}");
    drop(staying);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_stop_of_the_new_process_ends_both_with_goodbyes() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let login = || site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let mut before = login();
    let (old, new) = (site.first(), site.upgrade(&["--within", "1h"]));
    let mut after = login();
    new.signal(Signal::TERM);
    assert_is_closed(&mut before);
    assert_is_closed(&mut after);
    assert!(old.is_gone_within(PATIENCE) && new.is_gone_within(PATIENCE), "{:#?}", site.gateway.process.lines());
    assert!(!site.deployment.path("control").exists(), "the control socket went with them");
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_stop_while_the_new_process_starts_ends_both() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let program = site.write_program("exec sleep 100");
    let first = site.gateway.process.line_count();
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| site.order(&["upgrade", "--binary", &program]));
        let new = site.wait_for_started(first);
        site.first().signal(Signal::TERM);
        let answer = upgrade.join().unwrap();
        assert!(!answer.done && answer.said.contains("the gateway is stopping"), "{answer:?}");
        assert!(new.is_gone_within(PATIENCE) && site.first().is_gone_within(PATIENCE));
    });
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_service_manager_is_told_which_process_is_the_gateway() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut words = [0; 512];
        let bytes = manager.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..bytes]).trim().to_owned()
    };
    let site = Site::start_with(1, &Plan::default(), |command| _ = command.env("NOTIFY_SOCKET", &path));
    assert_eq!(told(), "READY=1");
    let new = site.upgrade(&["--within", "0s"]);
    let mut both = [told(), told()];
    both.sort();
    assert_eq!(both, [format!("MAINPID={}", new.0.as_raw_nonzero()), "READY=1".to_owned()]);
    assert!(site.first().is_gone_within(PATIENCE));
    new.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1", "the old process has not said that");
}
