//! The generator of a datagram flow, with an even rate and, if the far end echoes, a count of what comes back.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    message::{HEADER_BYTES, Message, now_ns},
    tally::{FlowCounts, SEQUENCES_MAX, Tally},
};
use crate::{
    LabError,
    path::aggregate::{self, AGGREGATE_BYTES_MAX, SEGMENTS_MAX},
};

const PAYLOAD_BYTES_MAX: usize = 65_000;

/// A flow of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramPlan {
    /// Where they go.
    pub target: SocketAddr,
    /// The number of the flow, under which the receiver counts it.
    pub flow: u32,
    /// How many datagrams, at most 67,108,864.
    pub datagrams: u64,
    /// The payload's length in bytes, 32 to 65000.
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
    /// What came back, where echoes were awaited; its latencies are round-trip times.
    pub echoed: Option<FlowCounts>,
}

impl DatagramPlan {
    /// A flow 1 of `datagrams` datagrams with 1200 bytes each, one a system call, as fast as possible, without echo.
    pub fn new(target: SocketAddr, datagrams: u64) -> Self {
        Self { target, flow: 1, datagrams, payload_bytes: 1200, per_second: None, segments: 1, echo_timeout: None }
    }

    fn check(&self) -> Result<(), LabError> {
        let wrong = |field, value: u64, bounds: String| {
            Err(LabError::Plan { plan: "datagrams", field, value: value.to_string(), bounds })
        };
        if self.datagrams > SEQUENCES_MAX {
            return wrong("datagrams", self.datagrams, format!("at most {SEQUENCES_MAX}"));
        }
        if !(HEADER_BYTES..=PAYLOAD_BYTES_MAX).contains(&self.payload_bytes) {
            return wrong("payload_bytes", self.payload_bytes as u64, format!("{HEADER_BYTES} to {PAYLOAD_BYTES_MAX}"));
        }
        let segments_max = SEGMENTS_MAX.min(PAYLOAD_BYTES_MAX / self.payload_bytes);
        if !(1..=segments_max).contains(&self.segments) {
            return wrong("segments", self.segments as u64, format!("1 to {segments_max} at this payload"));
        }
        if self.per_second == Some(0) {
            return wrong("per_second", 0, "at least 1".into());
        }
        Ok(())
    }

    /// When, after the start, datagram number `sequence` is due.
    fn due(&self, sequence: u64) -> Duration {
        self.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(sequence as f64 / f64::from(rate)))
    }
}

/// Sends a flow from the calling thread's network namespace.
///
/// # Errors
///
/// When no socket can be had, or receiving echoes fails. Datagrams that the kernel refuses are counted.
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
        pause_until(start + plan.due(sequence));
        let count = (plan.segments as u64).min(plan.datagrams - sequence);
        let bytes = &mut batch[..count as usize * plan.payload_bytes];
        let sent_ns = now_ns();
        for (datagram, number) in bytes.chunks_exact_mut(plan.payload_bytes).zip(sequence..) {
            Message { flow: plan.flow, sequence: number, sent_ns }.write(datagram);
        }
        match aggregate::send(&socket, bytes, plan.payload_bytes, plan.target) {
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
        while tally.unique(plan.flow) < report.sent && wait_readable(&socket, end).map_err(failed("receive"))? {
            drain(&socket, &mut buffer, &mut tally).map_err(failed("receive"))?;
        }
        report.echoed = Some(tally.remove(plan.flow));
    }
    Ok(report)
}

fn open(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    aggregate::prepare(&socket)?;
    Ok(socket)
}

fn pause_until(due: Instant) {
    let early = due.saturating_duration_since(Instant::now());
    if !early.is_zero() {
        thread::sleep(early);
    }
}

fn drain(socket: &UdpSocket, buffer: &mut [u8], tally: &mut Tally) -> io::Result<()> {
    while let Some(received) = aggregate::receive(socket, buffer)? {
        tally.take(&buffer[..received.length], received.segment);
    }
    Ok(())
}

/// Waits for something to receive; false when `end` has come.
fn wait_readable(socket: &UdpSocket, end: Instant) -> io::Result<bool> {
    let remaining = end.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Ok(false);
    }
    let timeout = Timespec::try_from(remaining).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        SERVICE_V4, SERVICE_V6, Topology, TopologyPlan,
        datagrams::{DatagramReceiver, DatagramResponse},
        require_privileges_or_skip,
    };

    #[test]
    fn a_flow_crosses_a_link_complete_and_in_order_and_comes_back() {
        require_privileges_or_skip!();
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
            for counts in [receiver.counts().remove(&5).unwrap(), report.echoed.unwrap()] {
                assert_eq!((counts.lost(1001), counts.duplicated, counts.reordered, counts.corrupted), (0, 0, 0, 0));
            }
            assert_eq!(receiver.foreign(), 0);
        }
    }

    #[test]
    fn a_plan_out_of_bounds_is_refused() {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let plan = DatagramPlan { segments: 60, payload_bytes: 1400, ..DatagramPlan::new(target, 1) };
        let error = send(&plan).unwrap_err().to_string();
        assert_eq!(error, "datagrams: segments is 60, but must be 1 to 46 at this payload");
    }
}
