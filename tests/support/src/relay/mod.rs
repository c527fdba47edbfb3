//! A UDP relay between clients and a gateway: a NAT that changes its mapping on command, and a long way through the Internet with delay, a
//! narrow place with a queue, and losses.
//!
//! It changes nothing of a datagram but its ECN field, and never reorders those of one client.

mod codel;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::codel::Codel;
use tollgate_testkit::aggregate::{self, AGGREGATE_BYTES_MAX, CE, Received, SEGMENTS_MAX};
use tollgate_testkit::deploy::PORT;
use tollgate_testkit::worker::Worker;
use tollgate_testkit::{LabError, Namespace, ROUTER_V4, ROUTER_V6, SERVICE_V4, SERVICE_V6, Topology};

/// Clients served at a time; datagrams of further ones are dropped.
const FLOWS_MAX: usize = 256;
/// Sockets of former mappings that are kept open and unread, so that what still comes to them is lost without an ICMP error, as at a NAT.
const RETIRED_MAX: usize = 256;
/// How many receives of one socket are forwarded before the others have their turn.
const BURST_MAX: usize = 64;
/// How soon a change of the mapping, or the end, is noticed by a relay with nothing to do.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);
/// What a datagram takes up beside its payload: the headers of IPv4 and UDP, in bytes.
const HEADER_BYTES: usize = 28;
const UDP_HEADER_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelayPlan {
    /// Where clients send to, as if it were the gateway; port 0 takes a free one.
    pub listen: SocketAddr,
    pub gateway: SocketAddr,
    /// The address under which the gateway sees the clients.
    pub source: IpAddr,
    /// What the way of each client is like; `None` forwards at once, in aggregates as they came.
    pub way: Option<Way>,
}

/// A long way, in each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// From one end to the other, once past the narrow place.
    pub one_way: Duration,
    /// What the narrow place lets through.
    pub bits_per_second: u64,
    /// What may wait before it; what comes then is lost.
    pub queue_bytes_max: usize,
    /// One of so many datagrams is lost; `None` loses none.
    pub lost_of: Option<u64>,
    pub management: QueueManagement,
}

impl Default for Way {
    fn default() -> Self {
        let (one_way, lost_of, management) = (Duration::from_millis(10), None, QueueManagement::Tail);
        Way { one_way, bits_per_second: 1_000_000_000, queue_bytes_max: 1 << 20, lost_of, management }
    }
}

/// What the narrow place does about a standing queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueManagement {
    /// Nothing: what finds no room is lost.
    Tail,
    /// Drops some, as CoDel does (RFC 8289).
    Drops,
    /// Marks some of those that are ECN-capable, and drops the others (RFC 8289, RFC 3168).
    Marks,
}

/// What became of the datagrams of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayCounts {
    pub delivered: u64,
    /// As the plan asks; refused by the kernel, from strangers, or of too many clients.
    pub lost: u64,
    pub queue_full: u64,
    /// Lost because the queue stood.
    pub dropped: u64,
    /// Marked because the queue stood; they are among those delivered.
    pub marked: u64,
    /// Lost without a word because they were longer than the path carries.
    pub too_long: u64,
}

/// A relay at work, until it is dropped. Every client has a socket of its own on the gateway's side.
#[derive(Debug)]
pub struct Relay {
    namespace: Namespace,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _worker: Worker,
}

#[derive(Debug)]
struct State {
    plan: RelayPlan,
    flows: Vec<Flow>,
    retired: VecDeque<Arc<UdpSocket>>,
    datagram_bytes_max: usize,
    counts: RelayCounts,
}

#[derive(Debug)]
struct Flow {
    client: SocketAddr,
    /// The socket on the gateway's side.
    back: Arc<UdpSocket>,
    /// To the gateway, and to the client.
    lanes: [Lane; 2],
}

/// One direction of a long way.
#[derive(Debug, Default)]
struct Lane {
    /// When the narrow place has let everything through that has come so far.
    free_at: Option<Instant>,
    /// When each arrives, and with which ECN field.
    under_way: VecDeque<(Instant, Vec<u8>, u8)>,
    came: u64,
    codel: Codel,
}

impl Relay {
    /// Starts a relay inside `namespace`.
    pub fn start(namespace: &Namespace, plan: RelayPlan) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::traffic(format!("relay to {}", plan.gateway), "listen", error);
        let namespace = namespace.try_clone().map_err(failed)?;
        let front = namespace.run(|| socket(&plan, plan.listen)).map_err(failed)?;
        let address = front.local_addr().map_err(failed)?;
        let state = State {
            plan,
            flows: Vec::new(),
            retired: VecDeque::new(),
            datagram_bytes_max: usize::MAX,
            counts: RelayCounts::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let mut buffer = vec![0; AGGREGATE_BYTES_MAX];
        // A thread that is started inside a namespace stays there, and so do the sockets that it opens.
        let worker = namespace.run(|| Worker::repeat(move || forward(&shared, &front, &mut buffer)));
        Ok(Self { namespace, address, state, _worker: worker })
    }

