//! A live client's traffic beside floods of first packets from strangers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tollgate::gateway::random;
use tollgate::io::{TransmitBatch, UdpOptions, UdpSocket};
use tollgate::lab::bulk::Direction;
use tollgate::lab::{Namespace, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};
use tollgate_shards::Transmit;

use crate::harness::client::{Attached, Login};
use crate::harness::deployment::{Deployment, PORT, Plan};
use crate::harness::gateway::Gateway;
use crate::harness::peers::Peers;
use crate::harness::traffic::{assert_pings, bulk, bulk_server, wait_for_ping};
use crate::harness::turn;
use crate::sockets::datagrams_lost;

const INITIAL_BYTES: usize = 1200;
/// Initials of one send.
const RUN: usize = 50;
const PAIRS: usize = 7;
const TRANSFER_BYTES: u64 = 100_000_000;

/// The control is a flood of the same rate at a socket that is full and that nobody reads, so that the kernel drops it. What else runs on the
/// machine disturbs single pairs, so the upper quartile is judged.
#[test]
fn a_flood_of_initials_costs_a_live_client_little_beside_a_flood_that_is_dropped() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let _alice = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let deaf = topology.gateway.run(|| std::net::UdpSocket::bind((SERVICE_V4, 0))).unwrap();
    let server = bulk_server(&topology.network, SERVER_V4);
    for (rate_per_s, share_min) in [(30_000, 0.8), (200_000, 0.45)] {
        let beside = |port| {
            let strangers = &topology.clients[1].namespace;
            flooded(strangers, SocketAddr::new(SERVICE_V4.into(), port), rate_per_s, || {
                let start = Instant::now();
                bulk(inside, server.address(), Direction::Download, TRANSFER_BYTES);
                start.elapsed().as_secs_f64()
            })
        };
        let mut shares: Vec<_> = (0..PAIRS)
            .map(|_| {
                let (control, _) = beside(deaf.local_addr().unwrap().port());
                let before = datagrams_lost(&topology.gateway);
                let (flooded, sent_per_s) = beside(PORT);
                let share = control / flooded;
                let lost = datagrams_lost(&topology.gateway) - before;
                println!(
                    "{sent_per_s:.0} Initials a second: {share:.2} of the control's goodput; the kernel dropped {lost}"
                );
                control / flooded
            })
            .collect();
        shares.sort_by(f64::total_cmp);
        let median = shares[PAIRS / 2];
        println!("{rate_per_s} a second: median {median:.2} of {shares:.2?}");
        assert!(shares[PAIRS * 3 / 4] >= share_min, "{rate_per_s} a second: {shares:?}");
    }
    let status = gateway.status();
    assert!(status.sum("/counters/retries") > 1000, "the flood was answered: {}", status.sum("/counters/retries"));
    assert_pings(inside, SERVER_V4);
    gateway.assert_sound();
}

/// Runs `measured` beside so many Initials a second from `strangers` to `target`. Returns what it says, and how many were sent a second.
fn flooded<T: Send>(
    strangers: &Namespace,
    target: SocketAddr,
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

fn flood(target: SocketAddr, rate_per_s: u64, done: &AtomicBool, sent: &AtomicU64) {
    let socket = UdpSocket::for_remote(target, &UdpOptions::default()).unwrap();
    let mut batch = TransmitBatch::new(16);
    let mut seed = u64::from_le_bytes(random()[..8].try_into().unwrap());
    let start = Instant::now();
    while !done.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate_per_s as f64) as u64;
        let mut left = due.saturating_sub(sent.load(Ordering::Relaxed)).min(16 * RUN as u64);
        if left == 0 {
            thread::sleep(Duration::from_micros(500));
            continue;
        }
        sent.fetch_add(left, Ordering::Relaxed);
        while left > 0 {
            let run = left.min(RUN as u64);
            left -= run;
            batch.fill(|buf| {
                (0..run).for_each(|_| put_initial(buf, &mut seed));
                let bytes = buf.len();
                Some(Transmit { remote: target, local_ip: None, ecn: None, bytes, segment_bytes: INITIAL_BYTES })
            });
        }
        // What the socket does not take is lost, as it may be.
        socket.send(&mut batch);
    }
}

/// An Initial with an ID of its own and nothing in it that anybody could read.
fn put_initial(buf: &mut Vec<u8>, seed: &mut u64) {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let start = buf.len();
    buf.extend([0xc0, 0, 0, 0, 1, 8]);
    buf.extend((*seed ^ *seed >> 32).to_le_bytes());
    // No source ID, no token, and the length of the rest.
    buf.extend([0, 0]);
    let length = INITIAL_BYTES - (buf.len() - start) - 2;
    buf.extend((length as u16 | 0x4000).to_be_bytes());
    buf.resize(start + INITIAL_BYTES, 0x55);
}
