//! `floor`: what this machine's kernel and cipher allow one core of a gateway, whoever wrote it.
//!
//! Each stage of a packet's way that a gateway's core cannot do without is measured by itself, on one thread pinned to one CPU, by that
//! thread's CPU time. The sum of the three in each direction is the floor that gateways are held against. Nothing of a gateway runs here
//! but its system calls.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tollgate::io::{
    DATA_BYTES_MIN, FRAME_BYTES_MAX, ReceiveBatch, TransmitBatch, TunDevice, TunOptions, TunQueue, UdpGroup,
    UdpOptions, UdpSocket, WriteOutcome,
};
use tollgate_shards::packet::vnet::HEADER_BYTES;
use tollgate_shards::{Frame, Transmit};
use tollgate_testkit::{Namespace, Topology, TopologyPlan};

use crate::frames::{Flow, IP_BYTES, TCP_BYTES};
use crate::load::scenario::Direction;
use crate::measure::cpus;
use crate::measure::record::{Output, table};
use crate::measure::spread::Spread;

/// Length of an inner packet, in bytes: the tunnel's MTU.
const PACKET_BYTES: usize = 1400;
const PAYLOAD_BYTES: usize = PACKET_BYTES - IP_BYTES - TCP_BYTES;
/// Of all ciphers, in bytes.
const TAG_BYTES: usize = 16;
/// Length of the outer UDP datagram with such a packet, in bytes: QUIC's short header with a connection ID of 8 bytes and a packet number
/// of 3, a DATAGRAM frame of known length, and the cipher's tag.
const DATAGRAM_BYTES: usize = PACKET_BYTES + 12 + 3 + TAG_BYTES;
/// QUIC's short header: what is authenticated but not encrypted.
const QUIC_HEADER: [u8; 12] = [0x43, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 9];
/// The most TCP packets that a super-packet of 65,535 bytes holds, and datagrams that a UDP run does.
const RUN_PACKETS: usize = (65_535 - IP_BYTES - TCP_BYTES) / PAYLOAD_BYTES;
const RUN_DATAGRAMS: usize = 65_507 / DATAGRAM_BYTES;
/// Runs of a batch. With twice as many, 64 KiB each, they and the kernel's copies are more than a core's second-level cache.
const RUNS: usize = 8;
/// Packets of a batch that are sealed and opened.
const SEALED_PACKETS: usize = 256;
/// How long the kernel may take to bring what was sent; it does so in the sender's system call.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How often each stage is measured, and for how long each pair of them at a time.
const FULL: (usize, Duration) = (9, Duration::from_millis(100));
const QUICK: (usize, Duration) = (5, Duration::from_millis(40));

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Take a second instead of 3: figures with more noise.
    #[arg(long)]
    quick: bool,
    /// The CPU to measure on, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    #[command(flatten)]
    output: Output,
}

/// The stages and the direction of whose floor each is a part, each pair put and taken by one [`Crossing`]. Of the ciphers, it is the one that
/// gateway and clients agree on by default.
const STAGES: [(&str, Direction); 6] = [
    ("TUN write, TCP super-packets", Direction::Up),
    ("TUN read, TCP super-packets", Direction::Down),
    ("UDP send, GSO", Direction::Down),
    ("UDP receive, GRO", Direction::Up),
    ("AES-256-GCM seal, 1400 B", Direction::Down),
    ("AES-256-GCM open, 1400 B", Direction::Up),
];

/// What each stage cost in one round, in CPU seconds for a gigabyte of TCP payload.
#[derive(Debug, Clone, Copy)]
pub struct Costs([f64; STAGES.len()]);

impl Costs {
    /// What the stages of `direction` add up to. Both ways at once are held against the mean.
    pub fn of(&self, direction: Direction) -> f64 {
        let stages = STAGES.iter().zip(self.0).filter(|((_, of), _)| [*of, Direction::Both].contains(&direction));
        let sum: f64 = stages.map(|(_, cost)| cost).sum();
        if direction == Direction::Both { sum / 2.0 } else { sum }
    }
}

/// What a stage costs, or all of a direction together, over the rounds.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    direction: Direction,
    cpu_seconds_per_gigabyte: Spread,
}

/// Two stages that need each other: what one puts in, the other takes out. Both return bytes of TCP payload, so that stages add up, and
/// compare with what a gateway needs for a gigabyte.
trait Crossing: Send {
    /// Makes a batch ready. Not measured.
    fn prepare(&mut self) {}
    fn put(&mut self) -> Result<usize>;
    fn take(&mut self) -> Result<usize>;
}

