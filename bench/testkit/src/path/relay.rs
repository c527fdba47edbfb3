//! A UDP relay between clients and a gateway that behaves like a NAT and, on command, changes its mapping.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::datagram::{self, AGGREGATE_BYTES_MAX, Received, SEGMENTS_MAX};
use crate::{LabError, Namespace};

/// Clients served at a time; datagrams of further ones are dropped.
const FLOWS_MAX: usize = 256;
/// Sockets of former mappings that are kept open and unread, so that what still comes to them is lost without an ICMP error, as at a NAT.
const RETIRED_MAX: usize = 256;
/// How many aggregates of one socket are forwarded before the others have their turn.
const BURST_MAX: usize = 16;
/// How soon a change of the mapping, or the end, is noticed by a relay with nothing to do.
const IDLE_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What a relay connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayPlan {
    /// Where clients send to, as if it were the gateway; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The address under which the gateway sees the clients.
    pub source: IpAddr,
}

/// What a relay has forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayCounts {
    /// Datagrams sent to the gateway.
    pub to_gateway: u64,
    /// Datagrams sent to clients.
    pub to_clients: u64,
    /// Datagrams dropped: refused by the kernel, from strangers, or of too many clients.
    pub dropped: u64,
}

/// A relay at work, until it is dropped. Every client has a socket of its own on the gateway's side.
#[derive(Debug)]
pub struct Relay {
    namespace: Namespace,
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    halted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: RelayPlan,
    flows: Vec<Flow>,
    retired: VecDeque<Arc<UdpSocket>>,
    counts: RelayCounts,
}

#[derive(Debug)]
struct Flow {
    client: SocketAddr,
    /// The socket on the gateway's side.
    back: Arc<UdpSocket>,
}

impl Relay {
    /// Starts a relay inside `namespace`.
    pub fn start(namespace: &Namespace, plan: RelayPlan) -> Result<Self, LabError> {
        let failed = |error: io::Error| LabError::traffic(format!("relay to {}", plan.gateway), "listen", error);
        let namespace = namespace.try_clone().map_err(failed)?;
        let front = namespace.run(|| socket(plan.listen)).map_err(failed)?;
        let address = front.local_addr().map_err(failed)?;
        let state = State { plan, flows: Vec::new(), retired: VecDeque::new(), counts: RelayCounts::default() };
        let shared = Arc::new(Shared { halted: AtomicBool::new(false), state: Mutex::new(state) });
        let running = Arc::clone(&shared);
        // A thread that is started inside a namespace stays there, and so do the sockets that it opens.
        let thread = Some(namespace.run(|| thread::spawn(move || running.forward(&front))));
        Ok(Self { namespace, address, shared, thread })
    }

    /// Where clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives every client another port on the gateway's side, and returns the new addresses. Datagrams on their way to the old ones are
    /// lost.
    pub fn rebind_port(&self) -> Result<Vec<SocketAddr>, LabError> {
        let source = self.shared.state().plan.source;
        self.rebind_address(source)
    }

    /// Gives every client another address, and port, on the gateway's side, and returns the new addresses. When there is no such address,
    /// the old mapping stands.
    pub fn rebind_address(&self, source: IpAddr) -> Result<Vec<SocketAddr>, LabError> {
        let mut state = self.shared.state();
        let count = state.flows.len();
        let open = || (0..count).map(|_| socket((source, 0).into())).collect::<io::Result<Vec<_>>>();
        let fresh = self.namespace.run(open).map_err(|error| self.failed("change the mapping", error))?;
        state.rebind(source, fresh);
        drop(state);
        self.sources()
    }

    /// The addresses under which the gateway sees the clients, in the order of their first datagrams.
    pub fn sources(&self) -> Result<Vec<SocketAddr>, LabError> {
        let sources = self.shared.state().flows.iter().map(|flow| flow.back.local_addr()).collect::<io::Result<_>>();
        sources.map_err(|error| self.failed("list its addresses", error))
    }

