//! The responder: an ordinary UDP service behind the gateway, the other end of every flow.
//!
//! Generators tell it of their flows within the process; all that it knows of packets it has from its socket. It receives, checks, counts and
//! answers, and sends the data of flows that want some.

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustc_hash::FxHashMap;
use tollgate::io::{Poller, ReceiveBatch, TransmitBatch, UdpSocket};
use tollgate_shards::{Received, Transmit};
use tollgate_testkit::Namespace;

use super::flow::{End, SendPlan, TRAIN_PACKETS_MAX};
use super::message::{self, HEADER_BYTES, Header, OVERHEAD_BYTES};
use super::sink::FlowCounts;
use super::timers::Timers;
use super::worker::{Desk, Inbox, Worker};

/// How long what still comes of a closed flow counts.
const LINGER: Duration = Duration::from_secs(10);
/// How long a thread sleeps at least when nothing arrives: what falls due meanwhile goes together.
const SLEEP_MIN: Duration = Duration::from_micros(200);
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Messages of a `recvmmsg`, each an aggregate in 64 KiB of its own, and runs of a `sendmmsg`: more would not stay in a core's cache.
const BATCH_MAX: usize = 8;
/// System calls in a row for one direction, before the other has its turn.
const ROUNDS_MAX: usize = 8;
/// Bytes of a run: what the kernel takes in one piece, with room to spare.
const RUN_BYTES_MAX: usize = 64_000;

/// What the responder's end of a group's flows does.
#[derive(Debug)]
pub struct FarPlan {
    pub send: Option<Arc<SendPlan>>,
    /// Length of an answer as an inner packet; as long as the request if it is `None`.
    pub answer_bytes: Option<u16>,
    pub gives_credit: bool,
}

/// A flow that begins.
#[derive(Debug)]
pub struct Opening {
    pub number: u32,
    /// As an index into the scenario's traffic.
    pub group: u8,
    pub user: u32,
    pub peer: SocketAddrV4,
    pub plan: Arc<FarPlan>,
}

#[derive(Debug)]
pub enum FarOrder {
    Open(Opening),
    /// Sends nothing more in this flow, and forgets it after a while.
    Close(u32),
    /// Sends nothing more in any flow, but answers and credit.
    Stop,
}

super::counts! {
    /// Counts since the responder started.
    ResponderCounts {
        /// Messages of all kinds.
        received_messages,
        /// Of those, as inner packets.
        received_bytes,
        /// Messages of all kinds that the kernel took.
        sent_messages,
        /// CPU time of the threads.
        cpu_ns,
    }
}

#[derive(Debug, Default)]
pub struct ResponderReport {
    pub counts: ResponderCounts,
    /// By group of traffic.
    pub groups: Vec<FlowCounts>,
    /// The most that one user sent here in a whole second, in bytes; 0 where no user is limited.
    pub user_peak_bytes: u64,
}

impl ResponderReport {
    /// Adds another thread's of the same scenario.
    pub fn merge(&mut self, other: ResponderReport) {
        self.counts += other.counts;
        self.groups.resize_with(other.groups.len(), FlowCounts::default);
        self.groups.iter_mut().zip(other.groups).for_each(|(sum, counts)| *sum += counts);
        self.user_peak_bytes = self.user_peak_bytes.max(other.user_peak_bytes);
    }
}

pub type Responder = Worker<FarOrder, ResponderCounts, ResponderReport>;
pub type ResponderInbox = Inbox<FarOrder>;

/// Starts a responder of `groups` groups of traffic on a socket behind the gateway.
pub fn start(
    socket: UdpSocket,
    cpu: usize,
    groups: usize,
    is_metered: bool,
    namespace: &Namespace,
) -> Result<Responder> {
    let name = format!("responder at {}", socket.local_address());
    Worker::start(&name, cpu, namespace, move |desk: Desk<FarOrder, ResponderCounts>| {
        let poller = Poller::new(Some(&socket), None, &desk.wake)?;
        let service = Service::new(Instant::now(), groups, is_metered.then(Meters::default));
        Ok(move || run(desk, &socket, poller, service))
    })
}

