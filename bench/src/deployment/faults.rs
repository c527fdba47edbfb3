//! A relay in front of the far end that does wrong on purpose: for tests that a load finds what a faulty gateway would do.
//!
//! It loses, swaps or damages one in so many messages with payload; control messages it leaves alone. No benchmark runs with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use ipnet::{IpNet, Ipv4Net};
use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tollgate::io::{ReceiveBatch, TransmitBatch, UdpOptions, UdpSocket, Wake};
use tollgate_shards::{Received, Transmit};

use super::Network;
use crate::load::wire::{HEADER_BYTES, Header};
use crate::results::Direction;

/// The most senders that are told apart; messages of further ones are refused.
pub const SENDERS_MAX: usize = 16_000;

/// Under one address of this network each, the far end sees the senders.
const SENDERS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 64, 0), 18);

/// How long a message waits for the one that it is to be swapped with.
const HOLD_MAX: Duration = Duration::from_millis(100);
/// How long a socket may be full before messages are refused.
const FULL_MAX: Duration = Duration::from_secs(1);
/// How long the relay sleeps at most.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Messages of a `recvmmsg`, each an aggregate.
const RECEIVES_MAX: usize = 16;
/// Runs of a `sendmmsg`.
const SENDS_MAX: usize = 64;
/// Sizes of its sockets' buffers, in bytes.
const SOCKET_BUFFER_BYTES: usize = 32 << 20;

/// What is done to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is lost.
    Drop,
    /// It and the next one of its sender change places.
    Swap,
    /// A byte of its body is changed.
    Flip,
}

/// A fault, how often, and which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// What is done.
    pub fault: Fault,
    /// To one of so many messages with payload, in each direction. At least 1.
    pub every: u64,
    /// To which messages.
    pub direction: Direction,
}

/// What a relay has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Messages passed on to the far end.
    pub up: u64,
    /// Messages passed on to clients.
    pub down: u64,
    /// Faults on the way up.
    pub faults_up: u64,
    /// Faults on the way down.
    pub faults_down: u64,
    /// Messages lost without intent: of too many senders, or refused by the kernel.
    pub refused: u64,
}

/// A relay at work, until it is dropped.
#[derive(Debug)]
pub struct FaultyRelay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: Wake,
    is_stopping: AtomicBool,
    plan: Mutex<Option<FaultPlan>>,
    counts: Mutex<RelayCounts>,
}

