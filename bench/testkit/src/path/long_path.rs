//! A UDP relay between one client and a gateway that behaves like a long way through the Internet: delay, a narrow place with a queue, losses.
//!
//! It changes nothing of a datagram but its ECN field, and never reorders any.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::codel::Codel;
use super::datagram;
use crate::{LabError, Namespace};

/// Longest UDP payload, in bytes.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// What a datagram takes up beside its payload: the headers of IPv4 and UDP, in bytes.
const HEADER_BYTES: usize = 28;
const UDP_HEADER_BYTES: usize = 8;
/// How many datagrams of one direction are taken before the other has its turn.
const BURST_MAX: usize = 64;
/// How soon an end is noticed.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// What the narrow place does about a standing queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueManagement {
    /// Nothing: what finds no room is lost.
    #[default]
    Tail,
    /// Drops some, as CoDel does (RFC 8289).
    Drops,
    /// Marks some of those that are ECN-capable, and drops the others (RFC 8289, RFC 3168).
    Marks,
}

/// What the path is like, each way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LongPathPlan {
    /// Where the client sends to, as if it were the gateway; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The address under which the gateway sees the client.
    pub source: IpAddr,
    /// From one end to the other, once past the narrow place.
    pub one_way: Duration,
    /// What the narrow place lets through, in bits a second.
    pub bits_per_second: u64,
    /// What may wait before it, in bytes; what comes then is lost.
    pub queue_bytes_max: usize,
    /// One of so many datagrams is lost on the way; `None` loses none.
    pub lost_of: Option<u64>,
    /// What becomes of a standing queue.
    pub management: QueueManagement,
}

/// What became of the datagrams of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LongPathCounts {
    /// Delivered.
    pub delivered: u64,
    /// Lost on the way.
    pub lost: u64,
    /// Lost because the queue was full.
    pub queue_full: u64,
    /// Lost because the queue stood.
    pub dropped: u64,
    /// Marked because the queue stood; they are among those delivered.
    pub marked: u64,
    /// Lost without a word because they were longer than the path carries.
    pub too_long: u64,
}

/// A path, until it is dropped.
#[derive(Debug)]
pub struct LongPath {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The longest UDP payload that the path carries.
    datagram_bytes_max: AtomicUsize,
    delivered: AtomicU64,
    lost: AtomicU64,
    queue_full: AtomicU64,
    dropped: AtomicU64,
    marked: AtomicU64,
    too_long: AtomicU64,
}

impl LongPath {
    /// Starts a path whose middle is in `namespace`.
    pub fn start(namespace: &Namespace, plan: LongPathPlan) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::traffic(format!("long path to {}", plan.gateway), "listen", error);
        let socket = |address: SocketAddr| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(address)?;
            datagram::tell_ecn(&socket)?;
            Ok(socket)
        };
        let front = namespace.run(|| socket(plan.listen)).map_err(failed)?;
        let back = namespace.run(|| socket((plan.source, 0).into())).map_err(failed)?;
        let address = front.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared { datagram_bytes_max: DATAGRAM_BYTES_MAX.into(), ..Shared::default() });
        let lanes = [Lane::default(), Lane::default()];
        let worker = Worker { plan, sockets: [front, back], client: None, lanes, shared: Arc::clone(&shared) };
        let thread = Some(thread::spawn(move || worker.run()));
        Ok(LongPath { address, shared, thread })
    }

    /// Where the client sends to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What became of datagrams so far.
    pub fn counts(&self) -> LongPathCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &*self.shared;
        LongPathCounts {
            delivered: count(&shared.delivered),
            lost: count(&shared.lost),
            queue_full: count(&shared.queue_full),
            dropped: count(&shared.dropped),
            marked: count(&shared.marked),
            too_long: count(&shared.too_long),
        }
    }

    /// From now on the path carries IP packets of `mtu_bytes` at most, and loses longer ones without a word.
    pub fn set_mtu(&self, mtu_bytes: usize) {
        let ip_header_bytes = if self.address.is_ipv4() { 20 } else { 40 };
        let datagram_bytes_max = mtu_bytes.saturating_sub(ip_header_bytes + UDP_HEADER_BYTES);
        self.shared.datagram_bytes_max.store(datagram_bytes_max, Ordering::Relaxed);
    }
}

impl Drop for LongPath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// One direction.
#[derive(Default)]
struct Lane {
    /// When the narrow place has let everything through that has come so far.
    free_at: Option<Instant>,
    /// When each arrives, and with which ECN field.
    under_way: VecDeque<(Instant, Vec<u8>, u8)>,
    came: u64,
    codel: Codel,
}

