//! The generators of one client's flows: packets out of its tunnel, and into it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tollgate_shards::Tunnel;

use super::CLIENT_FLOWS_MAX;
use super::counts::{GeneratorCounts, GroupCounts};
use super::flow::{Change, Flow, FlowState};
use super::shared::{FlowName, Shared, source_slot};
use super::timers::{fired, on_grid};
use crate::load::flow::packet::{self, Arrival};
use crate::load::flow::wire::{Header, Kind, stamp_ns};

/// A packet that is sent later than this after it was due counts as late.
const LATE_AFTER: Duration = Duration::from_millis(1);
/// The port of a client's first flow.
const PORT_FIRST: u16 = 20_000;

/// The flows of one client's connection, all of one group.
pub struct Flows {
    client: u32,
    /// Whose meter counts them.
    meter: u32,
    /// Their numbers follow each other.
    flows: Vec<Flow>,
    /// Flows that may send now, each at most once.
    ready: VecDeque<u8>,
    /// Whether a flow that opens now is to be closed at once.
    is_closing: bool,
}

impl Flows {
    pub fn new(client: u32, meter: u32) -> Flows {
        Flows { client, meter, flows: Vec::new(), ready: VecDeque::new(), is_closing: false }
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Whether the responder owes no answer.
    pub fn is_settled(&self) -> bool {
        self.flows.iter().all(|flow| flow.question.is_none())
    }

    /// Opens all flows of a connection whose client has the address `inner`. Those that it had before, closed ones, end.
    pub fn open(&mut self, group: u8, inner: Ipv4Addr, shared: &mut Shared) {
        self.end(shared);
        self.is_closing = false;
        let flows = shared.groups[usize::from(group)].flows.min(CLIENT_FLOWS_MAX);
        let first = shared.flow_numbers(flows);
        for index in 0..flows {
            let number = first + index as u32;
            let near = SocketAddrV4::new(inner, PORT_FIRST + index as u16);
            self.flows.push(Flow::new(number, group, near, shared.responder(number)));
            self.ask(index, Kind::Open, shared);
        }
    }

    /// Stops all flows, and asks the responder to do so.
    pub fn close(&mut self, shared: &mut Shared) {
        self.is_closing = true;
        for index in 0..self.flows.len() {
            let flow = &mut self.flows[index];
            flow.stop();
            // One that is still to be opened is closed as soon as it is.
            if flow.state == FlowState::Open {
                self.ask(index, Kind::Close, shared);
            }
        }
    }

    /// Asks for the counts of all flows once more.
    pub fn ask_reports(&mut self, shared: &mut Shared) {
        for index in 0..self.flows.len() {
            if matches!(self.flows[index].state, FlowState::Open | FlowState::Closed) {
                self.ask(index, Kind::Close, shared);
            }
        }
    }

    /// Ends all flows, as their connection does.
    pub fn end(&mut self, shared: &mut Shared) {
        for mut flow in self.flows.drain(..) {
            answered(&mut flow, shared);
            // One that is open has not said what it counted.
            let is_open = u64::from(flow.state == FlowState::Open);
            shared.counts.reports_missing += is_open;
            flow.add_to(&mut shared.groups[usize::from(flow.group)].gone);
        }
        self.ready.clear();
    }

    /// What the flows there are have counted.
    pub fn add_to(&self, groups: &mut [GroupCounts]) {
        self.flows.iter().for_each(|flow| flow.add_to(&mut groups[usize::from(flow.group)]));
    }

    /// The time of a flow's source has come.
    pub fn handle_source(&mut self, now: Instant, index: usize) {
        if let Some(flow) = self.flows.get_mut(index) {
            fired(&mut flow.armed, now);
            self.make_ready(index);
        }
    }

    /// Puts the question that flow `number` waits to ask to the responder, for the first time or again. Returns whether there is one.
    pub fn send_question(
        &mut self,
        now: Instant,
        number: u32,
        is_first: bool,
        tunnel: &mut Tunnel,
        shared: &mut Shared,
    ) -> bool {
        let Some(index) = self.index(number) else { return false };
        let flow = &mut self.flows[index];
        let Some(kind) = flow.question.filter(|_| !(is_first && flow.has_turn)) else { return false };
        // Who gets no answer leaves its turn to others.
        shared.asking = if is_first { shared.asking + 1 } else { shared.asking - usize::from(flow.has_turn) };
        flow.has_turn = is_first;
        let group = &shared.groups[usize::from(flow.group)];
        let body: &[u8] = if kind == Kind::Open { &group.open_body } else { &[] };
        let packet = flow.path.control(&mut shared.arena, &Header::control(kind, flow.group, number), body);
        send(tunnel, packet, &mut shared.counts);
        shared.timers.questions.push(now, FlowName { client: self.client, flow: number });
        true
    }

    /// The time of an acknowledgement has come.
    pub fn handle_credit_timer(&mut self, now: Instant, number: u32, tunnel: &mut Tunnel, shared: &mut Shared) {
        if let Some(index) = self.index(number) {
            self.flows[index].credit_timer_fired();
            self.acknowledge(now, index, tunnel, shared);
        }
    }

    /// Takes an inner packet.
    #[inline]
    pub fn take(&mut self, now: Instant, packet: &[u8], tunnel: &mut Tunnel, shared: &mut Shared) {
        let Some(arrival) = packet::parse(packet, shared.pattern) else {
            return;
        };
        shared.counts.received_packets += 1;
        shared.counts.received_bytes += packet.len() as u64;
        let Arrival { destination_port, header, body, is_intact } = arrival;
        let index = self.index(header.flow);
        let Some(index) = index.filter(|index| destination_port == PORT_FIRST + *index as u16) else {
            return;
        };
        let flow = &mut self.flows[index];
        match header.kind {
            Kind::Data | Kind::Answer => {
                shared.meters.add(now, self.meter, 0, packet.len() as u64);
                let is_new = flow.take(now, header.sequence, packet.len(), is_intact);
                if header.kind == Kind::Data {
                    self.acknowledge(now, index, tunnel, shared);
                } else if is_new {
                    let round_trips = &mut shared.groups[usize::from(flow.group)].gone.round_trips;
                    let took_ns = stamp_ns(shared.origin, now).saturating_sub(header.stamp_ns);
                    round_trips.get_or_insert_default().record(took_ns);
                }
            }
            _ if !is_intact => {}
            Kind::Credit => {
                let group = &shared.groups[usize::from(flow.group)];
                let (bytes, may_send) = flow.handle_credit(now, &header, group);
                shared.meters.add(now, self.meter, bytes, 0);
                if may_send {
                    self.make_ready(index);
                }
            }
            _ => self.handle_answer(now, index, &header, body, shared),
        }
    }

    /// Gives each flow that may send its turn.
    pub fn generate(&mut self, now: Instant, tunnel: &mut Tunnel, shared: &mut Shared) {
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { return };
            let flow = &mut self.flows[usize::from(index)];
            let has_room = generate(now, flow, tunnel, shared);
            let at = flow.source.as_ref().and_then(|source| source.next_at());
            flow.is_ready = !has_room || at.is_some_and(|at| at <= now);
            if flow.is_ready {
                self.ready.push_back(index);
            } else if let Some(at) = at {
                let is_on_grid = shared.groups[usize::from(flow.group)].is_on_grid;
                let at = if is_on_grid { on_grid(shared.origin, at) } else { at };
                let slot = source_slot(self.client, usize::from(index));
                shared.timers.sources.arm(slot, &mut flow.armed, at);
            }
        }
    }