fn run(
    mut desk: Desk<FarOrder, ResponderCounts>,
    socket: &UdpSocket,
    poller: Poller,
    mut service: Service,
) -> Result<ResponderReport> {
    let (mut receives, mut sends) = (ReceiveBatch::new(BATCH_MAX), TransmitBatch::new(BATCH_MAX));
    loop {
        let mut is_full = true;
        for _ in 0..ROUNDS_MAX {
            let outcome = socket.receive(&mut receives, &mut |received| service.handle(&received, &desk));
            // An error of an earlier send, reported here, concerns that datagram only.
            is_full = outcome.map_or(0, |outcome| outcome.messages) == BATCH_MAX;
            if !is_full {
                break;
            }
        }
        service.obey(&desk);
        service.handle_timeout();
        let mut is_blocked = false;
        for _ in 0..ROUNDS_MAX {
            while sends.fill(|buf| service.poll_transmit(buf)) {}
            is_blocked = !sends.is_empty() && socket.send(&mut sends).blocked;
            if is_blocked || service.ready.is_empty() {
                break;
            }
        }
        let (sent_messages, cpu_ns) = (sends.counters().datagrams, desk.cpu_ns(service.now));
        let counts = ResponderCounts { sent_messages, cpu_ns, ..service.counts };
        desk.publish(counts);
        if service.has_ended {
            return Ok(ResponderReport { counts, ..service.report() });
        }
        poller.want_udp(true, is_blocked)?;
        let timeout = match service.next_at() {
            // Nothing that falls due could be sent; room or a message ends the sleep.
            _ if is_blocked => SLEEP_MAX,
            Some(at) if is_full || at <= service.now => Duration::ZERO,
            _ if is_full => Duration::ZERO,
            Some(at) => (at - service.now).clamp(SLEEP_MIN, SLEEP_MAX),
            None => SLEEP_MAX,
        };
        if poller.wait(Some(timeout))?.wake {
            desk.wake.drain();
        }
        // Each pass has a time of its own.
        service.now = Instant::now().max(service.now + Duration::from_nanos(1));
    }
}

#[derive(Debug)]
struct Far {
    end: End,
    peer: SocketAddr,
    group: u8,
    user: u32,
    plan: Arc<FarPlan>,
    /// Whether it waits for its turn to send.
    is_ready: bool,
    armed: Option<Instant>,
}

/// What the responder does, without its socket.
struct Service {
    now: Instant,
    /// Stamps count from here.
    origin: Instant,
    flows: FxHashMap<u32, Far>,
    /// Flows that may send now, each at most once.
    ready: VecDeque<u32>,
    timers: Timers,
    /// Closed flows, and when they are to be forgotten.
    closed: VecDeque<(Instant, u32)>,
    /// Of flows that are forgotten, by group.
    groups: Vec<FlowCounts>,
    meters: Option<Meters>,
    counts: ResponderCounts,
    has_ended: bool,
}

impl Service {
    fn new(now: Instant, groups: usize, meters: Option<Meters>) -> Service {
        Service {
            now,
            origin: now,
            flows: FxHashMap::default(),
            ready: VecDeque::new(),
            timers: Timers::default(),
            closed: VecDeque::new(),
            groups: vec![FlowCounts::default(); groups],
            meters,
            counts: ResponderCounts::default(),
            has_ended: false,
        }
    }

    /// Does all that it was told.
    fn obey(&mut self, desk: &Desk<FarOrder, ResponderCounts>) {
        while let Ok(message) = desk.inbox.try_recv() {
            match message {
                Some(order) => self.order(order),
                None => self.has_ended = true,
            }
        }
    }

    fn order(&mut self, order: FarOrder) {
        match order {
            FarOrder::Open(Opening { number, group, user, peer, plan }) => {
                let end = End::new(number, plan.send.as_ref(), plan.gives_credit, self.now);
                let peer = SocketAddr::V4(peer);
                self.flows.insert(number, Far { end, peer, group, user, plan, is_ready: false, armed: None });
                self.make_ready(number);
            }
            FarOrder::Close(number) => {
                self.flows.get_mut(&number).into_iter().for_each(|far| far.end.stop());
                self.closed.push_back((self.now + LINGER, number));
            }
            FarOrder::Stop => self.flows.values_mut().for_each(|far| far.end.stop()),
        }
    }

    /// Takes what one receive brought.
    fn handle(&mut self, received: &Received, desk: &Desk<FarOrder, ResponderCounts>) {
        for payload in received.data.chunks(received.segment_bytes) {
            let Some((header, body)) = Header::parse(payload) else { continue };
            // A flow's packet may be here before the flow is.
            if !self.flows.contains_key(&header.flow) {
                self.obey(desk);
            }
            self.take(received.remote, &header, body);
        }
    }

