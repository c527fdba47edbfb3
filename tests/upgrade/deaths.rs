//! Either process is killed, at every step of an upgrade: the other one serves.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::initials::Stranger;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};

use crate::site::{GATEWAY, Serving, Site};

/// No client may be without a gateway for longer.
const WITHOUT_MAX: Duration = Duration::from_secs(3);
/// So many that hardly any run has only those whose packets come to the right socket by chance.
const STRANGERS: u64 = 64;
/// How long after a process has been killed clients go on: at once, so that packets of theirs come to its sockets, and later.
const AFTER_MS: [u64; 5] = [0, 1, 5, 20, 300];
/// Logins that are under way when a process dies.
const BEGUN: usize = 8;
/// When the process dies, from its start: in all that it does until it serves, which takes some 60 ms, and after that.
const MOMENTS_MS: [u64; 12] = [250, 700, 0, 5, 10, 20, 30, 40, 50, 60, 80, 120];

/// Kills one of the two processes `after` the new one was started, and returns how long it took until a new client was in. Where it is the old one, what
/// the client says once is enough.
fn kill(is_new: bool, after: Duration) -> Duration {
    let site = Site::start(1, &Plan::default());
    let login = || TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None);
    let mut staying = site.topology.gateway.run(login);
    let old = site.first();
    let first = site.gateway.process.line_count();
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| site.order(&["upgrade", "--within", "1h"]));
        let new = site.wait_for_started(first);
        thread::sleep(after);
        let [dead, alive] = if is_new { [new, old] } else { [old, new] };
        dead.signal(Signal::KILL);
        let killed = Instant::now();
        assert!(dead.is_gone_within(PATIENCE));
        let mut client = if is_new {
            site.topology.gateway.run(|| login_again(&site))
        } else {
            let mut clients = site.begin_logins(1);
            Site::end_logins(&mut clients);
            clients.remove(0)
        };
        let took = killed.elapsed();
        assert!(alive.lives(), "{:#?}", site.gateway.process.lines());
        // Where the old process lives, so does the client that it has; else it is told at once that it has to come back.
        let is_told = |client: &mut TestTunnel| {
            client.send_frames(&[1]);
            thread::sleep(Duration::from_millis(20));
            client.turn();
            client.closed.is_some()
        };
        if is_new {
            assert!(!is_told(&mut staying), "{:?}", staying.closed);
        } else {
            assert!(eventually(WITHOUT_MAX, || is_told(&mut staying)), "{:#?}", site.gateway.process.lines());
        }
        assert!(!is_told(&mut client), "{:?}", client.closed);
        let answer = upgrade.join().unwrap();
        println!(
            "{after:?} after the start of the new process, {}: in again after {took:?}; {}",
            if is_new { "it dies" } else { "the old one dies" },
            answer.said.trim()
        );
        assert_orders_are_taken(&site, alive);
        site.assert_no_panic();
        took
    })
}

/// A login that is repeated where it is refused: a gateway that sends its clients away may be the one that goes on. It never waits for nothing.
fn login_again(site: &Site) -> TestTunnel {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut tunnel = TestTunnel::start(GATEWAY.0.into(), &site.deployment, "bob", GATEWAY.into(), None);
        while tunnel.closed.is_none() {
            assert!(Instant::now() < end, "no answer to a login: {:#?}", site.gateway.process.lines());
            tunnel.turn();
            if tunnel.address.is_some() {
                tunnel.turn();
                return tunnel;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// The control socket is that of the process that lives, which can be upgraded itself.
fn assert_orders_are_taken(site: &Site, alive: Serving) {
    let is_alone = || {
        let answer = site.order(&["status"]);
        answer.done && !answer.said.contains("taken over")
    };
    assert!(eventually(PATIENCE, is_alone), "{:#?}", site.gateway.process.lines());
    let next = site.upgrade(&["--within", "0s"]);
    assert_ne!(next, alive);
    assert!(alive.is_gone_within(PATIENCE), "{:#?}", site.gateway.process.lines());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_old_process_goes_on_whenever_the_new_one_dies() {
    let _turn = turn::together();
    for after in MOMENTS_MS.map(Duration::from_millis) {
        let took = kill(true, after);
        assert!(took < WITHOUT_MAX, "{after:?}: {took:?}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_new_process_serves_whenever_the_old_one_dies() {
    let _turn = turn::together();
    for after in MOMENTS_MS.map(Duration::from_millis) {
        let took = kill(false, after);
        assert!(took < WITHOUT_MAX, "{after:?}: {took:?}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_that_drained_drains_on_where_the_new_process_dies() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    site.order_done(&["drain", "--within", "1h"]);
    let new = site.upgrade(&["--within", "1h"]);
    let drains = || site.order(&["status"]).said.contains("drain");
    assert!(!drains(), "the new process takes clients");
    new.signal(Signal::KILL);
    assert!(eventually(PATIENCE, drains), "{:#?}", site.gateway.process.lines());
    site.order_done(&["resume"]);
    assert!(!drains());
}

/// Kills the process that has answered logins with Retries, before their clients go on, and returns how long it takes from then until all are in.
fn kill_between(is_new: bool, after: Duration) -> Duration {
    let site = Site::start(1, &Plan::default());
    let upgrade = || site.upgrade(&["--within", "1h"]);
    let (mut clients, dead) = if is_new {
        let new = upgrade();
        (site.begin_logins(BEGUN), new)
    } else {
        let clients = site.begin_logins(BEGUN);
        upgrade();
        (clients, site.first())
    };
    dead.signal(Signal::KILL);
    thread::sleep(after);
    let took = Site::end_logins(&mut clients);
    site.assert_no_panic();
    took
}

/// Half of all IDs that strangers choose look like those of the process that is dead. Where the kernel still looks for its sockets, it gives them to
/// whichever it likes.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn packets_come_to_their_shards_again_where_the_new_process_dies() {
    let _turn = turn::together();
    let site = Site::start(1, &Plan::default());
    let old = site.first();
    let new = site.upgrade(&["--within", "1h"]);
    new.signal(Signal::KILL);
    assert!(new.is_gone_within(PATIENCE));
    site.wait_for_one();
    let misrouted = || site.status_of(old).sum("/counters/misrouted_datagrams");
    let before = misrouted();
    let answered = |nonce| Stranger::prove_address(GATEWAY.0.into(), GATEWAY.into(), nonce).is_ok();
    let answers = site.topology.gateway.run(|| (1..=STRANGERS).filter(|&nonce| answered(nonce)).count());
    assert_eq!((answers as u64, misrouted() - before), (STRANGERS, 0));
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_login_goes_on_where_the_process_dies_that_has_sent_its_retry() {
    let _turn = turn::together();
    for (is_new, after) in [true, false].into_iter().flat_map(|is_new| AFTER_MS.map(|after| (is_new, after))) {
        let took = kill_between(is_new, Duration::from_millis(after));
        println!(
            "{}, and {after} ms later they go on: in after {took:?}",
            if is_new { "the new one" } else { "the old one" }
        );
        assert!(took < WITHOUT_MAX, "{is_new}, {after} ms: {took:?}");
    }
}
