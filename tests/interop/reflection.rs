//! A client under a download that has some of its datagrams come from an address that is not its own.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_testkit::{PathToGateway, ROUTER_V4, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::turn;

const VICTIM: Ipv4Addr = Ipv4Addr::new(198, 18, 129, 1);
/// Bytes that an address may get for each that came from there (RFC 9000, section 8).
const AMPLIFICATION_MAX: u64 = 3;
const DOWN_PER_S: u32 = 1000;
const UP_PER_S: u32 = 100;
const UP_BYTES: usize = 32;
const LOAD_S: u32 = 3;
/// How often the address changes: as often as the client sends, and so rarely that each change may be taken for a NAT's.
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(500)];

/// A router between client and gateway that sends from its own address, and now and then from the victim's. The victim answers nothing.
struct Bouncer {
    clients: UdpSocket,
    own: UdpSocket,
    victim: UdpSocket,
    client: OnceLock<SocketAddr>,
    /// Microseconds between two datagrams from the victim's address; 0 while there shall be none.
    pause_us: AtomicU64,
    came: AtomicU64,
    went: AtomicU64,
    done: AtomicBool,
}

impl Bouncer {
    fn new(topology: &Topology) -> Self {
        let router = topology.router.as_ref().expect("the path has one");
        router
            .configure(|netlink| {
                let loopback = netlink.link("lo")?.index;
                netlink.add_address(loopback, IpNet::from(IpAddr::V4(VICTIM)))
            })
            .expect("an address for the victim");
        let socket = |address: Ipv4Addr, port| {
            let socket = router.run(|| UdpSocket::bind((address, port))).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            socket
        };
        let to_gateway = |socket: UdpSocket| {
            socket.connect((SERVICE_V4, PORT)).expect("a route to the gateway");
            socket
        };
        Bouncer {
            clients: socket(topology.clients[0].first_hop_v4, PORT),
            own: to_gateway(socket(ROUTER_V4, 0)),
            victim: to_gateway(socket(VICTIM, 4000)),
            client: OnceLock::new(),
            pause_us: AtomicU64::new(0),
            came: AtomicU64::new(0),
            went: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// Forwards until it is `done`.
    fn run<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>) {
        scope.spawn(|| self.forward_up());
        scope.spawn(|| {
            self.receive(&self.own, |datagram, _| {
                if let Some(client) = self.client.get() {
                    drop(self.clients.send_to(datagram, client));
                }
            });
        });
        scope.spawn(|| {
            self.receive(&self.victim, |datagram, _| {
                self.went.fetch_add(datagram.len() as u64, Ordering::Relaxed);
            });
        });
    }

    fn forward_up(&self) {
        let (mut bounced_at, mut was_own) = (Instant::now(), false);
        self.receive(&self.clients, |datagram, from| {
            self.client.get_or_init(|| from);
            let pause_us = self.pause_us.load(Ordering::Relaxed);
            let is_due = pause_us > 0 && was_own && bounced_at.elapsed() >= Duration::from_micros(pause_us);
            was_own = !is_due;
            if is_due {
                bounced_at = Instant::now();
                self.came.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                drop(self.victim.send(datagram));
            } else {
                drop(self.own.send(datagram));
            }
        });
    }

    fn receive(&self, socket: &UdpSocket, mut take: impl FnMut(&[u8], SocketAddr)) {
        let mut datagram = [0; 2048];
        while !self.done.load(Ordering::Relaxed) {
            match socket.recv_from(&mut datagram) {
                Ok((bytes, from)) => take(&datagram[..bytes], from),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("receiving: {error}"),
            }
        }
    }
}

/// Ends it also where a test fails.
struct End<'a>(&'a Bouncer);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_download_is_not_reflected_to_an_address_that_only_sends() {
    let peers = Peers::find();
    let _turn = turn::together();
    let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
    let topology = Topology::build(&plan).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let bouncer = Bouncer::new(&topology);
    thread::scope(|scope| {
        let _end = End(&bouncer);
        bouncer.run(scope);
        let inside = &topology.clients[0].namespace;
        let endpoint = SocketAddr::new(topology.clients[0].first_hop_v4.into(), PORT).to_string();
        let login = Login { endpoint: &endpoint, ..Login::of("alice") };
        let attached = Attached::start(&peers, &deployment, inside, &gateway, login);
        wait_for_ping(inside, SERVER_V4);
        let up = datagram_receiver(&topology.network, SERVER_V4);
        let down = datagram_receiver(inside, attached.address);
        for pause in PAUSES {
            bouncer.pause_us.store(pause.as_micros().max(1) as u64, Ordering::Relaxed);
            let number = pause.as_millis() as u32;
            let of_load = |per_s| u64::from(LOAD_S * per_s);
            // Whoever wants much for little sends little.
            let sparing = DatagramPlan {
                flow: number,
                payload_bytes: UP_BYTES,
                per_second: Some(UP_PER_S),
                ..DatagramPlan::new(up.address(), of_load(UP_PER_S))
            };
            let arrived = thread::scope(|scope| {
                scope.spawn(|| inside.run(|| send(&sparing)));
                let (lost, _) = paced_flow(&topology.network, &down, number, of_load(DOWN_PER_S), DOWN_PER_S);
                of_load(DOWN_PER_S) - lost
            });
            bouncer.pause_us.store(0, Ordering::Relaxed);
            // What is under way arrives.
            thread::sleep(Duration::from_millis(300));
            let [came, went] = [&bouncer.came, &bouncer.went].map(|bytes| bytes.load(Ordering::Relaxed));
            println!("every {pause:?}: {went} bytes for {came} in all; {arrived} datagrams came down meanwhile");
            assert!(came > 0 && went <= AMPLIFICATION_MAX * came, "every {pause:?}: {went} bytes for {came}");
        }
        assert!(bouncer.went.load(Ordering::Relaxed) > 0, "the gateway has followed at least once");
        assert_pings(inside, SERVER_V4);
    });
    assert_eq!(gateway.status().sum("/counters/handshakes"), 1, "it is one connection");
    gateway.assert_sound();
}
