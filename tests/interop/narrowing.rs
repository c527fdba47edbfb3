//! Outer paths that carry less than the tunnel's packets need: from the start, from some moment on, or for a while.

use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::relay::{Relay, Way};
use tollgate_testkit::bulk::{BulkPlan, Direction, transfer};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{Namespace, PathToGateway, Process, SERVER_V4, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

use crate::mtu::route_mtu;
use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::{eventually, turn};

const WIDE_BYTES: u32 = 1500;
const NARROW_BYTES: u32 = 1350;
/// The tunnel's MTU as both ends have it configured.
const TUNNEL_BYTES: u32 = 1400;
/// How long TCP may stand still when its path changes.
const STALL_MAX: Duration = Duration::from_secs(3);
/// How long it may take until senders are told. A wider path is looked for every 10 s.
const TOLD_MAX: Duration = Duration::from_secs(30);
/// Tries in which that must hold once: on a machine that is busy with other work, anything may stand still.
const TRIES: usize = 3;
const BITS_PER_SECOND: u64 = 50_000_000;
const ONE_WAY: Duration = Duration::from_millis(10);
/// Traffic before the path changes, and behind the last change.
const BEFORE: Duration = Duration::from_secs(1);
const BEHIND: Duration = Duration::from_secs(4);

/// What connects.
#[derive(Debug, Clone, Copy)]
enum Program<'a> {
    Quincy(&'a Peers),
    Connect,
}

/// The family outside.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outer {
    V4,
    V6,
}

/// Where the path narrows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// Somewhere: what is too long is lost without a word.
    Silent,
    /// At a router on the way, which tells the sender by ICMP.
    Router,
    /// At the client's own link: its kernel refuses what is too long.
    ClientLink,
    /// At the gateway's own link.
    GatewayLink,
}

/// A gateway and a client's namespace with a path between them.
struct Path {
    topology: Topology,
    relay: Option<Relay>,
    place: Place,
    outer: Outer,
}

impl Path {
    fn new(outer: Outer, place: Place) -> Self {
        let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
        let topology = Topology::build(&plan).unwrap();
        let way =
            Way { one_way: ONE_WAY, bits_per_second: BITS_PER_SECOND, queue_bytes_max: 200_000, ..Way::default() };
        let is_v6 = outer == Outer::V6;
        let relay = (place == Place::Silent).then(|| Relay::at_router(&topology, is_v6, way));
        Path { topology, relay, place, outer }
    }

    /// Where the client connects to.
    fn endpoint(&self) -> String {
        let service: IpAddr = if self.outer == Outer::V4 { SERVICE_V4.into() } else { SERVICE_V6.into() };
        self.relay.as_ref().map_or(SocketAddr::new(service, PORT), Relay::address).to_string()
    }

    fn set_mtu(&self, mtu_bytes: u32) {
        let set = |namespace: &Namespace, interfaces: &[&str]| {
            let mut netlink = namespace.netlink().unwrap();
            for interface in interfaces {
                let index = netlink.link(interface).unwrap().index;
                netlink.set_link_mtu(index, mtu_bytes).unwrap();
            }
        };
        match self.place {
            Place::Silent => self.relay.as_ref().expect("such a path has one").set_mtu(mtu_bytes as usize),
            // Its neighbours' ends stay wide: they send, and it answers.
            Place::Router => set(self.topology.router.as_ref().unwrap(), &["to-client0", "wan0"]),
            Place::ClientLink => set(self.inside(), &["wan0"]),
            Place::GatewayLink => set(&self.topology.gateway, &["to-router"]),
        }
    }

