//! Numbered UDP datagrams: a generator, and a receiver that counts losses, repetitions and reorderings of each flow and may send them back.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::LabError;
use crate::path::datagram::{self, AGGREGATE_BYTES_MAX, SEGMENTS_MAX};

/// Magic, flow and length, number; then a body that follows from the number.
const HEADER_BYTES: usize = 24;
const MAGIC: u64 = u64::from_be_bytes(*b"TGDATA02");
const PAYLOAD_BYTES_MAX: usize = 65_000;
/// Numbers from here on are not tracked; 8 MiB for a flow that uses them all.
const SEQUENCES_MAX: u64 = 1 << 26;
/// Flows beyond these are counted as foreign.
const FLOWS_MAX: usize = 1024;
/// How often the receiver looks whether it shall stop.
const STOP_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// A flow of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramPlan {
    /// Where they go.
    pub target: SocketAddr,
    /// The number of the flow, under which the receiver counts it.
    pub flow: u32,
    /// How many datagrams, at most 67,108,864.
    pub datagrams: u64,
    /// The payload's length in bytes, 24 to 65000.
    pub payload_bytes: usize,
    /// How many a second, evenly; `None` is as fast as the kernel takes them.
    pub per_second: Option<u32>,
    /// How many go into one system call, 1 to 64; together at most 65000 bytes. More than one need `UDP_SEGMENT`.
    pub segments: usize,
    /// When given, replies are counted, and awaited so long after the last datagram.
    pub echo_timeout: Option<Duration>,
}

/// What a flow came to, at its sender.
#[derive(Debug, Clone)]
pub struct DatagramReport {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that the kernel refused.
    pub refused: u64,
    /// The time from the first datagram to the last, in seconds.
    pub seconds: f64,
    /// What came back, where echoes were awaited.
    pub echoed: Option<FlowCounts>,
}

/// What has arrived of one flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Datagrams, repeated ones included.
    pub received: u64,
    /// Different datagrams.
    pub unique: u64,
    /// Datagrams that had come before.
    pub duplicated: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams whose length or content was not the one sent.
    pub corrupted: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// The highest number so far.
    pub highest_sequence: u64,
}

impl FlowCounts {
    /// How many of `sent` datagrams have not arrived.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.unique)
    }
}

impl DatagramPlan {
    /// A flow 1 of `datagrams` datagrams with 1200 bytes each, one a system call, as fast as possible, without echo.
    pub fn new(target: SocketAddr, datagrams: u64) -> Self {
        Self { target, flow: 1, datagrams, payload_bytes: 1200, per_second: None, segments: 1, echo_timeout: None }
    }

    fn check(&self) -> Result<(), LabError> {
        let segments_max = SEGMENTS_MAX.min(PAYLOAD_BYTES_MAX / self.payload_bytes.max(1));
        let is_rate = self.per_second != Some(0);
        for (field, value, is_right, bounds) in [
            ("datagrams", self.datagrams, self.datagrams <= SEQUENCES_MAX, format!("at most {SEQUENCES_MAX}")),
            (
                "payload_bytes",
                self.payload_bytes as u64,
                (HEADER_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.payload_bytes),
                format!("{HEADER_BYTES} to {PAYLOAD_BYTES_MAX}"),
            ),
            (
                "segments",
                self.segments as u64,
                (1..=segments_max).contains(&self.segments),
                format!("1 to {segments_max} at this payload"),
            ),
            ("per_second", 0, is_rate, "at least 1".to_owned()),
        ] {
            if !is_right {
                return Err(LabError::Plan { plan: "datagrams", field, value: value.to_string(), bounds });
            }
        }
        Ok(())
    }

    /// When, after the start, datagram number `sequence` is due.
    fn due(&self, sequence: u64) -> Duration {
        self.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(sequence as f64 / f64::from(rate)))
    }
}