    /// Whether a flow can send more in the next pass. Without room in the tunnel none can: an acknowledgement, or a timer of the tunnel,
    /// makes some and brings the client back.
    pub fn has_more(&self, tunnel: &mut Tunnel, shared: &Shared) -> bool {
        let Some(flow) = self.ready.front().map(|index| &self.flows[usize::from(*index)]) else { return false };
        let longest = flow.source.as_ref().map_or(0, |source| usize::from(source.longest()));
        !shared.groups[usize::from(flow.group)].is_windowed || tunnel.send_room_bytes() >= longest
    }

    fn make_ready(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        if !flow.is_ready {
            flow.is_ready = true;
            self.ready.push_back(index as u8);
        }
    }

    /// Puts a question to the responder, as soon as it is its turn.
    fn ask(&mut self, index: usize, kind: Kind, shared: &mut Shared) {
        let flow = &mut self.flows[index];
        if flow.question.is_none() {
            flow.question = Some(kind);
            shared.counts.questions_pending += 1;
            shared.to_ask.push_back(FlowName { client: self.client, flow: flow.number });
        }
    }

    #[inline]
    fn index(&self, number: u32) -> Option<usize> {
        let index = number.checked_sub(self.flows.first()?.number)? as usize;
        (index < self.flows.len()).then_some(index)
    }