    fn take(&mut self, peer: SocketAddr, header: &Header, body: &[u8]) {
        let inner_bytes = body.len() + HEADER_BYTES + OVERHEAD_BYTES;
        self.counts.received_messages += 1;
        self.counts.received_bytes += inner_bytes as u64;
        let Some(far) = self.flows.get_mut(&header.flow).filter(|far| far.peer == peer) else { return };
        let (is_intact, answer_bytes) = (message::is_intact(header, body), far.plan.answer_bytes);
        far.end.take(self.now, header, inner_bytes as u16, is_intact, answer_bytes);
        if let Some(meters) = &mut self.meters {
            meters.add(self.now, far.user, inner_bytes as u64);
        }
        self.make_ready(header.flow);
    }

    /// Gives the flow its turn, now or when it wants it.
    fn make_ready(&mut self, number: u32) {
        let Some(far) = self.flows.get_mut(&number).filter(|far| !far.is_ready) else { return };
        match far.end.next_at(self.now, u16::MAX) {
            Some(at) if at <= self.now => {
                far.is_ready = true;
                self.ready.push_back(number);
            }
            Some(at) => self.timers.arm(number, &mut far.armed, at),
            None => {}
        }
    }

    /// Finds what is due.
    fn handle_timeout(&mut self) {
        while let Some(number) = self.timers.pop_due(self.now) {
            if let Some(far) = self.flows.get_mut(&number) {
                far.armed = far.armed.filter(|at| *at > self.now);
                self.make_ready(number);
            }
        }
        while self.closed.front().is_some_and(|(at, _)| *at <= self.now)
            && let Some((_, number)) = self.closed.pop_front()
        {
            if let Some(far) = self.flows.remove(&number) {
                self.groups[usize::from(far.group)] += far.end.counts();
            }
        }
    }

    /// When to call [`Service::handle_timeout`] again if nothing is received. A time that has passed means at once.
    fn next_at(&self) -> Option<Instant> {
        let ready = (!self.ready.is_empty()).then_some(self.now);
        let closed = self.closed.front().map(|(at, _)| *at);
        [ready, self.timers.next_at(), closed].into_iter().flatten().min()
    }

    /// The next run of datagrams: one flow's, all equally long but for the last.
    fn poll_transmit(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(number) = self.ready.pop_front() {
            let Some(far) = self.flows.get_mut(&number) else { continue };
            far.is_ready = false;
            let segment_bytes = write_run(far, self.now, self.origin, buf);
            if let Some(segment_bytes) = segment_bytes {
                let (remote, bytes) = (far.peer, buf.len());
                self.make_ready(number);
                return Some(Transmit { remote, local_ip: None, ecn: None, bytes, segment_bytes });
            }
            // It has had its turn in this pass, or none yet.
            if let Some(at) = far.end.next_at(self.now, u16::MAX) {
                self.timers.arm(number, &mut far.armed, at);
            }
        }
        None
    }

    fn report(mut self) -> ResponderReport {
        for far in self.flows.values() {
            self.groups[usize::from(far.group)] += far.end.counts();
        }
        let user_peak_bytes = self.meters.map_or(0, |meters| meters.peak_bytes);
        ResponderReport { counts: self.counts, groups: self.groups, user_peak_bytes }
    }
}

/// Writes as many messages of the flow as go in one run, and returns the length of the first in bytes; `None` for none.
fn write_run(far: &mut Far, now: Instant, origin: Instant, buf: &mut Vec<u8>) -> Option<usize> {
    let train = far.plan.send.as_ref().map_or(TRAIN_PACKETS_MAX, |plan| plan.train());
    let (mut first_bytes, mut last_bytes) = (None, u16::MAX);
    for _ in 0..train {
        let is_full =
            first_bytes.is_some_and(|first| last_bytes < first || buf.len() + usize::from(first) > RUN_BYTES_MAX);
        if is_full {
            break;
        }
        let Some(next) = far.end.poll(now, origin, first_bytes.unwrap_or(u16::MAX)) else { break };
        last_bytes = next.inner_bytes;
        first_bytes.get_or_insert(last_bytes);
        buf.extend_from_slice(&next.header.to_bytes());
        buf.extend_from_slice(message::body(&next.header, last_bytes));
    }
    first_bytes.map(|bytes| usize::from(bytes) - OVERHEAD_BYTES)
}

/// What each user receives in each whole second, to be held against a limit. The first second of each does not count, as a full bucket may
/// empty in it.
#[derive(Debug, Default)]
pub struct Meters {
    users: FxHashMap<u32, Meter>,
    pub peak_bytes: u64,
}

