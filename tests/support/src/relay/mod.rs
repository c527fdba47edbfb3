//! A UDP relay between a client and a gateway: a NAT that changes its mapping on command, and a long way through the Internet with delay, a
//! narrow place with a queue, and losses.
//!
//! It changes nothing of a datagram but its ECN field, and never reorders those of one direction.

mod codel;

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::sockopt::{IpRecvTos, Ipv6RecvTClass};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use tollgate_testkit::deploy::PORT;
use tollgate_testkit::worker::Worker;
use tollgate_testkit::{Namespace, ROUTER_V4, ROUTER_V6, SERVICE_V4, SERVICE_V6, Topology};

use self::codel::Codel;

/// How many datagrams of one socket are taken before the other has its turn.
const BURST_MAX: usize = 64;
/// How soon a change of the mapping, or the end, is noticed by a relay with nothing to do.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);
/// What a datagram takes up beside its payload: the headers of IPv4 and UDP, in bytes.
const HEADER_BYTES: usize = 28;
const UDP_HEADER_BYTES: usize = 8;
const DATAGRAM_BYTES_MAX: usize = 65_535;
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// The field within the octet that IPv4 calls type of service and IPv6 traffic class (RFC 3168).
const ECN_BITS: u8 = 0b11;
/// Congestion experienced.
const CE: u8 = 0b11;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelayPlan {
    /// Where the client sends to, as if it were the gateway; port 0 takes a free one.
    pub listen: SocketAddr,
    pub gateway: SocketAddr,
    /// The address under which the gateway sees the client.
    pub source: IpAddr,
    pub way: Way,
}

/// The way in each direction. The default is short and wide.
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
        let (bits_per_second, queue_bytes_max) = (u64::MAX, usize::MAX);
        Way {
            one_way: Duration::ZERO,
            bits_per_second,
            queue_bytes_max,
            lost_of: None,
            management: QueueManagement::Tail,
        }
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
    /// As the plan asks, or refused by the kernel.
    pub lost: u64,
    pub queue_full: u64,
    /// Lost because the queue stood.
    pub dropped: u64,
    /// Marked because the queue stood; they are among those delivered.
    pub marked: u64,
    /// Lost without a word because they were longer than the path carries.
    pub too_long: u64,
}

/// A relay at work for one client, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    namespace: Namespace,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _worker: Worker,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// Who sent last.
    client: Option<SocketAddr>,
    /// The socket on the gateway's side, connected to it.
    back: Arc<UdpSocket>,
    /// Sockets of former mappings, open and unread, so that what still comes to them is lost without an ICMP error, as at a NAT.
    retired: Vec<Arc<UdpSocket>>,
    /// To the gateway, and to the client.
    lanes: [Lane; 2],
    datagram_bytes_max: usize,
    counts: RelayCounts,
}

