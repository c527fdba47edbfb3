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
use crate::sockets::datagrams_lost;
use crate::stranger::{Stranger, Until};

/// Half handshakes that are under way at any time: as many as the gateway has places.
const HALF_HANDSHAKES: usize = 256;
/// What of them is begun anew in a second.
const BEGUN_PER_S: usize = 128;
const LOGINS: usize = 20;
/// What a login may take: a first packet that was ignored or lost is repeated after a second.
const LOGIN_MAX: Duration = Duration::from_secs(1);
/// The same with three repetitions, after one second, two and four.
const PERSISTENT_LOGIN_MAX: Duration = Duration::from_secs(8);
const PERSISTENT_LOGINS: usize = 8;

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

/// The source is ignored for a while, but for who repeats a first packet with its token, as every honest client does after a second. What
/// comes in then is not pushed out by what its neighbours go on to begin.
#[test]
fn a_client_comes_in_from_behind_a_nat_whose_handshakes_keep_failing() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let site = &topology.clients[0];
    let (done, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    let endpoint = "198.18.0.1:55555";
    let address: SocketAddr = endpoint.parse().unwrap();
    let took: Vec<_> = thread::scope(|scope| {
        let _end = End(&done);
        scope.spawn(|| site.namespace.run(|| begin(&[site.v4.into()], address, Until::Hello, &done, &begun)));
        assert!(eventually(PATIENCE, || gateway.status().dropped("handshake_rate") > 0), "the source is ignored");
        let logins = 0..PERSISTENT_LOGINS;
        logins.map(|_| login(&peers, &deployment, &site.namespace, &gateway, endpoint)).collect()
    });
    println!("logins beside {} failing handshakes took {took:?}", begun.load(Ordering::Relaxed));
    assert!(took.iter().all(|took| *took < PERSISTENT_LOGIN_MAX), "{took:?}");
    gateway.assert_sound();
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
    let before = gateway.status();
    let mut took = thread::scope(|scope| {
        let _end = End(&done);
        scope.spawn(|| inside.run(|| begin(&sources, address, until, &done, &begun)));
        assert!(eventually(PATIENCE, || begun.load(Ordering::Relaxed) >= HALF_HANDSHAKES), "the strangers are at work");
        (0..LOGINS)
            .map(|_| login(&peers, &deployment, &topology.clients[0].namespace, &gateway, endpoint))
            .collect::<Vec<_>>()
    });
    let begun = begun.load(Ordering::Relaxed);
    took.sort_unstable();
    let drops = gateway.status().drops_since(&before);
    let lost = datagrams_lost(&topology.gateway);
    println!("{LOGINS} logins beside {begun} half handshakes took {took:?}; dropped: {drops}; by the kernel: {lost}");
    assert!(took[LOGINS - 1] < LOGIN_MAX, "{took:?}");
    assert!(gateway.status().dropped("handshake_gave_way") > 0, "there were more than places");
    gateway.assert_sound();
}

/// Ends what waits for it, also where a test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
