//! A UDP relay between clients and a gateway that behaves like a NAT and, on command, changes its mapping.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};

use super::aggregate::{self, AGGREGATE_BYTES_MAX, Received, SEGMENTS_MAX};
use crate::{LabError, Namespace};

/// Clients served at a time; datagrams of further ones are dropped.
const FLOWS_MAX: usize = 256;

/// Sockets of former mappings that are kept open and unread, so that what still comes to them is lost without an ICMP error, as at a NAT.
const RETIRED_MAX: usize = 256;

/// How many aggregates of one socket are forwarded before the others have their turn.
const BURST_MAX: usize = 16;

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
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: OwnedFd,
    commands: Mutex<VecDeque<Command>>,
    to_gateway: AtomicU64,
    to_clients: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum Command {
    Rebind { source: Option<IpAddr>, done: mpsc::Sender<io::Result<Vec<SocketAddr>>> },
    Sources { answer: mpsc::Sender<io::Result<Vec<SocketAddr>>> },
    Stop,
}

impl Relay {
    /// Starts a relay inside `namespace`.
    ///
    /// # Errors
    ///
    /// When the address to listen on is taken or not the namespace's.
    pub fn start(namespace: &Namespace, plan: RelayPlan) -> Result<Self, LabError> {
        let failed = |operation| {
            move |error: io::Error| LabError::traffic(format!("relay to {}", plan.gateway), operation, error)
        };
        let front = namespace.run(|| UdpSocket::bind(plan.listen)).map_err(failed("listen"))?;
        aggregate::prepare(&front).map_err(failed("listen"))?;
        let address = front.local_addr().map_err(failed("listen"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed("start")(e.into()))?;
        let shared = Arc::new(Shared {
            wake,
            commands: Mutex::default(),
            to_gateway: AtomicU64::new(0),
            to_clients: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let worker = Worker {
            front,
            gateway: plan.gateway,
            source: plan.source,
            flows: Vec::new(),
            retired: VecDeque::new(),
            buffer: vec![0; AGGREGATE_BYTES_MAX],
            shared: Arc::clone(&shared),
        };
        // A thread that is started inside a namespace stays there, and so do the sockets that it opens later.
        let thread = Some(namespace.run(|| thread::spawn(move || worker.run())));
        Ok(Self { address, shared, thread })
    }

    /// Where clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives every client another port on the gateway's side, and returns the new addresses. Datagrams on their way to the old ones are
    /// lost.
    ///
    /// # Errors
    ///
    /// When no socket can be had; the old mapping stands then.
    pub fn rebind_port(&self) -> Result<Vec<SocketAddr>, LabError> {
        self.ask("change the port", |done| Command::Rebind { source: None, done })
    }

    /// Gives every client another address, and port, on the gateway's side, and returns the new addresses.
    ///
    /// # Errors
    ///
    /// When the address is not one of the namespace's; the old mapping stands then.
    pub fn rebind_address(&self, source: IpAddr) -> Result<Vec<SocketAddr>, LabError> {
        self.ask("change the address", |done| Command::Rebind { source: Some(source), done })
    }

    /// The addresses under which the gateway sees the clients, in the order of their first datagrams.
    ///
    /// # Errors
    ///
    /// When the relay has stopped.
    pub fn sources(&self) -> Result<Vec<SocketAddr>, LabError> {
        self.ask("list its addresses", |answer| Command::Sources { answer })
    }

    /// What it has forwarded so far.
    pub fn counts(&self) -> RelayCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounts {
            to_gateway: count(&self.shared.to_gateway),
            to_clients: count(&self.shared.to_clients),
            dropped: count(&self.shared.dropped),
        }
    }

    fn ask(
        &self,
        operation: &'static str,
        command: impl FnOnce(mpsc::Sender<io::Result<Vec<SocketAddr>>>) -> Command,
    ) -> Result<Vec<SocketAddr>, LabError> {
        let failed = |error: io::Error| LabError::traffic(format!("relay at {}", self.address), operation, error);
        let (sender, answer) = mpsc::channel();
        self.shared.command(command(sender));
        answer.recv().map_err(|_| failed(io::Error::other("it has stopped")))?.map_err(failed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.command(Command::Stop);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn command(&self, command: Command) {
        self.commands().push_back(command);
        // It fails only when the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn commands(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Flow {
    client: SocketAddr,
    back: UdpSocket,
}

/// The relay's thread.
struct Worker {
    /// The clients' side.
    front: UdpSocket,
    gateway: SocketAddr,
    source: IpAddr,
    flows: Vec<Flow>,
    retired: VecDeque<UdpSocket>,
    buffer: Vec<u8>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) {
        while let Some(ready) = self.wait() {
            if ready.commands && !self.obey() {
                return;
            }
            if ready.front {
                self.forward_to_gateway();
            }
            for index in ready.flows {
                self.forward_to_client(index);
            }
        }
    }

    /// Sleeps until something can be done; `None` when that is no longer possible.
    fn wait(&self) -> Option<Ready> {
        let fixed = [self.shared.wake.as_fd(), self.front.as_fd()];
        let all = fixed.into_iter().chain(self.flows.iter().map(|flow| flow.back.as_fd()));
        let mut descriptors: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut descriptors, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Some(Ready { commands: false, front: false, flows: Vec::new() }),
            Err(_) => return None,
        }
        let is_ready = |descriptor: &PollFd<'_>| !descriptor.revents().is_empty();
        let flows = descriptors[2..].iter().enumerate().filter(|(_, descriptor)| is_ready(descriptor));
        Some(Ready {
            commands: is_ready(&descriptors[0]),
            front: is_ready(&descriptors[1]),
            flows: flows.map(|(index, _)| index).collect(),
        })
    }

    /// Carries out commands; false after the last.
    fn obey(&mut self) -> bool {
        // The counter is reset before the queue is read, so that no command is missed.
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        let commands = std::mem::take(&mut *self.shared.commands());
        for command in commands {
            // Whoever asked waits for the answer, so that it cannot be lost.
            match command {
                Command::Stop => return false,
                Command::Sources { answer } => drop(answer.send(self.sources())),
                Command::Rebind { source, done } => drop(done.send(self.rebind(source))),
            }
        }
        true
    }

    fn sources(&self) -> io::Result<Vec<SocketAddr>> {
        self.flows.iter().map(|flow| flow.back.local_addr()).collect()
    }

    fn rebind(&mut self, source: Option<IpAddr>) -> io::Result<Vec<SocketAddr>> {
        let source = source.unwrap_or(self.source);
        let fresh: Vec<UdpSocket> = self.flows.iter().map(|_| back_socket(source)).collect::<io::Result<_>>()?;
        self.source = source;
        for (flow, back) in self.flows.iter_mut().zip(fresh) {
            self.retired.push_back(std::mem::replace(&mut flow.back, back));
        }
        while self.retired.len() > RETIRED_MAX {
            self.retired.pop_front();
        }
        self.sources()
    }

    fn forward_to_gateway(&mut self) {
        for _ in 0..BURST_MAX {
            // An error (of an earlier send, reported here) concerns that datagram only.
            let Ok(Some(received)) = aggregate::receive(&self.front, &mut self.buffer) else { return };
            let forwarded = match self.flow_of(received.from) {
                Some(index) => forward(&self.flows[index].back, &self.buffer, &received, self.gateway),
                None => Err(received.count()),
            };
            self.count(forwarded, &self.shared.to_gateway);
        }
    }

    fn forward_to_client(&mut self, index: usize) {
        for _ in 0..BURST_MAX {
            let flow = &self.flows[index];
            let Ok(Some(received)) = aggregate::receive(&flow.back, &mut self.buffer) else { return };
            let forwarded = if received.from == self.gateway {
                forward(&self.front, &self.buffer, &received, flow.client)
            } else {
                Err(received.count())
            };
            self.count(forwarded, &self.shared.to_clients);
        }
    }

    fn count(&self, forwarded: Result<usize, usize>, counter: &AtomicU64) {
        let (counter, count) = match forwarded {
            Ok(count) => (counter, count),
            Err(count) => (&self.shared.dropped, count),
        };
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The flow of a client, a new one if need be.
    fn flow_of(&mut self, client: SocketAddr) -> Option<usize> {
        if let Some(index) = self.flows.iter().position(|flow| flow.client == client) {
            return Some(index);
        }
        if self.flows.len() == FLOWS_MAX {
            return None;
        }
        let back = back_socket(self.source).ok()?;
        self.flows.push(Flow { client, back });
        Some(self.flows.len() - 1)
    }
}

/// What can be done without waiting.
struct Ready {
    commands: bool,
    front: bool,
    /// Indices of flows with something from the gateway.
    flows: Vec<usize>,
}

fn back_socket(source: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((source, 0))?;
    aggregate::prepare(&socket)?;
    Ok(socket)
}

/// Sends an aggregate on as it came; the number of its datagrams, as an error when the kernel refused.
fn forward(socket: &UdpSocket, buffer: &[u8], received: &Received, to: SocketAddr) -> Result<usize, usize> {
    let count = received.count();
    if received.length == 0 {
        return aggregate::send(socket, &[], 1, to).map(|()| count).map_err(|_| count);
    }
    let mut parts = buffer[..received.length].chunks(received.segment * SEGMENTS_MAX);
    let sent = parts.try_for_each(|part| aggregate::send(socket, part, received.segment, to));
    sent.map(|()| count).map_err(|_| count)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        PathToGateway, ROUTER_ALTERNATE_V4, ROUTER_V4, ROUTER_V6, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan,
        datagrams::{DatagramPlan, DatagramReceiver, DatagramResponse, send},
        require_privileges_or_skip,
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
    fn the_server_sees_another_source_after_each_rebinding_and_answers_arrive() {
        require_privileges_or_skip!();
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
    fn two_clients_stay_apart_under_load_with_rebindings() {
        require_privileges_or_skip!();
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