/// One direction.
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
    pub fn start(namespace: &Namespace, plan: RelayPlan) -> Self {
        let front = namespace.run(|| socket(plan.listen));
        let address = front.local_addr().expect("an address");
        let state = State {
            way: plan.way,
            client: None,
            back: Arc::new(namespace.run(|| connected(plan.source, plan.gateway))),
            retired: Vec::new(),
            lanes: Default::default(),
            datagram_bytes_max: DATAGRAM_BYTES_MAX,
            counts: RelayCounts::default(),
        };
        let state = Arc::new(Mutex::new(state));
        let (shared, mut buffer) = (Arc::clone(&state), vec![0; DATAGRAM_BYTES_MAX]);
        let worker = Worker::repeat(move || forward(&shared, &front, &mut buffer));
        let namespace = namespace.try_clone().expect("a descriptor");
        Self { namespace, address, state, _worker: worker }
    }

    /// Starts a relay at the router between the first client of `topology` and the gateway, over IPv6 or IPv4.
    pub fn at_router(topology: &Topology, is_v6: bool, way: Way) -> Self {
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

    /// Where the client sends to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address under which the gateway sees the client.
    pub fn source(&self) -> SocketAddr {
        lock(&self.state).back.local_addr().expect("an address")
    }

    /// Gives the client another port on the gateway's side, of the address `source`. Datagrams on their way to the old one are lost.
    pub fn rebind(&self, source: IpAddr) -> SocketAddr {
        let mut state = lock(&self.state);
        let gateway = state.back.peer_addr().expect("a gateway");
        let fresh = Arc::new(self.namespace.run(|| connected(source, gateway)));
        let old = mem::replace(&mut state.back, fresh);
        state.retired.push(old);
        drop(state);
        self.source()
    }

    /// From now on the path carries IP packets of `mtu_bytes` at most, and loses longer ones without a word.
    pub fn set_mtu(&self, mtu_bytes: usize) {
        let ip_header_bytes = if self.address.is_ipv4() { 20 } else { 40 };
        lock(&self.state).datagram_bytes_max = mtu_bytes.saturating_sub(ip_header_bytes + UDP_HEADER_BYTES);
    }

    pub fn counts(&self) -> RelayCounts {
        lock(&self.state).counts
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for what comes or is due, and forwards it; false when the relay cannot go on.
fn forward(state: &Mutex<State>, front: &UdpSocket, buffer: &mut [u8]) -> bool {
    // Kept apart from the state, which is free while this thread sleeps.
    let (back, sleep) = {
        let state = lock(state);
        (Arc::clone(&state.back), state.sleep())
    };
    let mut sockets = [front, &*back].map(|socket| PollFd::new(socket, PollFlags::IN));
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(sleep.subsec_nanos()) };
    if poll(&mut sockets, Some(&timeout)).is_err_and(|error| error != Errno::INTR) {
        return false;
    }
    let mut state = lock(state);
    for (lane, socket) in [front, &*back].into_iter().enumerate() {
        for _ in 0..BURST_MAX {
            // An error (of an earlier send, reported here) concerns that datagram only.
            let Some((length, from, ecn)) = receive(socket, buffer) else { break };
            if lane == 0 {
                state.client = from;
            }
            state.enter(lane, &buffer[..length], ecn);
        }
    }
    state.deliver(front);
    true
}

impl State {
    fn enter(&mut self, lane: usize, datagram: &[u8], ecn: u8) {
        if datagram.len() > self.datagram_bytes_max {
            self.counts.too_long += 1;
        } else {
            self.lanes[lane].enter(&self.way, datagram, ecn, &mut self.counts);
        }
    }

    /// Sends on what has arrived by now.
    fn deliver(&mut self, front: &UdpSocket) {
        let (now, gateway) = (Instant::now(), self.back.peer_addr().ok());
        for (lane, (socket, to)) in self.lanes.iter_mut().zip([(&*self.back, gateway), (front, self.client)]) {
            while let Some((_, bytes, ecn)) = lane.under_way.pop_front_if(|(at, ..)| *at <= now) {
                let is_sent = to.is_some_and(|to| send(socket, &bytes, to, ecn));
                *(if is_sent { &mut self.counts.delivered } else { &mut self.counts.lost }) += 1;
            }
        }
    }

    /// How long there is nothing to deliver.
    fn sleep(&self) -> Duration {
        let next = self.lanes.iter().filter_map(|lane| lane.under_way.front()).map(|(at, ..)| *at).min();
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

/// A socket that is told the ECN field of what it receives.
fn socket(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).expect("room for a burst");
    let told = if address.is_ipv4() {
        setsockopt(&socket, IpRecvTos, &true)
    } else {
        setsockopt(&socket, Ipv6RecvTClass, &true)
    };
    told.expect("a kernel that tells the ECN field");
    socket
}

fn connected(source: IpAddr, gateway: SocketAddr) -> UdpSocket {
    let socket = socket(SocketAddr::new(source, 0));
    socket.connect(gateway).expect("a way to the gateway");
    socket
}

/// The length of the next datagram, if there is one, with its sender and its ECN field.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, Option<SocketAddr>, u8)> {
    let (mut control, mut vector) = (cmsg_space!(i32), [IoSliceMut::new(buffer)]);
    let (descriptor, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let message = recvmsg::<SockaddrStorage>(descriptor, &mut vector, Some(&mut control), flags).ok()?;
    let ecn = message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4Tos(field) => Some(field & ECN_BITS),
        ControlMessageOwned::Ipv6TClass(field) => Some(field as u8 & ECN_BITS),
        _ => None,
    });
    let v4 = |from: &SockaddrStorage| from.as_sockaddr_in().map(|from| SocketAddr::V4((*from).into()));
    let v6 = |from: &SockaddrStorage| from.as_sockaddr_in6().map(|from| SocketAddr::V6((*from).into()));
    Some((message.bytes, message.address.and_then(|from| v4(&from).or_else(|| v6(&from))), ecn.unwrap_or(0)))
}

fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr, ecn: u8) -> bool {
    let class = i32::from(ecn);
    let field = if to.is_ipv4() { ControlMessage::Ipv4Tos(&ecn) } else { ControlMessage::Ipv6TClass(&class) };
    let (vector, to) = ([IoSlice::new(datagram)], SockaddrStorage::from(to));
    sendmsg(socket.as_raw_fd(), &vector, &[field], MsgFlags::empty(), Some(&to)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PATIENCE, eventually};
    use tollgate_testkit::{PathToGateway, ROUTER_ALTERNATE_V4, TopologyPlan};

    /// A relay of such a way at a router, a client that is connected to it, and a server at its far end.
    fn ends(way: Way) -> (Topology, Relay, UdpSocket, UdpSocket) {
        let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
        let topology = Topology::build(&plan).unwrap();
        let relay = Relay::at_router(&topology, false, way);
        let server = topology.gateway.run(|| UdpSocket::bind((SERVICE_V4, PORT))).unwrap();
        let client = topology.clients[0].namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.connect(relay.address()).unwrap();
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        (topology, relay, client, server)
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_server_sees_another_source_after_each_rebinding_and_answers_come_back() {
        let (_topology, relay, client, server) = ends(Way::default());
        let mut buffer = [0; 16];
        let mut source = || {
            client.send(b"ping").unwrap();
            let (bytes, source) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..bytes], source).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 4);
            source
        };
        let first = source();
        assert_eq!((first, first.ip()), (relay.source(), ROUTER_V4.into()));
        let second = relay.rebind(ROUTER_V4.into());
        assert!(second.ip() == first.ip() && second != first);
        assert_eq!(source(), second);
        let third = relay.rebind(ROUTER_ALTERNATE_V4.into());
        assert_eq!((source(), third.ip()), (third, ROUTER_ALTERNATE_V4.into()));
        server.send_to(b"late", first).unwrap();
        assert_eq!(source(), third);
        assert!(eventually(PATIENCE, || relay.counts() == RelayCounts { delivered: 8, ..RelayCounts::default() }));
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_round_trip_takes_both_ways_time_and_what_is_too_long_is_lost() {
        let (_topology, relay, client, server) = ends(Way { one_way: Duration::from_millis(30), ..Way::default() });
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
        let expected = RelayCounts { delivered: 2, too_long: 1, ..RelayCounts::default() };
        assert!(eventually(PATIENCE, || relay.counts() == expected));
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn what_is_lost_is_what_was_asked_for_and_what_the_queue_cannot_hold() {
        let (_topology, relay, client, server) = ends(Way { lost_of: Some(10), ..Way::default() });
        for number in 0..200u8 {
            client.send(&[number]).unwrap();
        }
        let mut buffer = [0; 16];
        for expected in (0..200).filter(|number| number % 10 != 9) {
            server.recv(&mut buffer).unwrap();
            assert_eq!(buffer[0], expected);
        }
        let expected = RelayCounts { delivered: 180, lost: 20, ..RelayCounts::default() };
        assert!(eventually(PATIENCE, || relay.counts() == expected));

        // 1,000 bytes take 0.1 s, and ten of them may wait.
        let way = Way { bits_per_second: 80_000, queue_bytes_max: 10_000, ..Way::default() };
        let (_topology, relay, client, _server) = ends(way);
        for _ in 0..50 {
            client.send(&[0; 1_000 - HEADER_BYTES]).unwrap();
        }
        eventually(Duration::from_secs(20), || relay.counts().queue_full >= 38);
        let lost = relay.counts().queue_full;
        assert!((37..=39).contains(&lost), "{lost} of 50 found the queue full");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_ecn_field_of_either_family_is_carried_over() {
        let namespace = Namespace::new("marked").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let [sender, receiver] = [0, 1].map(|_| namespace.run(|| socket(address.parse().unwrap())));
            for field in 0..=CE {
                assert!(send(&sender, b"marked", receiver.local_addr().unwrap(), field));
                let received = receive(&receiver, &mut [0; 16]);
                assert_eq!(received, Some((6, sender.local_addr().ok(), field)));
            }
        }
    }
}
