//! An upgrade under load with fifty clients, half of them Quincy's.

use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::SERVER_V4;
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::ping::{PingPlan, PingReport, ping};

use crate::moves::connect;
use crate::site::Site;

const CLIENTS: usize = 50;
/// One each 10 ms, for 8 s.
const PINGS: u32 = 800;
const PING_INTERVAL: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_secs(2);
/// Of the pings of a client that moves, what may be lost however short round trips are.
const QUIET_LOSS_MAX: u32 = 50;
/// Clients that move data too.
const BUSY: usize = 4;
const BULK_BYTES: u64 = 50_000_000;

#[test]
#[ignore = "needs root and Quincy's programs, by hand: the machine is to be quiet"]
fn of_fifty_clients_on_a_quiet_machine_none_who_stays_loses_a_ping() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let users: Vec<String> = (0..CLIENTS).map(|number| format!("user{number}")).collect();
    let plan = Plan { users: users.iter().map(|user| (user.clone(), None)).collect(), ..Plan::default() };
    let site = Site::start(CLIENTS, &plan);
    let (mut stay, mut come) = (Vec::new(), Vec::new());
    for (index, (at, user)) in site.topology.clients.iter().zip(&users).enumerate() {
        if index % 2 == 0 {
            let login = Login::of(user);
            stay.push(Attached::start(&peers, &site.deployment, &at.namespace, &site.gateway, login));
        } else {
            come.push(connect(&site, &at.namespace, Login::of(user)));
        }
        wait_for_ping(&at.namespace, SERVER_V4);
    }
    let server = bulk_server(&site.topology.network, SERVER_V4);
    let began = Instant::now();
    let reports: Vec<PingReport> = thread::scope(|scope| {
        let plan = PingPlan { count: PINGS, interval: PING_INTERVAL, ..PingPlan::new(SERVER_V4.into()) };
        let pings: Vec<_> = site
            .topology
            .clients
            .iter()
            .map(|at| scope.spawn(move || at.namespace.run(|| ping(&plan)).unwrap()))
            .collect();
        for at in site.topology.clients.iter().take(BUSY) {
            for direction in [Direction::Upload, Direction::Download] {
                let server = server.address();
                scope.spawn(move || bulk(&at.namespace, server, direction, BULK_BYTES));
            }
        }
        thread::sleep(QUIET);
        let answer = site.order(&["upgrade", "--within", "20s"]);
        println!("{} after {:?}", answer.said.trim(), began.elapsed());
        assert!(answer.done);
        pings.into_iter().map(|ping| ping.join().unwrap()).collect()
    });
    let (stayed, came): (Vec<_>, Vec<_>) = reports.iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let lost = |of: &[(usize, &PingReport)]| of.iter().map(|(_, report)| PINGS - report.received).collect::<Vec<_>>();
    let quantile =
        |of: f64| reports.iter().map(|report| report.rtt_ns.value_at_quantile(of)).max().unwrap_or(0) as f64 / 1e6;
    println!("round trips of whoever has the longest: median {:.1} ms, 99 % {:.1} ms", quantile(0.5), quantile(0.99));
    println!("lost by those who stay: {:?}; by those who move: {:?}", lost(&stayed), lost(&came));
    assert!(lost(&stayed).iter().all(|lost| *lost == 0));
    // Two round trips' worth, however long those are with what is in the queues of two cores that move data.
    let worth = (2.0 * quantile(0.99) / PING_INTERVAL.as_secs_f64() / 1e3).ceil() as u32;
    assert!(lost(&came).iter().all(|lost| *lost <= worth.max(QUIET_LOSS_MAX)), "{worth}");
    assert!(site.first().is_gone_within(2 * PATIENCE), "{}", site.gateway.process.last_lines());
    site.assert_no_panic();
}
