//! A shard that panics: it comes back by itself, the others never stop, and too many panics end the gateway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::control;
use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, Plan};
use tollgate_test_support::faults::Faults;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, program, turn};
use tollgate_testkit::{Namespace, Process, SERVER_V4, Topology, TopologyPlan};

use crate::placement::connect_at;

/// How soon a client of the shard must be at work again.
const BACK_MAX: Duration = Duration::from_secs(3);
/// How soon a client that does not come back must have noticed.
const NOTICE_MAX: Duration = Duration::from_secs(1);
const DATAGRAMS_PER_S: u32 = 500;
/// For how long the other shard's client sends and receives: before the panic, until all is as before, and after it.
const STREAM: Duration = Duration::from_secs(8);
/// When the panic comes.
const QUIET: Duration = Duration::from_secs(1);

/// A gateway of two shards that panics where it is told to; a client of `tollgate connect`, and the shard that has it.
struct Site {
    topology: Topology,
    deployment: Deployment,
    faults: Faults,
    gateway: Gateway,
    alice: Process,
    shard: usize,
}

impl Site {
    fn start(clients: usize) -> Self {
        let topology = Topology::build(&TopologyPlan { clients, ..TopologyPlan::default() }).unwrap();
        let users = ["alice", "bob", "carol"].map(|name| (name.to_owned(), None)).into();
        let deployment = Deployment::write(&Plan { users, ..Plan::default() });
        let faults = Faults::build();
        let mut command = Gateway::command(&deployment);
        faults.prepare(&mut command);
        let gateway = Gateway::start_with(command, &topology.gateway);
        let mut command = std::process::Command::new(program());
        command.arg("connect").arg("--config").arg(deployment.write_client(Login::of("alice")));
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(deployment.folder());
        let alice = topology.clients[0].namespace.spawn(command).unwrap();
        let shard = gateway.wait_for_client(0).owner;
        wait_for_ping(&topology.clients[0].namespace, SERVER_V4);
        Site { topology, deployment, faults, gateway, alice, shard }
    }

    fn inside(&self, client: usize) -> &Namespace {
        &self.topology.clients[client].namespace
    }

    /// Has alice's shard panic, and waits until she is at work again. Returns how long that took.
    fn panic_and_wait(&self) -> Duration {
        let connections = self.gateway.count_lines("user=\"alice\"");
        self.faults.panic_shard(self.shard);
        let start = Instant::now();
        let is_back = || self.gateway.count_lines("user=\"alice\"") > connections;
        let pinging = AtomicBool::new(true);
        thread::scope(|scope| {
            scope.spawn(|| chatter(self.inside(0), &pinging));
            assert!(eventually(PATIENCE, is_back), "{:#?}", self.gateway.process.lines());
            pinging.store(false, Ordering::Relaxed);
        });
        wait_for_ping(self.inside(0), SERVER_V4);
        start.elapsed()
    }
}

