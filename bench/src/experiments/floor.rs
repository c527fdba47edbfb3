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
    DATA_BYTES_MIN, FRAME_BYTES_MAX, ReceiveBatch, TransmitBatch, TunDevice, TunOptions, TunQueue, UdpOptions,
    UdpSocket, WriteOutcome,
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

/// The stages and the direction of whose floor each is a part, each pair measured by one [`Crossing`]. Of the ciphers, it is the one that
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

/// Two stages that need each other: what one puts in, the other takes out. Does both with a batch, and returns its bytes of TCP payload, so
/// that stages add up and compare with what a gateway needs for a gigabyte, and the CPU seconds of each.
type Crossing = Box<dyn FnMut() -> Result<(usize, [f64; 2])> + Send>;

/// The stages, set up in namespaces of their own, which go when this value does.
pub struct Stages {
    crossings: [Crossing; 3],
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
    let figure = |name, direction, cost: &dyn Fn(&Costs) -> f64| {
        let cpu_seconds_per_gigabyte = Spread::of(rounds.iter().map(cost)).context("there was no round")?;
        Ok(Figure { name, direction, cpu_seconds_per_gigabyte })
    };
    let stages = STAGES.into_iter().enumerate();
    let stages = stages.map(|(at, (name, direction))| figure(name, direction, &|costs| costs.0[at]));
    let sums =
        [Direction::Up, Direction::Down].map(|direction| figure("floor", direction, &|costs| costs.of(direction)));
    let figures: Vec<_> = stages.chain(sums).collect::<Result<_>>()?;
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
        let crossings = [tun(&topology.gateway)?, udp(&topology)?, aead()?];
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
                let measured = measure(crossing, self.slot).with_context(|| stages[0].0)?;
                pair.copy_from_slice(&measured);
            }
            Ok(costs)
        };
        thread::scope(|scope| scope.spawn(measure).join()).map_err(|_| anyhow!("the measuring thread has panicked"))?
    }
}

/// Batch after batch, for `slot`, at least one: CPU seconds per gigabyte of each stage.
fn measure(crossing: &mut Crossing, slot: Duration) -> Result<[f64; 2]> {
    let started = Instant::now();
    let (mut bytes, mut seconds) = crossing()?;
    while started.elapsed() < slot {
        let (more, [put, taken]) = crossing()?;
        bytes += more;
        seconds = [seconds[0] + put, seconds[1] + taken];
    }
    Ok(seconds.map(|seconds| seconds * 1e9 / bytes as f64))
}

/// CPU seconds that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = cpu_seconds();
    work()?;
    Ok(cpu_seconds() - before)
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
fn aead() -> Result<Crossing> {
    // No secret: it protects nothing.
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[0x42; 32]).map_err(|_| anyhow!("no such cipher"))?);
    // Packets back to back, each with room for its tag.
    let mut buffer = vec![0x17; SEALED_PACKETS * (PACKET_BYTES + TAG_BYTES)];
    // A packet's number is never used again.
    let mut first: u64 = 0;
    Ok(Box::new(move || {
        first += SEALED_PACKETS as u64;
        let sealing = timed(|| {
            packets(first, &mut buffer).try_for_each(|(nonce, packet)| {
                let (plain, room) = packet.split_at_mut(PACKET_BYTES);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(QUIC_HEADER), plain);
                room.copy_from_slice(tag.map_err(|_| anyhow!("a packet cannot be sealed"))?.as_ref());
                Ok(())
            })
        })?;
        let opening = timed(|| {
            packets(first, &mut buffer).try_for_each(|(nonce, packet)| {
                let opened = key.open_in_place(nonce, Aad::from(QUIC_HEADER), packet);
                opened.map(drop).map_err(|_| anyhow!("a packet is not authentic"))
            })
        })?;
        Ok((SEALED_PACKETS * PAYLOAD_BYTES, [sealing, opening]))
    }))
}

