//! Bulk TCP transfers whose every byte is verified at the other end.
//!
//! The content is pseudo-random, made of a precomputed pattern, so that making and verifying it costs little beside the gateway under
//! test.

mod pattern;
mod pump;
mod request;
mod server;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pattern::{Pattern, Verifier};
use pump::Watch;
use request::{Outcome, Request};
pub use server::BulkServer;

use crate::LabError;

const STREAMS_MAX: usize = 64;
const DEADLINE_MAX: Duration = Duration::from_secs(3600);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Which way the bytes go, seen from the one who calls [`transfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the server.
    Upload,
    /// From the server.
    Download,
}

/// A transfer to or from a [`BulkServer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkPlan {
    /// The server's address.
    pub server: SocketAddr,
    /// Which way the bytes go.
    pub direction: Direction,
    /// How many bytes, over all streams together.
    pub bytes: u64,
    /// When given, sending ends after this time even if not all bytes have been sent.
    pub duration: Option<Duration>,
    /// The number of parallel connections, 1 to 64.
    pub streams: usize,
    /// The seed of the content.
    pub seed: u64,
    /// The time after which the transfer is given up, at most an hour.
    pub deadline: Duration,
}

/// The state of a transfer under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Bytes sent (upload) or received (download) so far, over all streams.
    pub bytes: u64,
    /// The time since the start.
    pub elapsed: Duration,
}

/// What a transfer came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BulkReport {
    /// Bytes that arrived, over all streams.
    pub bytes: u64,
    /// The time from the first connection's start to the last byte's verification, in seconds.
    pub seconds: f64,
    /// The first byte that was not the one sent: its stream and its offset there. `None` when all were intact.
    pub corrupt_at: Option<(usize, u64)>,
}

impl BulkPlan {
    /// One stream of `bytes` bytes, given up after a minute.
    pub fn new(server: SocketAddr, direction: Direction, bytes: u64) -> Self {
        Self { server, direction, bytes, duration: None, streams: 1, seed: 1, deadline: Duration::from_secs(60) }
    }

    fn check(&self) -> Result<(), LabError> {
        let wrong = |field, value: String, bounds: String| Err(LabError::Plan { plan: "bulk", field, value, bounds });
        if !(1..=STREAMS_MAX).contains(&self.streams) {
            return wrong("streams", self.streams.to_string(), format!("1 to {STREAMS_MAX}"));
        }
        if self.deadline > DEADLINE_MAX {
            return wrong("deadline", format!("{:?}", self.deadline), format!("at most {DEADLINE_MAX:?}"));
        }
        Ok(())
    }

    /// The name of the traffic in messages.
    fn traffic(&self) -> String {
        let direction = match self.direction {
            Direction::Upload => "upload to",
            Direction::Download => "download from",
        };
        format!("bulk {direction} {}", self.server)
    }

    /// The request of one stream: its share of the bytes, and a seed of its own.
    fn request(&self, stream: usize) -> Request {
        let (streams, index) = (self.streams as u64, stream as u64);
        let share = self.bytes / streams + u64::from(index < self.bytes % streams);
        Request {
            direction: self.direction,
            bytes: share,
            seed: self.seed.wrapping_add(index),
            duration: self.duration,
            deadline: self.deadline,
        }
    }
}

impl BulkReport {
    /// True when every byte that arrived was the one sent.
    pub fn is_intact(&self) -> bool {
        self.corrupt_at.is_none()
    }

    /// The mean throughput in bits a second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds
    }
}

/// Moves bytes to or from a [`BulkServer`], from the calling thread's network namespace, and calls `progress` about ten times a second.
///
/// # Errors
///
/// When a connection fails or ends early, or when the deadline passes. Corrupt bytes are no error: see [`BulkReport::corrupt_at`].
pub fn transfer(plan: &BulkPlan, mut progress: impl FnMut(Progress)) -> Result<BulkReport, LabError> {
    plan.check()?;
    let started = Instant::now();
    let (moved, halted) = (AtomicU64::new(0), AtomicBool::new(false));
    let watch = Watch { deadline: started + plan.deadline, halted: &halted, moved: &moved };
    let outcomes = thread::scope(|scope| {
        let (finish, finished) = mpsc::channel();
        for stream in 0..plan.streams {
            let (finish, watch) = (finish.clone(), &watch);
            scope.spawn(move || finish.send((stream, run_stream(plan, stream, watch))));
        }
        drop(finish);
        let mut outcomes = Vec::with_capacity(plan.streams);
        loop {
            match finished.recv_timeout(PROGRESS_INTERVAL) {
                Ok((stream, outcome)) => {
                    // One failed stream fails the transfer: the others need not go on.
                    halted.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    outcomes.push((stream, outcome));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break outcomes,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            progress(Progress { bytes: moved.load(Ordering::Relaxed), elapsed: started.elapsed() });
        }
    });
    let mut report = BulkReport { bytes: 0, seconds: started.elapsed().as_secs_f64(), corrupt_at: None };
    for (stream, outcome) in outcomes {
        let outcome = outcome.map_err(|error| failure(plan, error, moved.load(Ordering::Relaxed)))?;
        report.bytes += outcome.received_bytes;
        report.corrupt_at = report.corrupt_at.or(outcome.corrupt_at.map(|offset| (stream, offset)));
    }
    if plan.duration.is_none() && report.bytes < plan.bytes {
        let cut =
            io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} of {} bytes arrived", report.bytes, plan.bytes));
        return Err(failure(plan, cut, report.bytes));
    }
    Ok(report)
}

fn failure(plan: &BulkPlan, error: io::Error, moved_bytes: u64) -> LabError {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            LabError::timed_out(plan.traffic(), "finish", format!("{moved_bytes} of {} bytes moved", plan.bytes))
        }
        _ => LabError::traffic(plan.traffic(), "finish", error),
    }
}