/// Sends a flow from the calling thread's network namespace. Datagrams that the kernel refuses are counted.
pub fn send(plan: &DatagramPlan) -> Result<DatagramReport, LabError> {
    plan.check()?;
    let failed = |operation| move |error| LabError::traffic(format!("datagrams to {}", plan.target), operation, error);
    let socket = open(plan.target).map_err(failed("open a socket"))?;
    let (mut tally, mut buffer) = (Tally::default(), vec![0; AGGREGATE_BYTES_MAX]);
    let mut batch = vec![0; plan.payload_bytes * plan.segments];
    let mut report = DatagramReport { sent: 0, refused: 0, seconds: 0.0, echoed: None };
    let start = Instant::now();
    let mut sequence = 0;
    while sequence < plan.datagrams {
        thread::sleep((start + plan.due(sequence)).saturating_duration_since(Instant::now()));
        let count = (plan.segments as u64).min(plan.datagrams - sequence);
        let bytes = &mut batch[..count as usize * plan.payload_bytes];
        for (datagram, number) in bytes.chunks_exact_mut(plan.payload_bytes).zip(sequence..) {
            write(datagram, plan.flow, number);
        }
        match datagram::send(&socket, bytes, plan.payload_bytes, plan.target, 0) {
            Ok(()) => report.sent += count,
            Err(_) => report.refused += count,
        }
        sequence += count;
        if plan.echo_timeout.is_some() {
            drain(&socket, &mut buffer, &mut tally).map_err(failed("receive"))?;
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    if let Some(timeout) = plan.echo_timeout {
        let end = Instant::now() + timeout;
        while tally.counts(plan.flow).unique < report.sent && wait_readable(&socket, end).map_err(failed("receive"))? {
            drain(&socket, &mut buffer, &mut tally).map_err(failed("receive"))?;
        }
        report.echoed = Some(tally.counts(plan.flow));
    }
    Ok(report)
}

fn open(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    datagram::prepare(&socket)?;
    Ok(socket)
}

fn drain(socket: &UdpSocket, buffer: &mut [u8], tally: &mut Tally) -> io::Result<()> {
    while let Some(received) = datagram::receive(socket, buffer)? {
        tally.take(&buffer[..received.length], received.segment);
    }
    Ok(())
}

/// Waits for something to receive; false when `end` has come.
fn wait_readable(socket: &UdpSocket, end: Instant) -> io::Result<bool> {
    let remaining = end.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(remaining).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(!remaining.is_zero()),
        Err(errno) => Err(errno.into()),
    }
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
    let word = |at: usize| header[at..at + 8].iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let (flow, sequence) = ((word(8) >> 32) as u32, word(16));
    let filler = filler(flow, sequence);
    let is_intact = word(8) as u32 as usize == bytes.len() && body.iter().all(|byte| *byte == filler);
    (word(0) == MAGIC).then_some((flow, sequence, is_intact))
}

/// The flows that have been seen, each with a bit for each number.
#[derive(Debug, Default)]
struct Tally {
    flows: BTreeMap<u32, (FlowCounts, Vec<u64>)>,
    /// Datagrams that belong to no flow.
    foreign: u64,
}

impl Tally {
    fn counts(&self, flow: u32) -> FlowCounts {
        self.flows.get(&flow).map(|(counts, _)| *counts).unwrap_or_default()
    }

    /// Counts an aggregate of datagrams of `segment` bytes each, but for a shorter last one.
    fn take(&mut self, bytes: &[u8], segment: usize) {
        for datagram in bytes.chunks(segment.max(1)) {
            let known = read(datagram).filter(|(flow, sequence, _)| {
                *sequence < SEQUENCES_MAX && (self.flows.contains_key(flow) || self.flows.len() < FLOWS_MAX)
            });
            let Some((flow, sequence, is_intact)) = known else {
                self.foreign += 1;
                continue;
            };
            let (counts, seen) = self.flows.entry(flow).or_default();
            let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
            seen.resize(seen.len().max(word + 1), 0);
            let is_new = seen[word] & bit == 0;
            seen[word] |= bit;
            counts.reordered += u64::from(is_new && counts.unique > 0 && sequence < counts.highest_sequence);
            counts.received += 1;
            counts.unique += u64::from(is_new);
            counts.duplicated += u64::from(!is_new);
            counts.corrupted += u64::from(!is_intact);
            counts.bytes += datagram.len() as u64;
            counts.highest_sequence = counts.highest_sequence.max(sequence);
        }
    }
}

/// What a receiver does with what it has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramResponse {
    /// Nothing.
    Silence,
    /// It sends every datagram back to its sender, in aggregates as they came.
    Echo,
}