    /// What it has forwarded so far.
    pub fn counts(&self) -> RelayCounts {
        self.shared.state().counts
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> LabError {
        LabError::traffic(format!("relay at {}", self.address), operation, error)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.halted.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay's thread.
    fn forward(&self, front: &UdpSocket) {
        let mut buffer = vec![0; AGGREGATE_BYTES_MAX];
        while !self.halted.load(Ordering::Relaxed) {
            // Kept apart from the state, which is free while this thread sleeps.
            let backs: Vec<Arc<UdpSocket>> = self.state().flows.iter().map(|flow| Arc::clone(&flow.back)).collect();
            let all = std::iter::once(front.as_fd()).chain(backs.iter().map(|back| back.as_fd()));
            let mut descriptors: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut descriptors, Some(&IDLE_INTERVAL)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let mut state = self.state();
            for index in (0..descriptors.len()).filter(|index| !descriptors[*index].revents().is_empty()) {
                match index.checked_sub(1) {
                    None => state.forward_to_gateway(front, &mut buffer),
                    Some(flow) => state.forward_to_client(front, flow, &mut buffer),
                }
            }
        }
    }
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

    fn forward_to_gateway(&mut self, front: &UdpSocket, buffer: &mut [u8]) {
        for _ in 0..BURST_MAX {
            // An error (of an earlier send, reported here) concerns that datagram only.
            let Ok(Some(received)) = datagram::receive(front, buffer) else { return };
            let flow = self.flow_of(received.from);
            let sent = flow.is_some_and(|flow| send(&self.flows[flow].back, buffer, &received, self.plan.gateway));
            let counter = if sent { &mut self.counts.to_gateway } else { &mut self.counts.dropped };
            *counter += received.count() as u64;
        }
    }

    fn forward_to_client(&mut self, front: &UdpSocket, flow: usize, buffer: &mut [u8]) {
        for _ in 0..BURST_MAX {
            let Flow { client, back } = &self.flows[flow];
            let Ok(Some(received)) = datagram::receive(back, buffer) else { return };
            let sent = received.from == self.plan.gateway && send(front, buffer, &received, *client);
            let counter = if sent { &mut self.counts.to_clients } else { &mut self.counts.dropped };
            *counter += received.count() as u64;
        }
    }

    /// The flow of a client, a new one if need be.
    fn flow_of(&mut self, client: SocketAddr) -> Option<usize> {
        if let Some(index) = self.flows.iter().position(|flow| flow.client == client) {
            return Some(index);
        }
        if self.flows.len() == FLOWS_MAX {
            return None;
        }
        let back = Arc::new(socket((self.plan.source, 0).into()).ok()?);
        self.flows.push(Flow { client, back });
        Some(self.flows.len() - 1)
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    datagram::prepare(&socket)?;
    Ok(socket)
}

/// Sends an aggregate on as it came; false when the kernel refused.
fn send(socket: &UdpSocket, buffer: &[u8], received: &Received, to: SocketAddr) -> bool {
    if received.length == 0 {
        return datagram::send(socket, &[], 1, to, 0).is_ok();
    }
    let mut parts = buffer[..received.length].chunks(received.segment * SEGMENTS_MAX);
    parts.all(|part| datagram::send(socket, part, received.segment, to, 0).is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        PathToGateway, ROUTER_ALTERNATE_V4, ROUTER_V4, ROUTER_V6, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan,
        datagrams::{DatagramPlan, DatagramReceiver, DatagramResponse, send},
    };

    fn routed() -> Topology {
        Topology::build(&TopologyPlan { path: PathToGateway::Routed, ..TopologyPlan::default() }).unwrap()
    }

    fn server(topology: &Topology, address: impl Into<IpAddr>) -> UdpSocket {
        let address = SocketAddr::new(address.into(), 0);
        let socket = topology.gateway.run(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_server_sees_another_source_after_each_rebinding_and_answers_arrive() {
        let topology = routed();
        let router = topology.router.as_ref().unwrap();
        let server = server(&topology, SERVICE_V4);
        let listen = SocketAddr::new(topology.clients[0].first_hop_v4.into(), 4433);
        let gateway = server.local_addr().unwrap();
        let relay = Relay::start(router, RelayPlan { listen, gateway, source: ROUTER_V4.into() }).unwrap();
        let client = topology.clients[0].namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut buffer = [0; 16];
        let mut source = || {
            client.send_to(b"ping", relay.address()).unwrap();
            let (_, source) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"pong", source).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, relay.address()));
            source
        };
        let first = source();
        assert_eq!(first.ip(), IpAddr::from(ROUTER_V4));
        assert_eq!(source(), first);
        assert_eq!(relay.sources().unwrap(), [first]);

        let second = relay.rebind_port().unwrap()[0];
        assert_eq!((second.ip(), second.port() == first.port()), (first.ip(), false));
        assert_eq!(source(), second);
        let third = relay.rebind_address(ROUTER_ALTERNATE_V4.into()).unwrap()[0];
        assert_eq!(third.ip(), IpAddr::from(ROUTER_ALTERNATE_V4));
        assert_eq!(source(), third);
        server.send_to(b"late", first).unwrap();
        assert_eq!(source(), third);

        assert!(relay.rebind_address(SERVICE_V4.into()).is_err());
        assert_eq!(source(), third);
        // Counting follows forwarding; a command's answer comes after both.
        assert_eq!(relay.sources().unwrap(), [third]);
        assert_eq!(relay.counts(), RelayCounts { to_gateway: 6, to_clients: 6, dropped: 0 });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn two_clients_stay_apart_under_load_with_rebindings() {
        let topology = routed();
        let router = topology.router.as_ref().unwrap();
        let socket = server(&topology, SERVICE_V6);
        let receiver = DatagramReceiver::start(socket, DatagramResponse::Echo).unwrap();
        let (listen, gateway) = (SocketAddr::new(topology.clients[0].first_hop_v6.into(), 0), receiver.address());
        let relay = Relay::start(router, RelayPlan { listen, gateway, source: ROUTER_V6.into() }).unwrap();
        let sending = |client: usize, flow: u32| {
            let echo_timeout = Some(Duration::from_millis(500));
            let plan = DatagramPlan { flow, segments: 10, echo_timeout, ..DatagramPlan::new(relay.address(), 5000) };
            let plan = DatagramPlan { per_second: Some(20_000), ..plan };
            topology.clients[client].namespace.run(|| send(&plan)).unwrap()
        };
        let reports = thread::scope(|scope| {
            let senders = [scope.spawn(|| sending(0, 100)), scope.spawn(|| sending(1, 101))];
            let deadline = Instant::now() + Duration::from_secs(60);
            while relay.counts().to_clients < 1000 || relay.sources().unwrap().len() < 2 {
                assert!(Instant::now() < deadline, "no traffic");
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(relay.rebind_port().unwrap().len(), 2);
            senders.map(|sender| sender.join().unwrap())
        });
        for (report, flow) in reports.into_iter().zip([100, 101]) {
            let arrived = receiver.counts().remove(&flow).unwrap();
            assert_eq!((arrived.corrupted, arrived.duplicated), (0, 0));
            let echoed = report.echoed.unwrap();
            // Only what was under way to the old port may be missing.
            assert!(echoed.lost(report.sent) < 1000, "{} lost", echoed.lost(report.sent));
            assert_eq!((echoed.corrupted, echoed.duplicated), (0, 0));
        }
    }
}