fn run_stream(plan: &BulkPlan, stream: usize, watch: &Watch<'_>) -> io::Result<Outcome> {
    let mut socket = TcpStream::connect_timeout(&plan.server, watch.remaining()?)?;
    pump::prepare(&socket)?;
    let request = plan.request(stream);
    socket.write_all(&request.encode())?;
    let pattern = Pattern::new(request.seed);
    match request.direction {
        Direction::Upload => {
            pump::send(&mut socket, &pattern, &request, watch)?;
            socket.shutdown(Shutdown::Write)?;
            let mut report = [0; Outcome::BYTES];
            pump::receive_exact(&mut socket, &mut report, watch)?;
            Ok(Outcome::decode(&report))
        }
        Direction::Download => pump::receive(&mut socket, Verifier::new(&pattern), watch),
    }
}

/// Reads exactly one request from a new connection.
fn accept_request(socket: &mut (impl Read + ?Sized), watch: &Watch<'_>) -> io::Result<Request> {
    let mut bytes = [0; Request::BYTES];
    pump::receive_exact(socket, &mut bytes, watch)?;
    Request::decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a bulk request"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener};

    use super::*;
    use crate::{Namespace, SERVER_V4, SERVER_V6, Topology, TopologyPlan, require_privileges_or_skip};

    fn serve(namespace: &Namespace, address: impl Into<IpAddr>) -> BulkServer {
        let address = SocketAddr::new(address.into(), 0);
        BulkServer::start(namespace.run(|| TcpListener::bind(address)).unwrap()).unwrap()
    }

    #[test]
    fn bytes_cross_two_namespaces_intact_both_ways_on_several_streams() {
        require_privileges_or_skip!();
        let topology = Topology::build(&TopologyPlan::default()).unwrap();
        for address in [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)] {
            let server = serve(&topology.network, address);
            for (direction, streams) in [(Direction::Upload, 1), (Direction::Download, 3)] {
                let plan = BulkPlan { streams, ..BulkPlan::new(server.address(), direction, 20_000_003) };
                let mut calls = 0;
                let report = topology.gateway.run(|| transfer(&plan, |_| calls += 1)).unwrap();
                assert_eq!((report.bytes, report.corrupt_at), (20_000_003, None));
                assert!(report.bits_per_second() > 0.0 && calls > 0);
            }
        }
    }

    #[test]
    fn a_transfer_bounded_in_time_ends_without_all_its_bytes() {
        let server = BulkServer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        for direction in [Direction::Upload, Direction::Download] {
            let duration = Some(Duration::from_millis(50));
            let plan = BulkPlan { duration, ..BulkPlan::new(server.address(), direction, u64::MAX) };
            let report = transfer(&plan, |_| ()).unwrap();
            assert!(report.is_intact() && report.bytes > 0 && report.bytes < u64::MAX);
        }
    }

    #[test]
    fn a_deadline_ends_a_transfer_that_makes_no_progress() {
        // A listener that never accepts: the kernel completes the handshake, then the buffers fill up.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let deadline = Duration::from_millis(300);
        let plan = BulkPlan::new(listener.local_addr().unwrap(), Direction::Upload, 1 << 30);
        let error = transfer(&BulkPlan { deadline, ..plan }, |_| ()).unwrap_err().to_string();
        assert!(error.contains("out of time") && error.contains("of 1073741824 bytes moved"), "{error}");
    }

    #[test]
    fn a_corrupted_stream_is_detected_with_its_offset() {
        let server = BulkServer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let middle = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = middle.local_addr().unwrap();
        let target = server.address();
        // A proxy that flips one bit of the upload.
        let proxy = thread::spawn(move || {
            let (mut from, _) = middle.accept().unwrap();
            let mut to = TcpStream::connect(target).unwrap();
            let mut head = vec![0; Request::BYTES + 100_000];
            from.read_exact(&mut head).unwrap();
            head[Request::BYTES + 77_777] ^= 0x10;
            to.write_all(&head).unwrap();
            io::copy(&mut from, &mut to).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
            io::copy(&mut to, &mut from).unwrap();
        });
        let report = transfer(&BulkPlan::new(address, Direction::Upload, 1_000_000), |_| ()).unwrap();
        assert_eq!((report.bytes, report.corrupt_at), (1_000_000, Some((0, 77_777))));
        proxy.join().unwrap();
    }
}
