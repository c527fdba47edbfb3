//! Bulk TCP transfers whose every byte is verified at the other end.
//!
//! The content is a pseudo-random block that repeats: making it and verifying it run at the speed of memory, and costs little beside the
//! gateway under test. The block's length is prime, so that bytes that are lost, repeated, swapped or changed anywhere differ from it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::chance::Chance;
use crate::worker::Worker;

const STREAMS_MAX: usize = 64;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a read, a write or an accept may sleep before it looks whether it shall end.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Bytes of a read or write.
const PIECE_BYTES: usize = 256 * 1024;
/// The block that repeats, a prime number of bytes.
const BLOCK_BYTES: usize = 1_048_573;

/// Which way the bytes go, seen from the one who calls [`transfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    Upload,
    Download,
}

/// A transfer to or from a [`BulkServer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkPlan {
    pub server: SocketAddr,
    pub direction: Direction,
    /// How many bytes, over all streams together.
    pub bytes: u64,
    /// When given, sending ends after this time even if not all bytes have been sent.
    pub duration: Option<Duration>,
    /// Parallel connections, 1 to 64.
    pub streams: usize,
    /// What the content follows from.
    pub seed: u64,
    /// The time after which the transfer is given up.
    pub deadline: Duration,
}

/// The state of a transfer under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Bytes sent (upload) or received (download) so far, over all streams.
    pub bytes: u64,
    pub elapsed: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BulkReport {
    /// Bytes that arrived, over all streams.
    pub bytes: u64,
    /// The time from the first connection's start to the last byte's verification.
    pub seconds: f64,
    /// The first byte that was not the one sent: its stream and its offset there. `None` when all were intact.
    pub corrupt_at: Option<(usize, u64)>,
}

impl BulkPlan {
    /// One stream of `bytes` bytes, given up after a minute.
    pub fn new(server: SocketAddr, direction: Direction, bytes: u64) -> Self {
        Self { server, direction, bytes, duration: None, streams: 1, seed: 1, deadline: Duration::from_secs(60) }
    }

    /// The request of one stream: its share of the bytes, and a seed of its own.
    fn request(&self, stream: usize) -> Request {
        let (streams, index) = (self.streams as u64, stream as u64);
        let bytes = self.bytes / streams + u64::from(index < self.bytes % streams);
        Request { direction: self.direction, bytes, seed: self.seed.wrapping_add(index), duration: self.duration }
    }

    fn failure(&self, error: io::Error, moved_bytes: u64) -> LabError {
        let BulkPlan { direction, server, bytes, .. } = self;
        LabError::new(
            format!("bulk {direction:?}, {server}: {error} after {moved_bytes} of {bytes} bytes").to_lowercase(),
        )
    }
}

impl BulkReport {
    pub fn is_intact(&self) -> bool {
        self.corrupt_at.is_none()
    }

    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds
    }
}

/// Moves bytes to or from a [`BulkServer`], from the calling thread's network namespace, and calls `progress` about ten times a second.
/// Corrupt bytes are no error: see [`BulkReport::corrupt_at`].
pub fn transfer(plan: &BulkPlan, mut progress: impl FnMut(Progress)) -> Result<BulkReport, LabError> {
    assert!((1..=STREAMS_MAX).contains(&plan.streams), "{plan:?}");
    let started = Instant::now();
    let (moved, halted) = (AtomicU64::new(0), AtomicBool::new(false));
    let watch = Watch { deadline: Some(started + plan.deadline), halted: &halted, moved: &moved };
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
        let (bytes, corrupt_at) = outcome.map_err(|error| plan.failure(error, moved.load(Ordering::Relaxed)))?;
        report.bytes += bytes;
        report.corrupt_at = report.corrupt_at.or(corrupt_at.map(|offset| (stream, offset)));
    }
    if plan.duration.is_none() && report.bytes < plan.bytes {
        return Err(plan.failure(ErrorKind::UnexpectedEof.into(), report.bytes));
    }
    Ok(report)
}

