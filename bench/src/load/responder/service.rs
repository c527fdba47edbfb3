//! What the responder does, without the sockets: takes datagrams, and says which to send and when.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use rustc_hash::FxHashMap;
use slab::Slab;
use tollgate_shards::{Received, Transmit};

use super::{FLOWS_MAX, LINGER, REPLIES_MAX, ResponderTotals};
use crate::load::flow::packet::OVERHEAD_BYTES;
use crate::load::flow::pattern::Pattern;
use crate::load::flow::sink::{CREDIT_AFTER, Sink};
use crate::load::flow::sizes::INNER_BYTES_MIN;
use crate::load::flow::source::{Next, Source, TRAIN_PACKETS_MAX, phase};
use crate::load::flow::wire::{self, FlowCounts, FlowSpec, HEADER_BYTES, Header, Kind, stamp_ns};
use crate::load::generator::timers::{Delay, TimerQueue, fired};

/// The most bytes of a run: what the kernel takes in one piece, with room to spare.
const RUN_BYTES_MAX: usize = 64_000;
/// The most datagrams of a run.
const RUN_DATAGRAMS_MAX: usize = TRAIN_PACKETS_MAX as usize;
/// Room for replies that there must be before more is received.
const REPLIES_ROOM: usize = 4096;

/// What is owed to a generator.
#[derive(Debug)]
enum Reply {
    /// To a request of `flow`, if it is still the one in `slot`.
    Answer { slot: u32, flow: u32, stamp_ns: u64, payload_bytes: usize },
    /// Any other message, complete.
    Control { peer: SocketAddr, header: Header, body: Vec<u8> },
}

/// The far end of a flow.
#[derive(Debug)]
struct Flow {
    peer: SocketAddr,
    flow: u32,
    group: u8,
    sink: Sink,
    source: Option<Source>,
    answers_sent: u64,
    /// 0 for the request's own length.
    answer_bytes: u16,
    acknowledge: bool,
    /// Whether its end is waited for.
    is_ending: bool,
    /// Whether it waits for its turn to send.
    is_ready: bool,
    /// Whether it waits for the time of a credit.
    is_credit_timed: bool,
    /// When its source is to be asked.
    armed: Option<Instant>,
}

/// The far end of the flows of one socket: a state machine without input or output.
///
/// A pass is: any number of [`Service::handle`], one [`Service::handle_timeout`], then [`Service::poll_transmit`] until `None` or until the
/// socket is full. All of a pass have the same `now`, and the next one has another.
pub struct Service {
    pattern: &'static Pattern,
    /// Stamps count from here.
    origin: Instant,
    flows: Slab<Flow>,
    by_name: FxHashMap<(SocketAddr, u32), u32>,
    /// Oldest first.
    replies: VecDeque<Reply>,
    /// Slots of flows that may send now, each at most once.
    ready: VecDeque<u32>,
    /// When sources are to be asked.
    sources: TimerQueue,
    /// Closed flows that are to be forgotten, by number.
    ends: Delay<(u32, u32)>,
    /// When credits are due at the latest. Each flow is here at most once.
    credits: Delay<u32>,
    totals: ResponderTotals,
}

impl Service {
    pub fn new(now: Instant) -> Service {
        Service {
            pattern: Pattern::shared(),
            origin: now,
            flows: Slab::new(),
            by_name: FxHashMap::default(),
            replies: VecDeque::new(),
            ready: VecDeque::new(),
            sources: TimerQueue::default(),
            ends: Delay::new(LINGER),
            credits: Delay::new(CREDIT_AFTER),
            totals: ResponderTotals::default(),
        }
    }

    /// What was counted so far; what only the socket knows is 0.
    pub fn totals(&self) -> ResponderTotals {
        self.totals
    }

    /// Whether there is room for the answers to what would be received.
    pub fn has_room(&self) -> bool {
        self.replies.len() + REPLIES_ROOM <= REPLIES_MAX
    }