/// Sends 500 datagrams a second into the tunnel while `goes_on`; without a tunnel the kernel may refuse them.
fn chatter(inside: &Namespace, goes_on: &AtomicBool) {
    let plan = DatagramPlan { per_second: Some(500), ..DatagramPlan::new((SERVER_V4, 9).into(), 50) };
    while goes_on.load(Ordering::Relaxed) {
        if inside.run(|| send(&plan)) == 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_shard_that_panics_comes_back_with_its_clients_and_the_other_shard_loses_nothing() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let mut site = Site::start(3);
    let Site { deployment, gateway, shard, .. } = &site;
    let attach = |index, user, owner| connect_at(&peers, deployment, site.inside(index), gateway, user, owner);
    let carol = attach(2, "carol", 1 - shard);
    let mut bob = attach(1, "bob", *shard);
    wait_for_ping(site.inside(1), SERVER_V4);
    wait_for_ping(site.inside(2), SERVER_V4);
    site.inside(2).lengthen_queue(CLIENT_TUN, 50_000).unwrap();
    let receivers =
        [datagram_receiver(&site.topology.network, SERVER_V4), datagram_receiver(site.inside(2), carol.address)];
    let before = gateway.status();
    let datagrams = (STREAM.as_secs_f64() * f64::from(DATAGRAMS_PER_S)) as u64;
    let bob_talks = AtomicBool::new(true);
    thread::scope(|scope| {
        let ways = [(site.inside(2), &receivers[0]), (&site.topology.network, &receivers[1])];
        let flows =
            ways.map(|(from, receiver)| scope.spawn(move || paced_flow(from, receiver, 1, datagrams, DATAGRAMS_PER_S)));
        thread::sleep(QUIET);
        scope.spawn(|| chatter(site.inside(1), &bob_talks));
        let start = Instant::now();
        let (back, noticed) = thread::scope(|scope| {
            let back = scope.spawn(|| site.panic_and_wait());
            let ended = bob.client.process.wait(PATIENCE);
            bob_talks.store(false, Ordering::Relaxed);
            assert!(ended.is_ok_and(|status| !status.success()), "quincy-client does not come back by itself");
            let noticed = start.elapsed();
            (back.join().unwrap(), noticed)
        });
        println!("connect is back after {back:?}, quincy-client noticed after {noticed:?}");
        assert!(back <= BACK_MAX && noticed <= NOTICE_MAX, "{back:?}, {noticed:?}");
        for (flow, direction) in flows.into_iter().zip(["up", "down"]) {
            let (lost, counts) = flow.join().unwrap();
            println!("{direction}: {} datagrams, {lost} lost", counts.received);
            assert_eq!((lost, counts.duplicated, counts.corrupted), (0, 0, 0), "{direction}");
        }
    });
    assert_told_once(&site, &before);
    // The shard takes old clients and new ones, and orders.
    let _bob = Attached::start(&peers, &site.deployment, site.inside(1), &site.gateway, Login::of("bob"));
    wait_for_ping(site.inside(1), SERVER_V4);
    assert_pings(site.inside(0), SERVER_V4);
    assert_pings(&site.topology.network, carol.address);
    for answer in [control::reload(&site.deployment), control::kick(&site.deployment, "bob")] {
        assert!(answer.done, "{answer:?}");
    }
    assert_eq!(site.gateway.process.exit_status().unwrap(), None);
    assert_eq!(site.alice.exit_status().unwrap(), None);
}

/// The log has the panic's place once and no address; the report counts it and all that was counted before.
fn assert_told_once(site: &Site, before: &tollgate_test_support::status::Status) {
    let (gateway, shard) = (&site.gateway, site.shard);
    let after = gateway.status();
    assert_eq!((after.of_shard(shard, "/restarts"), after.of_shard(1 - shard, "/restarts")), (1, 0));
    let up = |status: &tollgate_test_support::status::Status| status.of_shard(shard, "/counters/up_packets");
    assert!(up(&after) > up(before), "what was counted stays counted");
    assert!(after.of_shard(shard, "/counters/drops/shard_panicked") >= 1, "the kernel had not been given all");
    assert!(after.of_shard(shard, "/counters/stateless_responses") >= 2, "both clients were told");
    assert_eq!(gateway.count_lines("panicked at src/io/transmit.rs"), 1, "{:#?}", gateway.process.lines());
    assert_eq!(gateway.count_lines("was started anew"), 1, "{:#?}", gateway.process.lines());
    let standing = control::order(&site.deployment.path("control"), "status");
    assert!(standing.done && standing.said.contains(&format!("shard {shard} has panicked")), "{standing:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_third_panic_within_a_minute_ends_the_gateway_with_its_reason() {
    let _turn = turn::alone();
    let mut site = Site::start(1);
    for number in 1..=2 {
        let back = site.panic_and_wait();
        println!("panic {number}: back after {back:?}");
        assert!(back <= BACK_MAX, "panic {number}: {back:?}");
        site.shard = site.gateway.process.lines().iter().rev().find_map(|line| owner(line)).unwrap();
    }
    assert_eq!(site.gateway.process.exit_status().unwrap(), None);
    let start = Instant::now();
    site.faults.panic_shard(site.shard);
    let goes_on = AtomicBool::new(true);
    let ended = thread::scope(|scope| {
        let inside = &site.topology.clients[0].namespace;
        scope.spawn(|| chatter(inside, &goes_on));
        let ended = site.gateway.process.wait(PATIENCE);
        goes_on.store(false, Ordering::Relaxed);
        ended
    });
    println!("ended after {:?}", start.elapsed());
    assert_eq!(ended.unwrap().code(), Some(1));
    assert_eq!(site.gateway.count_lines("panicked at src/io/transmit.rs"), 3);
    let lines = site.gateway.process.lines();
    let last = lines.last().unwrap();
    assert!(last.starts_with("tollgate: shards have panicked 3 times within 60s"), "{lines:#?}");
    // Whoever starts it again has its clients again.
    let again = Gateway::start(&site.deployment, &site.topology.gateway);
    assert!(eventually(PATIENCE, || again.count_lines("user=\"alice\"") == 1), "{:#?}", site.alice.lines());
}

fn owner(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once("client connected")?.1.split_once("shard=")?;
    rest.split_whitespace().next()?.parse().ok()
}
