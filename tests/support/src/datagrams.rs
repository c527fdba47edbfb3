//! Numbered UDP datagrams: a generator, and a receiver that counts losses, repetitions and reorderings of each flow.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use tollgate_testkit::worker::Worker;

/// Magic, flow and length, number; then a body that follows from the number.
const HEADER_BYTES: usize = 24;
const MAGIC: u64 = u64::from_be_bytes(*b"TGDATA02");
/// How often the receiver looks whether it shall stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// The socket buffers' size, enough for the bursts of a saturated link.
const BUFFER_BYTES: usize = 8 << 20;
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A flow of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramPlan {
    pub target: SocketAddr,
    /// The number under which the receiver counts them.
    pub flow: u32,
    pub datagrams: u64,
    /// At least 24.
    pub payload_bytes: usize,
    /// How many a second, evenly; `None` is as fast as the kernel takes them.
    pub per_second: Option<u32>,
    /// How many go into one system call, 1 to 64, at most 65,507 bytes together. More than one need `UDP_SEGMENT`.
    pub segments: usize,
}

/// What has arrived of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Datagrams, repeated ones included.
    pub received: u64,
    pub duplicated: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams whose length or content was not the one sent.
    pub corrupted: u64,
    highest_sequence: u64,
}

impl FlowCounts {
    /// How many of `sent` datagrams have not arrived.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.received - self.duplicated)
    }
}

impl DatagramPlan {
    /// A flow 1 of `datagrams` datagrams with 1200 bytes each, one a system call, as fast as possible.
    pub fn new(target: SocketAddr, datagrams: u64) -> Self {
        Self { target, flow: 1, datagrams, payload_bytes: 1200, per_second: None, segments: 1 }
    }

    /// When, after the start, datagram number `sequence` is due.
    fn due(&self, sequence: u64) -> Duration {
        self.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(sequence as f64 / f64::from(rate)))
    }
}

/// Sends a flow from the calling thread's network namespace, and returns how many datagrams the kernel took.
pub fn send(plan: &DatagramPlan) -> u64 {
    send_while(plan, || true).1
}

/// Sends as much of a flow as there is time for while it `goes_on`. Returns how many datagrams that was, and how many of them the kernel took.
pub fn send_while(plan: &DatagramPlan, goes_on: impl Fn() -> bool) -> (u64, u64) {
    assert!(plan.payload_bytes >= HEADER_BYTES, "{plan:?}");
    let any: IpAddr = if plan.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    set_socket_send_buffer_size_force(&socket, BUFFER_BYTES).expect("room for a burst");
    if plan.segments > 1 {
        setsockopt(&socket, UdpGsoSegment, &(plan.payload_bytes as i32)).expect("a kernel that knows UDP_SEGMENT");
    }
    let mut batch = vec![0; plan.payload_bytes * plan.segments];
    let start = Instant::now();
    let (mut sequence, mut sent) = (0, 0);
    while sequence < plan.datagrams && goes_on() {
        thread::sleep((start + plan.due(sequence)).saturating_duration_since(Instant::now()));
        let count = (plan.segments as u64).min(plan.datagrams - sequence);
        let bytes = &mut batch[..count as usize * plan.payload_bytes];
        for (datagram, number) in bytes.chunks_exact_mut(plan.payload_bytes).zip(sequence..) {
            write(datagram, plan.flow, number);
        }
        sent += if socket.send_to(bytes, plan.target).is_ok() { count } else { 0 };
        sequence += count;
    }
    (sequence, sent)
}

/// Neighbouring datagrams of a flow have different bodies.
fn filler(flow: u32, sequence: u64) -> u8 {
    (sequence as u8).wrapping_mul(31).wrapping_add(flow as u8)
}

fn write(bytes: &mut [u8], flow: u32, sequence: u64) {
    let length = bytes.len() as u64;
    let (header, body) = bytes.split_at_mut(HEADER_BYTES);
    let words = [MAGIC, u64::from(flow) << 32 | length, sequence];
    header.chunks_exact_mut(8).zip(words).for_each(|(place, word)| place.copy_from_slice(&word.to_be_bytes()));
    body.fill(filler(flow, sequence));
}

