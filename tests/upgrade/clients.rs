//! When the time is up all clients have left the old process, and nothing of it is left behind.

use std::thread;
use std::time::{Duration, Instant};

use tollgate_shards::CloseCause;
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};

use crate::site::{GATEWAY, Site};

const UPGRADES: usize = 20;
const LOGINS: usize = 8;
/// Packets of each of some clients at the end.
const PACKETS: usize = 50;
/// A PING frame (RFC 9000, section 19.2).
const PING: &[u8] = &[1];
/// QUIC's application code for "come back, to the same gateway".
const UPGRADED: u64 = 0x09;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn clients_leave_within_the_time_and_the_old_process_ends() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let login = || TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None);
    let mut clients: Vec<TestTunnel> = site.topology.gateway.run(|| (0..10).map(|_| login()).collect());
    let old = site.first();
    let serving = site.upgrade(&["--within", "2s"]);
    let began = Instant::now();
    let said = site.order_done(&["status"]);
    assert!(said.starts_with("serving; clients: 0") && said.contains("still has clients"), "{said}");
    let mut late = site.topology.gateway.run(login);
    while clients.iter().any(|client| client.closed.is_none()) {
        assert!(began.elapsed() < PATIENCE);
        clients.iter_mut().for_each(TestTunnel::turn);
        thread::sleep(Duration::from_millis(1));
    }
    for client in &clients {
        assert_ne!(client.address, late.address, "no address goes out twice");
        assert!(matches!(client.closed, Some(CloseCause::Gateway { code: UPGRADED, .. })), "{:?}", client.closed);
    }
    assert!(old.is_gone_within(Duration::from_secs(5)), "{:#?}", site.gateway.process.lines());
    site.wait_for_one();
    late.turn();
    assert!(serving.lives() && late.closed.is_none());
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn twenty_upgrades_in_a_row_leave_descriptors_and_memory_as_they_were() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let login = || TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None);
    let mut before = site.first();
    let mut held = Vec::new();
    for number in 1..=UPGRADES {
        let mut client = site.topology.gateway.run(login);
        let serving = site.upgrade(&["--within", "0s"]);
        assert!(before.is_gone_within(PATIENCE), "upgrade {number}: {}", site.gateway.process.last_lines());
        site.wait_for_one();
        client.turn();
        assert!(matches!(client.closed, Some(CloseCause::Gateway { code: UPGRADED, .. })), "{:?}", client.closed);
        held.push((serving.descriptors(), serving.memory_bytes()));
        before = serving;
    }
    let (first, last) = (held[1], held[UPGRADES - 1]);
    println!("{held:?}");
    // One may be open for a moment.
    assert!(eventually(PATIENCE, || before.descriptors() <= first.0), "{held:?}");
    assert!(last.1 < first.1 + (8 << 20), "{held:?}");
    // Each packet comes to the shard whose it is, as where sockets are new.
    let mut clients: Vec<TestTunnel> = site.topology.gateway.run(|| (0..8).map(|_| login()).collect());
    for _ in 0..PACKETS {
        clients.iter_mut().for_each(|client| client.send_frames(PING));
    }
    assert!(clients.iter().all(|client| client.closed.is_none()));
    assert_eq!(site.status_of(before).sum("/counters/misrouted_datagrams"), 0);
    site.assert_no_panic();
}

/// Their address is proven with a Retry of the old process, which leads them there. A client that never comes back by itself would be refused for good.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn logins_that_began_before_the_new_process_serves_end_at_the_old_one() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let mut clients = site.begin_logins(LOGINS);
    let serving = site.upgrade(&["--within", "1h"]);
    Site::end_logins(&mut clients);
    let clients_of = |process| site.status_of(process).sum("/clients");
    assert_eq!((clients_of(site.first()), clients_of(serving)), (LOGINS as u64, 0));
    thread::sleep(Duration::from_millis(500));
    clients.iter_mut().for_each(TestTunnel::turn);
    assert!(clients.iter().all(|client| client.closed.is_none()), "they are sent away");
    site.assert_no_panic();
}