/// How many bytes arrived, and the first wrong one.
type Outcome = (u64, Option<u64>);

fn run_stream(plan: &BulkPlan, stream: usize, watch: &Watch<'_>) -> io::Result<Outcome> {
    let mut connection = Connection::new(TcpStream::connect_timeout(&plan.server, plan.deadline)?, watch)?;
    let request = plan.request(stream);
    connection.tell(&request)?;
    match request.direction {
        Direction::Upload => {
            connection.send(&request)?;
            connection.socket.shutdown(Shutdown::Write)?;
            connection.hear()
        }
        Direction::Download => connection.receive(request.seed),
    }
}

/// What a stream's client asks for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Request {
    direction: Direction,
    bytes: u64,
    seed: u64,
    duration: Option<Duration>,
}

/// The content of one stream: the block, and as much of it again as a piece may reach over its end.
struct Content(Vec<u8>);

impl Content {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut bytes: Vec<u8> = (0..=BLOCK_BYTES / 8).flat_map(|_| chance.number().to_le_bytes()).collect();
        bytes.truncate(BLOCK_BYTES);
        bytes.extend_from_within(..PIECE_BYTES);
        Content(bytes)
    }

    /// What follows at `offset`, of at most `limit` bytes.
    fn piece(&self, offset: u64, limit: u64) -> &[u8] {
        let start = (offset % BLOCK_BYTES as u64) as usize;
        &self.0[start..start + limit.min(PIECE_BYTES as u64) as usize]
    }
}

/// What ends a transfer early, and what shows its progress.
struct Watch<'a> {
    deadline: Option<Instant>,
    halted: &'a AtomicBool,
    moved: &'a AtomicU64,
}

/// A stream's socket, whose reads and writes end with the watch.
struct Connection<'a> {
    socket: TcpStream,
    watch: &'a Watch<'a>,
}

impl<'a> Connection<'a> {
    fn new(socket: TcpStream, watch: &'a Watch<'a>) -> io::Result<Self> {
        socket.set_read_timeout(Some(SLEEP_MAX))?;
        socket.set_write_timeout(Some(SLEEP_MAX))?;
        Ok(Connection { socket, watch })
    }

    /// Sends a request, or what came of one.
    fn tell(&mut self, what: &impl Serialize) -> io::Result<()> {
        self.write_all(&serde_json::to_vec(what)?)
    }

    /// Reads no further than the end of what is told.
    fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        Ok(T::deserialize(&mut serde_json::Deserializer::from_reader(self))?)
    }

    fn send(&mut self, request: &Request) -> io::Result<()> {
        let content = Content::new(request.seed);
        let end = request.duration.map(|duration| Instant::now() + duration);
        let mut offset = 0;
        while offset < request.bytes && end.is_none_or(|end| Instant::now() < end) {
            let sent = self.write(content.piece(offset, request.bytes - offset))? as u64;
            offset += sent;
            self.watch.moved.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Receives and verifies a stream until its end.
    fn receive(&mut self, seed: u64) -> io::Result<Outcome> {
        let content = Content::new(seed);
        let mut buffer = vec![0; PIECE_BYTES];
        let (mut offset, mut corrupt_at) = (0, None);
        while let length @ 1.. = self.read(&mut buffer)? {
            let (came, expected) = (&buffer[..length], content.piece(offset, length as u64));
            if corrupt_at.is_none() && came != expected {
                let first = came.iter().zip(expected).position(|(came, sent)| came != sent);
                corrupt_at = first.map(|first| offset + first as u64);
            }
            offset += length as u64;
            self.watch.moved.fetch_add(length as u64, Ordering::Relaxed);
        }
        Ok((offset, corrupt_at))
    }

    /// Does `work` until it comes to something, or the watch ends it.
    fn watched(&mut self, mut work: impl FnMut(&mut TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if self.watch.halted.load(Ordering::Relaxed) {
                return Err(io::Error::new(ErrorKind::ConnectionAborted, "the transfer was ended"));
            }
            if self.watch.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ErrorKind::TimedOut.into());
            }
            match work(&mut self.socket) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                other => return other,
            }
        }
    }
}