/// The flow and the number of a datagram, and whether it is as it was sent. `None` for what is not of ours.
fn read(bytes: &[u8]) -> Option<(u32, u64, bool)> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
    let [magic, flow_and_length, sequence] =
        [0, 8, 16].map(|at| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes")));
    let flow = (flow_and_length >> 32) as u32;
    let filler = filler(flow, sequence);
    let is_intact = flow_and_length as u32 as usize == bytes.len() && body.iter().all(|byte| *byte == filler);
    (magic == MAGIC).then_some((flow, sequence, is_intact))
}

/// The flows that have been seen, each with the numbers that came.
#[derive(Debug, Default)]
struct Tally(BTreeMap<u32, (FlowCounts, HashSet<u64>)>);

impl Tally {
    fn take(&mut self, datagram: &[u8]) {
        let Some((flow, sequence, is_intact)) = read(datagram) else { return };
        let (counts, seen) = self.0.entry(flow).or_default();
        let is_new = seen.insert(sequence);
        counts.reordered += u64::from(is_new && sequence < counts.highest_sequence);
        counts.received += 1;
        counts.duplicated += u64::from(!is_new);
        counts.corrupted += u64::from(!is_intact);
        counts.highest_sequence = counts.highest_sequence.max(sequence);
    }
}

/// Counts the datagrams that arrive on a socket, until it is dropped.
#[derive(Debug)]
pub struct DatagramReceiver {
    address: SocketAddr,
    tally: Arc<Mutex<Tally>>,
    _worker: Worker,
}

impl DatagramReceiver {
    /// Receives on `socket`, in the network namespace in which it was opened.
    pub fn start(socket: UdpSocket) -> Self {
        set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).expect("room for a burst");
        socket.set_read_timeout(Some(STOP_INTERVAL)).expect("a timeout");
        let (address, tally) = (socket.local_addr().expect("an address"), Arc::new(Mutex::default()));
        let (shared, mut buffer) = (Arc::clone(&tally), vec![0; DATAGRAM_BYTES_MAX]);
        let worker = Worker::repeat(move || {
            match socket.recv(&mut buffer) {
                Ok(length) => lock(&shared).take(&buffer[..length]),
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            }
            true
        });
        Self { address, tally, _worker: worker }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived so far, by flow number.
    pub fn counts(&self) -> BTreeMap<u32, FlowCounts> {
        lock(&self.tally).0.iter().map(|(flow, (counts, _))| (*flow, *counts)).collect()
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PATIENCE, eventually};
    use tollgate_testkit::{SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_flow_crosses_a_link_complete_and_in_order() {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
        for (address, segments) in [(IpAddr::from(SERVICE_V4), 1), (IpAddr::from(SERVICE_V6), 20)] {
            let socket = topology.gateway.run(|| UdpSocket::bind((address, 0))).unwrap();
            let receiver = DatagramReceiver::start(socket);
            let plan = DatagramPlan { flow: 5, segments, ..DatagramPlan::new(receiver.address(), 1001) };
            let (plan, start) = (DatagramPlan { per_second: Some(50_000), ..plan }, Instant::now());
            assert_eq!(topology.clients[0].namespace.run(|| send(&plan)), 1001);
            assert!(start.elapsed() >= Duration::from_millis(19), "{:?}", start.elapsed());
            let expected = FlowCounts { received: 1001, highest_sequence: 1000, ..FlowCounts::default() };
            let complete = || receiver.counts().get(&5) == Some(&expected);
            assert!(eventually(PATIENCE, complete), "{:?}", receiver.counts());
        }
    }

    #[test]
    fn losses_repetitions_reorderings_and_damage_are_told_apart() {
        let mut tally = Tally::default();
        for (sequence, damage) in [(0, 0), (1, 0), (4, 0), (2, 0), (4, 0), (5, 1)] {
            let mut bytes = [0; 64];
            write(&mut bytes, 3, sequence);
            bytes[63] ^= damage;
            tally.take(&bytes);
        }
        tally.take(&[0; 100]);
        let expected = FlowCounts { received: 6, duplicated: 1, reordered: 1, corrupted: 1, highest_sequence: 5 };
        assert_eq!((tally.0[&3].0, tally.0[&3].0.lost(7), tally.0.len()), (expected, 2, 1));
    }
}
