//! The memory of a gateway that strangers and clients want for themselves: bounded while they do, given back when they have gone. The real
//! program, in a network namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::Duration;

use tollgate_testkit::datagrams::{DatagramPlan, send};
use tollgate_testkit::long_path::{LongPath, LongPathPlan, QueueManagement};
use tollgate_testkit::{Namespace, SERVICE_V4, Topology, TopologyPlan};

use self::initials::{Stranger, crypto_frame, varint};
use self::tunnels::TestTunnel;
use tollgate_testkit::bed::deployment::{Deployment, PORT, Plan};
use tollgate_testkit::bed::gateway::Gateway;
use tollgate_testkit::bed::peers::gateways_can_run;
use tollgate_testkit::bed::{PATIENCE, eventually, turn};

// Other tests use the rest of it.
#[path = "harness/initials.rs"]
mod initials;
// The tests of MTUs use the rest of it.
#[allow(dead_code)]
#[path = "harness/tunnels.rs"]
mod tunnels;

const MIB: u64 = 1 << 20;
/// Addresses that the strangers have, all of the gateway's own loopback network.
const SOURCES: u8 = 16;
const HANDSHAKES: u64 = 256;
const ROUNDS: u64 = 5;
/// Clients that log in and read nothing any more.
const SILENT: usize = 100;
/// How soon they have filled what the gateway may hold, at the latest: before they time out.
const FULL_WITHIN: Duration = Duration::from_secs(10);
const LOGINS: usize = 300;
/// The gateway, for whoever is beside it.
const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), PORT);
/// Single bytes with gaps between, of each handshake.
const GAPS: usize = 100;

#[test]
fn handshakes_with_gaps_pin_little_and_give_it_back() {
    let per_source = "[connection]\nmax_pending_handshakes_per_source = 32\n[control]";
    let Some(mut site) = Site::start(|deployment| deployment.edit_server("[control]", per_source)) else { return };
    let before = site.memory_bytes();
    let mut most = before;
    for round in 0..ROUNDS {
        site.inside().run(|| handshakes_with_gaps(round));
        most = most.max(site.memory_bytes());
        // Until there is room for as many again.
        assert!(eventually(PATIENCE, || site.gateway.status().sum("/owned_connections") < HANDSHAKES / 8));
    }
    thread::sleep(Duration::from_secs(15));
    let after = site.memory_bytes();
    println!("before {:.1} MiB, at most {:.1} MiB, afterwards {:.1} MiB", mib(before), mib(most), mib(after));
    assert!(most <= before + 16 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(most));
    assert!(after <= before + 4 * MIB, "from {:.1} to {:.1} MiB, 15 s later", mib(before), mib(after));
    site.gateway.assert_sound();
}

#[test]
fn frames_that_the_protocol_has_no_place_for_pin_nothing_and_end_the_connection() {
    let Some(mut site) = Site::start(|_| {}) else { return };
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
    site.gateway.assert_sound();
}

#[test]
fn a_queue_keeps_no_more_memory_than_its_packets_are_long() {
    // With a controller around all, what the path does not carry waits in the gateway.
    let cubic = "[connection]\ncongestion_controller = \"cubic\"\n[control]";
    let Some(mut site) = Site::start(|deployment| deployment.edit_server("[control]", cubic)) else { return };
    let path = LongPathPlan {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        gateway: GATEWAY,
        source: Ipv4Addr::LOCALHOST.into(),
        one_way: Duration::from_millis(10),
        bits_per_second: 1_000_000,
        queue_bytes_max: 20_000,
        lost_of: None,
        management: QueueManagement::Tail,
    };
    let path = LongPath::start(&site.topology.gateway, path).unwrap();
    let mut tunnel = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", path.address()));
    let before = site.memory_bytes();
    let target = SocketAddr::new(tunnel.address.expect("a login"), 9);
    let mut most = before;
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&site.topology.network, target, 40_000, Some(4_000)));
        while !flood.is_finished() {
            tunnel.turn();
            most = most.max(site.gateway.process.memory_bytes().unwrap());
            thread::sleep(Duration::from_millis(2));
        }
    });
    println!("from {:.1} to {:.1} MiB", mib(before), mib(most));
    // 4 MiB of packets, as many of chunks that packets under way share, and what is sent and not acknowledged.
    assert!(most <= before + 10 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(most));
    let queued = site.gateway.status().sum("/memory/queued_bytes");
    assert!(queued >= 3 * MIB, "only {:.1} MiB wait", mib(queued));
    site.gateway.assert_sound();
}

