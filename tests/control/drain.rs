//! A drain as clients see it: an even pace over all shards, kept to its deadline, and taken back.

use std::thread;
use std::time::{Duration, Instant};

use tollgate_shards::CloseCause;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{control, turn};

use crate::site::Site;

/// On 2 shards, by user 30 and 30 and 40.
const CLIENTS: usize = 100;
const USERS: [&str; 3] = ["alice", "bob", "carol"];
/// QUIC's application code for "come back, elsewhere if you can".
const DRAINED: u64 = 0x05;
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

/// When each of `clients` was closed, from `began`.
fn closed_at(clients: &mut [TestTunnel], began: Instant, limit: Duration) -> Vec<Duration> {
    let mut closed: Vec<Option<Duration>> = vec![None; clients.len()];
    while closed.contains(&None) {
        assert!(
            began.elapsed() < limit,
            "{} of {} are left",
            closed.iter().filter(|at| at.is_none()).count(),
            clients.len()
        );
        for (client, at) in clients.iter_mut().zip(&mut closed).filter(|(_, at)| at.is_none()) {
            client.turn();
            match &client.closed {
                None => {}
                Some(CloseCause::Gateway { code: DRAINED, .. }) => *at = Some(began.elapsed()),
                Some(cause) => panic!("{cause}"),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    let mut closed: Vec<_> = closed.into_iter().flatten().collect();
    closed.sort();
    closed
}

fn logged_in(site: &Site) -> Vec<TestTunnel> {
    let login = |user| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None);
    site.topology.gateway.run(|| USERS.iter().cycle().take(CLIENTS).map(|user| login(user)).collect())
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn clients_leave_at_an_even_pace_the_last_at_the_end() {
    let _turn = turn::alone();
    let mut site = Site::start(|_| {});
    let mut clients = logged_in(&site);
    let socket = site.deployment.path("control");
    let within = Duration::from_secs(4);
    let began = Instant::now();
    let (closed, drained) = thread::scope(|scope| {
        let drain = scope.spawn(|| control::drain(&socket, &["--within", "4s"]));
        (closed_at(&mut clients, began, 2 * within), drain.join().unwrap())
    });
    assert!(drained.done && drained.said.contains("of 100 clients none is left"), "{drained:?}");
    // The order's own way to the gateway is in all of them.
    let first = closed[0].saturating_sub(within / CLIENTS as u32);
    let late: Vec<f64> = (1..)
        .zip(&closed)
        .map(|(number, at)| {
            let due = within * number / CLIENTS as u32;
            (*at - first).as_secs_f64() - due.as_secs_f64()
        })
        .collect();
    let most = late.iter().fold(0.0, |most: f64, late| most.max(late.abs()));
    println!("{:.1} ms off the pace at most, the last after {:?}", most * 1e3, closed[CLIENTS - 1]);
    assert!(most < 0.05 * within.as_secs_f64(), "{late:.3?}");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_second_drain_is_faster_and_whoever_is_left_at_its_deadline_goes_at_once() {
    let _turn = turn::alone();
    let mut site = Site::start(|_| {});
    let mut clients = logged_in(&site);
    let socket = site.deployment.path("control");
    let began = Instant::now();
    let (closed, drained) = thread::scope(|scope| {
        // Alone it would close the first one after 6 s.
        let first = scope.spawn(|| control::drain(&socket, &["--within", "10m"]));
        let second = scope.spawn(|| {
            thread::sleep(Duration::from_millis(500));
            control::drain(&socket, &["--within", "1s", "--rate", "10/s"])
        });
        let closed = closed_at(&mut clients, began, Duration::from_secs(10));
        assert!(first.join().unwrap().done);
        (closed, second.join().unwrap())
    });
    assert!(drained.done, "{drained:?}");
    let last = closed[CLIENTS - 1];
    let at_once = closed.iter().filter(|at| last - **at < Duration::from_millis(300)).count();
    assert!((80..=98).contains(&at_once), "{closed:?}");
    // A busy machine starts programs late.
    assert!((1.4..4.0).contains(&last.as_secs_f64()), "{last:?}");
    // As a probe asks.
    let is_ready = || site.order(&["status", "--ready"]).code == Some(0);
    assert!(!is_ready());
    site.order_done(&["resume"]);
    assert!(is_ready());
    site.gateway.assert_sound();
}