    /// Starts a relay at the router between the first client of `topology` and the gateway, over IPv6 or IPv4.
    pub fn at_router(topology: &Topology, is_v6: bool, way: Option<Way>) -> Result<Self, LabError> {
        let site = &topology.clients[0];
        let (near, gateway, source): (IpAddr, IpAddr, IpAddr) = if is_v6 {
            (site.first_hop_v6.into(), SERVICE_V6.into(), ROUTER_V6.into())
        } else {
            (site.first_hop_v4.into(), SERVICE_V4.into(), ROUTER_V4.into())
        };
        let (listen, gateway) = (SocketAddr::new(near, PORT), SocketAddr::new(gateway, PORT));
        let router = topology.router.as_ref().expect("the path has a router");
        Relay::start(router, RelayPlan { listen, gateway, source, way })
    }

    /// Where clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives every client another port on the gateway's side, and returns the new addresses. Datagrams on their way to the old ones are
    /// lost.
    pub fn rebind_port(&self) -> Result<Vec<SocketAddr>, LabError> {
        let source = lock(&self.state).plan.source;
        self.rebind_address(source)
    }

    /// Gives every client another address, and port, on the gateway's side, and returns the new addresses. When there is no such address,
    /// the old mapping stands.
    pub fn rebind_address(&self, source: IpAddr) -> Result<Vec<SocketAddr>, LabError> {
        let mut state = lock(&self.state);
        let (count, plan) = (state.flows.len(), state.plan);
        let open = || (0..count).map(|_| socket(&plan, (source, 0).into())).collect::<io::Result<Vec<_>>>();
        let fresh = self.namespace.run(open).map_err(|error| self.failed("change the mapping", error))?;
        state.rebind(source, fresh);
        drop(state);
        self.sources()
    }

    /// The addresses under which the gateway sees the clients, in the order of their first datagrams.
    pub fn sources(&self) -> Result<Vec<SocketAddr>, LabError> {
        let sources = lock(&self.state).flows.iter().map(|flow| flow.back.local_addr()).collect::<io::Result<_>>();
        sources.map_err(|error| self.failed("list its addresses", error))
    }

    /// From now on the path carries IP packets of `mtu_bytes` at most, and loses longer ones without a word.
    pub fn set_mtu(&self, mtu_bytes: usize) {
        let ip_header_bytes = if self.address.is_ipv4() { 20 } else { 40 };
        lock(&self.state).datagram_bytes_max = mtu_bytes.saturating_sub(ip_header_bytes + UDP_HEADER_BYTES);
    }

