//! A live client's traffic beside floods of first packets from forged addresses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::gateway::random;
use tollgate::netlink::Route;
use tollgate_testkit::bulk::{BulkServer, Direction};
use tollgate_testkit::{Namespace, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use crate::firewall::drop_port;
use crate::forger::{BATCH, Forger};
use crate::sockets::datagrams_lost;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, bulk, bulk_server, wait_for_ping};
use tollgate_test_support::turn;

const INITIAL_BYTES: usize = 1200;
/// Where a firewall drops everything.
const CLOSED_PORT: u16 = PORT + 1;
/// The sources: 32,768 addresses of a network that is behind the strangers.
const FORGED: Ipv4Addr = Ipv4Addr::new(198, 18, 128, 0);
const FORGED_BITS: u8 = 17;
/// Bytes out for each that came in (RFC 9000, section 8).
const AMPLIFICATION_MAX: u64 = 3;

/// What a flood is compared with, and how often.
struct Judgement {
    /// The gateway's `[connection_ids]`.
    connection_ids: &'static str,
    pairs: usize,
    transfer_bytes: u64,
    /// Initials a second, and what of the control's goodput must be left.
    floods: [(u64, f64); 2],
    /// Whether the machine is quiet: then the flood must reach its rate.
    is_quiet: bool,
}

/// The control is a flood of the same rate that a firewall drops. A machine that does other things beside disturbs both, pair by pair, so the
/// ratio of the medians is judged or the upper quartile of the pairs, whichever is more, with room.
#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_flood_of_initials_costs_a_live_client_little_beside_one_that_a_firewall_drops() {
    let floods = [(30_000, 0.65), (200_000, 0.3)];
    assert_goodput(&Judgement { connection_ids: "", pairs: 5, transfer_bytes: 60_000_000, floods, is_quiet: false });
}

#[test]
#[ignore = "needs root, Quincy's programs and a quiet machine: cargo test --test interop flood -- --ignored"]
fn a_live_client_keeps_nine_tenths_beside_30_000_initials_a_second_and_half_beside_200_000_on_a_quiet_machine() {
    assert_goodput(&ON_A_QUIET_MACHINE);
}

/// Each ID that is drawn for a Retry would take four passes of AES, were there no stock of them.
#[test]
#[ignore = "needs root, Quincy's programs and a quiet machine: cargo test --test interop flood -- --ignored"]
fn a_live_client_keeps_as_much_where_connection_ids_are_encrypted_on_a_quiet_machine() {
    let connection_ids = "[connection_ids]\nlayout = \"quic_lb\"\nlength = 20\nserver_id = \"0a0b0c0d0e0f0a0b\"\n\
                          key = \"000102030405060708090a0b0c0d0e0f\"\n\n";
    assert_goodput(&Judgement { connection_ids, ..ON_A_QUIET_MACHINE });
}

const ON_A_QUIET_MACHINE: Judgement = Judgement {
    connection_ids: "",
    pairs: 9,
    transfer_bytes: 200_000_000,
    floods: [(30_000, 0.9), (200_000, 0.5)],
    is_quiet: true,
};

fn assert_goodput(judgement: &Judgement) {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[shards]", &format!("{}[shards]", judgement.connection_ids));
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let _alice = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let forged = IpNet::new(FORGED.into(), FORGED_BITS).unwrap();
    let behind = Route::via(forged, topology.clients[1].v4.into()).foreign();
    topology.gateway.configure(|netlink| netlink.add_route(&behind)).unwrap();
    drop_port(&topology.gateway, CLOSED_PORT);
    let closed = topology.gateway.run(|| UdpSocket::bind((SERVICE_V4, CLOSED_PORT))).unwrap();
    closed.set_nonblocking(true).unwrap();
    let server = bulk_server(&topology.network, SERVER_V4);
    for (rate_per_s, share_min) in judgement.floods {
        compare(&topology, &server, judgement, rate_per_s, share_min);
    }
    assert!(closed.recv(&mut [0; 1]).is_err(), "the firewall let nothing pass");
    let retries = gateway.status().sum("/counters/retries");
    assert!(retries > 1000, "the flood was answered: {retries}");
    assert_pings(inside, SERVER_V4);
    gateway.assert_sound();
}