    fn inside(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// A gateway for it. Where nothing else bounds the rate, the user's limit does.
    fn serve(&self) -> (Deployment, Gateway) {
        let bind = if self.outer == Outer::V4 { "0.0.0.0" } else { "::" };
        let deployment = Deployment::write(&Plan { bind, ..Plan::default() });
        if self.relay.is_none() {
            deployment.edit_user("alice", &format!("bandwidth_limit = \"{} mbps\"", BITS_PER_SECOND / 1_000_000));
        }
        let gateway = Gateway::start(&deployment, &self.topology.gateway);
        (deployment, gateway)
    }

    /// A client behind it. Quincy's own packets must fit from the start, if it is to get through.
    fn connect(&self, program: Program<'_>, deployment: &Deployment, quincys_mtu: u32) -> Process {
        let config = deployment.write_client(Login { endpoint: &self.endpoint(), ..Login::of("alice") });
        match program {
            Program::Quincy(peers) => {
                deployment.edit("client_alice.toml", "mtu = 1400", &format!("mtu = {quincys_mtu}"));
                Client::start_with(peers, deployment, self.inside(), &config).process
            }
            Program::Connect => {
                let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
                command.arg("connect").arg("--config").arg(&config).env("NO_COLOR", "1");
                command.current_dir(deployment.folder());
                self.inside().spawn(command).unwrap()
            }
        }
    }

    /// The MTU that senders of this direction are told of now.
    fn told_mtu(&self, direction: Direction, client: IpAddr) -> u32 {
        match direction {
            Direction::Download => route_mtu(&self.topology.gateway, client).unwrap_or(TUNNEL_BYTES),
            Direction::Upload => self.inside().configure(|netlink| Ok(netlink.link(CLIENT_TUN)?.mtu_bytes)).unwrap(),
        }
    }

    /// Waits until senders of this direction are told of `expected`, while something small passes.
    fn wait_until_told(
        &self,
        direction: Direction,
        client: IpAddr,
        expected: impl Fn(u32) -> bool,
    ) -> Result<(), String> {
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(50), ..PingPlan::new(SERVER_V4.into()) };
        let told = eventually(TOLD_MAX, || {
            let _ = self.inside().run(|| ping(&plan));
            expected(self.told_mtu(direction, client))
        });
        told.then_some(()).ok_or_else(|| format!("{} bytes are told of", self.told_mtu(direction, client)))
    }

    /// Bytes that have arrived where a transfer ends.
    fn arrived(&self, direction: Direction) -> u64 {
        let (namespace, interface) = match direction {
            Direction::Download => (self.inside(), CLIENT_TUN),
            Direction::Upload => (&self.topology.network, "lan0"),
        };
        let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
        let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        line.and_then(|fields| fields.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

/// A transfer whose path narrows in its middle.
#[derive(Debug, Clone, Copy)]
struct Case<'a> {
    program: Program<'a>,
    outer: Outer,
    direction: Direction,
    place: Place,
    /// Whether the path becomes as wide as before, still in its middle.
    widens: bool,
}

impl Case<'_> {
    /// Fails unless the transfer goes on within the time, and its senders are told what the path carries each time.
    fn check(self) {
        let _turn = turn::together();
        let tries = (0..TRIES).map(|_| self.run());
        let failures: Vec<_> = tries.take_while(|result| result.is_err()).filter_map(Result::err).collect();
        assert!(failures.len() < TRIES, "{self:?}: {failures:#?}");
    }

    fn run(self) -> Result<(), String> {
        let Case { program, outer, direction, place, widens } = self;
        let case = format!(
            "{} {direction:?} over {outer:?}, {place:?}",
            if matches!(program, Program::Connect) { "connect" } else { "quincy-client" }
        );
        let path = Path::new(outer, place);
        let (deployment, mut gateway) = path.serve();
        let _client = path.connect(program, &deployment, TUNNEL_BYTES);
        let inside = path.inside();
        wait_for_ping(inside, SERVER_V4);
        for namespace in [inside, &path.topology.network] {
            namespace.sysctl("net/ipv4/tcp_congestion_control", "reno").unwrap();
        }
        let client = inside
            .configure(|netlink| {
                let index = netlink.link(CLIENT_TUN)?.index;
                Ok(netlink.addresses(index)?.iter().map(|net| net.addr()).find(IpAddr::is_ipv4))
            })
            .unwrap()
            .expect("the tunnel's address");
        let server = bulk_server(&path.topology.network, SERVER_V4);
        let changes = AtomicBool::new(true);
        let plan = BulkPlan {
            duration: Some(BEFORE + BEHIND + if widens { Duration::from_secs(12) } else { Duration::ZERO }),
            deadline: Duration::from_secs(120),
            ..BulkPlan::new(server.address(), direction, u64::MAX)
        };
        // What arrives is what counts, not what the sender's kernel has taken.
        let progress = Mutex::new(Vec::new());
        let report = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let start = Instant::now();
                while changes.load(Ordering::Relaxed) {
                    progress.lock().unwrap().push((start.elapsed(), path.arrived(direction)));
                    thread::sleep(Duration::from_millis(20));
                }
            });
            let transferring = scope.spawn(|| {
                let report = inside.run(|| transfer(&plan, |_| {}));
                changes.store(false, Ordering::Relaxed);
                report
            });
            thread::sleep(BEFORE);
            path.set_mtu(NARROW_BYTES);
            let narrow = |mtu| (1250..TUNNEL_BYTES).contains(&mtu);
            let mut told = path.wait_until_told(direction, client, narrow);
            if widens && told.is_ok() {
                path.set_mtu(WIDE_BYTES);
                told = path.wait_until_told(direction, client, |mtu| mtu == TUNNEL_BYTES);
            }
            watching.join().unwrap();
            told.and(transferring.join().unwrap().map_err(|error| error.to_string()))
        })?;
        assert!(report.is_intact(), "{case}: {report:?}");
        let progress = progress.into_inner().unwrap();
        let stall = longest_stall(&progress);
        println!("{case}: longest stall {stall:?}, {:.1} Mb/s", report.bits_per_second() / 1e6);
        gateway.assert_sound();
        if stall < STALL_MAX { Ok(()) } else { Err(format!("{stall:?} without progress")) }
    }
}

