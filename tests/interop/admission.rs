//! Logins of the real client while strangers take what places there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::netlink::Route;
use tollgate_testkit::{Namespace, Topology, TopologyPlan};

use crate::sockets::datagrams_lost;
use crate::stranger::{Stranger, Until};
use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::{PATIENCE, eventually, turn};

/// Half handshakes that are under way at any time: as many as the gateway has places.
const HALF_HANDSHAKES: usize = 256;
/// What of them is begun anew in a second.
const BEGUN_PER_S: usize = 128;
const LOGINS: usize = 20;
/// What a login may take.
const LOGIN_MAX: Duration = Duration::from_secs(1);
/// What one takes longer at least whose first packet was ignored or lost: the client repeats it after 999 ms. On a machine that is busy with other
/// things a login may take longer than it should, but not by that much.
const REPETITION: Duration = Duration::from_millis(900);
const UNDISTURBED_LOGINS: usize = 3;
/// Of all logins, how many may be slower on such a machine.
const SLOW_LOGINS_MAX: usize = 2;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_half_handshakes_from_16_addresses() {
    logins_pass("198.18.0.1:55555", Until::HalfHello, 1, sixteen_addresses);
}

/// They need no certificate either, and each costs the gateway a key exchange and a signature.
#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_handshakes_that_are_never_finished() {
    logins_pass("198.18.0.1:55555", Until::Hello, 1, sixteen_addresses);
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_half_handshakes_from_the_same_nat() {
    logins_pass("198.18.0.1:55555", Until::HalfHello, 0, same_nat);
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_half_handshakes_from_an_ipv6_48() {
    logins_pass("[fd00:18::1]:55555", Until::HalfHello, 1, ipv6_48);
}

/// What the gateway does for a failing source it does sparingly, and yet a neighbour gets in with its first packets.
#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_handshakes_that_are_never_finished_from_the_same_nat() {
    logins_pass("198.18.0.1:55555", Until::Hello, 0, same_nat);
}

/// Each costs the gateway a whole handshake, and looks like an honest client until its certificate is seen.
#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn logins_pass_beside_handshakes_that_are_refused_from_the_same_nat() {
    logins_pass("198.18.0.1:55555", Until::Refusal, 0, same_nat);
}

/// The same without room.
#[test]
#[ignore = "needs root, Quincy's programs and a quiet machine: cargo test --test interop every_login -- --ignored"]
fn every_login_beside_strangers_takes_less_than_a_second_on_a_quiet_machine() {
    let v4 = "198.18.0.1:55555";
    let slowest = [
        logins_pass(v4, Until::HalfHello, 1, sixteen_addresses),
        logins_pass(v4, Until::Hello, 1, sixteen_addresses),
        logins_pass(v4, Until::HalfHello, 0, same_nat),
        logins_pass(v4, Until::Hello, 0, same_nat),
        logins_pass(v4, Until::Refusal, 0, same_nat),
        logins_pass("[fd00:18::1]:55555", Until::HalfHello, 1, ipv6_48),
    ];
    assert!(slowest.iter().all(|took| *took < LOGIN_MAX), "{slowest:?}");
}

fn same_nat(topology: &Topology) -> Vec<IpAddr> {
    vec![topology.clients[0].v4.into()]
}

fn sixteen_addresses(topology: &Topology) -> Vec<IpAddr> {
    let addresses: Vec<_> = (10..26).map(|host| IpAddr::from(Ipv4Addr::new(198, 18, 2, host))).collect();
    add_addresses(&topology.clients[1].namespace, "wan0", &addresses, 24);
    addresses
}

fn ipv6_48(topology: &Topology) -> Vec<IpAddr> {
    let site = &topology.clients[1];
    let address = |subnet: u16| IpAddr::from(Ipv6Addr::new(0xfd00, 0x77, 0, subnet, 0, 0, 0, 1));
    let addresses: Vec<_> = (0..HALF_HANDSHAKES as u16).map(|number| address(number * 251)).collect();
    add_addresses(&site.namespace, "lo", &addresses, 128);
    let network: IpNet = "fd00:77::/48".parse().unwrap();
    topology.gateway.configure(|netlink| netlink.add_route(&Route::via(network, site.v6.into()).foreign())).unwrap();
    addresses
}

/// Client 0 logs in again and again, while strangers at client `strangers` begin handshakes from the addresses that `sources` names.
/// Returns how long the slowest login took.
fn logins_pass(endpoint: &str, until: Until, strangers: usize, sources: impl Fn(&Topology) -> Vec<IpAddr>) -> Duration {
    let peers = Peers::find();
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
    let certificate = std::fs::read_to_string(deployment.path("server_cert.pem")).unwrap();
    let stranger = Stranger::new(&certificate);
    let one_login = || login(&peers, &deployment, &topology.clients[0].namespace, &gateway, endpoint);
    let undisturbed = (0..UNDISTURBED_LOGINS).map(|_| one_login()).max().expect("some logins");
    let mut took = thread::scope(|scope| {
        let _end = End(&done);
        scope.spawn(|| inside.run(|| begin(&stranger, &sources, address, until, &done, &begun)));
        assert!(eventually(PATIENCE, || begun.load(Ordering::Relaxed) >= HALF_HANDSHAKES), "the strangers are at work");
        (0..LOGINS).map(|_| one_login()).collect::<Vec<_>>()
    });
    let begun = begun.load(Ordering::Relaxed);
    took.sort_unstable();
    let drops = gateway.status().drops_since(&before);
    let lost = datagrams_lost(&topology.gateway);
    println!("undisturbed logins took up to {undisturbed:?}");
    println!(
        "{LOGINS} logins beside {begun} handshakes that go as far as {until:?} took {took:?}; dropped: {drops}; by the kernel: {lost}"
    );
    assert!(took[LOGINS - 1 - SLOW_LOGINS_MAX] < LOGIN_MAX.max(undisturbed + REPETITION), "{undisturbed:?}: {took:?}");
    gateway.assert_sound();
    took[LOGINS - 1]
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
    let connected = gateway.process.wait_for_line_from(first, "client connected", PATIENCE);
    assert!(connected.is_ok(), "the client says {:#?}, the gateway {:#?}", client.process.lines(), gateway.status());
    let took = start.elapsed();
    client.process.kill().unwrap();
    took
}

/// Keeps as many half handshakes under way as the gateway has places for, until `done`.
fn begin(
    stranger: &Stranger,
    sources: &[IpAddr],
    gateway: SocketAddr,
    until: Until,
    done: &AtomicBool,
    begun: &AtomicUsize,
) {
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