/// Runs the pairs of one rate, and judges them.
fn compare(topology: &Topology, server: &BulkServer, judgement: &Judgement, rate_per_s: u64, share_min: f64) {
    let (inside, strangers) = (&topology.clients[0].namespace, &topology.clients[1].namespace);
    let beside = |port| {
        flooded(strangers, SocketAddrV4::new(SERVICE_V4, port), rate_per_s, || {
            let start = Instant::now();
            bulk(inside, server.address(), Direction::Download, judgement.transfer_bytes);
            judgement.transfer_bytes as f64 / start.elapsed().as_secs_f64()
        })
    };
    let (mut control, mut flooded, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..judgement.pairs {
        let (lost, traffic) = (datagrams_lost(&topology.gateway), Traffic::of(&topology.gateway, "to-client1"));
        let mut sent = 0.0;
        // Who comes first changes from pair to pair.
        for port in if pair % 2 == 0 { [CLOSED_PORT, PORT] } else { [PORT, CLOSED_PORT] } {
            let (goodput, sent_per_s) = beside(port);
            if port == PORT { &mut flooded } else { &mut control }.push(goodput);
            sent = if port == PORT { sent_per_s } else { sent };
        }
        let Traffic { received, sent: answered } = Traffic::of(&topology.gateway, "to-client1").since(&traffic);
        let share = flooded[pair] / control[pair];
        shares.push(share);
        println!(
            "{sent:.0} Initials a second: {share:.2} of the control's {:.0} Mb/s; {answered} bytes out for {received}; \
             the kernel dropped {}",
            control[pair] * 8e-6,
            datagrams_lost(&topology.gateway) - lost,
        );
        assert!(answered > 0 && answered <= AMPLIFICATION_MAX * received, "{answered} bytes out for {received}");
        assert!(!judgement.is_quiet || sent >= 0.75 * rate_per_s as f64, "the flood has {sent:.0} a second");
    }
    let (of_medians, median) = (median(&mut flooded) / median(&mut control), median(&mut shares));
    println!("{rate_per_s} a second: median {median:.2} of {shares:.2?}, medians' ratio {of_medians:.2}");
    // `median` has sorted them.
    let judged = if judgement.is_quiet { median } else { of_medians.max(shares[judgement.pairs * 3 / 4]) };
    assert!(judged >= share_min, "{rate_per_s} a second: {judged:.2} of the control's goodput; {shares:.2?}");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What an interface has carried, in bytes.
struct Traffic {
    received: u64,
    sent: u64,
}

impl Traffic {
    fn of(inside: &Namespace, interface: &str) -> Self {
        let table = inside.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("a table of interfaces");
        let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let counters = line.expect("the interface").split_whitespace().map(|field| field.parse().expect("a number"));
        let counters: Vec<u64> = counters.collect();
        Traffic { received: counters[0], sent: counters[8] }
    }

    fn since(&self, earlier: &Traffic) -> Traffic {
        Traffic { received: self.received - earlier.received, sent: self.sent - earlier.sent }
    }
}

/// Runs `measured` beside so many Initials a second from `strangers` to `target`. Returns what it says, and how many were sent a second.
fn flooded<T: Send>(
    strangers: &Namespace,
    target: SocketAddrV4,
    rate_per_s: u64,
    measured: impl FnOnce() -> T,
) -> (T, f64) {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| strangers.run(|| flood(target, rate_per_s, &done, &sent)));
        thread::sleep(Duration::from_millis(200));
        let (before, start) = (sent.load(Ordering::Relaxed), Instant::now());
        let result = measured();
        let sent_per_s = (sent.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        (result, sent_per_s)
    })
}

fn flood(target: SocketAddrV4, rate_per_s: u64, done: &AtomicBool, sent: &AtomicU64) {
    let mut forger = Forger::new(target, &initial());
    let mut seed = u64::from_le_bytes(random()[..8].try_into().unwrap());
    let start = Instant::now();
    while !done.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate_per_s as f64) as u64;
        let left = due.saturating_sub(sent.load(Ordering::Relaxed));
        if left == 0 {
            thread::sleep(Duration::from_micros(300));
            continue;
        }
        let count = left.min(BATCH as u64);
        sent.fetch_add(count, Ordering::Relaxed);
        forger.send(count as usize, |initial| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mixed = seed ^ seed >> 32;
            initial[6..14].copy_from_slice(&mixed.to_le_bytes());
            let host = mixed as u32 & (u32::MAX >> FORGED_BITS);
            SocketAddrV4::new(Ipv4Addr::from(u32::from(FORGED) | host), (mixed >> 40) as u16 | 0x400)
        });
    }
}

/// An Initial with nothing in it that anybody could read; its ID is bytes 6 to 13.
fn initial() -> Vec<u8> {
    let mut initial = vec![0xc0, 0, 0, 0, 1, 8];
    initial.resize(14, 0);
    // No source ID, no token, and the length of the rest.
    initial.extend([0, 0]);
    let length = INITIAL_BYTES - initial.len() - 2;
    initial.extend((length as u16 | 0x4000).to_be_bytes());
    initial.resize(INITIAL_BYTES, 0x55);
    initial
}