/// The longest time without progress once it has begun. Less than a window's worth is retransmissions.
fn longest_stall(progress: &[(Duration, u64)]) -> Duration {
    let (mut stall, mut since, mut bytes) = (Duration::ZERO, None, 0);
    for &(at, now) in progress {
        if now > bytes + 20_000 {
            (since, bytes) = (Some(at), now);
        }
        stall = since.map_or(stall, |since| stall.max(at - since));
    }
    stall
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_download_of_the_real_client_goes_on_within_three_seconds_when_its_path_narrows() {
    let peers = Peers::find();
    let case = Case {
        program: Program::Quincy(&peers),
        outer: Outer::V4,
        direction: Direction::Download,
        place: Place::Silent,
        widens: false,
    };
    case.check();
    Case { outer: Outer::V6, widens: true, ..case }.check();
    Case { place: Place::GatewayLink, ..case }.check();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn transfers_of_our_own_client_go_on_within_three_seconds_when_its_path_narrows() {
    let case = Case {
        program: Program::Connect,
        outer: Outer::V4,
        direction: Direction::Upload,
        place: Place::Silent,
        widens: true,
    };
    case.check();
    Case { outer: Outer::V6, widens: false, ..case }.check();
    Case { direction: Direction::Download, widens: false, ..case }.check();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_narrower_path_that_kernels_tell_of_is_followed_as_well() {
    let case = Case {
        program: Program::Connect,
        outer: Outer::V4,
        direction: Direction::Upload,
        place: Place::ClientLink,
        widens: false,
    };
    case.check();
    Case { place: Place::Router, ..case }.check();
    Case { outer: Outer::V6, direction: Direction::Download, place: Place::Router, ..case }.check();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn clients_come_up_over_a_path_that_is_narrow_from_the_start() {
    let peers = Peers::find();
    // Quincy's packets are its MTU and 50 bytes long from the first on.
    for (program, outer, place, quincys_mtu) in [
        (Program::Connect, Outer::V4, Place::Silent, 0),
        (Program::Connect, Outer::V6, Place::Router, 0),
        (Program::Quincy(&peers), Outer::V4, Place::Silent, NARROW_BYTES - 28 - 50),
        (Program::Quincy(&peers), Outer::V6, Place::Router, NARROW_BYTES - 48 - 50),
    ] {
        let _turn = turn::together();
        let path = Path::new(outer, place);
        path.set_mtu(NARROW_BYTES);
        let (deployment, mut gateway) = path.serve();
        let start = Instant::now();
        let _client = path.connect(program, &deployment, quincys_mtu);
        wait_for_ping(path.inside(), SERVER_V4);
        println!("{outer:?}, {place:?}: answered {:?} after the start", start.elapsed());
        let server = bulk_server(&path.topology.network, SERVER_V4);
        bulk_both_ways(path.inside(), server.address(), 1_000_000);
        gateway.assert_sound();
    }
}