struct Worker {
    plan: LongPathPlan,
    /// The client's side, and the gateway's. What comes in at one goes out at the other.
    sockets: [UdpSocket; 2],
    client: Option<SocketAddr>,
    lanes: [Lane; 2],
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while !self.shared.stop.load(Ordering::Relaxed) {
            for lane in 0..2 {
                self.take(lane, &mut buffer);
                self.deliver(lane);
            }
            if self.sleep().is_err() {
                return;
            }
        }
    }

    /// Takes what has come in on this side.
    fn take(&mut self, lane: usize, buffer: &mut [u8]) {
        for _ in 0..BURST_MAX {
            // An error of an earlier send, reported here, concerns that datagram only.
            let Ok(Some(received)) = datagram::receive(&self.sockets[lane], buffer) else { return };
            match lane {
                0 => self.client = Some(received.from),
                _ if received.from != self.plan.gateway => continue,
                _ => {}
            }
            self.enter(lane, Instant::now(), &buffer[..received.length], received.ecn);
        }
    }

    fn enter(&mut self, lane: usize, now: Instant, datagram: &[u8], mut field: u8) {
        let LongPathPlan { one_way, bits_per_second, queue_bytes_max, lost_of, management, .. } = self.plan;
        if datagram.len() > self.shared.datagram_bytes_max.load(Ordering::Relaxed) {
            self.shared.too_long.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lane = &mut self.lanes[lane];
        lane.came += 1;
        if lost_of.is_some_and(|lost_of| lane.came.is_multiple_of(lost_of)) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let takes = |bytes: usize| Duration::from_secs_f64(bytes as f64 * 8.0 / bits_per_second as f64);
        let begins = lane.free_at.map_or(now, |free_at| free_at.max(now));
        if begins - now > takes(queue_bytes_max) {
            self.shared.queue_full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // What is decided when it leaves the queue is known already: the queue is served in order and at one rate.
        if management != QueueManagement::Tail && lane.codel.signals(begins, begins - now) {
            if management == QueueManagement::Drops || field == 0 {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            field = datagram::CE;
            self.shared.marked.fetch_add(1, Ordering::Relaxed);
        }
        let through = begins + takes(datagram.len() + HEADER_BYTES);
        lane.free_at = Some(through);
        lane.under_way.push_back((through + one_way, datagram.to_vec(), field));
    }

    /// Sends on what has arrived by now.
    fn deliver(&mut self, lane: usize) {
        let now = Instant::now();
        let (to, socket) = match lane {
            0 => (Some(self.plan.gateway), &self.sockets[1]),
            _ => (self.client, &self.sockets[0]),
        };
        let lane = &mut self.lanes[lane];
        while lane.under_way.front().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, datagram, field)) = lane.under_way.pop_front()
        {
            let sent = to.is_some_and(|to| datagram::send(socket, &datagram, datagram.len().max(1), to, field).is_ok());
            let counter = if sent { &self.shared.delivered } else { &self.shared.lost };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sleep(&self) -> rustix::io::Result<()> {
        let next = self.lanes.iter().filter_map(|lane| lane.under_way.front()).map(|(at, ..)| *at).min();
        let timeout = next.map_or(STOP_INTERVAL, |at| at.saturating_duration_since(Instant::now()).min(STOP_INTERVAL));
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut descriptors =
            self.sockets.each_ref().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PathToGateway, ROUTER_V4, SERVICE_V4, Topology, TopologyPlan};

    /// A path, a client that is connected to its near end, and a server at its far end.
    fn ends(topology: &Topology, plan: impl FnOnce(&mut LongPathPlan)) -> (LongPath, UdpSocket, UdpSocket) {
        let server = topology.gateway.run(|| UdpSocket::bind((SERVICE_V4, 0))).unwrap();
        let mut path = LongPathPlan {
            listen: SocketAddr::new(topology.clients[0].first_hop_v4.into(), 0),
            gateway: server.local_addr().unwrap(),
            source: ROUTER_V4.into(),
            one_way: Duration::ZERO,
            bits_per_second: 1_000_000_000,
            queue_bytes_max: 1 << 20,
            lost_of: None,
            management: QueueManagement::Tail,
        };
        plan(&mut path);
        let path = LongPath::start(topology.router.as_ref().unwrap(), path).unwrap();
        let client = topology.clients[0].namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.connect(path.address()).unwrap();
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        }
        (path, client, server)
    }

    fn routed() -> Topology {
        Topology::build(&TopologyPlan { path: PathToGateway::Routed, ..TopologyPlan::default() }).unwrap()
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_round_trip_takes_both_ways_time() {
        let topology = routed();
        let (path, client, server) = ends(&topology, |plan| plan.one_way = Duration::from_millis(30));
        let begun = Instant::now();
        client.send(b"ping").unwrap();
        let mut buffer = [0; 16];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"pong", from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
        assert_eq!(path.counts().lost, 0);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn what_is_lost_is_what_was_asked_for_and_what_the_queue_cannot_hold() {
        let topology = routed();
        let (path, client, server) = ends(&topology, |plan| plan.lost_of = Some(10));
        for number in 0..200u8 {
            client.send(&[number]).unwrap();
        }
        let mut buffer = [0; 16];
        let mut arrived = Vec::new();
        while server.recv(&mut buffer).is_ok() {
            arrived.push(buffer[0]);
        }
        let expected: Vec<u8> = (0..200).filter(|number| number % 10 != 9).collect();
        assert_eq!(arrived, expected);
        // The last was counted half a second ago.
        assert_eq!(path.counts(), LongPathCounts { delivered: 180, lost: 20, ..LongPathCounts::default() });

        // 1,000 bytes take 0.1 s, and ten of them may wait.
        let (path, client, _server) = ends(&topology, |plan| {
            (plan.bits_per_second, plan.queue_bytes_max) = (80_000, 10_000);
        });
        for _ in 0..50 {
            client.send(&[0; 1_000 - HEADER_BYTES]).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while path.counts().queue_full < 38 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let lost = path.counts().queue_full;
        assert!((37..=39).contains(&lost), "{lost} of 50 found the queue full");
    }
}
