//! ICMP echo (RFC 792, RFC 4443): round-trip times and losses, by the kernel's ping sockets, which know their own replies (icmp(7)).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{ipproto, recv, sendto, socket_with};

use crate::LabError;

/// The sequence number of an echo has 16 bits.
const COUNT_MAX: u32 = 65_536;
/// The header, and the 56 bytes that ping(8) sends.
const ECHO_BYTES: usize = 8 + 56;
/// The longest round trip that is told apart from longer ones.
const RTT_MAX_NS: u64 = 60_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingPlan {
    pub target: IpAddr,
    /// At most 65,536 requests.
    pub count: u32,
    /// The time from one request to the next.
    pub interval: Duration,
    /// How long to wait for replies after the last request.
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct PingReport {
    /// Requests that the kernel took.
    pub sent: u32,
    /// Requests that the kernel refused, for want of a route.
    pub refused: u32,
    /// Requests that were answered.
    pub received: u32,
    /// Replies to requests that had been answered already.
    pub duplicates: u32,
    /// Round-trip times in nanoseconds.
    pub rtt_ns: Histogram<u64>,
}

impl PingPlan {
    /// Ten requests, 10 ms apart.
    pub fn new(target: IpAddr) -> Self {
        Self { target, count: 10, interval: Duration::from_millis(10), timeout: Duration::from_secs(1) }
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

/// Sends echo requests from the calling thread's namespace, one of the lab's, and waits for the replies. Requests that the kernel refuses
/// are counted.
pub fn ping(plan: &PingPlan) -> Result<PingReport, LabError> {
    assert!(plan.count <= COUNT_MAX, "{plan:?}");
    let failed =
        |operation| move |error: io::Error| LabError::cannot(format_args!("ping of {}", plan.target), operation, error);
    let mut pinger = Pinger::open(plan).map_err(failed("open a socket"))?;
    pinger.run().map_err(failed("receive"))?;
    Ok(pinger.report)
}

struct Pinger<'a> {
    plan: &'a PingPlan,
    socket: OwnedFd,
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
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?;
        let rtt_ns = Histogram::new_with_bounds(1, RTT_MAX_NS, 3).map_err(io::Error::other)?;
        let report = PingReport { sent: 0, refused: 0, received: 0, duplicates: 0, rtt_ns };
        Ok(Self { plan, socket, pending: Vec::with_capacity(plan.count as usize), report })
    }

    fn run(&mut self) -> io::Result<()> {
        let start = Instant::now();
        for index in 0..self.plan.count {
            self.receive_until(start + self.plan.interval * index, false)?;
            self.send(index as u16);
        }
        self.receive_until(Instant::now() + self.plan.timeout, true)
    }

    /// Sends a request. The kernel fills in the identifier and the checksum.
    fn send(&mut self, sequence: u16) {
        let mut request = [0; ECHO_BYTES];
        request[0] = if self.plan.target.is_ipv4() { 8 } else { 128 };
        request[6..8].copy_from_slice(&sequence.to_be_bytes());
        let sent_at = Instant::now();
        let sent = sendto(&self.socket, &request, SendFlags::empty(), &SocketAddr::new(self.plan.target, 0)).is_ok();
        self.pending.push(sent.then_some(sent_at));
        *(if sent { &mut self.report.sent } else { &mut self.report.refused }) += 1;
    }

    /// Takes replies until `end`, or until every request is answered if that is enough.
    fn receive_until(&mut self, end: Instant, until_complete: bool) -> io::Result<()> {
        let mut reply = [0; ECHO_BYTES];
        while !(until_complete && self.report.received >= self.report.sent) {
            let remaining = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(remaining).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            match recv(&self.socket, &mut reply[..], RecvFlags::DONTWAIT) {
                Ok(_) => self.take(u16::from_be_bytes([reply[6], reply[7]]), Instant::now()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn take(&mut self, sequence: u16, now: Instant) {
        let Some(pending) = self.pending.get_mut(usize::from(sequence)) else { return };
        let Some(sent_at) = pending.take() else {
            self.report.duplicates += 1;
            return;
        };
        self.report.received += 1;
        let rtt_ns = u64::try_from((now - sent_at).as_nanos()).unwrap_or(RTT_MAX_NS);
        self.report.rtt_ns.saturating_record(rtt_ns.max(1));
    }
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
            let plan = PingPlan { count: 50, interval: Duration::from_millis(1), ..PingPlan::new(target) };
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
