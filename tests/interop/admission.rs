//! Logins of the real client while strangers take what places there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::lab::{Namespace, Topology, TopologyPlan};
use tollgate::netlink::Route;

use crate::harness::client::{Client, Login};
use crate::harness::deployment::{Deployment, PORT, Plan};
use crate::harness::gateway::Gateway;
use crate::harness::peers::Peers;
use crate::harness::{PATIENCE, eventually, turn};
use crate::stranger::{Stranger, Until};

/// Half handshakes that are under way at any time: as many as the gateway has places.
const HALF_HANDSHAKES: usize = 256;
/// What of them is begun anew in a second.
const BEGUN_PER_S: usize = 128;
const LOGINS: usize = 20;
/// What a login may take: a first packet that was ignored is repeated after a second. One of them may have to repeat one on a busy machine.
const LOGIN_MAX: Duration = Duration::from_secs(1);
const ONE_LOGIN_MAX: Duration = Duration::from_secs(3);

#[test]
fn logins_pass_beside_half_handshakes_from_16_addresses() {
    logins_pass("198.18.0.1:55555", Until::HalfHello, 1, sixteen_addresses);
}

/// They need no certificate either, and each costs the gateway a key exchange and a signature.
#[test]
fn logins_pass_beside_handshakes_that_are_never_finished() {
    logins_pass("198.18.0.1:55555", Until::Hello, 1, sixteen_addresses);
}

#[test]
fn logins_pass_beside_half_handshakes_from_the_same_nat() {
    logins_pass("198.18.0.1:55555", Until::HalfHello, 0, |topology| vec![topology.clients[0].v4.into()]);
}

#[test]
fn logins_pass_beside_half_handshakes_from_an_ipv6_48() {
    let others = |topology: &Topology| {
        let site = &topology.clients[1];
        let address = |subnet: u16| IpAddr::from(Ipv6Addr::new(0xfd00, 0x77, 0, subnet, 0, 0, 0, 1));
        let addresses: Vec<_> = (0..HALF_HANDSHAKES as u16).map(|number| address(number * 251)).collect();
        add_addresses(&site.namespace, "lo", &addresses, 128);
        let network: IpNet = "fd00:77::/48".parse().unwrap();
        topology
            .gateway
            .configure(|netlink| netlink.add_route(&Route::via(network, site.v6.into()).foreign()))
            .unwrap();
        addresses
    };
    logins_pass("[fd00:18::1]:55555", Until::HalfHello, 1, others);
}

fn sixteen_addresses(topology: &Topology) -> Vec<IpAddr> {
    let addresses: Vec<_> = (10..26).map(|host| IpAddr::from(Ipv4Addr::new(198, 18, 2, host))).collect();
    add_addresses(&topology.clients[1].namespace, "wan0", &addresses, 24);
    addresses
}

/// Client 0 logs in again and again, while strangers at client `strangers` begin handshakes from the addresses that `sources` names.
fn logins_pass(endpoint: &str, until: Until, strangers: usize, sources: impl Fn(&Topology) -> Vec<IpAddr>) {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan { bind: "::", ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let sources = sources(&topology);
    let address: SocketAddr = endpoint.parse().unwrap();
    assert_eq!(address.port(), PORT);
    let (done, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    let inside = &topology.clients[strangers].namespace;
    let mut took = thread::scope(|scope| {
        scope.spawn(|| inside.run(|| begin(&sources, address, until, &done, &begun)));
        assert!(eventually(PATIENCE, || begun.load(Ordering::Relaxed) >= HALF_HANDSHAKES), "the strangers are at work");
        let took: Vec<_> = (0..LOGINS)
            .map(|_| login(&peers, &deployment, &topology.clients[0].namespace, &gateway, endpoint))
            .collect();
        done.store(true, Ordering::Relaxed);
        took
    });
    let begun = begun.load(Ordering::Relaxed);
    took.sort_unstable();
    println!("{LOGINS} logins beside {begun} half handshakes took {took:?}");
    assert!(took[LOGINS - 2] < LOGIN_MAX && took[LOGINS - 1] < ONE_LOGIN_MAX, "{took:?}");
    assert!(gateway.status().dropped("handshake_gave_way") > 0, "there were more than places");
    gateway.assert_sound();
}

/// Logs in and vanishes. Returns how long it took until the gateway said so.
fn login(peers: &Peers, deployment: &Deployment, inside: &Namespace, gateway: &Gateway, endpoint: &str) -> Duration {
    let (first, start) = (gateway.process.line_count(), Instant::now());
    let mut client = Client::start(peers, deployment, inside, Login { endpoint, ..Login::of("alice") });
    gateway.wait_for_client(first);
    let took = start.elapsed();
    client.process.kill().unwrap();
    took
}

/// Keeps as many half handshakes under way as the gateway has places for, until `done`.
fn begin(sources: &[IpAddr], gateway: SocketAddr, until: Until, done: &AtomicBool, begun: &AtomicUsize) {
    let stranger = Stranger::new();
    // Sockets stay open: an ICMP message would tell the gateway that nobody is there.
    let mut sockets = std::collections::VecDeque::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let socket = UdpSocket::bind((sources[number % sources.len()], 0)).unwrap();
        stranger.begin(&socket, gateway, until);
        sockets.push_back(socket);
        if sockets.len() > HALF_HANDSHAKES {
            sockets.pop_front();
            thread::sleep(Duration::from_secs(1) / BEGUN_PER_S as u32);
        }
        begun.fetch_add(1, Ordering::Relaxed);
    }
}

fn add_addresses(inside: &Namespace, interface: &str, addresses: &[IpAddr], prefix_length: u8) {
    let added = inside.configure(|netlink| {
        let index = netlink.link(interface)?.index;
        let with_length = |&address| IpNet::new(address, prefix_length).expect("a valid length");
        addresses.iter().map(with_length).try_for_each(|address| netlink.add_address(index, address))
    });
    added.unwrap();
}
