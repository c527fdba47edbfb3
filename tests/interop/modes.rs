//! Clients of every mode on one port: three of TLS and three of Noise.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tollgate_noise::Kind;
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::deploy::ConfigFile;
use tollgate_testkit::{Namespace, PathToGateway, Process, ROUTER_V4, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::control;
use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::relay::{Relay, RelayPlan, Way};
use tollgate_test_support::traffic::{assert_pings, bulk, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};

/// Mode and key exchange of each client, whose user has the same number.
const MODES: [(&str, &str); 6] = [
    ("tls", "standard"),
    ("tls", "hybrid"),
    ("tls", "post_quantum"),
    ("noise", "standard"),
    ("noise", "hybrid"),
    ("noise", "post_quantum"),
];
/// How soon a client must notice that its gateway is another one.
const NOTICE_MAX: Duration = Duration::from_secs(1);
/// How much later than Quincy's own server the gateway may refuse a client, on a machine that does other things too.
const LATER_MAX: Duration = Duration::from_millis(500);
/// What is moved each way by each client.
const BULK_BYTES: u64 = 30_000_000;
const LONG_BULK_BYTES: u64 = 1_000_000_000;
const REBINDINGS: usize = 2;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn six_clients_of_six_modes_at_once_from_address_to_goodbye() {
    let _turn = turn::alone();
    from_address_to_goodbye(BULK_BYTES);
}

#[test]
#[ignore = "takes minutes: cargo test --test interop -- --ignored move_a_gigabyte"]
fn six_clients_of_six_modes_move_a_gigabyte_each_way() {
    let _turn = turn::alone();
    from_address_to_goodbye(LONG_BULK_BYTES);
}

fn from_address_to_goodbye(bulk_bytes: u64) {
    let mut site = Site::start(PathToGateway::Direct);
    let mut clients = site.attach(|_| "198.18.0.1:55555".to_owned());
    let server = bulk_server(&site.topology.network, SERVER_V4);
    thread::scope(|scope| {
        for (number, attached) in clients.iter().enumerate() {
            let (inside, network, server) = (site.inside(number), &site.topology.network, server.address());
            scope.spawn(move || {
                assert_pings(inside, SERVER_V4);
                assert_pings(network, attached.address);
                for direction in [Direction::Upload, Direction::Download] {
                    let report = bulk(inside, server, direction, bulk_bytes);
                    println!("{:?} {direction:?}: {:.1} s", MODES[number], report.seconds);
                }
            });
        }
    });
    assert_eq!(site.gateway.status().sum("/counters/handshakes"), MODES.len() as u64);
    for attached in &mut clients {
        let first = site.gateway.process.line_count();
        attached.client.process.signal(Signal::INT).unwrap();
        let goodbye = site.gateway.process.wait_for_line_from(first, "client disconnected", PATIENCE).unwrap();
        assert!(goodbye.contains("closed by the client: Client shutdown (code 0x01)"), "{goodbye}");
        attached.client.process.wait(PATIENCE).unwrap();
    }
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn clients_of_every_mode_survive_other_ports_and_notice_a_restart() {
    let _turn = turn::alone();
    let mut site = Site::start(PathToGateway::Routed);
    let router = site.topology.router.as_ref().unwrap();
    let relays: Vec<Relay> = (0..MODES.len())
        .map(|_| {
            // An address of the router that the gateway's certificate bears.
            let listen = (site.topology.clients[0].first_hop_v4, 0).into();
            let gateway = (SERVICE_V4, PORT).into();
            Relay::start(router, RelayPlan { listen, gateway, source: ROUTER_V4.into(), way: Way::default() })
        })
        .collect();
    let mut clients = site.attach(|number| relays[number].address().to_string());
    for _ in 0..REBINDINGS {
        for relay in &relays {
            let before = relay.source();
            assert_ne!(relay.rebind(before.ip()).port(), before.port());
        }
        (0..MODES.len()).for_each(|number| wait_for_ping(site.inside(number), SERVER_V4));
    }
    for (number, attached) in clients.iter().enumerate() {
        assert_pings(site.inside(number), SERVER_V4);
        assert_pings(&site.topology.network, attached.address);
    }
    assert_eq!(site.gateway.status().sum("/counters/handshakes"), MODES.len() as u64, "nobody came anew");

    let done = AtomicBool::new(false);
    let Site { topology, gateway, deployment, .. } = &mut site;
    thread::scope(|scope| {
        for inside in topology.clients.iter().map(|site| &site.namespace) {
            let done = &done;
            let plan = DatagramPlan { per_second: Some(10), ..DatagramPlan::new((SERVER_V4, 9).into(), 5) };
            scope.spawn(move || while !done.load(Ordering::Relaxed) && inside.run(|| send(&plan)) > 0 {});
        }
        gateway.process.kill().unwrap();
        *gateway = Gateway::start(deployment, &topology.gateway);
        let back = Instant::now();
        for (mode, attached) in MODES.iter().zip(&mut clients) {
            let ended = attached.client.process.wait(PATIENCE);
            let noticed = back.elapsed();
            done.store(ended.is_err(), Ordering::Relaxed);
            println!("{mode:?} noticed after {noticed:?}");
            assert!(ended.is_ok_and(|status| !status.success()) && noticed <= NOTICE_MAX, "{mode:?}: {noticed:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_file_as_quincys_server_ships_it_serves_its_client() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = noise_deployment();
    write_quincy_server(&deployment, "standard");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let login = Login::by_noise("u3", "standard");
    let attached = Attached::start(&peers, &deployment, inside, &gateway, login);
    wait_for_ping(inside, SERVER_V4);
    assert_pings(&topology.network, attached.address);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_key_that_nobody_has_listed_is_refused_as_quincys_server_refuses_it() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    for kind in Kind::ALL {
        let mut deployment = noise_deployment();
        deployment.write_noise_keys("mallory");
        deployment.write_identity("mallory", &[]);
        write_quincy_server(&deployment, kind.name());
        let refused = |what: &str| {
            let mut client = Client::start(
                &peers,
                &deployment,
                &topology.clients[0].namespace,
                Login::by_noise("mallory", kind.name()),
            );
            let start = Instant::now();
            assert_eq!(client.process.wait(PATIENCE).unwrap().code(), Some(1), "{what}");
            let took = start.elapsed();
            (last_words(&client.process), took)
        };
        let mut command = Command::new(peers.server());
        command.arg("--config-path").arg(deployment.path("server.toml")).env("NO_COLOR", "1");
        let mut theirs = topology.gateway.spawn(command).unwrap();
        theirs.wait_for_line("Starting", PATIENCE).unwrap();
        let (their_words, their_time) = refused("Quincy's server");
        theirs.kill().unwrap();

        let mut gateway = Gateway::start(&deployment, &topology.gateway);
        let (our_words, our_time) = refused("Tollgate");
        println!("{kind}: {their_time:?} there, {our_time:?} here: {our_words}");
        // The same code; ours says why.
        assert!(our_words.starts_with(&their_words), "{our_words:?}, {their_words:?}");
        assert!(our_time <= their_time + LATER_MAX, "{kind}: {our_time:?}, {their_time:?}");
        let status = gateway.status();
        assert_eq!((status.sum("/counters/handshakes"), status.sum("/counters/connections")), (0, 0));
        gateway.assert_sound();
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_wrong_key_of_the_server_and_a_mode_that_is_not_served_fail_at_once_and_leave_nothing() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let mut deployment = noise_deployment();
    write_quincy_server(&deployment, "hybrid");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let fails = |deployment: &Deployment, login: Login<'_>| {
        let mut client = Client::start(&peers, deployment, &topology.clients[0].namespace, login);
        let start = Instant::now();
        assert_eq!(client.process.wait(PATIENCE).unwrap().code(), Some(1), "{login:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{login:?}: {:?}", start.elapsed());
    };
    for login in [Login::of("u0"), Login::by_noise("u3", "standard"), Login::by_noise("u5", "post_quantum")] {
        fails(&deployment, login);
    }
    // The gateway goes on with the old one.
    deployment.write_noise_keys("server");
    fails(&deployment, Login::by_noise("u4", "hybrid"));
    let status = gateway.status();
    assert_eq!((status.sum("/counters/handshakes"), status.sum("/counters/connections")), (0, 0));
    assert!(eventually(PATIENCE, || gateway.status().sum("/memory/connections_bytes") == 0), "{:?}", gateway.status());
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_key_that_is_taken_back_loses_its_connection_and_the_users_others_live_on() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = noise_deployment();
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = |number: usize| &topology.clients[number].namespace;
    // One user by two credentials.
    let mut revoked = Attached::start(&peers, &deployment, inside(0), &gateway, Login::by_noise("u0", "hybrid"));
    let stays = Attached::start(&peers, &deployment, inside(1), &gateway, Login::of("u0"));
    assert_eq!(gateway.status().sum("/counters/users"), 1);
    deployment.edit("users.toml", &deployment.public_key("u0", Kind::Hybrid), "");
    let answer = control::reload(&deployment);
    assert!(answer.done, "{answer:?}");
    assert_eq!(revoked.client.process.wait(PATIENCE).unwrap().code(), Some(1));
    assert_pings(&topology.network, stays.address);
    let status = gateway.status();
    assert_eq!((status.sum("/counters/connections"), status.sum("/counters/users")), (1, 1));
    gateway.assert_sound();
}

/// Users `u0` to `u5`, each with a certificate and a Noise key of each kind.
fn noise_deployment() -> Deployment {
    let users = (0..MODES.len()).map(|number| (format!("u{number}"), None)).collect();
    Deployment::write(&Plan { serves_noise: true, users, ..Plan::default() })
}

/// Replaces the gateway's configuration by one with the keys that Quincy's server ships, of Noise alone.
fn write_quincy_server(deployment: &Deployment, key_exchange: &str) {
    let key = deployment.path(&format!("server_{key_exchange}.key"));
    let key = fs::read_to_string(key).unwrap();
    ConfigFile::gateway(deployment.folder())
        .with_protocol([("mode", "noise"), ("key_exchange", key_exchange), ("private_key", key.trim())])
        .set("connection.mtu", 1400)
        .set("log.level", "info")
        .write(&deployment.path("server.toml"))
        .unwrap();
}

/// What a client says of its end, without the time.
fn last_words(process: &Process) -> String {
    let lines = process.lines();
    let line = lines.iter().rev().find(|line| line.contains("rror")).unwrap_or_else(|| panic!("{lines:#?}"));
    line.split_once("rror").map_or("", |(_, rest)| rest).to_owned()
}

struct Site {
    peers: Peers,
    topology: Topology,
    deployment: Deployment,
    gateway: Gateway,
}

impl Site {
    fn start(path: PathToGateway) -> Self {
        let peers = Peers::find();
        let plan = TopologyPlan { clients: MODES.len(), path, ..TopologyPlan::default() };
        let topology = Topology::build(&plan).unwrap();
        let deployment = noise_deployment();
        let gateway = Gateway::start(&deployment, &topology.gateway);
        Site { peers, topology, deployment, gateway }
    }

    fn inside(&self, number: usize) -> &Namespace {
        &self.topology.clients[number].namespace
    }

    /// One client of each mode, all at once.
    fn attach(&self, endpoint: impl Fn(usize) -> String) -> Vec<Attached> {
        let attach = |(number, (mode, key_exchange)): (usize, (&str, &str))| {
            let (user, endpoint) = (format!("u{number}"), endpoint(number));
            let login = Login { user: &user, endpoint: &endpoint, mode, key_exchange };
            let inside = self.inside(number);
            // A tunnel of IPv4 only: the kernel is not to look for IPv6 routers through it at the wrong moment.
            inside.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let attached = Attached::start(&self.peers, &self.deployment, inside, &self.gateway, login);
            wait_for_ping(inside, SERVER_V4);
            attached
        };
        MODES.into_iter().enumerate().map(attach).collect()
    }
}