    pub fn counts(&self) -> RelayCounts {
        lock(&self.state).counts
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> LabError {
        LabError::traffic(format!("relay at {}", self.address), operation, error)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for what comes or is due, and forwards it; false when the relay cannot go on.
fn forward(state: &Mutex<State>, front: &UdpSocket, buffer: &mut [u8]) -> bool {
    // Kept apart from the state, which is free while this thread sleeps.
    let (backs, sleep) = {
        let state = lock(state);
        let backs: Vec<_> = state.flows.iter().map(|flow| Arc::clone(&flow.back)).collect();
        (backs, state.sleep())
    };
    let sockets = std::iter::once(front).chain(backs.iter().map(|back| &**back));
    let mut descriptors: Vec<_> = sockets.map(|it| PollFd::from_borrowed_fd(it.as_fd(), PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(sleep.subsec_nanos()) };
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(_) => return false,
    }
    let mut state = lock(state);
    for index in (0..descriptors.len()).filter(|index| !descriptors[*index].revents().is_empty()) {
        for _ in 0..BURST_MAX {
            let flow = index.checked_sub(1);
            let socket = flow.map_or(front, |flow| &backs[flow]);
            // An error (of an earlier send, reported here) concerns that datagram only.
            let Ok(Some(received)) = aggregate::receive(socket, buffer) else { break };
            match flow {
                None => {
                    let flow = state.flow_of(received.from);
                    state.take(flow, 0, front, buffer, &received);
                }
                Some(flow) => {
                    let flow = (received.from == state.plan.gateway).then_some(flow);
                    state.take(flow, 1, front, buffer, &received);
                }
            }
        }
    }
    state.deliver(front);
    true
}

impl State {
    fn rebind(&mut self, source: IpAddr, fresh: Vec<UdpSocket>) {
        self.plan.source = source;
        for (flow, back) in self.flows.iter_mut().zip(fresh) {
            self.retired.push_back(std::mem::replace(&mut flow.back, Arc::new(back)));
        }
        let excess = self.retired.len().saturating_sub(RETIRED_MAX);
        self.retired.drain(..excess);
    }

    /// The flow of a client, a new one if need be.
    fn flow_of(&mut self, client: SocketAddr) -> Option<usize> {
        if let Some(index) = self.flows.iter().position(|flow| flow.client == client) {
            return Some(index);
        }
        if self.flows.len() == FLOWS_MAX {
            return None;
        }
        let back = Arc::new(socket(&self.plan, (self.plan.source, 0).into()).ok()?);
        self.flows.push(Flow { client, back, lanes: Default::default() });
        Some(self.flows.len() - 1)
    }

    /// What has come for `flow`, in direction `lane`.
    fn take(&mut self, flow: Option<usize>, lane: usize, front: &UdpSocket, buffer: &[u8], received: &Received) {
        let Some(flow) = flow else {
            self.counts.lost += received.count() as u64;
            return;
        };
        let bytes = &buffer[..received.length];
        if received.segment > self.datagram_bytes_max {
            self.counts.too_long += received.count() as u64;
        } else if let Some(way) = self.plan.way {
            self.flows[flow].lanes[lane].enter(&way, bytes, received.ecn, &mut self.counts);
        } else {
            for part in bytes.chunks((received.segment * SEGMENTS_MAX).max(1)) {
                let count = part.len().div_ceil(received.segment) as u64;
                self.send((flow, lane), front, part, received.segment, received.ecn, count);
            }
        }
    }

    /// Sends on what has arrived by now.
    fn deliver(&mut self, front: &UdpSocket) {
        let now = Instant::now();
        for (flow, lane) in (0..self.flows.len()).flat_map(|flow| [(flow, 0), (flow, 1)]) {
            while self.flows[flow].lanes[lane].under_way.front().is_some_and(|(at, ..)| *at <= now)
                && let Some((_, bytes, ecn)) = self.flows[flow].lanes[lane].under_way.pop_front()
            {
                self.send((flow, lane), front, &bytes, bytes.len().max(1), ecn, 1);
            }
        }
    }

    fn send(
        &mut self,
        (flow, lane): (usize, usize),
        front: &UdpSocket,
        bytes: &[u8],
        segment: usize,
        ecn: u8,
        count: u64,
    ) {
        let Flow { client, back, .. } = &self.flows[flow];
        let (socket, to) = if lane == 0 { (&**back, self.plan.gateway) } else { (front, *client) };
        let sent = aggregate::send(socket, bytes, segment, to, ecn).is_ok();
        *(if sent { &mut self.counts.delivered } else { &mut self.counts.lost }) += count;
    }

    /// How long there is nothing to deliver.
    fn sleep(&self) -> Duration {
        let lanes = self.flows.iter().flat_map(|flow| &flow.lanes);
        let next = lanes.filter_map(|lane| lane.under_way.front()).map(|(at, ..)| *at).min();
        next.map_or(IDLE_INTERVAL, |at| at.saturating_duration_since(Instant::now()).min(IDLE_INTERVAL))
    }
}

impl Lane {
    fn enter(&mut self, way: &Way, datagram: &[u8], mut ecn: u8, counts: &mut RelayCounts) {
        self.came += 1;
        if way.lost_of.is_some_and(|lost_of| self.came.is_multiple_of(lost_of)) {
            counts.lost += 1;
            return;
        }
        let now = Instant::now();
        let takes = |bytes: usize| Duration::from_secs_f64(bytes as f64 * 8.0 / way.bits_per_second as f64);
        let begins = self.free_at.map_or(now, |free_at| free_at.max(now));
        if begins - now > takes(way.queue_bytes_max) {
            counts.queue_full += 1;
            return;
        }
        // What is decided when it leaves the queue is known already: the queue is served in order and at one rate.
        if way.management != QueueManagement::Tail && self.codel.signals(begins, begins - now) {
            if way.management == QueueManagement::Drops || ecn == 0 {
                counts.dropped += 1;
                return;
            }
            ecn = CE;
            counts.marked += 1;
        }
        let through = begins + takes(datagram.len() + HEADER_BYTES);
        self.free_at = Some(through);
        self.under_way.push_back((through + way.one_way, datagram.to_vec(), ecn));
    }
}

fn socket(plan: &RelayPlan, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    aggregate::tell_ecn(&socket)?;
    if plan.way.is_none() {
        aggregate::prepare(&socket)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_testkit::wait::eventually;
    use tollgate_testkit::{PathToGateway, ROUTER_ALTERNATE_V4, TopologyPlan};

    const LONG: Duration = Duration::from_secs(60);

    /// A relay of such a way at the router, two clients that are connected to it, and a server at its far end.
    fn ends(topology: &Topology, way: Option<Way>) -> (Relay, [UdpSocket; 2], UdpSocket) {
        let server = topology.gateway.run(|| UdpSocket::bind((SERVICE_V4, 0))).unwrap();
        // Both clients are in the first one's namespace.
        let site = &topology.clients[0];
        let listen = SocketAddr::new(site.first_hop_v4.into(), 0);
        let plan = RelayPlan { listen, gateway: server.local_addr().unwrap(), source: ROUTER_V4.into(), way };
        let relay = Relay::start(topology.router.as_ref().unwrap(), plan).unwrap();
        let clients = [0, 1].map(|_| site.namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap());
        for client in &clients {
            client.connect(relay.address()).unwrap();
            client.set_read_timeout(Some(LONG)).unwrap();
        }
        server.set_read_timeout(Some(LONG)).unwrap();
        (relay, clients, server)
    }

    fn routed() -> Topology {
        let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
        Topology::build(&plan).unwrap()
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_server_sees_other_sources_after_each_rebinding_and_each_client_has_its_own_answers() {
        let topology = routed();
        let (relay, clients, server) = ends(&topology, None);
        let mut buffer = [0; 16];
        let mut sources = || {
            [0, 1].map(|index: usize| {
                clients[index].send(&[index as u8]).unwrap();
                let (bytes, source) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..bytes], source).unwrap();
                assert_eq!((clients[index].recv(&mut buffer).unwrap(), buffer[0]), (1, index as u8));
                source
            })
        };
        let first = sources();
        assert_eq!((first[0].ip(), first[0] == first[1]), (ROUTER_V4.into(), false));
        assert_eq!((sources(), relay.sources().unwrap()), (first, first.to_vec()));

        let second = relay.rebind_port().unwrap();
        assert!(second[0].ip() == first[0].ip() && second[0] != first[0] && second[1] != first[1]);
        assert_eq!(sources().to_vec(), second);
        let third = relay.rebind_address(ROUTER_ALTERNATE_V4.into()).unwrap();
        assert_eq!(third[0].ip(), IpAddr::from(ROUTER_ALTERNATE_V4));
        assert_eq!(sources().to_vec(), third);
        server.send_to(b"late", first[0]).unwrap();
        assert_eq!(sources().to_vec(), third);

        assert!(relay.rebind_address(SERVICE_V4.into()).is_err());
        assert_eq!(sources().to_vec(), third);
        // Counting follows forwarding; a command's answer comes after both.
        assert_eq!(relay.sources().unwrap(), third);
        assert_eq!(relay.counts(), RelayCounts { delivered: 24, ..RelayCounts::default() });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_round_trip_takes_both_ways_time_and_what_is_too_long_is_lost() {
        let topology = routed();
        let way = Way { one_way: Duration::from_millis(30), ..Way::default() };
        let (relay, [client, _], server) = ends(&topology, Some(way));
        relay.set_mtu(1000 + HEADER_BYTES);
        let begun = Instant::now();
        client.send(&[0; 1001]).unwrap();
        client.send(&[1; 1000]).unwrap();
        let mut buffer = [0; 2000];
        let (bytes, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((bytes, buffer[0]), (1000, 1));
        server.send_to(b"pong", from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
        assert!(eventually(LONG, || relay.counts() == RelayCounts { delivered: 2, too_long: 1, ..Default::default() }));
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn what_is_lost_is_what_was_asked_for_and_what_the_queue_cannot_hold() {
        let topology = routed();
        let way = Way { one_way: Duration::ZERO, lost_of: Some(10), ..Way::default() };
        let (relay, [client, _], server) = ends(&topology, Some(way));
        for number in 0..200u8 {
            client.send(&[number]).unwrap();
        }
        let mut buffer = [0; 16];
        for expected in (0..200).filter(|number| number % 10 != 9) {
            server.recv(&mut buffer).unwrap();
            assert_eq!(buffer[0], expected);
        }
        assert!(eventually(LONG, || relay.counts() == RelayCounts { delivered: 180, lost: 20, ..Default::default() }));

        // 1,000 bytes take 0.1 s, and ten of them may wait.
        let way = Way { bits_per_second: 80_000, queue_bytes_max: 10_000, ..Way::default() };
        let (relay, [client, _], _server) = ends(&topology, Some(way));
        for _ in 0..50 {
            client.send(&[0; 1_000 - HEADER_BYTES]).unwrap();
        }
        eventually(Duration::from_secs(20), || relay.counts().queue_full >= 38);
        let lost = relay.counts().queue_full;
        assert!((37..=39).contains(&lost), "{lost} of 50 found the queue full");
    }
}
