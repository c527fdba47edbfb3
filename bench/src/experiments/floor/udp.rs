//! Outer datagrams from one namespace to another over a veth pair, as the gateway's clients are connected in the lab.
//!
//! The kernel brings what is sent up to the receiver's socket in the sender's system call, so that sending is measured with that.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tollgate::io::{ReceiveBatch, TransmitBatch, UdpGroup, UdpOptions, UdpSocket};
use tollgate_shards::Transmit;
use tollgate_testkit::Topology;

use super::{Crossing, DATAGRAM_BYTES, PAYLOAD_BYTES};

/// Messages of a system call. With twice as many, 64 KiB each, what is sent and what is received are more than a core's second-level
/// cache, and receiving costs twice as much.
const MESSAGES_MAX: usize = 8;
/// The longest payload of an IPv4 datagram, which bounds a run.
const UDP_BYTES_MAX: usize = 65_507;
/// As many datagrams as a run holds.
const RUN_DATAGRAMS: usize = UDP_BYTES_MAX / DATAGRAM_BYTES;
/// Runs of a batch that are sent as single datagrams: a system call's worth each.
const SINGLE_RUNS_MAX: usize = 4;
/// What a run takes of the receiver's buffer, by the kernel's own counting and generously.
const RUN_BUFFER_BYTES: usize = 128 << 10;
/// What a single datagram takes.
const SINGLE_BUFFER_BYTES: usize = 4 << 10;
/// How long a batch may take to arrive. It has when the sender's system call is over.
const BATCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Datagrams of one kind from one socket to another.
pub struct UdpCrossing {
    names: [&'static str; 2],
    sender: UdpSocket,
    receiver: UdpSocket,
    remote: SocketAddr,
    transmit: TransmitBatch,
    receive: ReceiveBatch,
    runs: usize,
    run_datagrams: usize,
}

impl UdpCrossing {
    /// Runs of datagrams that stay whole from socket to socket.
    pub fn in_runs(topology: &Topology) -> Result<Self> {
        let mut crossing = UdpCrossing::new(topology, ["UDP send, GSO", "UDP receive, GRO"], true)?;
        crossing.runs = (crossing.receive_buffer_bytes()? / RUN_BUFFER_BYTES).clamp(1, MESSAGES_MAX);
        Ok(crossing)
    }

    /// Datagrams one by one, many in a system call.
    pub fn single_datagrams(topology: &Topology) -> Result<Self> {
        let names = ["UDP send, single datagrams", "UDP receive, single datagrams"];
        let mut crossing = UdpCrossing::new(topology, names, false)?;
        let datagrams = (crossing.receive_buffer_bytes()? / SINGLE_BUFFER_BYTES).max(1);
        crossing.run_datagrams = datagrams.min(RUN_DATAGRAMS);
        crossing.runs = (datagrams / RUN_DATAGRAMS).clamp(1, SINGLE_RUNS_MAX);
        Ok(crossing)
    }

    fn new(topology: &Topology, names: [&'static str; 2], offloads: bool) -> Result<Self> {
        let options = UdpOptions { gro: offloads, gso: offloads, ..UdpOptions::default() };
        let client = topology.clients.first().context("a topology without a client")?;
        let address = SocketAddr::new(client.v4.into(), 0);
        let mut group = client.namespace.run(|| UdpGroup::bind(address, 1, &options))?;
        let receiver = group.pop().context("a group without a socket")?;
        let remote = receiver.local_address();
        let sender = topology.gateway.run(|| UdpSocket::for_remote(remote, &options))?;
        Ok(UdpCrossing {
            names,
            sender,
            receiver,
            remote,
            transmit: TransmitBatch::new(MESSAGES_MAX),
            receive: ReceiveBatch::new(MESSAGES_MAX),
            runs: 1,
            run_datagrams: RUN_DATAGRAMS,
        })
    }

    fn receive_buffer_bytes(&self) -> Result<usize> {
        Ok(self.receiver.buffers_bytes()?.1)
    }

    fn batch_datagrams(&self) -> usize {
        self.runs * self.run_datagrams
    }

    fn payload_bytes(&self) -> u64 {
        (self.batch_datagrams() * PAYLOAD_BYTES) as u64
    }
}

impl Crossing for UdpCrossing {
    fn names(&self) -> [&'static str; 2] {
        self.names
    }

    fn prepare(&mut self) -> Result<()> {
        let bytes = self.run_datagrams * DATAGRAM_BYTES;
        for index in 0..self.runs {
            self.transmit.fill(|buffer| {
                buffer.resize(bytes, index as u8);
                let (local_ip, ecn) = (None, None);
                Some(Transmit { remote: self.remote, local_ip, ecn, bytes, segment_bytes: DATAGRAM_BYTES })
            });
        }
        Ok(())
    }

    fn put(&mut self) -> Result<u64> {
        let sent = self.sender.send(&mut self.transmit).datagrams;
        if sent != self.batch_datagrams() {
            bail!("{}: the kernel took {sent} of {} datagrams", self.names[0], self.batch_datagrams());
        }
        Ok(self.payload_bytes())
    }

    fn take(&mut self) -> Result<u64> {
        let (mut datagrams, mut idle_since) = (0, None);
        while datagrams < self.batch_datagrams() {
            let received = self.receiver.receive(&mut self.receive, &mut |received| drop(received))?;
            datagrams += received.datagrams;
            if received.messages == 0 {
                if idle_since.get_or_insert_with(Instant::now).elapsed() >= BATCH_TIMEOUT {
                    bail!("{}: {datagrams} of {} datagrams arrived", self.names[1], self.batch_datagrams());
                }
                thread::sleep(Duration::from_micros(100));
            }
        }
        Ok(self.payload_bytes())
    }
}