impl Read for Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watched(|socket| socket.read(buffer))
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.watched(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves bulk transfers until it is dropped.
#[derive(Debug)]
pub struct BulkServer {
    address: SocketAddr,
    moved: Arc<AtomicU64>,
    _acceptor: Worker,
}

impl BulkServer {
    /// Serves the connections of `listener`, in the network namespace in which it was opened.
    pub fn start(listener: TcpListener) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::cannot("bulk server", "listen", error);
        set_socket_timeout(&listener, Timeout::Recv, Some(SLEEP_MAX)).map_err(|errno| failed(errno.into()))?;
        let address = listener.local_addr().map_err(failed)?;
        let moved = Arc::new(AtomicU64::new(0));
        let serving = Arc::clone(&moved);
        let acceptor = Worker::start(move |halted| accept_all(&listener, halted, &serving));
        Ok(Self { address, moved, _acceptor: acceptor })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes sent and received so far, over all connections.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

fn accept_all(listener: &TcpListener, halted: &AtomicBool, moved: &AtomicU64) {
    let watch = &Watch { deadline: None, halted, moved };
    thread::scope(|scope| {
        while !halted.load(Ordering::Relaxed) {
            // A failure concerns the one connection only.
            if let Ok((socket, _)) = listener.accept() {
                // What goes wrong here is seen and told by the other end.
                scope.spawn(move || serve(socket, watch));
            }
        }
    });
}

fn serve(socket: TcpStream, watch: &Watch<'_>) -> io::Result<()> {
    let mut connection = Connection::new(socket, watch)?;
    let request: Request = connection.hear()?;
    match request.direction {
        Direction::Upload => {
            let outcome = connection.receive(request.seed)?;
            connection.tell(&outcome)
        }
        Direction::Download => connection.send(&request),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{SERVER_V4, SERVER_V6, Topology, TopologyPlan};

    fn server() -> BulkServer {
        BulkServer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap()
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn bytes_cross_two_namespaces_intact_both_ways_on_several_streams() {
        let topology = Topology::build(&TopologyPlan::default()).unwrap();
        for address in [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)] {
            let listener = topology.network.run(|| TcpListener::bind((address, 0))).unwrap();
            let server = BulkServer::start(listener).unwrap();
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
        let server = server();
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
        assert!(error.contains("timed out") && error.ends_with("of 1073741824 bytes"), "{error}");
    }

    #[test]
    fn what_is_changed_lost_or_repeated_is_found_with_its_offset() {
        let target = server();
        let content = Content::new(1);
        let good: Vec<u8> = [content.piece(0, 200_000), content.piece(200_000, 200_000)].concat();
        let mut changed = good.clone();
        changed[77_777] ^= 0x10;
        let cases = [
            (changed, Some(77_777)),
            ([&good[..70_000], &good[71_448..]].concat(), Some(70_000)),
            ([&good[..71_448], &good[70_000..]].concat(), Some(71_448)),
            (good.clone(), None),
        ];
        for (bytes, expected) in cases {
            let mut socket = TcpStream::connect(target.address()).unwrap();
            let request = BulkPlan::new(target.address(), Direction::Upload, 1 << 20).request(0);
            serde_json::to_writer(&socket, &request).unwrap();
            socket.write_all(&bytes).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let outcome: Outcome = serde_json::from_reader(&socket).unwrap();
            assert_eq!(outcome, (bytes.len() as u64, expected));
        }
        let mut stranger = TcpStream::connect(target.address()).unwrap();
        stranger.write_all(b"x").unwrap();
        assert_eq!(stranger.read_to_end(&mut Vec::new()).unwrap(), 0, "closed without an answer");
    }
}