impl FaultyRelay {
    /// Starts a relay behind the gateway, from a socket of its own to the far end at `far_end`. At first it passes on everything.
    ///
    /// # Errors
    ///
    /// When sockets or addresses cannot be had; there may be one relay in a network.
    pub fn start(network: &Network, far_end: SocketAddr) -> Result<Self> {
        network.network().configure(|netlink| {
            let loopback = netlink.link("lo")?.index;
            netlink.add_local_network(IpNet::V4(SENDERS_V4), loopback)
        })?;
        let options = UdpOptions {
            send_buffer_bytes: SOCKET_BUFFER_BYTES,
            receive_buffer_bytes: SOCKET_BUFFER_BYTES,
            ..UdpOptions::default()
        };
        let front = network.far_socket(0)?;
        let back = network.network().run(|| UdpSocket::for_remote(far_end, &options))?;
        let address = front.local_address();
        let shared = Arc::new(Shared {
            wake: Wake::new()?,
            is_stopping: AtomicBool::new(false),
            plan: Mutex::default(),
            counts: Mutex::default(),
        });
        let (to_far_end, to_clients) = (Side::default(), Side::default());
        let relay = Relay { front, back, far_end, senders: Senders::default(), to_far_end, to_clients };
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("relay".to_owned()).spawn(move || relay.run(&theirs));
        Ok(FaultyRelay { address, shared, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Where clients find it, as if it were the far end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on there are these faults.
    pub fn plan(&self, plan: Option<FaultPlan>) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// What it did up to the end of its last pass.
    pub fn counts(&self) -> RelayCounts {
        *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FaultyRelay {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        self.shared.wake.notify();
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// The relay's thread.
struct Relay {
    /// The clients' side.
    front: UdpSocket,
    /// The far end's side.
    back: UdpSocket,
    far_end: SocketAddr,
    senders: Senders,
    to_far_end: Side,
    to_clients: Side,
}

/// Everybody who ever sent something; the far end knows them by their place here.
#[derive(Default)]
struct Senders {
    addresses: Vec<SocketAddr>,
    places: FxHashMap<SocketAddr, usize>,
}

/// A direction.
struct Side {
    judge: Judge,
    batch: TransmitBatch,
    passed: u64,
    refused: u64,
}

/// A message with its way on.
struct Message {
    sender: usize,
    remote: SocketAddr,
    local_ip: Option<IpAddr>,
    data: BytesMut,
}

/// Who decides what becomes of each message of a direction.
#[derive(Default)]
struct Judge {
    plan: Option<FaultPlan>,
    /// Messages with payload up to and including the one that the next fault is to hit.
    left: u64,
    held: Option<(Message, Instant)>,
    faults: u64,
}

impl Relay {
    fn run(mut self, shared: &Shared) {
        let mut receives = ReceiveBatch::new(RECEIVES_MAX);
        while !shared.is_stopping.load(Ordering::Relaxed) && sleep(&self.front, &self.back, &shared.wake).is_ok() {
            shared.wake.drain();
            let plan = *shared.plan.lock().unwrap_or_else(PoisonError::into_inner);
            let wants = |way| plan.filter(|plan| plan.direction == way || plan.direction == Direction::Both);
            self.to_far_end.judge.plan(wants(Direction::Up));
            self.to_clients.judge.plan(wants(Direction::Down));
            self.pass(&mut receives, Instant::now());
            *shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = self.counts();
        }
    }

    fn pass(&mut self, receives: &mut ReceiveBatch, now: Instant) {
        let Relay { front, back, far_end, senders, to_far_end, to_clients } = self;
        // An error that the kernel had stored for a socket concerns an earlier message.
        let _ = front.receive(receives, &mut |received| match senders.place(received.remote) {
            Some(sender) => to_far_end.forward(now, back, received, sender, *far_end, Some(under(sender))),
            None => to_far_end.refused += received.data.len().div_ceil(received.segment_bytes) as u64,
        });
        let _ = back.receive(receives, &mut |received| {
            let sender = received.local_ip.and_then(place_of).filter(|place| *place < senders.addresses.len());
            match sender.filter(|_| received.remote == *far_end) {
                Some(sender) => to_clients.forward(now, front, received, sender, senders.addresses[sender], None),
                None => to_clients.refused += received.data.len().div_ceil(received.segment_bytes) as u64,
            }
        });
        to_far_end.settle(now, back);
        to_clients.settle(now, front);
    }

    fn counts(&self) -> RelayCounts {
        let (up, down) = (&self.to_far_end, &self.to_clients);
        let refused = |side: &Side| side.refused + side.batch.counters().dropped;
        RelayCounts {
            up: up.passed,
            down: down.passed,
            faults_up: up.judge.faults,
            faults_down: down.judge.faults,
            refused: refused(up) + refused(down),
        }
    }
}

impl Senders {
    fn place(&mut self, address: SocketAddr) -> Option<usize> {
        if let Some(place) = self.places.get(&address) {
            return Some(*place);
        }
        if self.addresses.len() == SENDERS_MAX {
            return None;
        }
        self.addresses.push(address);
        self.places.insert(address, self.addresses.len() - 1);
        Some(self.addresses.len() - 1)
    }
}

/// The address under which the far end sees the sender at `place`.
fn under(place: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(SENDERS_V4.network().to_bits() + 1 + place as u32))
}

fn place_of(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    address.to_bits().checked_sub(SENDERS_V4.network().to_bits() + 1).map(|place| place as usize)
}

impl Default for Side {
    fn default() -> Self {
        Side { judge: Judge::default(), batch: TransmitBatch::new(SENDS_MAX), passed: 0, refused: 0 }
    }
}

impl Side {
    fn forward(
        &mut self,
        now: Instant,
        socket: &UdpSocket,
        received: Received,
        sender: usize,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
    ) {
        let Received { segment_bytes, mut data, .. } = received;
        if self.judge.is_at_rest() {
            return self.send(socket, segment_bytes, &Message { sender, remote, local_ip, data });
        }
        while !data.is_empty() {
            let datagram = data.split_to(segment_bytes.clamp(1, data.len()));
            let message = Message { sender, remote, local_ip, data: datagram };
            for message in self.judge.judge(now, message).into_iter().flatten() {
                self.send(socket, message.data.len(), &message);
            }
        }
    }

    /// The end of a pass: nothing is kept but what is to be swapped.
    fn settle(&mut self, now: Instant, socket: &UdpSocket) {
        if let Some(message) = self.judge.overdue(now) {
            self.send(socket, message.data.len(), &message);
        }
        self.flush(socket);
    }

    fn send(&mut self, socket: &UdpSocket, segment_bytes: usize, message: &Message) {
        let Message { remote, local_ip, data, .. } = message;
        let transmit = Transmit { remote: *remote, local_ip: *local_ip, ecn: None, bytes: data.len(), segment_bytes };
        self.passed += transmit.datagrams() as u64;
        self.batch.fill(|buf| {
            buf.extend_from_slice(data);
            Some(transmit)
        });
        if self.batch.is_full() {
            self.flush(socket);
        }
    }

    fn flush(&mut self, socket: &UdpSocket) {
        let deadline = Instant::now() + FULL_MAX;
        while !self.batch.is_empty() && socket.send(&mut self.batch).blocked {
            if Instant::now() >= deadline {
                self.refused += self.batch.len() as u64;
                self.batch = TransmitBatch::new(SENDS_MAX);
                return;
            }
            let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&SLEEP));
        }
    }
}

impl Judge {
    fn plan(&mut self, plan: Option<FaultPlan>) {
        if self.plan != plan {
            self.plan = plan;
            self.left = plan.map_or(0, |plan| plan.every.max(1));
        }
    }

    /// Whether every message goes on as it came.
    fn is_at_rest(&self) -> bool {
        self.plan.is_none() && self.held.is_none()
    }

    /// What goes on in the place of `message`.
    fn judge(&mut self, now: Instant, mut message: Message) -> [Option<Message>; 2] {
        let payload = Header::parse(&message.data).filter(|(header, _)| header.kind.is_payload());
        let Some(body_bytes) = payload.map(|(_, body)| body.len()) else { return [Some(message), None] };
        if let Some((held, _)) = self.held.take_if(|(held, _)| held.sender == message.sender) {
            self.faults += 1;
            return [Some(message), Some(held)];
        }
        let Some(FaultPlan { fault, every, .. }) = self.plan else { return [Some(message), None] };
        self.left = self.left.saturating_sub(1);
        let is_possible = match fault {
            Fault::Drop => true,
            Fault::Swap => self.held.is_none(),
            Fault::Flip => body_bytes > 0,
        };
        if self.left > 0 || !is_possible {
            return [Some(message), None];
        }
        self.left = every.max(1);
        match fault {
            Fault::Drop => {
                self.faults += 1;
                [None, None]
            }
            Fault::Swap => {
                self.held = Some((message, now));
                [None, None]
            }
            Fault::Flip => {
                self.faults += 1;
                // Somewhere else each time.
                let at = HEADER_BYTES + (self.faults as usize * 31) % body_bytes;
                message.data[at] ^= 0x10;
                [Some(message), None]
            }
        }
    }

    /// The message that has waited for its neighbour long enough.
    fn overdue(&mut self, now: Instant) -> Option<Message> {
        self.held.take_if(|(_, since)| now >= *since + HOLD_MAX).map(|(message, _)| message)
    }
}

/// Waits until one of the sockets has something, or somebody wakes the thread, for [`SLEEP`] at most.
fn sleep(front: &UdpSocket, back: &UdpSocket, wake: &Wake) -> io::Result<()> {
    let mut descriptors =
        [PollFd::new(front, PollFlags::IN), PollFd::new(back, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
    match poll(&mut descriptors, Some(&SLEEP)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;
    use crate::deployment::require_namespaces_or_skip;
    use crate::load::wire::Kind;

    fn message(sender: usize, kind: Kind, sequence: u64, body: &[u8]) -> Message {
        let header = Header { kind, group: 0, flow: 1, sequence, stamp_ns: 0 };
        let data = [&header.to_bytes()[..], body].concat();
        let remote = "198.19.0.2:1".parse().unwrap();
        Message { sender, remote, local_ip: None, data: BytesMut::from(&data[..]) }
    }

    fn judge(fault: Fault, every: u64) -> Judge {
        let mut judge = Judge::default();
        judge.plan(Some(FaultPlan { fault, every, direction: Direction::Both }));
        judge
    }

    /// The numbers and bodies of what comes out for these messages of (sender, number).
    fn passed(judge: &mut Judge, messages: &[(usize, u64)]) -> Vec<(u64, Vec<u8>)> {
        let now = Instant::now();
        let out = messages.iter().flat_map(|(sender, number)| {
            judge.judge(now, message(*sender, Kind::Data, *number, b"body")).into_iter().flatten()
        });
        out.map(|message| Header::parse(&message.data).map(|(header, body)| (header.sequence, body.to_vec())).unwrap())
            .collect()
    }

    fn numbers(judge: &mut Judge, messages: &[(usize, u64)]) -> Vec<u64> {
        passed(judge, messages).into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn one_in_so_many_is_lost() {
        let mut judge = judge(Fault::Drop, 3);
        let all: Vec<_> = (1..=9).map(|number| (0, number)).collect();
        assert_eq!(numbers(&mut judge, &all), [1, 2, 4, 5, 7, 8]);
        assert_eq!(judge.faults, 3);
        judge.plan(None);
        assert!(judge.is_at_rest());
    }

    #[test]
    fn neighbours_of_one_sender_change_places() {
        let mut judge = judge(Fault::Swap, 2);
        assert_eq!(numbers(&mut judge, &[(0, 1), (0, 2), (7, 90), (0, 3), (0, 4)]), [1, 90, 3, 2]);
        assert_eq!(judge.faults, 1, "number 4 waits for the next one");
    }

    #[test]
    fn a_message_without_a_neighbour_is_only_delayed() {
        let mut judge = judge(Fault::Swap, 1);
        assert!(numbers(&mut judge, &[(0, 1)]).is_empty());
        let now = Instant::now();
        assert!(judge.overdue(now).is_none());
        assert!(judge.overdue(now + HOLD_MAX).is_some());
        assert_eq!(judge.faults, 0);
    }

    #[test]
    fn one_byte_of_the_body_is_changed_and_nothing_else() {
        let mut judge = judge(Fault::Flip, 2);
        let out = passed(&mut judge, &[(0, 1), (0, 2)]);
        assert_eq!(out[0], (1, b"body".to_vec()));
        let different = out[1].1.iter().zip(b"body").filter(|(is, was)| is != was).count();
        assert_eq!((out[1].0, different), (2, 1));
    }

    #[test]
    fn control_messages_and_headers_stay_as_they_are() {
        let now = Instant::now();
        for fault in [Fault::Drop, Fault::Swap, Fault::Flip] {
            let mut judge = judge(fault, 1);
            for kind in [Kind::Open, Kind::Close, Kind::Credit] {
                let [first, second] = judge.judge(now, message(0, kind, 5, b"{}"));
                assert!(second.is_none());
                assert_eq!(first.unwrap().data, message(0, kind, 5, b"{}").data);
            }
            assert_eq!(judge.faults, 0);
        }
        let mut judge = judge(Fault::Flip, 1);
        let [first, _] = judge.judge(now, message(0, Kind::Data, 5, b""));
        assert_eq!((first.unwrap().data, judge.faults), (message(0, Kind::Data, 5, b"").data, 0));
    }

    #[test]
    fn what_every_sender_sends_arrives_and_the_answer_comes_back() {
        require_namespaces_or_skip!();
        let network = Network::build(1400).unwrap();
        let timeout = Some(Duration::from_secs(30));
        let far_end = network.network().run(|| StdSocket::bind("198.19.0.2:0")).unwrap();
        far_end.set_read_timeout(timeout).unwrap();
        let relay = FaultyRelay::start(&network, far_end.local_addr().unwrap()).unwrap();
        let senders = [0, 1].map(|_| network.gateway().run(|| StdSocket::bind("0.0.0.0:0")).unwrap());
        for round in 0..100u64 {
            for (number, sender) in senders.iter().enumerate() {
                sender.set_read_timeout(timeout).unwrap();
                let text = format!("{number} {round}");
                sender.send_to(text.as_bytes(), relay.address()).unwrap();
                let mut buffer = [0; 64];
                let (bytes, from) = far_end.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..bytes], text.as_bytes());
                assert_eq!(from.ip(), under(number), "each under an address of its own");
                far_end.send_to(b"answer", from).unwrap();
                let (bytes, from) = sender.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..bytes], from), (&b"answer"[..], relay.address()));
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        let expected = RelayCounts { up: 200, down: 200, ..RelayCounts::default() };
        while relay.counts() != expected {
            assert!(Instant::now() < deadline, "{:?}", relay.counts());
            thread::sleep(Duration::from_millis(1));
        }
    }
}