#[test]
fn silent_clients_stay_under_the_bound_and_their_memory_comes_back() {
    let memory = "memory_mib = 48\n[control]";
    let timeout = "[connection]\nconnection_timeout_s = 12\n[control]";
    let Some(mut site) = Site::start(|deployment| {
        deployment.edit_server("[control]", memory);
        deployment.edit_server("[control]", timeout);
    }) else {
        return;
    };
    let before = site.memory_bytes();
    let silent: Vec<TestTunnel> = (0..SILENT).map(|_| site.login()).collect();
    let mut live = site.login();
    let mut most = site.memory_bytes();
    println!("{:.1} KiB a login", mib(most - before) * 1024.0 / (SILENT + 1) as f64);
    thread::scope(|scope| {
        let floods = scope.spawn(|| {
            // What a busy machine loses before the gateway comes again.
            let is_full = || site.gateway.status().dropped("memory_limit") > 1000;
            eventually(FULL_WITHIN, || {
                for tunnel in &silent {
                    let target = SocketAddr::new(tunnel.address.expect("a login"), 9);
                    flood(&site.topology.network, target, 400, Some(100_000));
                }
                is_full()
            });
        });
        while !floods.is_finished() {
            live.turn();
            most = most.max(site.gateway.process.memory_bytes().unwrap());
            thread::sleep(Duration::from_millis(1));
        }
    });
    let held = site.held();
    let limited = site.gateway.status().dropped("memory_limit");
    // Whoever reads gets packets beside them.
    let received = live.received;
    let target = SocketAddr::new(live.address.expect("a login"), 9);
    thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&site.topology.network, target, 400, Some(400)));
        while !flood.is_finished() {
            live.turn();
            thread::sleep(Duration::from_millis(1));
        }
    });
    live.turn();
    println!("from {:.1} to {:.1} MiB; {limited} packets gave way; {held}", mib(before), mib(most));
    println!("the live client got {} of 400", live.received - received);
    assert!(limited > 0, "nothing gave way");
    assert!(most <= 48 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(most));
    assert!(live.received - received >= 200, "the live client got {} of 400", live.received - received);
    drop(live);
    assert!(eventually(PATIENCE, || site.gateway.status().sum("/owned_connections") == 0));
    thread::sleep(Duration::from_secs(2));
    let after = site.memory_bytes();
    println!("afterwards {:.1} MiB; {}", mib(after), site.held());
    assert!(after <= before + 6 * MIB, "from {:.1} to {:.1} MiB", mib(before), mib(after));
    site.gateway.assert_sound();
}

#[test]
fn logins_that_come_and_go_leave_nothing() {
    let Some(mut site) = Site::start(|_| {}) else { return };
    let come_and_go = |site: &Site| {
        for _ in 0..LOGINS {
            site.login().close();
        }
        assert!(eventually(PATIENCE, || site.gateway.status().sum("/owned_connections") == 0));
        thread::sleep(Duration::from_secs(2));
        site.memory_bytes()
    };
    let warm = come_and_go(&site);
    let after = come_and_go(&site);
    println!("from {:.2} to {:.2} MiB", mib(warm), mib(after));
    assert!(after <= warm + warm / 20, "from {:.2} to {:.2} MiB", mib(warm), mib(after));
    site.gateway.assert_sound();
}

/// A gateway of one shard, with a user who may log in as often as there are addresses.
struct Site {
    gateway: Gateway,
    deployment: Deployment,
    topology: Topology,
    _turn: RwLockWriteGuard<'static, ()>,
}

impl Site {
    /// Starts it after `prepare` has changed its files; `None` where gateways cannot run.
    fn start(prepare: impl FnOnce(&Deployment)) -> Option<Self> {
        if !gateways_can_run() {
            return None;
        }
        let turn = turn::alone();
        let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
        let deployment = Deployment::write(&Plan { shards: 1, ..Plan::default() });
        prepare(&deployment);
        let gateway = Gateway::start(&deployment, &topology.gateway);
        Some(Site { gateway, deployment, topology, _turn: turn })
    }

    /// Where the clients are: beside the gateway.
    fn inside(&self) -> &Namespace {
        &self.topology.gateway
    }

    fn login(&self) -> TestTunnel {
        self.inside().run(|| TestTunnel::login(&self.deployment, "alice", GATEWAY))
    }

    fn memory_bytes(&self) -> u64 {
        self.gateway.process.memory_bytes().unwrap()
    }

    /// The gateway's own account, for messages.
    fn held(&self) -> String {
        let status = self.gateway.status();
        let kinds = ["receive_buffers", "packet_chunks", "queued", "waiting", "connections", "unacknowledged"];
        let kind = |kind: &&str| format!("{kind} {:.1} MiB", mib(status.sum(&format!("/memory/{kind}_bytes"))));
        kinds.iter().map(kind).collect::<Vec<_>>().join(", ")
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// Sends full-sized packets to a client, from behind the gateway, in super-packets.
fn flood(from: &Namespace, target: SocketAddr, datagrams: u64, per_second: Option<u32>) {
    let plan = DatagramPlan { payload_bytes: 1372, segments: 40, per_second, ..DatagramPlan::new(target, datagrams) };
    from.run(|| send(&plan)).expect("a flood");
}

/// A STREAM frame of the client's first unidirectional stream (RFC 9000, section 19.8).
fn stream_frame(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[0x0e, 0x02][..], &varint(offset), &varint(data.len()), data].concat()
}

/// One round: as many handshakes as there are places, each of single bytes with gaps between.
fn handshakes_with_gaps(round: u64) {
    let mut strangers: Vec<Stranger> = (0..HANDSHAKES)
        .filter_map(|index| {
            let source = IpAddr::from([127, 0, 1, 1 + (index % u64::from(SOURCES)) as u8]);
            let mut stranger = Stranger::prove_address(source, GATEWAY, round * HANDSHAKES + index).ok()?;
            stranger.begin(&crypto_frame(1, b"x")).ok()?;
            Some(stranger)
        })
        .collect();
    assert!(strangers.len() as u64 >= HANDSHAKES / 2, "{} strangers came in", strangers.len());
    for gap in 1..GAPS {
        for stranger in &mut strangers {
            let _ = stranger.send(&crypto_frame(1 + 2 * gap, b"x"), 0);
        }
    }
}
