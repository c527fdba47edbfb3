//! Clients who come back by themselves move to the new process, with their addresses; a user with a connection at each has one limit.

use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_test_support::deployment::{CLIENT_TUN, Plan};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::relay::{Relay, Way};
use tollgate_test_support::traffic::{assert_pings, bulk, bulk_server, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, program, turn};
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{Namespace, PathToGateway, Process, SERVER_V4, Topology, TopologyPlan};

use crate::site::Site;

const DATAGRAMS_PER_S: u32 = 500;
const STREAM: Duration = Duration::from_secs(4);
const QUIET: Duration = Duration::from_secs(1);
/// What may be in queues when the old connection is closed, behind TCP and on a busy machine: a tenth of a second's datagrams.
const LOST_MAX: u64 = DATAGRAMS_PER_S as u64 / 10;
const ROUND_TRIP: Duration = Duration::from_millis(40);
/// One is what is on its way to the old process when that closes.
const ROUND_TRIPS_MAX: f64 = 1.5;
const BULK_BYTES: u64 = 100_000_000;
/// The limit of the user with two connections, as in users.toml.
const LIMIT: &str = "bandwidth_limit = \"16 mbps\"";
const LIMIT_BYTES_PER_S: f64 = 16e6 / 8.0;
/// Inner packets of the flows that are to be held to it, with their headers, in bytes.
const PACKET_BYTES: f64 = 1028.0;
const PACKETS_PER_S: u32 = 2_500;

