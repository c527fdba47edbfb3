//! The memory of a gateway that strangers and clients want for themselves: bounded while they do, given back when they have gone. The real
//! program, in a network namespace.
//!
//! Every gateway here has a stated bound, and fails its test if it was ever above it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_test_support::relay::{Relay, RelayPlan, Way};
use tollgate_testkit::{Namespace, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::initials::{FIRST_BYTES_MIN, Stranger, crypto_frame, varint};
use tollgate_test_support::mounts::after_mounts;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::turn::{self, Turn};
use tollgate_test_support::{PATIENCE, eventually};

const MIB: u64 = 1 << 20;
/// What each gateway may take, whether its configuration says so or its machine has twice as much.
const BOUND_MIB: u64 = 48;
/// Addresses that the strangers have in each round, all of the gateway's own loopback network. Those of the last round are ignored for a while
/// where their handshakes have failed.
const SOURCES: u8 = 16;
const HANDSHAKES: usize = 256;
/// Of those, at least so many are under way at once.
const HELD_MIN: u64 = HANDSHAKES as u64 * 3 / 4;
/// What handshakes with gaps are made of, round by round.
const ROUNDS: [Gaps; 5] = [Gaps::Small, Gaps::Packed, Gaps::Padded, Gaps::Packed, Gaps::Padded];
/// How soon silent clients have filled what the gateway may hold, at the latest: before they time out.
const FULL_WITHIN: Duration = Duration::from_secs(10);
/// Frames of one byte that a datagram of an Initial has room for.
const PACKED_FRAMES: usize = 180;
/// Handshakes that a gateway lets be under way, where few aborted ones are to be as many.
const PLACES: u64 = 64;
/// How soon a gateway answers.
const ANSWER: Duration = Duration::from_secs(1);
/// The gateway, for whoever is beside it.
const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), PORT);

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn handshakes_with_gaps_pin_little_and_give_it_back() {
    let per_source = "[connection]\nmax_pending_handshakes_per_source = 32\n[control]";
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", per_source));
    let before = site.memory_bytes();
    let mut most = before;
    for (round, gaps) in ROUNDS.into_iter().enumerate() {
        let earlier = site.gateway.status();
        let seen = site.watch(|| handshakes_with_gaps(round, gaps));
        let now = site.gateway.status();
        let since = |pointer| now.sum(pointer) - earlier.sum(pointer);
        let ignored = since("/counters/drops/foreign_datagram");
        let received = since("/traffic/udp_received_datagrams");
        println!(
            "{gaps:?}: {} at once, {received} datagrams, {ignored} ignored, {} over the limit, {} failed too often, {:.1} MiB",
            seen.connections,
            since("/counters/drops/handshake_limit"),
            since("/counters/drops/handshake_rate"),
            mib(seen.bytes)
        );
        assert!(seen.connections >= HELD_MIN, "{gaps:?}: only {} handshakes at once", seen.connections);
        assert!((ignored > received / 2) == matches!(gaps, Gaps::Small), "{gaps:?}: {ignored} of {received} ignored");
        most = most.max(seen.bytes);
        // Until there is room for as many again.
        assert!(eventually(PATIENCE, || site.gateway.status().sum("/owned_connections") < HANDSHAKES as u64 / 8));
    }
    thread::sleep(Duration::from_secs(15));
    let after = site.memory_bytes();
    println!("before {:.1} MiB, at most {:.1} MiB, afterwards {:.1} MiB", mib(before), mib(most), mib(after));
    assert!(most <= before + 16 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(most));
    assert!(after <= before + 4 * MIB, "from {:.1} to {:.1} MiB, 15 s later", mib(before), mib(after));
    site.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn frames_that_the_protocol_has_no_place_for_pin_nothing_and_end_the_connection() {
    let mut site = Site::start(|_| {});
    let before = site.memory_bytes();
    for frames in [crypto_frame as fn(usize, &[u8]) -> Vec<u8>, stream_frame] {
        let mut tunnel = site.login();
        for gap in 0..2000 {
            tunnel.send_frames(&frames(1 + 2 * gap, b"x"));
        }
        // A closing connection says so once, and whoever does not listen learns it by the next packet.
        assert!(eventually(PATIENCE, || {
            site.inside().run(|| tunnel.turn());
            tunnel.closed.is_some()
        }));
    }
    let after = site.memory_bytes();
    println!("from {:.1} to {:.1} MiB", mib(before), mib(after));
    assert!(after <= before + 4 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(after));
    site.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_queue_keeps_no_more_memory_than_its_packets_are_long() {
    bulk_to_a_client_on_1_mbps(Duration::from_secs(10));
}

#[test]
#[ignore = "needs root and minutes: cargo test --workspace --test memory -- --ignored"]
fn a_queue_keeps_no_more_memory_than_its_packets_are_long_for_a_minute() {
    bulk_to_a_client_on_1_mbps(Duration::from_secs(60));
}

fn bulk_to_a_client_on_1_mbps(time: Duration) {
    // With a controller around all, what the path does not carry waits in the gateway.
    let cubic = "[connection]\ncongestion_controller = \"cubic\"\n[control]";
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", cubic));
    let plan = RelayPlan {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        gateway: GATEWAY,
        source: Ipv4Addr::LOCALHOST.into(),
        way: Way {
            one_way: Duration::from_millis(10),
            bits_per_second: 1_000_000,
            queue_bytes_max: 20_000,
            ..Way::default()
        },
    };
    let path = Relay::start(&site.topology.gateway, plan);
    let mut tunnel = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", path.address(), None));
    let before = site.memory_bytes();
    let target = SocketAddr::new(tunnel.address.expect("a login"), 9);
    const PER_S: u32 = 4_000;
    // While the queue fills and while it is full.
    let [filling, full] = [time / 2, time - time / 2].map(|part| {
        let datagrams = u64::from(PER_S) * part.as_secs();
        site.watch_beside(|| flood(&site.topology.network, target, datagrams, Some(PER_S)), || tunnel.turn()).bytes
    });
    println!("from {:.1} to {:.1}, then to {:.1} MiB", mib(before), mib(filling), mib(full));
    // 4 MiB of packets, as many of chunks that packets under way share, and what is sent and not acknowledged.
    assert!(filling.max(full) <= before + 10 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(filling.max(full)));
    assert!(full <= filling + filling / 20, "from {:.1} to {:.1} MiB", mib(filling), mib(full));
    let queued = site.gateway.status().sum("/memory/queued_bytes");
    assert!(queued >= 3 * MIB, "only {:.1} MiB wait", mib(queued));
    site.assert_sound();
}

/// On a machine of so little memory that half of it is the bound: the configuration says nothing.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn silent_clients_stay_under_the_bound_and_their_memory_comes_back() {
    silent_clients(&[100]);
}

#[test]
#[ignore = "needs root and minutes: cargo test --workspace --test memory -- --ignored"]
fn ever_more_silent_clients_stay_under_the_bound_and_their_memory_comes_back() {
    silent_clients(&[100, 100, 253, 253]);
}

fn silent_clients(crowds: &[usize]) {
    let timeout = "[connection]\nconnection_timeout_s = 12\n[control]";
    let machine = Some(2 * BOUND_MIB);
    let mut site = Site::start_on(machine, |deployment| deployment.edit_server("[control]", timeout));
    let before = site.memory_bytes();
    let mut after_as_many = BTreeMap::new();
    for &clients in crowds {
        site.silent_crowd(clients);
        let after = site.memory_bytes();
        println!(
            "{clients} silent clients: from {:.1} MiB to {:.1} afterwards; {}",
            mib(before),
            mib(after),
            site.held()
        );
        assert!(after <= before + 8 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(after));
        let first = *after_as_many.entry(clients).or_insert(after);
        assert!(after <= first + first / 20, "from {:.1} to {:.1} MiB", mib(first), mib(after));
    }
    site.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn aborted_handshakes_leave_nothing() {
    aborted_handshakes(300, 300);
}

#[test]
#[ignore = "needs root and minutes: cargo test --workspace --test memory -- --ignored"]
fn two_thousand_aborted_handshakes_leave_nothing() {
    aborted_handshakes(300, 2_000);
}

/// As many as fill the table, then the others: half of them close, the other half is heard of no more.
fn aborted_handshakes(warm: usize, then: usize) {
    let places = format!("[connection]\nmax_pending_handshakes = {PLACES}\n[control]");
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", &places));
    let mut number = 0;
    let mut abort = |handshakes: usize| {
        let answered = (number..number + handshakes).filter(|&number| site.abort_handshake(number)).count();
        number += handshakes;
        assert!(answered >= handshakes * 9 / 10, "{answered} of {handshakes} were answered");
        site.memory_bytes()
    };
    let full = abort(warm);
    let pending = site.gateway.status().sum("/owned_connections");
    let after = abort(then);
    println!("{pending} under way; from {:.2} to {:.2} MiB", mib(full), mib(after));
    assert!(pending >= PLACES * 3 / 4, "{pending} under way");
    assert!(after <= full + full / 20, "from {:.2} to {:.2} MiB", mib(full), mib(after));
    site.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn logins_that_come_and_go_leave_nothing() {
    logins(2, 300);
}

#[test]
#[ignore = "needs root and minutes: cargo test --workspace --test memory -- --ignored"]
fn five_thousand_logins_leave_nothing() {
    logins(10, 500);
}

/// So many logins, in rounds; the first one warms up.
fn logins(rounds: usize, logins: usize) {
    let mut site = Site::start(|_| {});
    let come_and_go = |_| {
        for _ in 0..logins {
            site.login().close();
        }
        assert!(eventually(PATIENCE, || site.gateway.status().sum("/owned_connections") == 0));
        thread::sleep(Duration::from_secs(2));
        site.memory_bytes()
    };
    let after: Vec<u64> = (0..rounds).map(come_and_go).collect();
    println!("MiB after each {logins} logins: {:.2?}", after.iter().copied().map(mib).collect::<Vec<_>>());
    let (warm, most) = (after[0], after.into_iter().max().unwrap_or_default());
    assert!(most <= warm + warm / 20, "from {:.2} to {:.2} MiB", mib(warm), mib(most));
    site.assert_sound();
}

/// A gateway of one shard, with a user who may log in as often as there are addresses.
struct Site {
    gateway: Gateway,
    deployment: Deployment,
    topology: Topology,
    _turn: Turn,
}

/// The most that a gateway had while it was watched.
#[derive(Default)]
struct Seen {
    bytes: u64,
    connections: u64,
}

impl Site {
    /// Starts it with the bound configured, after `prepare` has changed its files.
    fn start(prepare: impl FnOnce(&Deployment)) -> Self {
        Self::start_on(None, |deployment| {
            deployment.edit_server("[shards]", &format!("[shards]\nmemory_mib = {BOUND_MIB}"));
            prepare(deployment);
        })
    }

    /// Starts it on a machine of so many MiB.
    fn start_on(machine_mib: Option<u64>, prepare: impl FnOnce(&Deployment)) -> Self {
        let turn = turn::alone();
        let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
        let deployment = Deployment::write(&Plan { shards: 1, ..Plan::default() });
        prepare(&deployment);
        let mut command = Gateway::command(&deployment);
        if let Some(mib) = machine_mib {
            let meminfo = deployment.path("meminfo");
            fs::write(&meminfo, format!("MemTotal: {} kB\n", mib << 10)).unwrap();
            command = after_mounts(&format!("mount --bind {} /proc/meminfo", meminfo.display()), &command);
        }
        let gateway = Gateway::start_with(command, &topology.gateway);
        Site { gateway, deployment, topology, _turn: turn }
    }

    /// Where the clients are: beside the gateway.
    fn inside(&self) -> &Namespace {
        &self.topology.gateway
    }

    fn login(&self) -> TestTunnel {
        self.login_as("alice")
    }

    fn login_as(&self, user: &str) -> TestTunnel {
        self.inside().run(|| TestTunnel::login(&self.deployment, user, GATEWAY, None))
    }

    /// A client from an address of its own that goes as far as the gateway's first flight, and closes every other time. Returns whether
    /// it was answered.
    fn abort_handshake(&self, number: usize) -> bool {
        let [high, low] = (number as u16).to_be_bytes();
        let source = IpAddr::from([127, 2, high, low]);
        self.inside().run(|| {
            let mut tunnel = TestTunnel::start(source, &self.deployment, "alice", GATEWAY, None);
            // What it hears first is a Retry.
            tunnel.turn();
            let is_answered = tunnel.wait(ANSWER) && {
                tunnel.turn();
                tunnel.wait(ANSWER)
            };
            if number.is_multiple_of(2) {
                tunnel.close();
            }
            is_answered
        })
    }

    /// So many clients who read nothing any more, but for one who does, until the gateway is full, and until the last of them is forgotten.
    fn silent_crowd(&self, clients: usize) {
        let mut live = self.login_as("bob");
        let silent: Vec<TestTunnel> = (1..clients).map(|_| self.login()).collect();
        // What a busy machine loses before the gateway comes again.
        let before = self.gateway.status().dropped("memory_limit");
        let limited = || self.gateway.status().dropped("memory_limit") - before;
        let floods = || {
            eventually(FULL_WITHIN, || {
                for tunnel in &silent {
                    let target = SocketAddr::new(tunnel.address.expect("a login"), 9);
                    flood(&self.topology.network, target, 400, Some(100_000));
                }
                limited() > 1000
            });
        };
        let most = self.watch_beside(floods, || live.turn()).bytes;
        let (held, limited) = (self.held(), limited());
        // Whoever reads gets packets beside them.
        let received = live.received;
        let target = SocketAddr::new(live.address.expect("a login"), 9);
        self.watch_beside(|| flood(&self.topology.network, target, 400, Some(400)), || live.turn());
        live.turn();
        let received = live.received - received;
        println!("at most {:.1} MiB; {limited} packets gave way; {held}", mib(most));
        println!("the live client got {received} of 400");
        assert!(limited > 1000, "only {limited} packets gave way");
        assert!(received >= 200, "the live client got {received} of 400");
        drop(live);
        assert!(eventually(PATIENCE, || self.gateway.status().sum("/owned_connections") == 0));
        thread::sleep(Duration::from_secs(2));
    }

    fn memory_bytes(&self) -> u64 {
        self.gateway.process.memory_bytes().unwrap()
    }

    /// Does `what` inside, and watches the gateway meanwhile.
    fn watch(&self, what: impl FnOnce() + Send) -> Seen {
        let mut connections = 0;
        let seen = self.watch_beside(
            || self.inside().run(what),
            || {
                connections = self.gateway.status().sum("/owned_connections").max(connections);
            },
        );
        Seen { connections, ..seen }
    }

    /// Does `what`, and watches the gateway meanwhile, with `beside` between.
    fn watch_beside(&self, what: impl FnOnce() + Send, mut beside: impl FnMut()) -> Seen {
        let mut bytes = self.memory_bytes();
        thread::scope(|scope| {
            let what = scope.spawn(what);
            while !what.is_finished() {
                beside();
                bytes = bytes.max(self.memory_bytes());
                thread::sleep(Duration::from_millis(1));
            }
            what.join().expect("a traffic");
        });
        Seen { bytes, connections: 0 }
    }

    /// The gateway's own account, for messages.
    fn held(&self) -> String {
        let status = self.gateway.status();
        let kinds = ["receive_buffers", "packet_chunks", "queued", "waiting", "connections", "unacknowledged"];
        let kind = |kind: &&str| format!("{kind} {:.1} MiB", mib(status.sum(&format!("/memory/{kind}_bytes"))));
        kinds.iter().map(kind).collect::<Vec<_>>().join(", ")
    }

    /// Fails if it has panicked or ended, or was ever above its bound.
    fn assert_sound(&mut self) {
        self.gateway.assert_sound();
        let most = self.gateway.process.peak_memory_bytes().unwrap();
        println!("never more than {:.1} MiB", mib(most));
        assert!(most <= BOUND_MIB * MIB, "{:.1} MiB", mib(most));
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// Sends full-sized packets to a client, from behind the gateway, in super-packets.
fn flood(from: &Namespace, target: SocketAddr, datagrams: u64, per_second: Option<u32>) {
    let plan = DatagramPlan { payload_bytes: 1372, segments: 40, per_second, ..DatagramPlan::new(target, datagrams) };
    from.run(|| send(&plan));
}

/// A STREAM frame of the client's first unidirectional stream (RFC 9000, section 19.8).
fn stream_frame(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[0x0e, 0x02][..], &varint(offset), &varint(data.len()), data].concat()
}

/// How single bytes of a ClientHello with gaps between come.
#[derive(Debug, Clone, Copy)]
enum Gaps {
    /// Each in a datagram of its own, as small as it can be. A server ignores those (RFC 9000, section 14.1).
    Small,
    /// Each in a datagram of its own, as large as it must be.
    Padded,
    /// As many in a datagram as it has room for.
    Packed,
}

impl Gaps {
    /// What each handshake sends one after the other, and how long datagrams are at least.
    fn datagrams(self) -> (Vec<Vec<u8>>, usize) {
        let byte = |gap: usize| crypto_frame(1 + 2 * gap, b"x");
        match self {
            Gaps::Small => ((1..100).map(byte).collect(), 0),
            Gaps::Padded => ((1..30).map(byte).collect(), FIRST_BYTES_MIN),
            Gaps::Packed => {
                let packed = |datagram: usize| {
                    let first = 1 + datagram * PACKED_FRAMES;
                    (first..first + PACKED_FRAMES).flat_map(byte).collect()
                };
                ((0..30).map(packed).collect(), FIRST_BYTES_MIN)
            }
        }
    }
}

/// One round: as many handshakes as there are places, each of single bytes with gaps between.
fn handshakes_with_gaps(round: usize, gaps: Gaps) {
    let prove = |index: usize| {
        let source = IpAddr::from([127, 0, 1 + round as u8, 1 + (index % usize::from(SOURCES)) as u8]);
        Stranger::prove_address(source, GATEWAY, (round * HANDSHAKES + index) as u64).ok()
    };
    let mut strangers: Vec<Stranger> = (0..HANDSHAKES).filter_map(prove).collect();
    for stranger in &mut strangers {
        let _ = stranger.send(&crypto_frame(1, b"x"), FIRST_BYTES_MIN);
        thread::sleep(Duration::from_micros(200));
    }
    let (datagrams, bytes_min) = gaps.datagrams();
    for frames in &datagrams {
        for stranger in &mut strangers {
            let _ = stranger.send(frames, bytes_min);
        }
        thread::sleep(Duration::from_millis(5));
    }
}