/// The packets in `buffer`, each with its nonce.
fn packets(first: u64, buffer: &mut [u8]) -> impl Iterator<Item = (Nonce, &mut [u8])> {
    let nonce = |number: u64| {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    (first..).map(nonce).zip(buffer.chunks_exact_mut(PACKET_BYTES + TAG_BYTES))
}

/// Outer datagrams over a veth pair, from the gateway to a client, in runs that stay whole from socket to socket. The kernel brings them up to
/// the receiver's socket in the sender's system call, so that sending is measured with that.
fn udp(topology: &Topology) -> Result<Crossing> {
    let options = UdpOptions { gro: true, gso: true, ..UdpOptions::default() };
    let client = topology.clients.first().context("a topology without a client")?;
    let receiver = client.namespace.run(|| UdpSocket::bind(SocketAddr::new(client.v4.into(), 0), &options))?;
    let remote = receiver.local_address();
    let sender = topology.gateway.run(|| UdpSocket::for_remote(remote, &options))?;
    // By the kernel's own counting, generously, a run takes 128 KiB of the receiver's buffer.
    let runs = (receiver.buffers_bytes()?.1 / (128 << 10)).clamp(1, RUNS);
    let (mut transmit, mut receive) = (TransmitBatch::new(RUNS), ReceiveBatch::new(RUNS));
    let (bytes, all) = (RUN_DATAGRAMS * DATAGRAM_BYTES, runs * RUN_DATAGRAMS);
    Ok(Box::new(move || {
        for index in 0..runs {
            transmit.fill(|buffer| {
                buffer.resize(bytes, index as u8);
                Some(Transmit { remote, local_ip: None, ecn: None, bytes, segment_bytes: DATAGRAM_BYTES })
            });
        }
        let sending = timed(|| {
            let sent = sender.send(&mut transmit).datagrams;
            ensure!(sent == all, "the kernel took {sent} of {all} datagrams");
            Ok(())
        })?;
        let receiving = timed(|| {
            let mut datagrams = 0;
            while datagrams < all {
                datagrams += arrived(|| {
                    let received = receiver.receive(&mut receive, &mut |received| drop(received))?;
                    Ok((received.messages > 0).then_some(received.datagrams))
                })?;
            }
            Ok(())
        })?;
        Ok((all * PAYLOAD_BYTES, [sending, receiving]))
    }))
}

/// Inner packets into one TUN device, through the kernel's forwarding, and out of another, in `namespace`, which must forward. Forwarding is done
/// in the system call that writes, so that it is measured with it.
fn tun(namespace: &Namespace) -> Result<Crossing> {
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
    // Headers and payloads, each frame with memory of its own, as what a core has received has.
    let frame = |_| {
        let mut header = flow.super_frame(RUN_PACKETS);
        let payload = Bytes::from(header.split_off(HEADER_BYTES + flow.header_bytes()));
        let starts = (0..RUN_PACKETS).map(|packet| packet * PAYLOAD_BYTES);
        (header, starts.map(|start| payload.slice(start..start + PAYLOAD_BYTES)).collect())
    };
    let frames: Vec<(Vec<u8>, Vec<Bytes>)> = (0..RUNS).map(frame).collect();
    let mut buffer = vec![0; FRAME_BYTES_MAX].into_boxed_slice();
    Ok(Box::new(move || {
        // They go with their queues.
        let _ = (&near_device, &far_device);
        let writing = timed(|| {
            frames.iter().try_for_each(|(header, payloads)| {
                let outcome = near.write(&Frame { header, payloads, carries_data: true });
                ensure!(outcome == WriteOutcome::Written, "the kernel has not taken a frame ({outcome:?})");
                Ok(())
            })
        })?;
        let reading = timed(|| {
            frames.iter().try_for_each(|(header, _)| {
                // The kernel sends short ones of its own.
                let bytes = arrived(|| Ok(far.read(&mut buffer)?.filter(|bytes| *bytes >= DATA_BYTES_MIN)))?;
                let sent = header.len() + RUN_PACKETS * PAYLOAD_BYTES;
                ensure!(bytes == sent, "a frame of {sent} bytes came out with {bytes}");
                Ok(())
            })
        })?;
        Ok((RUNS * RUN_PACKETS * PAYLOAD_BYTES, [writing, reading]))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_batch_after_batch() {
        let mut crossing = aead().unwrap();
        (0..2).for_each(|_| assert_eq!(crossing().unwrap().0, SEALED_PACKETS * PAYLOAD_BYTES));
    }

    #[test]
    fn a_direction_is_the_sum_of_its_stages_only() {
        let costs = Costs([0.25, 0.5, 1.0, 2.0, 4.0, 8.0]);
        assert_eq!([Direction::Up, Direction::Down, Direction::Both].map(|of| costs.of(of)), [10.25, 5.5, 7.875]);
    }
}