#[derive(Debug)]
struct Meter {
    begun: Instant,
    second: u64,
    bytes: u64,
}

impl Meters {
    pub fn add(&mut self, now: Instant, user: u32, bytes: u64) {
        let meter = self.users.entry(user).or_insert(Meter { begun: now, second: 0, bytes: 0 });
        let second = now.saturating_duration_since(meter.begun).as_secs();
        if second != meter.second {
            if meter.second > 0 {
                self.peak_bytes = self.peak_bytes.max(meter.bytes);
            }
            (meter.second, meter.bytes) = (second, 0);
        }
        meter.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::flow::Schedule;
    use crate::load::message::Kind;

    const PEER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 18, 0, 1), 4000);

    fn opened(send: Option<Schedule>) -> Service {
        let send = send.map(|pace| Arc::new(SendPlan { kind: Kind::Data, sizes: vec![1000, 100], schedule: pace }));
        let plan = Arc::new(FarPlan { send, answer_bytes: None, gives_credit: false });
        let mut service = Service::new(Instant::now(), 3, None);
        service.order(FarOrder::Open(Opening { number: 7, group: 2, user: 0, peer: PEER, plan }));
        service
    }

    /// Lengths of the runs that are sent in one pass: of the first datagram, of all.
    fn sent(service: &mut Service, pause: Duration) -> Vec<(usize, usize)> {
        service.now += pause;
        service.handle_timeout();
        let (mut runs, mut buf) = (Vec::new(), Vec::new());
        while let Some(transmit) = service.poll_transmit(&mut buf) {
            assert_eq!((transmit.remote, transmit.bytes), (SocketAddr::V4(PEER), buf.len()));
            for payload in buf.chunks(transmit.segment_bytes) {
                let (header, body) = Header::parse(payload).unwrap();
                assert!(header.flow == 7 && message::is_intact(&header, body));
            }
            runs.push((transmit.segment_bytes, transmit.bytes));
            buf.clear();
        }
        runs
    }

    #[test]
    fn a_flow_belongs_to_who_opened_it_and_counts_until_it_is_forgotten() {
        let mut service = opened(None);
        let header = |sequence| Header { kind: Kind::Data, flow: 7, sequence, stamp_ns: 9 };
        let other = SocketAddr::from(([198, 18, 0, 2], 4000));
        for (peer, sequence) in [(PEER.into(), 0), (PEER.into(), 1), (other, 2), (PEER.into(), 1)] {
            service.take(peer, &header(sequence), message::body(&header(sequence), 128));
        }
        service.take(PEER.into(), &header(3), &[0; 76]);
        service.order(FarOrder::Close(7));
        service.now += LINGER;
        service.handle_timeout();
        service.take(PEER.into(), &header(4), message::body(&header(4), 128));
        let report = service.report();
        let expected = FlowCounts {
            received_packets: 3,
            received_bytes: 3 * 128,
            duplicated_packets: 1,
            corrupted_packets: 1,
            ..FlowCounts::default()
        };
        assert_eq!((report.groups[2], report.counts.received_messages), (expected, 6));
    }

    #[test]
    fn packets_go_singly_at_an_even_rate_and_together_out_of_a_window() {
        let mut service = opened(Some(Schedule::Even { per_second: 100.0, train: 1 }));
        let runs: Vec<_> = (0..200).flat_map(|_| sent(&mut service, Duration::from_millis(5))).collect();
        assert!((99..=101).contains(&runs.len()) && runs.iter().all(|(first, all)| first == all), "{}", runs.len());
        service.order(FarOrder::Stop);
        assert!(sent(&mut service, Duration::from_secs(1)).is_empty());
        // A shorter one ends a run.
        let mut service = opened(Some(Schedule::Window { bytes: 5000 }));
        assert_eq!(sent(&mut service, Duration::from_nanos(1)), [(972, 972 + 72), (972, 972 + 72), (972, 972)]);
    }

    #[test]
    fn the_fullest_whole_second_counts_but_for_the_first_and_the_unfinished_one() {
        let (now, mut meters) = (Instant::now(), Meters::default());
        for (ms, bytes) in [(0, 900), (1000, 10), (1999, 20), (2000, 29), (5500, 31), (5999, 1), (6000, 9999)] {
            meters.add(now + Duration::from_millis(ms), 1, bytes);
            meters.add(now + Duration::from_millis(ms), 2, 1);
        }
        assert_eq!(meters.peak_bytes, 32);
    }
}