    /// Takes what one receive brought.
    pub fn handle(&mut self, now: Instant, received: &Received) {
        let peer = received.remote;
        // The datagrams of an aggregate are mostly of one flow.
        let mut found: Option<(u32, u32)> = None;
        for payload in received.data.chunks(received.segment_bytes) {
            let Some((header, body)) = Header::parse(payload) else { continue };
            self.totals.received_messages += 1;
            self.totals.received_bytes += (payload.len() + OVERHEAD_BYTES) as u64;
            if header.kind == Kind::Open {
                found = None;
                self.open(now, peer, &header, body);
                continue;
            }
            let slot = match found {
                Some((flow, slot)) if flow == header.flow => Some(slot),
                _ => self.by_name.get(&(peer, header.flow)).copied(),
            };
            found = slot.map(|slot| (header.flow, slot));
            match (slot, header.kind) {
                (Some(slot), Kind::Data | Kind::Request) => self.take(now, slot, &header, payload.len(), body),
                (Some(slot), Kind::Credit) => self.credit(now, slot, &header),
                (Some(slot), Kind::Close) => self.close(now, slot),
                // Of a flow that is over, or that was never opened.
                _ => {}
            }
        }
    }

    /// Takes note that `now` has come: finds what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.sources.pop_due(now) {
            if let Some(flow) = self.flows.get_mut(slot as usize) {
                fired(&mut flow.armed, now);
                self.schedule(now, slot);
            }
        }
        while let Some(slot) = self.credits.pop_due(now) {
            if let Some(flow) = self.flows.get_mut(slot as usize) {
                flow.is_credit_timed = false;
                self.acknowledge(now, slot);
            }
        }
        while let Some((slot, number)) = self.ends.pop_due(now) {
            if self.flows.get(slot as usize).is_some_and(|flow| flow.flow == number) {
                let flow = self.flows.remove(slot as usize);
                self.by_name.remove(&(flow.peer, flow.flow));
            }
        }
    }

    /// When to call [`Service::handle_timeout`] again if nothing is received. A time that has passed means at once.
    pub fn next_at(&self, now: Instant) -> Option<Instant> {
        if !self.replies.is_empty() || !self.ready.is_empty() {
            return Some(now);
        }
        [self.sources.next_at(), self.credits.next_at(), self.ends.next_at()].into_iter().flatten().min()
    }

    /// The next run of datagrams: one flow's, all equally long but for the last.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.poll_reply(buf).or_else(|| self.poll_data(now, buf))
    }

    /// Data or a request came.
    fn take(&mut self, now: Instant, slot: u32, header: &Header, payload_bytes: usize, body: &[u8]) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        let is_intact = self.pattern.is_intact(header, body);
        let is_new = flow.sink.take(now, header.sequence, payload_bytes + OVERHEAD_BYTES, is_intact);
        if header.kind == Kind::Request && is_new {
            let payload_bytes =
                if flow.answer_bytes == 0 { payload_bytes } else { payload_bytes_of(flow.answer_bytes) };
            self.owe(Reply::Answer { slot, flow: header.flow, stamp_ns: header.stamp_ns, payload_bytes });
        }
        self.acknowledge(now, slot);
    }

    /// Lets the sender of a window know what came, now or when it is time.
    fn acknowledge(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize).filter(|flow| flow.acknowledge) else { return };
        if let Some(credit) = flow.sink.credit_due(now) {
            let header = Header::credit(flow.group, flow.flow, credit.received, credit.highest_plus_1);
            let peer = flow.peer;
            self.owe(Reply::Control { peer, header, body: Vec::new() });
        } else if flow.sink.credit_at().is_some() && !flow.is_credit_timed {
            flow.is_credit_timed = true;
            self.credits.push(now, slot);
        }
    }

    /// The generator says what it has received.
    fn credit(&mut self, now: Instant, slot: u32, header: &Header) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        if flow.source.as_mut().is_some_and(|source| source.handle_credit(now, header.stamp_ns)) {
            self.schedule(now, slot);
        }
    }

    fn open(&mut self, now: Instant, peer: SocketAddr, header: &Header, body: &[u8]) {
        let mut why_not = String::new();
        if !self.by_name.contains_key(&(peer, header.flow)) {
            match self.new_flow(now, peer, header, body) {
                Ok(flow) => {
                    let slot = self.flows.insert(flow) as u32;
                    self.by_name.insert((peer, header.flow), slot);
                    self.schedule(now, slot);
                }
                Err(error) => {
                    why_not = format!("{error:#}").chars().filter(char::is_ascii).take(wire::BODY_BYTES_MAX).collect()
                }
            }
        }
        let header = Header::control(Kind::Opened, header.group, header.flow);
        self.owe(Reply::Control { peer, header, body: why_not.into_bytes() });
    }

    fn new_flow(&self, now: Instant, peer: SocketAddr, header: &Header, body: &[u8]) -> Result<Flow> {
        let spec: FlowSpec = wire::decode(body)?;
        ensure!(self.flows.len() < FLOWS_MAX, "the responder has {FLOWS_MAX} flows already");
        ensure!(
            spec.answer_bytes == 0 || spec.answer_bytes >= INNER_BYTES_MIN,
            "an answer of {} bytes",
            spec.answer_bytes
        );
        let source = spec.down.map(|down| Source::new(&down, now + phase(&down, header.flow))).transpose()?;
        Ok(Flow {
            peer,
            flow: header.flow,
            group: header.group,
            sink: Sink::new(),
            source,
            answers_sent: 0,
            answer_bytes: spec.answer_bytes,
            acknowledge: spec.acknowledge,
            is_ending: false,
            is_ready: false,
            is_credit_timed: false,
            armed: None,
        })
    }

    fn close(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize) else { return };
        flow.source.iter_mut().for_each(Source::stop);
        if !std::mem::replace(&mut flow.is_ending, true) {
            self.ends.push(now, (slot, flow.flow));
        }
        let header = Header::control(Kind::Report, flow.group, flow.flow);
        let (peer, body) = (flow.peer, wire::encode(&flow.counts()));
        self.owe(Reply::Control { peer, header, body });
    }

    /// Gives the flow in `slot` its turn, now or when its source wants it.
    fn schedule(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.get_mut(slot as usize).filter(|flow| !flow.is_ready) else { return };
        let Some(source) = &mut flow.source else { return };
        if source.peek(now).is_some() {
            flow.is_ready = true;
            self.ready.push_back(slot);
        } else if let Some(at) = source.next_at() {
            self.sources.arm(slot, &mut flow.armed, at);
        }
    }

    fn owe(&mut self, reply: Reply) {
        if self.replies.len() < REPLIES_MAX {
            self.replies.push_back(reply);
        } else {
            self.totals.replies_dropped += 1;
        }
    }

    fn poll_reply(&mut self, buf: &mut Vec<u8>) -> Option<Transmit> {
        loop {
            match self.replies.pop_front()? {
                Reply::Control { peer, header, body } => {
                    buf.extend_from_slice(&header.to_bytes());
                    buf.extend_from_slice(&body);
                    return Some(run(peer, buf, buf.len()));
                }
                Reply::Answer { slot, flow: number, stamp_ns, payload_bytes } => {
                    let Some(flow) = self.flows.get_mut(slot as usize).filter(|flow| flow.flow == number) else {
                        continue;
                    };
                    write_answer(self.pattern, flow, stamp_ns, payload_bytes, buf);
                    let mut datagrams = 1;
                    while datagrams < RUN_DATAGRAMS_MAX && buf.len() + payload_bytes <= RUN_BYTES_MAX {
                        let Some(&Reply::Answer { slot: next, flow: next_flow, stamp_ns, payload_bytes: next_bytes }) =
                            self.replies.front()
                        else {
                            break;
                        };
                        if (next, next_flow, next_bytes) != (slot, number, payload_bytes) {
                            break;
                        }
                        self.replies.pop_front();
                        write_answer(self.pattern, flow, stamp_ns, payload_bytes, buf);
                        datagrams += 1;
                    }
                    return Some(run(flow.peer, buf, payload_bytes));
                }
            }
        }
    }

    fn poll_data(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(slot) = self.ready.pop_front() {
            let Some(flow) = self.flows.get_mut(slot as usize) else { continue };
            flow.is_ready = false;
            let segment_bytes = write_data(self.pattern, self.origin, now, flow, buf);
            let transmit = segment_bytes.map(|segment_bytes| run(flow.peer, buf, segment_bytes));
            self.schedule(now, slot);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }
}