/// The stages, set up in namespaces of their own, which go when this value does.
pub struct Stages {
    crossings: [Box<dyn Crossing>; 3],
    cpu: usize,
    slot: Duration,
    // Behind what uses it.
    _topology: Topology,
}

/// Measures and prints.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
pub fn run(options: &Options) -> Result<()> {
    cpus::require_usable(options.cpu.as_slice(), "--cpu")?;
    let cpu = cpus::split(options.cpu.as_slice(), &[])?.0[0];
    tollgate_testkit::prepare()?;
    tollgate_testkit::require_tun()?;
    let mut recording = options.output.start([])?;
    let (count, slot) = if options.quick { QUICK } else { FULL };
    let mut stages = Stages::set_up(cpu, slot)?;
    let rounds = (0..count).map(|_| stages.measure()).collect::<Result<Vec<Costs>>>()?;
    let sums = [Direction::Up, Direction::Down].map(|direction| {
        let spread = Spread::of(rounds.iter().map(|costs| costs.of(direction)));
        ("floor", direction, spread)
    });
    let each = STAGES.into_iter().enumerate().map(|(at, (name, direction))| {
        let spread = Spread::of(rounds.iter().map(|costs| costs.0[at]));
        (name, direction, spread)
    });
    let figures = each
        .chain(sums)
        .filter_map(|(name, direction, spread)| Some(Figure { name, direction, cpu_seconds_per_gigabyte: spread? }));
    let figures: Vec<_> = figures.collect();
    let rows = figures.iter().map(|Figure { name, direction, cpu_seconds_per_gigabyte }| {
        let cost = cpu_seconds_per_gigabyte.shown(|cost| format!("{cost:.3}"));
        [(*name).to_owned(), cost, direction.name().to_owned()]
    });
    let heading = format!("one thread, pinned to CPU {cpu}, {count} rounds");
    recording.print(&format!("{heading}\n\n{}", table(1, &["stage", "CPU s/GB", "direction"], rows)))?;
    recording.write("floor", &figures)
}

impl Stages {
    /// Sets everything up, to be measured on `cpu`, for `slot` per round each pair of stages.
    pub fn set_up(cpu: usize, slot: Duration) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let crossings: [Box<dyn Crossing>; 3] =
            [Box::new(Tun::create(&topology.gateway)?), Box::new(Udp::connect(&topology)?), Box::new(Aead::new()?)];
        let mut stages = Stages { crossings, cpu, slot: Duration::ZERO, _topology: topology };
        // The first packets find neighbours and fault pages in.
        stages.measure()?;
        Ok(Stages { slot, ..stages })
    }

    /// Measures every stage once, on a thread of its own, pinned: this one may go on as it likes.
    pub fn measure(&mut self) -> Result<Costs> {
        let measure = || {
            cpus::pin(&[self.cpu])?;
            let mut costs = Costs([0.0; STAGES.len()]);
            let pairs = self.crossings.iter_mut().zip(costs.0.chunks_mut(2)).zip(STAGES.chunks(2));
            for ((crossing, pair), stages) in pairs {
                let measured = measure(&mut **crossing, self.slot).with_context(|| stages[0].0)?;
                pair.copy_from_slice(&measured);
            }
            Ok(costs)
        };
        thread::scope(|scope| scope.spawn(measure).join()).map_err(|_| anyhow!("the measuring thread has panicked"))?
    }
}

/// One batch through `crossing`: bytes and CPU seconds of each stage.
fn turn(crossing: &mut dyn Crossing) -> Result<[(usize, f64); 2]> {
    crossing.prepare();
    let before = cpu_seconds();
    let put = crossing.put()?;
    let between = cpu_seconds();
    let taken = crossing.take()?;
    Ok([(put, between - before), (taken, cpu_seconds() - between)])
}

/// Batch after batch, for `slot`, at least one: CPU seconds per gigabyte of each stage.
fn measure(crossing: &mut dyn Crossing, slot: Duration) -> Result<[f64; 2]> {
    let started = Instant::now();
    let mut sums = turn(crossing)?;
    while started.elapsed() < slot {
        for (sum, (bytes, seconds)) in sums.iter_mut().zip(turn(crossing)?) {
            *sum = (sum.0 + bytes, sum.1 + seconds);
        }
    }
    Ok(sums.map(|(bytes, seconds)| seconds * 1e9 / bytes as f64))
}