    fn handle_answer(&mut self, now: Instant, index: usize, header: &Header, body: &[u8], shared: &mut Shared) {
        let flow = &mut self.flows[index];
        if flow.is_answered_by(header.kind) {
            answered(flow, shared);
        }
        match flow.handle_answer(header, body) {
            Change::None => {}
            Change::Opened => {
                let group = &mut shared.groups[usize::from(flow.group)];
                if self.is_closing {
                    self.ask(index, Kind::Close, shared);
                } else {
                    flow.start(now, group);
                    self.make_ready(index);
                }
            }
            Change::Refused(why) => {
                shared.counts.flows_refused += 1;
                shared.note(&format!("flow refused: {why}"));
            }
            Change::Closed => {}
        }
    }

    /// Tells the responder what has come of its data, now or when it is time.
    #[inline]
    fn acknowledge(&mut self, now: Instant, index: usize, tunnel: &mut Tunnel, shared: &mut Shared) {
        let flow = &mut self.flows[index];
        let (credit, wants_timer) = flow.acknowledge(now, &shared.groups[usize::from(flow.group)]);
        if let Some(credit) = credit {
            let header = Header::credit(flow.group, flow.number, credit.received, credit.highest_plus_1);
            send(tunnel, flow.path.control(&mut shared.arena, &header, &[]), &mut shared.counts);
        } else if wants_timer {
            shared.timers.credits.push(now, FlowName { client: self.client, flow: flow.number });
        }
    }
}

/// Sends what a flow's source gives. Returns whether there was room for all of it.
#[inline]
fn generate(now: Instant, flow: &mut Flow, tunnel: &mut Tunnel, shared: &mut Shared) -> bool {
    let Some(source) = &mut flow.source else { return true };
    let group = &shared.groups[usize::from(flow.group)];
    let longest = usize::from(source.longest());
    loop {
        // Scheduled traffic does not wait: what finds no room is dropped by the tunnel, and counted there.
        if group.is_windowed && tunnel.send_room_bytes() < longest {
            return source.is_stopped();
        }
        let Some(next) = source.poll(now) else { return true };
        let header = Header {
            kind: group.kind,
            group: flow.group,
            flow: flow.number,
            sequence: next.sequence,
            stamp_ns: stamp_ns(shared.origin, next.due),
        };
        if group.is_scheduled {
            let lateness = now.saturating_duration_since(next.due);
            shared.counts.scheduled_packets += 1;
            shared.counts.late_packets += u64::from(lateness > LATE_AFTER);
        }
        let packet = flow.path.payload(&mut shared.arena, &header, next.inner_bytes, shared.pattern);
        send(tunnel, packet, &mut shared.counts);
    }
}

/// The question of a flow is answered, or will never be.
fn answered(flow: &mut Flow, shared: &mut Shared) {
    if flow.question.take().is_some() {
        shared.counts.questions_pending -= 1;
    }
    if std::mem::take(&mut flow.has_turn) {
        shared.asking -= 1;
    }
}

#[inline]
fn send(tunnel: &mut Tunnel, packet: Bytes, counts: &mut GeneratorCounts) {
    counts.sent_packets += 1;
    tunnel.send(packet);
}