/// `tollgate connect` as `user`, at work.
pub fn connect(site: &Site, at: &Namespace, login: Login<'_>) -> (Process, IpAddr) {
    let mut command = Command::new(program());
    command.arg("connect").arg("--config").arg(site.deployment.write_client(login));
    command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(site.deployment.folder());
    let process = at.spawn(command).unwrap();
    let line = process.wait_for_line("connected: this machine is ", PATIENCE).unwrap();
    let (_, rest) = line.split_once("this machine is ").unwrap();
    let address = rest.split('/').next().and_then(|address| address.parse().ok()).unwrap();
    wait_for_ping(at, SERVER_V4);
    at.lengthen_queue(CLIENT_TUN, 50_000).unwrap();
    (process, address)
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn connect_moves_with_its_address_and_loses_hardly_a_packet() {
    let _turn = turn::alone();
    let site = Site::start(1, &Plan::default());
    let (inside, network) = (&site.topology.clients[0].namespace, &site.topology.network);
    let (mut alice, address) = connect(&site, inside, Login::of("alice"));
    let old = site.first();
    let datagrams = (STREAM.as_secs_f64() * f64::from(DATAGRAMS_PER_S)) as u64;
    let (server, began) = (bulk_server(network, SERVER_V4), Instant::now());
    thread::scope(|scope| {
        let flows = [(inside, network, SERVER_V4.into()), (network, inside, address)].map(|(from, to, target)| {
            scope.spawn(move || {
                let receiver = datagram_receiver(to, target);
                paced_flow(from, &receiver, 1, datagrams, DATAGRAMS_PER_S)
            })
        });
        // Every byte of it is checked.
        let tcp = [Direction::Upload, Direction::Download].map(|direction| {
            let server = server.address();
            scope.spawn(move || bulk(inside, server, direction, BULK_BYTES))
        });
        thread::sleep(QUIET);
        site.upgrade(&["--within", "1h"]);
        assert!(old.is_gone_within(PATIENCE), "nobody is left there: {:#?}", site.gateway.process.lines());
        println!("the old process is gone {:?} after the upgrade", began.elapsed() - QUIET);
        for (flow, direction) in flows.into_iter().zip(["up", "down"]) {
            let (lost, counts) = flow.join().unwrap();
            println!("{direction}: {lost} of {datagrams} lost");
            assert!(lost <= LOST_MAX, "{direction}: {lost} lost");
            assert_eq!((counts.duplicated, counts.corrupted), (0, 0), "{direction}");
        }
        tcp.into_iter().for_each(|tcp| _ = tcp.join().unwrap());
    });
    assert_pings(network, address);
    assert_eq!(alice.exit_status().unwrap(), None, "{:#?}", alice.lines());
    site.wait_for_one();
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn over_a_long_path_connect_loses_what_one_round_trip_up_holds_by_tls_and_by_noise() {
    let _turn = turn::alone();
    for login in [Login::of("alice"), Login::by_noise("alice", "hybrid")] {
        move_over_a_long_path(login);
    }
}

fn move_over_a_long_path(login: Login<'_>) {
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let site = Site::start_in(Topology::build(&plan).unwrap(), &Plan { serves_noise: true, ..Plan::default() }, |_| {});
    let relay = Relay::at_router(&site.topology, false, Way { one_way: ROUND_TRIP / 2, ..Way::default() });
    let endpoint = relay.address().to_string();
    let (inside, network) = (&site.topology.clients[0].namespace, &site.topology.network);
    let login = Login { endpoint: &endpoint, ..login };
    let (_alice, address) = connect(&site, inside, login);
    let datagrams = (STREAM.as_secs_f64() * f64::from(DATAGRAMS_PER_S)) as u64;
    thread::scope(|scope| {
        let flows = [(inside, network, SERVER_V4.into()), (network, inside, address)].map(|(from, to, target)| {
            scope.spawn(move || {
                let receiver = datagram_receiver(to, target);
                paced_flow(from, &receiver, 1, datagrams, DATAGRAMS_PER_S)
            })
        });
        thread::sleep(QUIET);
        site.upgrade(&["--within", "1h"]);
        for (flow, direction) in flows.into_iter().zip(["up", "down"]) {
            let (lost, _) = flow.join().unwrap();
            let away = lost as f64 / f64::from(DATAGRAMS_PER_S) / ROUND_TRIP.as_secs_f64();
            println!("{direction}: {lost} lost, {away:.2} round trips' worth");
            assert!(away <= ROUND_TRIPS_MAX, "{direction}: lost {away:.2} round trips' worth");
        }
    });
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_user_with_a_connection_at_each_process_has_one_limit() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let site = Site::start(2, &Plan::default());
    site.deployment.edit_user("alice", LIMIT);
    site.order_done(&["reload"]);
    let [first, second] = [0, 1].map(|index| &site.topology.clients[index].namespace);
    let network = &site.topology.network;
    let attach = |at| {
        let attached = Attached::start(&peers, &site.deployment, at, &site.gateway, Login::of("alice"));
        wait_for_ping(at, SERVER_V4);
        attached
    };
    let one = attach(first);
    let receivers = [datagram_receiver(network, SERVER_V4), datagram_receiver(network, SERVER_V4)];
    let send_for = |at: &Namespace, receiver: usize, seconds: u64| {
        let target = receivers[receiver].address();
        let datagrams = seconds * u64::from(PACKETS_PER_S);
        let plan = DatagramPlan {
            payload_bytes: 1000,
            per_second: Some(PACKETS_PER_S),
            ..DatagramPlan::new(target, datagrams)
        };
        at.run(|| send(&plan))
    };
    let passed = || -> f64 {
        let received = |index: usize| receivers[index].counts().get(&1).map_or(0, |counts| counts.received);
        (received(0) + received(1)) as f64 * PACKET_BYTES
    };
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| send_for(first, 0, 9));
        thread::sleep(2 * QUIET);
        site.upgrade(&["--within", "1h"]);
        let other = attach(second);
        assert_ne!(other.address, one.address, "no address goes out twice");
        scope.spawn(|| send_for(second, 1, 5));
        thread::sleep(QUIET);
        // Both send by now, each more than the limit.
        let (before, at) = (passed(), Instant::now());
        thread::sleep(3 * QUIET);
        let (both, both_time) = (passed() - before, at.elapsed());
        let (all, all_time) = (passed(), began.elapsed());
        let share = both / (LIMIT_BYTES_PER_S * both_time.as_secs_f64());
        println!("both together: {share:.3} of the limit");
        assert!((0.85..=1.05).contains(&share), "both together got {share:.3} of the limit");
        let beyond = all - LIMIT_BYTES_PER_S * all_time.as_secs_f64();
        assert!(
            beyond <= 1.02 * LIMIT_BYTES_PER_S,
            "{beyond:.0} bytes beyond the rate, of a second's worth that may be"
        );
    });
    let counts = [0, 1].map(|index| receivers[index].counts().get(&1).map_or(0, |counts| counts.received));
    assert!(eventually(PATIENCE, || counts.iter().all(|count| *count > 1000)), "{counts:?}");
    site.assert_no_panic();
}
