//! ICMP echo: round-trip times and losses (RFC 792, RFC 4443).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{ipproto, recv, sendto, socket_with, sockopt};

use crate::LabError;
use crate::packet::Sum;

/// The sequence number of an echo has 16 bits.
const COUNT_MAX: u32 = 65_536;
/// Every payload begins with a token, so that echoes of others are told apart.
const TOKEN_BYTES: usize = 8;
const ECHO_HEADER_BYTES: usize = 8;
/// The longest round trip that is told apart from longer ones.
const RTT_MAX_NS: u64 = 60_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingPlan {
    pub target: IpAddr,
    /// At most 65,536 requests.
    pub count: u32,
    /// The time from one request to the next.
    pub interval: Duration,
    /// At least 8.
    pub payload_bytes: usize,
    /// How long to wait for replies after the last request.
    pub timeout: Duration,
    /// Whether packets must not be fragmented, whatever path MTU the kernel has learned.
    pub dont_fragment: bool,
}

#[derive(Debug, Clone)]
pub struct PingReport {
    /// Requests that the kernel took.
    pub sent: u32,
    /// Requests that the kernel refused, for want of a route or as too long.
    pub refused: u32,
    /// Requests that were answered.
    pub received: u32,
    /// Replies to requests that had been answered already.
    pub duplicates: u32,
    /// Round-trip times in nanoseconds.
    pub rtt_ns: Histogram<u64>,
}

impl PingPlan {
    /// Ten requests, 10 ms apart, with 56 bytes each.
    pub fn new(target: IpAddr) -> Self {
        Self {
            target,
            count: 10,
            interval: Duration::from_millis(10),
            payload_bytes: 56,
            timeout: Duration::from_secs(1),
            dont_fragment: false,
        }
    }
}

impl PingReport {
    /// Requests that were sent and not answered.
    pub fn lost(&self) -> u32 {
        self.sent - self.received
    }

    /// The round-trip time in nanoseconds that `percentile` per cent of the replies did not exceed; 0 without replies.
    pub fn rtt_percentile_ns(&self, percentile: f64) -> u64 {
        self.rtt_ns.value_at_percentile(percentile)
    }
}

/// Sends echo requests from the calling thread's network namespace and waits for the replies. Requests that the
/// kernel refuses are counted.
pub fn ping(plan: &PingPlan) -> Result<PingReport, LabError> {
    assert!(plan.count <= COUNT_MAX && plan.payload_bytes >= TOKEN_BYTES, "{plan:?}");
    let failed =
        |operation| move |error: io::Error| LabError::traffic(format!("ping of {}", plan.target), operation, error);
    let mut pinger = Pinger::open(plan).map_err(failed("open a raw socket"))?;
    pinger.run().map_err(failed("receive"))?;
    Ok(pinger.report)
}

struct Pinger<'a> {
    plan: &'a PingPlan,
    socket: OwnedFd,
    identifier: u16,
    token: [u8; TOKEN_BYTES],
    /// When each request was sent; `None` once it is answered.
    pending: Vec<Option<Instant>>,
    report: PingReport,
}

