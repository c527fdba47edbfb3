//! Sudden deaths, of a client and of the gateway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};

/// How soon a client that comes back must be at work.
const BACK_MAX: Duration = Duration::from_secs(2);
/// How soon a client must notice that its gateway is another one.
const NOTICE_MAX: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_killed_client_that_comes_back_wins_its_fixed_address_at_once() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let users = vec![("alice".to_owned(), Some("198.19.128.40/32")), ("bob".to_owned(), None)];
    let deployment = Deployment::write(&Plan { users, ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let mut first = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    assert_eq!(first.address.to_string(), "198.19.128.40");
    wait_for_ping(inside, SERVER_V4);

    for _ in 0..4 {
        first.client.process.kill().unwrap();
        let start = Instant::now();
        let second = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
        assert_eq!(second.address, first.address);
        wait_for_ping(inside, SERVER_V4);
        let back = start.elapsed();
        println!("back after {back:?}");
        assert!(back <= BACK_MAX, "back only after {back:?}");
        assert_pings(&topology.network, second.address);
        first = second;
    }
    let status = gateway.status();
    assert_eq!((status.sum("/counters/connections"), status.sum("/counters/users")), (1, 1));
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn clients_of_a_killed_gateway_notice_within_a_second_of_its_return() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let sites = || topology.clients.iter().map(|site| &site.namespace);
    let mut clients: Vec<Attached> = sites()
        .zip(["alice", "bob"])
        .map(|(inside, user)| Attached::start(&peers, &deployment, inside, &gateway, Login::of(user)))
        .collect();
    sites().for_each(|inside| wait_for_ping(inside, SERVER_V4));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for inside in sites() {
            let done = &done;
            // Until the client is gone, and its interface with it, which makes the kernel refuse them.
            let plan = DatagramPlan { per_second: Some(500), ..DatagramPlan::new((SERVER_V4, 9).into(), 50) };
            scope.spawn(move || while !done.load(Ordering::Relaxed) && inside.run(|| send(&plan)) > 0 {});
        }
        thread::sleep(Duration::from_millis(500));
        gateway.process.kill().unwrap();
        gateway = Gateway::start(&deployment, &topology.gateway);
        let back = Instant::now();
        for attached in &mut clients {
            let ended = attached.client.process.wait(PATIENCE);
            let noticed = back.elapsed();
            done.store(ended.is_err(), Ordering::Relaxed);
            println!("noticed after {noticed:?}");
            assert!(ended.is_ok_and(|status| !status.success()) && noticed <= NOTICE_MAX, "{noticed:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(gateway.status().sum("/counters/stateless_responses") >= 2);
    let inside = &topology.clients[0].namespace;
    let _again = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    gateway.assert_sound();
}