/// CPU time of the calling thread so far, in user and kernel mode.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Asks `next` until it has something.
fn arrived<T>(mut next: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut idle_since = None;
    loop {
        if let Some(arrived) = next()? {
            return Ok(arrived);
        }
        let waited = idle_since.get_or_insert_with(Instant::now).elapsed();
        ensure!(waited < ARRIVAL_TIMEOUT, "the kernel has not brought all that was sent");
        thread::sleep(Duration::from_micros(100));
    }
}

/// Packets sealed and opened in place, as in QUIC (RFC 9001, section 5.3). Header protection is left out.
struct Aead {
    key: LessSafeKey,
    /// Packets back to back, each with room for its tag.
    buffer: Vec<u8>,
    /// The number of the batch's first packet, never used again.
    first: u64,
}

impl Aead {
    fn new() -> Result<Self> {
        // No secret: it protects nothing.
        let key = UnboundKey::new(&AES_256_GCM, &[0x42; 32]).map_err(|_| anyhow!("no such cipher"))?;
        let buffer = vec![0x17; SEALED_PACKETS * (PACKET_BYTES + TAG_BYTES)];
        Ok(Aead { key: LessSafeKey::new(key), buffer, first: 0 })
    }

    /// Does `work` with each packet and its nonce.
    fn each(&mut self, work: impl Fn(&LessSafeKey, Nonce, &mut [u8]) -> Result<()>) -> Result<usize> {
        for (number, packet) in (self.first..).zip(self.buffer.chunks_exact_mut(PACKET_BYTES + TAG_BYTES)) {
            let mut nonce = [0; NONCE_LEN];
            nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
            work(&self.key, Nonce::assume_unique_for_key(nonce), packet)?;
        }
        Ok(SEALED_PACKETS * PAYLOAD_BYTES)
    }
}

impl Crossing for Aead {
    fn prepare(&mut self) {
        self.first += SEALED_PACKETS as u64;
    }

    fn put(&mut self) -> Result<usize> {
        self.each(|key, nonce, packet| {
            let (plain, room) = packet.split_at_mut(PACKET_BYTES);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::from(QUIC_HEADER), plain);
            room.copy_from_slice(tag.map_err(|_| anyhow!("a packet cannot be sealed"))?.as_ref());
            Ok(())
        })
    }

    fn take(&mut self) -> Result<usize> {
        self.each(|key, nonce, packet| {
            let opened = key.open_in_place(nonce, Aad::from(QUIC_HEADER), packet);
            opened.map(drop).map_err(|_| anyhow!("a packet is not authentic"))
        })
    }
}

/// Outer datagrams over a veth pair, from the gateway to a client. The kernel brings them up to the receiver's socket in the sender's
/// system call, so that sending is measured with that.
struct Udp {
    sender: UdpSocket,
    receiver: UdpSocket,
    remote: SocketAddr,
    transmit: TransmitBatch,
    receive: ReceiveBatch,
    runs: usize,
}

impl Udp {
    /// For runs that stay whole from socket to socket.
    fn connect(topology: &Topology) -> Result<Self> {
        let options = UdpOptions { gro: true, gso: true, ..UdpOptions::default() };
        let client = topology.clients.first().context("a topology without a client")?;
        let mut group = client.namespace.run(|| UdpGroup::bind(SocketAddr::new(client.v4.into(), 0), 1, &options))?;
        let receiver = group.pop().context("a group without a socket")?;
        let remote = receiver.local_address();
        let sender = topology.gateway.run(|| UdpSocket::for_remote(remote, &options))?;
        // By the kernel's own counting, generously, a run takes 128 KiB of the receiver's buffer.
        let runs = (receiver.buffers_bytes()?.1 / (128 << 10)).clamp(1, RUNS);
        let (transmit, receive) = (TransmitBatch::new(RUNS), ReceiveBatch::new(RUNS));
        Ok(Udp { sender, receiver, remote, transmit, receive, runs })
    }
}

impl Crossing for Udp {
    fn prepare(&mut self) {
        let bytes = RUN_DATAGRAMS * DATAGRAM_BYTES;
        for index in 0..self.runs {
            self.transmit.fill(|buffer| {
                buffer.resize(bytes, index as u8);
                let (local_ip, ecn) = (None, None);
                Some(Transmit { remote: self.remote, local_ip, ecn, bytes, segment_bytes: DATAGRAM_BYTES })
            });
        }
    }