impl<'a> Pinger<'a> {
    fn open(plan: &'a PingPlan) -> io::Result<Self> {
        let (family, protocol) = match plan.target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        if plan.dont_fragment {
            match plan.target {
                IpAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::PROBE)?,
                IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::PROBE)?,
            }
        }
        let token = RandomState::new().hash_one(0u64);
        let rtt_ns = Histogram::new_with_bounds(1, RTT_MAX_NS, 3).map_err(io::Error::other)?;
        Ok(Self {
            plan,
            socket,
            identifier: (token >> 48) as u16,
            token: token.to_be_bytes(),
            pending: Vec::with_capacity(plan.count as usize),
            report: PingReport { sent: 0, refused: 0, received: 0, duplicates: 0, rtt_ns },
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let start = Instant::now();
        for index in 0..self.plan.count {
            self.receive_until(start + self.plan.interval * index, false)?;
            self.send(index as u16);
        }
        self.receive_until(Instant::now() + self.plan.timeout, true)
    }

    fn send(&mut self, sequence: u16) {
        let request = self.request(sequence);
        let sent_at = Instant::now();
        let sent = sendto(&self.socket, &request, SendFlags::empty(), &SocketAddr::new(self.plan.target, 0));
        self.pending.push(sent.is_ok().then_some(sent_at));
        match sent {
            Ok(_) => self.report.sent += 1,
            Err(_) => self.report.refused += 1,
        }
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let mut request = vec![0; ECHO_HEADER_BYTES + self.plan.payload_bytes];
        request[0] = self.echo_types().0;
        request[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        request[6..8].copy_from_slice(&sequence.to_be_bytes());
        request[8..8 + TOKEN_BYTES].copy_from_slice(&self.token);
        if self.plan.target.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 only.
            let checksum = Sum::of(&request).checksum();
            request[2..4].copy_from_slice(&checksum);
        }
        request
    }

    /// The types of an echo request and its reply.
    fn echo_types(&self) -> (u8, u8) {
        if self.plan.target.is_ipv4() { (8, 0) } else { (128, 129) }
    }

    /// Takes answers until `end`, or until every request is answered if that is enough.
    fn receive_until(&mut self, end: Instant, until_complete: bool) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            if until_complete && self.report.received >= self.report.sent {
                return Ok(());
            }
            let remaining = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(remaining).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => self.take(&buffer[..length], Instant::now()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn take(&mut self, packet: &[u8], now: Instant) {
        let Some(pending) = self.answered(packet).and_then(|sequence| self.pending.get_mut(usize::from(sequence)))
        else {
            return;
        };
        let Some(sent_at) = pending.take() else {
            self.report.duplicates += 1;
            return;
        };
        self.report.received += 1;
        let rtt_ns = u64::try_from((now - sent_at).as_nanos()).unwrap_or(RTT_MAX_NS);
        self.report.rtt_ns.saturating_record(rtt_ns.max(1));
    }

    /// Which of our requests an ICMP message replies to.
    fn answered(&self, packet: &[u8]) -> Option<u16> {
        let message = if self.plan.target.is_ipv4() { packet.get(header_bytes_v4(packet)?..)? } else { packet };
        let is_ours = *message.first()? == self.echo_types().1
            && message.get(4..6)? == self.identifier.to_be_bytes()
            && message.get(8..8 + TOKEN_BYTES)? == self.token.as_slice();
        is_ours.then(|| u16::from_be_bytes([message[6], message[7]]))
    }
}

fn header_bytes_v4(packet: &[u8]) -> Option<usize> {
    Some(usize::from(packet.first()? & 0x0f) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Namespace, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn echoes_cross_a_link_in_both_families() {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
        for target in [IpAddr::from(SERVICE_V4), IpAddr::from(SERVICE_V6)] {
            let interval = Duration::from_millis(1);
            let plan = PingPlan { count: 50, interval, payload_bytes: 3001, ..PingPlan::new(target) };
            let report = topology.clients[0].namespace.run(|| ping(&plan)).unwrap();
            assert_eq!((report.sent, report.received, report.duplicates, report.lost()), (50, 50, 0, 0));
            assert!(report.rtt_percentile_ns(50.0) > 0);
            assert!(report.rtt_percentile_ns(50.0) <= report.rtt_percentile_ns(99.0));
        }
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn an_unreachable_target_is_lost_or_refused() {
        let namespace = Namespace::new("lonely").unwrap();
        let plan = PingPlan { count: 2, timeout: Duration::from_millis(1), ..PingPlan::new(SERVICE_V4.into()) };
        let report = namespace.run(|| ping(&plan)).unwrap();
        assert_eq!((report.sent, report.refused, report.received), (0, 2, 0));
    }
}