/// Counts the datagrams that arrive on a socket, until it is dropped.
#[derive(Debug)]
pub struct DatagramReceiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    halted: AtomicBool,
    tally: Mutex<Tally>,
}

impl DatagramReceiver {
    /// Receives on `socket`, in the network namespace in which it was opened.
    pub fn start(socket: UdpSocket, response: DatagramResponse) -> Result<Self, LabError> {
        let ready = datagram::prepare(&socket).and_then(|()| socket.local_addr());
        let address = ready.map_err(|error| LabError::traffic("datagram receiver", "set up the socket", error))?;
        let shared = Arc::new(Shared::default());
        let receiving = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || receive_all(&socket, response, &receiving)));
        Ok(Self { address, shared, thread })
    }

    /// The address that it receives on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived so far, by flow number.
    pub fn counts(&self) -> BTreeMap<u32, FlowCounts> {
        self.shared.tally().flows.iter().map(|(flow, (counts, _))| (*flow, *counts)).collect()
    }

    /// Datagrams that belong to no known flow: others' traffic, or beyond 1024 flows.
    pub fn foreign(&self) -> u64 {
        self.shared.tally().foreign
    }
}

impl Drop for DatagramReceiver {
    fn drop(&mut self) {
        self.shared.halted.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn receive_all(socket: &UdpSocket, response: DatagramResponse, shared: &Shared) {
    let mut buffer = vec![0; AGGREGATE_BYTES_MAX];
    while !shared.halted.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&STOP_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // An error (of an earlier send, reported here) concerns that datagram only; `None` means to wait again.
        while let Ok(Some(received)) = datagram::receive(socket, &mut buffer) {
            let bytes = &buffer[..received.length];
            shared.tally().take(bytes, received.segment);
            if response == DatagramResponse::Echo {
                for part in bytes.chunks(received.segment * SEGMENTS_MAX) {
                    // What the kernel does not take is lost, and counted as lost by the sender.
                    let _ = datagram::send(socket, part, received.segment, received.from, 0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_flow_crosses_a_link_complete_and_in_order_and_comes_back() {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
        for (address, segments) in [(IpAddr::from(SERVICE_V4), 1), (IpAddr::from(SERVICE_V6), 20)] {
            let socket = topology.gateway.run(|| UdpSocket::bind((address, 0))).unwrap();
            let receiver = DatagramReceiver::start(socket, DatagramResponse::Echo).unwrap();
            let echo_timeout = Some(Duration::from_secs(60));
            let plan = DatagramPlan { flow: 5, segments, echo_timeout, ..DatagramPlan::new(receiver.address(), 1001) };
            let plan = DatagramPlan { per_second: Some(50_000), ..plan };
            let report = topology.clients[0].namespace.run(|| send(&plan)).unwrap();
            assert_eq!((report.sent, report.refused), (1001, 0));
            assert!(report.seconds >= 0.019, "{}", report.seconds);
            for counts in [receiver.counts()[&5], report.echoed.unwrap()] {
                assert_eq!((counts.lost(1001), counts.duplicated, counts.reordered, counts.corrupted), (0, 0, 0, 0));
            }
            assert_eq!(receiver.foreign(), 0);
        }
        let plan =
            DatagramPlan { segments: 60, payload_bytes: 1400, ..DatagramPlan::new(([127, 0, 0, 1], 9).into(), 1) };
        let error = send(&plan).unwrap_err().to_string();
        assert_eq!(error, "datagrams: segments is 60, but must be 1 to 46 at this payload");
    }

    #[test]
    fn losses_repetitions_reorderings_and_damage_are_told_apart() {
        let mut tally = Tally::default();
        for (sequence, damage) in [(0, 0), (1, 0), (4, 0), (2, 0), (4, 0), (5, 1)] {
            let mut bytes = [0; 64];
            write(&mut bytes, 3, sequence);
            bytes[63] ^= damage;
            tally.take(&bytes, 64);
        }
        tally.take(&[0; 100], 64);
        let expected = FlowCounts {
            received: 6,
            unique: 5,
            duplicated: 1,
            reordered: 1,
            corrupted: 1,
            bytes: 384,
            highest_sequence: 5,
        };
        assert_eq!((tally.counts(3), tally.counts(3).lost(7), tally.foreign), (expected, 2, 2));
    }
}
