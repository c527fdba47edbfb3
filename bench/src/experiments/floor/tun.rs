//! Inner packets into one TUN device, through the kernel's forwarding, and out of another.
//!
//! Forwarding is done in the system call that writes, so that it is measured with it.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net};
use tollgate::io::{DATA_BYTES_MIN, FRAME_BYTES_MAX, TunDevice, TunOptions, TunQueue, WriteOutcome};
use tollgate_shards::Frame;
use tollgate_testkit::Namespace;

use super::packet::{InnerFrame, Transport};
use super::{Crossing, PACKET_BYTES};

/// Super-packets of a batch. With twice as many, they and the kernel's copies are more than a core's second-level cache.
const SUPER_PACKETS: usize = 8;
/// Single packets of a batch. Fewer than the queue of a device holds where its length may not be changed, which is 500.
const SINGLES: usize = 256;
/// How long a frame may take from one device to the other. The kernel forwards it at once.
const FRAME_TIMEOUT: Duration = Duration::from_secs(1);

/// Two TUN devices in a namespace that forwards from one to the other, and frames of one kind between them.
pub struct TunCrossing {
    names: [&'static str; 2],
    near: Port,
    far: Port,
    frames: Vec<InnerFrame>,
    /// What is read into.
    buffer: Box<[u8]>,
}

/// A device with its one queue.
struct Port {
    device: TunDevice,
    queue: TunQueue,
}

impl Port {
    /// In the calling thread's namespace.
    fn create(name: &str, address: IpNet) -> Result<Self> {
        let (mut device, mut queues) = TunDevice::create(Some(name), 1, PACKET_BYTES as u16, &TunOptions::default())?;
        device.configure(address)?;
        device.up()?;
        let queue = queues.pop().context("a TUN device without a queue")?;
        Ok(Port { device, queue })
    }
}

impl TunCrossing {
    /// TCP super-packets. As the others, it makes devices of its own in `namespace`, which must forward.
    pub fn tcp_super_packets(namespace: &Namespace) -> Result<Self> {
        let mut crossing =
            TunCrossing::new(namespace, 0, ["TUN write, TCP super-packets", "TUN read, TCP super-packets"])?;
        crossing.frames = frames(0, SUPER_PACKETS, Transport::Tcp, Transport::Tcp.packets_max());
        Ok(crossing)
    }

    /// UDP super-packets; `None` where the kernel does not offer them.
    pub fn udp_super_packets(namespace: &Namespace) -> Result<Option<Self>> {
        let mut crossing =
            TunCrossing::new(namespace, 1, ["TUN write, UDP super-packets", "TUN read, UDP super-packets"])?;
        crossing.frames = frames(1, SUPER_PACKETS, Transport::Udp, Transport::Udp.packets_max());
        let offered = crossing.near.device.offloads().uso && crossing.far.device.offloads().uso;
        Ok(offered.then_some(crossing))
    }

    /// Single packets.
    pub fn single_packets(namespace: &Namespace) -> Result<Self> {
        let mut crossing = TunCrossing::new(namespace, 2, ["TUN write, single packets", "TUN read, single packets"])?;
        crossing.frames = frames(2, SINGLES, Transport::Tcp, 1);
        Ok(crossing)
    }

    /// The devices number `index`, without frames.
    fn new(namespace: &Namespace, index: u8, names: [&'static str; 2]) -> Result<Self> {
        let port = |end: &str, subnet| {
            let address = IpNet::V4(Ipv4Net::new_assert(host(subnet, 1), 24));
            namespace.run(|| Port::create(&format!("floor{index}-{end}"), address))
        };
        let [near, far] = subnets(index);
        let (near, far) = (port("near", near)?, port("far", far)?);
        Ok(TunCrossing { names, near, far, frames: Vec::new(), buffer: vec![0; FRAME_BYTES_MAX].into_boxed_slice() })
    }

    /// Reads the next frame that is one of ours, and returns its length. The kernel sends short ones of its own.
    fn read(&mut self) -> Result<usize> {
        let mut idle_since = None;
        loop {
            match self.far.queue.read(&mut self.buffer)? {
                Some(bytes) if bytes >= DATA_BYTES_MIN => return Ok(bytes),
                Some(_) => {}
                None if idle_since.get_or_insert_with(Instant::now).elapsed() >= FRAME_TIMEOUT => {
                    bail!("{}: the kernel has not forwarded all frames", self.names[1]);
                }
                None => thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}

/// The networks behind the near and the far device of pair `index`, by their third byte.
fn subnets(index: u8) -> [u8; 2] {
    [128 + 2 * index, 129 + 2 * index]
}

fn host(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, subnet, host)
}

/// `count` frames of `packets` packets each from behind the near device of pair `index` to behind the far one. Each has memory of its
/// own, as what a core has received has.
fn frames(index: u8, count: usize, transport: Transport, packets: usize) -> Vec<InnerFrame> {
    let [source, destination] = subnets(index).map(|subnet| host(subnet, 2));
    (0..count).map(|_| InnerFrame::new(transport, packets, source, destination)).collect()
}

impl Crossing for TunCrossing {
    fn names(&self) -> [&'static str; 2] {
        self.names
    }

    fn put(&mut self) -> Result<u64> {
        let mut payload_bytes = 0;
        for InnerFrame { header, payloads } in &self.frames {
            match self.near.queue.write(&Frame { header, payloads, carries_data: true }) {
                WriteOutcome::Written => payload_bytes += payloads.iter().map(Bytes::len).sum::<usize>(),
                refused => bail!("{}: the kernel has not taken a frame ({refused:?})", self.names[0]),
            }
        }
        Ok(payload_bytes as u64)
    }

    fn take(&mut self) -> Result<u64> {
        let mut payload_bytes = 0;
        for index in 0..self.frames.len() {
            let bytes = self.read()?;
            let sent = &self.frames[index];
            if bytes != sent.bytes() {
                bail!("{}: a frame of {} bytes came out with {bytes}", self.names[1], sent.bytes());
            }
            payload_bytes += sent.payload_bytes();
        }
        Ok(payload_bytes as u64)
    }
}