impl Flow {
    /// The number of the next answer.
    fn take_number(&mut self) -> u64 {
        match &mut self.source {
            Some(source) => source.take_number(),
            None => {
                self.answers_sent += 1;
                self.answers_sent - 1
            }
        }
    }

    /// What it counted so far.
    fn counts(&self) -> FlowCounts {
        self.sink.counts(self.source.as_ref().map_or(self.answers_sent, Source::sequence))
    }
}

/// The UDP payload of an inner packet, in bytes.
fn payload_bytes_of(inner_bytes: u16) -> usize {
    usize::from(inner_bytes).saturating_sub(OVERHEAD_BYTES).max(HEADER_BYTES)
}

/// Writes as many packets of the flow's source as go in one run, and returns the length of the first in bytes; `None` for none.
fn write_data(pattern: &Pattern, origin: Instant, now: Instant, flow: &mut Flow, buf: &mut Vec<u8>) -> Option<usize> {
    let (group, number) = (flow.group, flow.flow);
    let source = flow.source.as_mut()?;
    let datagrams_max = usize::from(source.train_packets());
    let (mut segment_bytes, mut datagrams) = (None, 0);
    while let Some(Next { inner_bytes, .. }) = source.peek(now) {
        let payload_bytes = payload_bytes_of(inner_bytes);
        let first_bytes = *segment_bytes.get_or_insert(payload_bytes);
        if datagrams > 0 && (payload_bytes > first_bytes || buf.len() + payload_bytes > RUN_BYTES_MAX) {
            break;
        }
        let Some(Next { sequence, due, .. }) = source.poll(now) else { break };
        let header = Header { kind: Kind::Data, group, flow: number, sequence, stamp_ns: stamp_ns(origin, due) };
        write_payload(pattern, &header, payload_bytes, buf);
        datagrams += 1;
        if payload_bytes < first_bytes || datagrams == datagrams_max {
            break;
        }
    }
    segment_bytes
}

