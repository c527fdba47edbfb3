//! Clients that take less than the tunnel: what is too large arrives in fragments, or its sender is told; nothing vanishes.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::{Namespace, SERVER_V4, SERVER_V6, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::control;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk, bulk_server, wait_for_ping};
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};

/// Datagrams of one try.
const DATAGRAMS: usize = 10;
const BULK_BYTES: u64 = 2_000_000;

/// What became of datagrams as long as the gateway's MTU.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    arrived: usize,
    /// Refused by the sender's own kernel, which has been told of a smaller MTU.
    refused: usize,
}

/// Sends datagrams that fill the gateway's MTU from one namespace to an address of another.
fn send_large(from: &Namespace, to: &Namespace, address: IpAddr, dont_fragment: bool) -> Outcome {
    let receiver = to.run(|| UdpSocket::bind((address, 0))).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let target = receiver.local_addr().unwrap();
    let refused = from.run(|| {
        let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let sender = UdpSocket::bind(any).unwrap();
        match (address, dont_fragment) {
            (IpAddr::V4(_), true) => sockopt::set_ip_mtu_discover(&sender, Ipv4PathMtuDiscovery::DO),
            (IpAddr::V4(_), false) => sockopt::set_ip_mtu_discover(&sender, Ipv4PathMtuDiscovery::DONT),
            (IpAddr::V6(_), true) => sockopt::set_ipv6_mtu_discover(&sender, Ipv6PathMtuDiscovery::DO),
            (IpAddr::V6(_), false) => sockopt::set_ipv6_mtu_discover(&sender, Ipv6PathMtuDiscovery::WANT),
        }
        .unwrap();
        sender.connect(target).unwrap();
        let payload = vec![7; if address.is_ipv4() { 1400 - 28 } else { 1400 - 48 }];
        let mut refused = 0;
        for _ in 0..DATAGRAMS {
            match sender.send(&payload) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
        refused
    });
    let mut buffer = [0; 2000];
    let mut arrived = 0;
    loop {
        match receiver.recv(&mut buffer) {
            Ok(_) => arrived += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    Outcome { arrived, refused }
}

/// The MTU of the route of our own to a client's address.
pub fn route_mtu(gateway: &Namespace, address: IpAddr) -> Option<u32> {
    gateway
        .configure(|netlink| {
            let interface = netlink.link("tollgate0")?.index;
            let routes = netlink.routes(interface)?;
            Ok(routes.iter().find(|route| route.destination.addr() == address).and_then(|route| route.mtu_bytes))
        })
        .unwrap()
}

/// A client of MTU 1280 at a gateway of 1400, with senders of every kind.
fn small_client(peers: &Peers, tunnel: &'static str, server: IpAddr, limit: Option<&str>) {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan { tunnel, isolate_clients: false, ..Plan::default() });
    if let Some(limit) = limit {
        for user in ["alice", "bob"] {
            deployment.edit_user(user, &format!("bandwidth_limit = \"{limit}\""));
        }
    }
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [small, large] = [0, 1].map(|index| &topology.clients[index].namespace);
    let bob = Attached::start(peers, &deployment, large, &gateway, Login::of("bob"));
    let config = deployment.write_client(Login::of("alice"));
    deployment.edit("client_alice.toml", "mtu = 1400", "mtu = 1280");
    let client = Client::start_with(peers, &deployment, small, &config);
    let address = client.wait_for_address();
    wait_for_ping(small, server);
    wait_for_ping(large, server);
    assert_eq!(route_mtu(&topology.gateway, bob.address), None, "a client of the gateway's MTU needs no route");
    let mtu = route_mtu(&topology.gateway, address);
    assert!(mtu.is_some_and(|mtu| (1280..1400).contains(&mtu)), "{mtu:?}");

    let senders = [("server", &topology.network), ("gateway", &topology.gateway), ("client", large)];
    for (name, sender) in senders {
        let case = format!("{tunnel} from the {name}, limit {limit:?}");
        let free = send_large(sender, small, address, false);
        // IPv6 fragments at its source only, which must be told first.
        let told_first = if address.is_ipv6() { 2 } else { 0 };
        assert!(free.arrived + told_first >= DATAGRAMS, "{case}: {free:?}");
        let forbidden = send_large(sender, small, address, true);
        assert!(forbidden.refused > 0, "{case}, fragmentation forbidden, nobody is told: {forbidden:?}");
        assert_eq!(forbidden.arrived, 0, "{case}: what must not be fragmented");
        let server = bulk_server(sender, if name == "server" { server } else { inner_of(name, tunnel, &bob) });
        for direction in [Direction::Upload, Direction::Download] {
            bulk(small, server.address(), direction, BULK_BYTES);
        }
    }
    drop(client);
    gateway.assert_sound();
}

/// The inner address of a sender within the tunnel.
fn inner_of(name: &str, tunnel: &str, bob: &Attached) -> IpAddr {
    match name {
        "client" => bob.address,
        _ => tunnel.parse::<ipnet::IpNet>().unwrap().addr(),
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn what_is_too_large_for_an_ipv4_client_arrives_in_fragments_or_its_sender_is_told() {
    let peers = Peers::find();
    for limit in [None, Some("50 mbps")] {
        small_client(&peers, Plan::default().tunnel, SERVER_V4.into(), limit);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn the_sender_of_what_is_too_large_for_an_ipv6_client_is_told() {
    let peers = Peers::find();
    for limit in [None, Some("50 mbps")] {
        small_client(&peers, "fd00:19:80::1/64", SERVER_V6.into(), limit);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn routes_with_an_mtu_go_with_their_clients() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", "[connection]\nconnection_timeout_s = 5\n[control]");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let config = deployment.write_client(Login::of("alice"));
    deployment.edit("client_alice.toml", "mtu = 1400", "mtu = 1280");
    let client = Client::start_with(&peers, &deployment, &topology.clients[0].namespace, &config);
    let address = client.wait_for_address();
    assert!(eventually(PATIENCE, || route_mtu(&topology.gateway, address).is_some()));
    drop(client);
    assert!(eventually(PATIENCE, || route_mtu(&topology.gateway, address).is_none()));
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn routes_that_a_killed_gateway_left_on_an_adopted_device_go_at_the_next_start() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let mut command = Command::new("ip");
    command.args(["tuntap", "add", "dev", "tollgate0", "mode", "tun", "multi_queue"]);
    assert!(topology.gateway.spawn(command).unwrap().wait(PATIENCE).unwrap().success());
    let mut left = Vec::new();
    // The second one has another network, and the third one the first one's again.
    for tunnel in [Plan::default().tunnel, "198.19.129.1/24", Plan::default().tunnel] {
        let deployment = Deployment::write(&Plan { tunnel, ..Plan::default() });
        let mut gateway = Gateway::start(&deployment, &topology.gateway);
        for address in left.drain(..) {
            let is_gone = || route_mtu(&topology.gateway, address).is_none();
            assert!(eventually(PATIENCE, is_gone), "the route to {address} is of an earlier run");
        }
        let inside = &topology.clients[0].namespace;
        let whole = Attached::start(&peers, &deployment, inside, &gateway, Login::of("bob"));
        wait_for_ping(inside, SERVER_V4);
        assert_eq!(send_large(&topology.gateway, inside, whole.address, true).arrived, DATAGRAMS);
        drop(whole);
        let config = deployment.write_client(Login::of("alice"));
        deployment.edit("client_alice.toml", "mtu = 1400", "mtu = 1280");
        let small = Client::start_with(&peers, &deployment, inside, &config);
        let address = small.wait_for_address();
        assert!(eventually(PATIENCE, || route_mtu(&topology.gateway, address).is_some()));
        left.push(address);
        gateway.assert_sound();
        gateway.process.kill().unwrap();
        assert!(route_mtu(&topology.gateway, address).is_some(), "the device stays, and its routes with it");
    }
}

/// Clients with small MTUs, in two halves.
const CROWD: usize = 1_000;

/// What the control thread, which makes the routes, has used of its core. It is the process's first one.
fn control_thread_cpu(gateway: &Gateway) -> Duration {
    let process = gateway.process.id();
    let used = fs::read_to_string(format!("/proc/{process}/task/{process}/schedstat")).unwrap();
    Duration::from_nanos(used.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_route_costs_as_much_with_a_thousand_others_as_without_and_goes_with_its_client() {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan { tunnel: "198.19.128.1/20", shards: 1, ..Plan::default() });
    // Nobody is missed before the end.
    deployment.edit_server("[control]", "[connection]\nconnection_timeout_s = 600\n[control]");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let routes = || {
        let of_clients = |netlink: &mut tollgate::netlink::Netlink| {
            let interface = netlink.link("tollgate0")?.index;
            Ok(netlink.routes(interface)?.iter().filter(|route| route.mtu_bytes.is_some()).count())
        };
        topology.gateway.configure(of_clients).unwrap()
    };
    let mut used = [Duration::ZERO; 2];
    for (half, used) in used.iter_mut().enumerate() {
        let before = control_thread_cpu(&gateway);
        for _ in 0..CROWD / 2 {
            let remote = Login::of("alice").endpoint.parse().unwrap();
            // It falls silent; its address is its own until it is missed.
            topology.gateway.run(|| TestTunnel::login(&deployment, "alice", remote, Some(1330)));
        }
        let expected = (half + 1) * (CROWD / 2);
        assert!(eventually(PATIENCE, || routes() == expected), "{} of {expected} routes", routes());
        *used = control_thread_cpu(&gateway) - before;
    }
    println!("{used:?} for {} routes each", CROWD / 2);
    let bound = used[0] + used[0] / 2 + Duration::from_millis(20);
    assert!(used[1] < bound, "{used:?}: every login looks at all routes");
    assert!(control::kick(&deployment, "alice").done);
    assert!(eventually(PATIENCE, || routes() == 0), "{} routes of clients that are gone", routes());
    gateway.assert_sound();
}