    fn put(&mut self) -> Result<usize> {
        let (sent, all) = (self.sender.send(&mut self.transmit).datagrams, self.runs * RUN_DATAGRAMS);
        ensure!(sent == all, "the kernel took {sent} of {all} datagrams");
        Ok(sent * PAYLOAD_BYTES)
    }

    fn take(&mut self) -> Result<usize> {
        let (mut datagrams, all) = (0, self.runs * RUN_DATAGRAMS);
        while datagrams < all {
            datagrams += arrived(|| {
                let received = self.receiver.receive(&mut self.receive, &mut |received| drop(received))?;
                Ok((received.messages > 0).then_some(received.datagrams))
            })?;
        }
        Ok(datagrams * PAYLOAD_BYTES)
    }
}

/// Inner packets into one TUN device, through the kernel's forwarding, and out of another. Forwarding is done in the system call that
/// writes, so that it is measured with it.
struct Tun {
    near: TunQueue,
    far: TunQueue,
    _devices: [TunDevice; 2],
    /// Headers and payloads, each frame with memory of its own, as what a core has received has.
    frames: Vec<(Vec<u8>, Vec<Bytes>)>,
    buffer: Box<[u8]>,
}

impl Tun {
    /// Two devices in `namespace`, which must forward.
    fn create(namespace: &Namespace) -> Result<Self> {
        let host = |net: u8, host: u8| Ipv4Addr::new(198, 19, net, host);
        let port = |name: &str, net: u8| {
            let address = IpNet::V4(Ipv4Net::new_assert(host(net, 1), 24));
            namespace.run(|| -> Result<(TunDevice, TunQueue)> {
                let (mut device, mut queues) =
                    TunDevice::create(Some(name), 1, PACKET_BYTES as u16, &TunOptions::default())?;
                device.configure(address)?;
                device.up()?;
                Ok((device, queues.pop().context("a TUN device without a queue")?))
            })
        };
        let ((near_device, near), (far_device, far)) = (port("floor-near", 128)?, port("floor-far", 129)?);
        let mut flow = Flow::tcp(host(128, 2), host(129, 2), PACKET_BYTES);
        let frame = |_| {
            let mut header = flow.super_frame(RUN_PACKETS);
            let payload = Bytes::from(header.split_off(HEADER_BYTES + flow.header_bytes()));
            let starts = (0..RUN_PACKETS).map(|packet| packet * PAYLOAD_BYTES);
            (header, starts.map(|start| payload.slice(start..start + PAYLOAD_BYTES)).collect())
        };
        let frames = (0..RUNS).map(frame).collect();
        let buffer = vec![0; FRAME_BYTES_MAX].into_boxed_slice();
        Ok(Tun { near, far, _devices: [near_device, far_device], frames, buffer })
    }
}

impl Crossing for Tun {
    fn put(&mut self) -> Result<usize> {
        for (header, payloads) in &self.frames {
            let outcome = self.near.write(&Frame { header, payloads, carries_data: true });
            ensure!(outcome == WriteOutcome::Written, "the kernel has not taken a frame ({outcome:?})");
        }
        Ok(self.frames.iter().map(|(_, payloads)| payloads.len() * PAYLOAD_BYTES).sum())
    }

    fn take(&mut self) -> Result<usize> {
        let mut taken = 0;
        for (header, payloads) in &self.frames {
            let bytes = arrived(|| {
                // The kernel sends short ones of its own.
                let read = self.far.read(&mut self.buffer)?;
                Ok(read.filter(|bytes| *bytes >= DATA_BYTES_MIN))
            })?;
            let sent = header.len() + payloads.len() * PAYLOAD_BYTES;
            ensure!(bytes == sent, "a frame of {sent} bytes came out with {bytes}");
            taken += payloads.len() * PAYLOAD_BYTES;
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_and_a_batch_opened_twice_is_not_authentic() {
        let mut crossing = Aead::new().unwrap();
        for _ in 0..2 {
            crossing.prepare();
            assert_eq!(crossing.put().unwrap(), SEALED_PACKETS * PAYLOAD_BYTES);
            assert_eq!(crossing.take().unwrap(), SEALED_PACKETS * PAYLOAD_BYTES);
        }
        assert_eq!(crossing.take().unwrap_err().to_string(), "a packet is not authentic");
    }

    #[test]
    fn a_direction_is_the_sum_of_its_stages_only() {
        let costs = Costs([0.25, 0.5, 1.0, 2.0, 4.0, 8.0]);
        assert_eq!([Direction::Up, Direction::Down, Direction::Both].map(|of| costs.of(of)), [10.25, 5.5, 7.875]);
    }
}