fn write_answer(pattern: &Pattern, flow: &mut Flow, stamp_ns: u64, payload_bytes: usize, buf: &mut Vec<u8>) {
    let sequence = flow.take_number();
    let header = Header { kind: Kind::Answer, group: flow.group, flow: flow.flow, sequence, stamp_ns };
    write_payload(pattern, &header, payload_bytes, buf);
}

fn write_payload(pattern: &Pattern, header: &Header, payload_bytes: usize, buf: &mut Vec<u8>) {
    buf.extend_from_slice(&header.to_bytes());
    buf.extend_from_slice(pattern.window(header, payload_bytes - HEADER_BYTES));
}

fn run(peer: SocketAddr, buf: &[u8], segment_bytes: usize) -> Transmit {
    Transmit { remote: peer, local_ip: None, ecn: None, bytes: buf.len(), segment_bytes }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;
    use crate::load::flow::source::STALL_AFTER;
    use crate::load::flow::wire::SendSpec;

    const MS: Duration = Duration::from_millis(1);

    /// A service and its clock.
    struct World(Service, Instant);

    fn near(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, last], 4000))
    }

    fn plain() -> FlowSpec {
        FlowSpec { down: None, answer_bytes: 0, acknowledge: false }
    }

    fn down(packets_per_second: Option<f64>, window_bytes: Option<u32>) -> FlowSpec {
        let train_packets = if packets_per_second.is_some() { 1 } else { 64 };
        FlowSpec {
            down: Some(SendSpec { sizes: vec![(1000, 1)], packets_per_second, window_bytes, train_packets }),
            ..plain()
        }
    }

    fn payload(kind: Kind, sequence: u64, bytes: usize) -> Vec<u8> {
        let header = Header { kind, group: 2, flow: 7, sequence, stamp_ns: 100 + sequence };
        [&header.to_bytes(), Pattern::shared().window(&header, bytes - HEADER_BYTES)].concat()
    }

    impl World {
        fn receive(&mut self, remote: SocketAddr, datagrams: &[Vec<u8>]) {
            let data = BytesMut::from(&datagrams.concat()[..]);
            let received = Received { remote, local_ip: None, ecn: None, segment_bytes: datagrams[0].len(), data };
            self.0.handle(self.1, &received);
        }

        fn control(&mut self, kind: Kind, body: &[u8]) -> Vec<(Header, Vec<u8>)> {
            self.receive(near(1), &[[&Header::control(kind, 2, 7).to_bytes(), body].concat()]);
            self.sent()
        }

        fn opened(spec: &FlowSpec) -> World {
            let now = Instant::now();
            let mut world = World(Service::new(now), now);
            let sent = world.control(Kind::Open, &wire::encode(spec));
            assert_eq!(sent[0], (Header::control(Kind::Opened, 2, 7), Vec::new()));
            world
        }

        fn closed(&mut self) -> FlowCounts {
            wire::decode(&self.control(Kind::Close, b"").pop().unwrap().1).unwrap()
        }

        /// All that is to be sent now.
        fn sent(&mut self) -> Vec<(Header, Vec<u8>)> {
            let (mut sent, mut buf) = (Vec::new(), Vec::new());
            self.1 += Duration::from_nanos(1);
            self.0.handle_timeout(self.1);
            while let Some(transmit) = self.0.poll_transmit(self.1, &mut buf) {
                assert_eq!((transmit.remote, transmit.bytes), (near(1), buf.len()));
                let messages = buf.chunks(transmit.segment_bytes).map(|payload| Header::parse(payload).unwrap());
                sent.extend(messages.map(|(header, body)| (header, body.to_vec())));
                buf.clear();
            }
            sent
        }
    }

    #[test]
    fn a_report_says_exactly_what_came_and_a_flow_belongs_to_who_opened_it() {
        let mut world = World::opened(&plain());
        let messages: Vec<_> = [0, 1, 3, 2, 3].map(|sequence| payload(Kind::Data, sequence, 100)).to_vec();
        world.receive(near(1), &messages);
        world.receive(near(2), &messages);
        let mut damaged = payload(Kind::Data, 4, 100);
        damaged[60] ^= 1;
        world.receive(near(1), &[damaged]);
        let counts = world.closed();
        let expected = FlowCounts {
            sent_packets: 0,
            received_packets: 5,
            received_bytes: 5 * 128,
            reordered_packets: 1,
            duplicated_packets: 1,
            corrupted_packets: 1,
        };
        assert_eq!((counts, world.closed()), (expected, expected), "asked again");
        world.1 += LINGER;
        assert!(world.sent().is_empty() && world.control(Kind::Close, b"").is_empty(), "forgotten");
        let refused = world.control(Kind::Open, b"{}");
        assert!(refused[0].1.starts_with(b"missing field"));
    }

    #[test]
    fn each_request_is_answered_once_with_its_stamp_and_a_number_of_its_own() {
        let mut world = World::opened(&FlowSpec { answer_bytes: 600, ..plain() });
        world.receive(near(1), &[payload(Kind::Request, 0, 100), payload(Kind::Request, 1, 100)]);
        world.receive(near(1), &[payload(Kind::Request, 1, 100)]);
        let sent = world.sent();
        let answers: Vec<_> =
            sent.iter().map(|(header, body)| (header.sequence, header.stamp_ns, body.len())).collect();
        assert_eq!(answers, [(0, 100, 600 - 52), (1, 101, 600 - 52)]);
        assert!(sent.iter().all(|(header, body)| Pattern::shared().is_intact(header, body)));
        assert_eq!(world.closed().sent_packets, 2);
    }

    #[test]
    fn data_goes_down_at_an_even_rate_until_the_flow_is_closed() {
        let mut world = World::opened(&down(Some(100.0), None));
        let mut sent = 0;
        for _ in 0..200 {
            world.1 += 5 * MS;
            sent += world.sent().len();
        }
        assert!((99..=101).contains(&sent), "{sent}");
        assert_eq!(world.closed().sent_packets, sent as u64);
        world.1 += 500 * MS;
        assert!(world.sent().is_empty());
    }

    #[test]
    fn a_window_waits_for_credit_and_a_swallowed_one_begins_anew() {
        let mut world = World::opened(&down(None, Some(10_000)));
        world.1 += MS;
        let first = world.0.totals().received_messages;
        world.receive(near(1), &[Header::credit(2, 7, 4, 4).to_bytes().to_vec()]);
        assert_eq!((first, world.sent().len()), (1, 4));
        world.1 += STALL_AFTER;
        assert_eq!(world.sent().len(), 10);
    }

    #[test]
    fn a_window_of_the_generator_is_acknowledged_in_number_and_in_time() {
        let mut world = World::opened(&FlowSpec { acknowledge: true, ..plain() });
        world.receive(near(1), &(0..32).map(|sequence| payload(Kind::Data, sequence, 100)).collect::<Vec<_>>());
        assert_eq!(world.sent()[0].0, Header::credit(2, 7, 32, 32));
        world.receive(near(1), &[payload(Kind::Data, 33, 100)]);
        assert!(world.sent().is_empty());
        world.1 += CREDIT_AFTER;
        assert_eq!(world.sent()[0].0, Header::credit(2, 7, 33, 34));
    }
}
