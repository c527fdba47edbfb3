//! What the far end does, without the sockets: takes datagrams, and says which to send and when.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use tollgate_shards::{Received, TimerQueue, Transmit, WakeReason};

use super::super::pattern::Pattern;
use super::super::source::{Next, TRAIN_PACKETS_MAX};
use super::super::wire::{self, FlowSpec, Header, Kind, stamp_ns};
use super::flows::{Flow, Flows, Peer};
use super::totals::FarTotals;
use super::{LATE_AFTER, LINGER, REPLIES_MAX};

/// The most bytes of a run: what the kernel takes in one piece, with room to spare.
const RUN_BYTES_MAX: usize = 64_000;
/// The most datagrams of a run.
const RUN_DATAGRAMS_MAX: usize = TRAIN_PACKETS_MAX as usize;
/// Room for replies that there must be before more is received.
const REPLIES_ROOM: usize = 4096;

/// What is owed to a near end.
#[derive(Debug)]
enum Reply {
    /// To a request of `flow`, if it is still the one in `slot`.
    Answer { slot: u32, flow: u32, stamp_ns: u64, payload_bytes: usize },
    /// Any other message, complete.
    Control { peer: Peer, header: Header, body: Vec<u8> },
}

/// The far end of the flows of one socket: a state machine without input or output.
///
/// A pass is: any number of [`Service::handle`], one [`Service::handle_timeout`], then [`Service::poll_transmit`] until `None` or until the
/// socket is full. All of a pass have the same `now`, and the next one has another.
pub(super) struct Service {
    pattern: &'static Pattern,
    /// Stamps count from here.
    origin: Instant,
    flows: Flows,
    /// Oldest first.
    replies: VecDeque<Reply>,
    /// Slots of flows that may send now, each at most once.
    ready: VecDeque<u32>,
    /// When sources are to be asked.
    sources: TimerQueue,
    /// When flows are to be stopped or removed.
    expiries: TimerQueue,
    /// When credits are due at the latest, in that order, since all wait equally long. Each flow is here at most once.
    credits: VecDeque<(Instant, u32)>,
    totals: FarTotals,
}

impl Service {
    /// Nothing yet, and never more than `flows_max` flows.
    pub fn new(now: Instant, flows_max: usize) -> Service {
        Service {
            pattern: Pattern::shared(),
            origin: now,
            flows: Flows::new(flows_max),
            replies: VecDeque::new(),
            ready: VecDeque::new(),
            sources: TimerQueue::default(),
            expiries: TimerQueue::default(),
            credits: VecDeque::new(),
            totals: FarTotals::default(),
        }
    }

    /// What was counted so far; what only the socket knows is 0.
    pub fn totals(&self) -> FarTotals {
        FarTotals { flows: self.flows.len() as u64, ..self.totals }
    }

    /// Whether there is room for the answers to what would be received.
    pub fn has_room(&self) -> bool {
        self.replies.len() + REPLIES_ROOM <= REPLIES_MAX
    }

    /// Takes what one receive brought. `local_ip` is where answers are to come from.
    pub fn handle(&mut self, now: Instant, received: &Received, local_ip: Option<IpAddr>) {
        let peer = Peer { remote: received.remote, local_ip };
        let overhead_bytes = peer.overhead_bytes() as u64;
        // The datagrams of an aggregate are mostly of one flow.
        let mut found: Option<(u32, u32)> = None;
        for payload in received.data.chunks(received.segment_bytes) {
            let Some((header, body)) = Header::parse(payload) else {
                self.totals.foreign += 1;
                continue;
            };
            self.totals.received_messages += 1;
            self.totals.received_bytes += payload.len() as u64 + overhead_bytes;
            if header.kind == Kind::Open {
                found = None;
                self.open(now, peer, &header, body);
                continue;
            }
            let slot = match found {
                Some((flow, slot)) if flow == header.flow => Some(slot),
                _ => self.flows.find(&peer, header.flow),
            };
            found = slot.map(|slot| (header.flow, slot));
            match (slot, header.kind) {
                (Some(slot), Kind::Data | Kind::Request) => self.take(now, slot, &header, payload.len(), body),
                (Some(slot), Kind::Credit) => self.credit(now, slot, &header),
                (Some(slot), Kind::Close) => self.close(now, slot),
                _ => self.totals.unclaimed += 1,
            }
        }
    }

    /// Takes note that `now` has come: finds what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.sources.pop_due(now) {
            if let Some(flow) = self.flows.at(slot) {
                flow.armed.fired();
                self.schedule(now, slot);
            }
        }
        while let Some(&(at, slot)) = self.credits.front()
            && at <= now
        {
            self.credits.pop_front();
            if let Some(flow) = self.flows.at(slot) {
                flow.is_credit_timed = false;
                self.acknowledge(now, slot);
            }
        }
        while let Some(slot) = self.expiries.pop_due(now) {
            self.expire(now, slot);
        }
    }

    /// When to call [`Service::handle_timeout`] again if nothing is received. A time that has passed means at once.
    pub fn next_at(&self, now: Instant) -> Option<Instant> {
        if !self.replies.is_empty() || !self.ready.is_empty() {
            return Some(now);
        }
        let deadlines = [self.sources.next(), self.credits.front().copied(), self.expiries.next()];
        deadlines.into_iter().flatten().map(|(at, _)| at).min()
    }

    /// The next run of datagrams: one flow's, all equally long but for the last.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.poll_reply(buf).or_else(|| self.poll_data(now, buf))
    }

    /// Data or a request came.
    fn take(&mut self, now: Instant, slot: u32, header: &Header, payload_bytes: usize, body: &[u8]) {
        let Some(flow) = self.flows.at(slot) else { return };
        let inner_bytes = payload_bytes + flow.peer.overhead_bytes();
        let is_new = flow.sink.take(now, header.sequence, inner_bytes, self.pattern.is_intact(header, body));
        if header.kind == Kind::Request && is_new {
            let payload_bytes = flow.answer_payload_bytes(payload_bytes);
            self.owe(Reply::Answer { slot, flow: header.flow, stamp_ns: header.stamp_ns, payload_bytes });
        }
        self.acknowledge(now, slot);
    }

    /// Lets the sender of a window know what came, now or when it is time.
    fn acknowledge(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.at(slot).filter(|flow| flow.acknowledge) else { return };
        if let Some(credit) = flow.sink.credit_due(now) {
            let header = Header::credit(flow.group, flow.flow, credit.received, credit.highest_plus_1);
            let peer = flow.peer;
            self.owe(Reply::Control { peer, header, body: Vec::new() });
        } else if let Some(at) = flow.sink.credit_at().filter(|_| !flow.is_credit_timed) {
            flow.is_credit_timed = true;
            self.credits.push_back((at, slot));
        }
    }

    /// The near end says what it has received.
    fn credit(&mut self, now: Instant, slot: u32, header: &Header) {
        let Some(flow) = self.flows.at(slot) else { return };
        if flow.source.as_mut().is_some_and(|source| source.handle_credit(now, header.stamp_ns)) {
            self.schedule(now, slot);
        }
    }

    fn open(&mut self, now: Instant, peer: Peer, header: &Header, body: &[u8]) {
        let opened = wire::decode::<FlowSpec>(body).map_err(|error| error.to_string()).and_then(|spec| {
            self.flows.open(now, peer, header.flow, header.group, &spec).map_err(|why| why.to_string())
        });
        let why_not = match opened {
            Ok((slot, true)) => {
                self.totals.flows_opened += 1;
                self.arm_expiry(slot);
                self.schedule(now, slot);
                String::new()
            }
            Ok((_, false)) => String::new(),
            Err(mut why) => {
                self.totals.flows_refused += 1;
                why.retain(|letter| letter.is_ascii());
                why.truncate(wire::BODY_BYTES_MAX);
                why
            }
        };
        let header = Header::control(Kind::Opened, header.group, header.flow);
        self.owe(Reply::Control { peer, header, body: why_not.into_bytes() });
    }

    fn close(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.at(slot) else { return };
        flow.source.iter_mut().for_each(|source| source.stop());
        flow.is_closed = true;
        flow.remove_at = now + LINGER;
        let header = Header::control(Kind::Report, flow.group, flow.flow);
        let (peer, body) = (flow.peer, wire::encode(&flow.counts()));
        self.arm_expiry(slot);
        self.owe(Reply::Control { peer, header, body });
    }

    /// The time has come to stop the flow in `slot`, to remove it, or to look again later.
    fn expire(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.at(slot) else { return };
        flow.expiry.fired();
        if now >= flow.stop_at {
            flow.source.iter_mut().for_each(|source| source.stop());
        }
        if now < flow.remove_at {
            self.arm_expiry(slot);
            return;
        }
        self.totals.flows_expired += u64::from(!flow.is_closed);
        self.sources.disarm(slot, &mut flow.armed);
        self.flows.remove(slot);
    }

    fn arm_expiry(&mut self, slot: u32) {
        let Some(flow) = self.flows.at(slot) else { return };
        let is_sending = flow.source.as_ref().is_some_and(|source| !source.is_stopped());
        let at = if is_sending { flow.stop_at.min(flow.remove_at) } else { flow.remove_at };
        self.expiries.arm(slot, &mut flow.expiry, at, ANY_REASON);
    }

    /// Gives the flow in `slot` its turn, now or when its source wants it.
    fn schedule(&mut self, now: Instant, slot: u32) {
        let Some(flow) = self.flows.at(slot).filter(|flow| !flow.is_ready) else { return };
        let Some(source) = &mut flow.source else { return };
        let may_send = source.peek(now).is_some();
        self.totals.stalls += source.stalls() - flow.stalls_counted;
        flow.stalls_counted = source.stalls();
        if may_send {
            flow.is_ready = true;
            self.ready.push_back(slot);
        } else if let Some(at) = source.next_at() {
            self.sources.arm(slot, &mut flow.armed, at, ANY_REASON);
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
                    return Some(run(&peer, buf, buf.len()));
                }
                Reply::Answer { slot, flow: number, stamp_ns, payload_bytes } => {
                    let Some(flow) = self.flows.at(slot).filter(|flow| flow.flow == number) else { continue };
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
                    return Some(run(&flow.peer, buf, payload_bytes));
                }
            }
        }
    }

    fn poll_data(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(slot) = self.ready.pop_front() {
            let Some(flow) = self.flows.at(slot) else { continue };
            flow.is_ready = false;
            let segment_bytes = write_data(self.pattern, self.origin, now, flow, buf, &mut self.totals);
            let transmit = segment_bytes.map(|segment_bytes| run(&flow.peer, buf, segment_bytes));
            self.schedule(now, slot);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }
}

/// TimerQueue want a reason, which is never looked at here.
const ANY_REASON: WakeReason = WakeReason::Connection;

/// Writes as many packets of the flow's source as go in one run, and returns the length of the first in bytes; `None` for none.
fn write_data(
    pattern: &Pattern,
    origin: Instant,
    now: Instant,
    flow: &mut Flow,
    buf: &mut Vec<u8>,
    totals: &mut FarTotals,
) -> Option<usize> {
    let (peer, group, number) = (flow.peer, flow.group, flow.flow);
    let source = flow.source.as_mut()?;
    let datagrams_max = usize::from(source.train_packets());
    let (mut segment_bytes, mut datagrams) = (None, 0);
    while let Some(Next { inner_bytes, .. }) = source.peek(now) {
        let payload_bytes = peer.payload_bytes(inner_bytes);
        let first_bytes = *segment_bytes.get_or_insert(payload_bytes);
        if datagrams > 0 && (payload_bytes > first_bytes || buf.len() + payload_bytes > RUN_BYTES_MAX) {
            break;
        }
        let Some(Next { sequence, due, .. }) = source.poll(now) else { break };
        let header = Header { kind: Kind::Data, group, flow: number, sequence, stamp_ns: stamp_ns(origin, due) };
        write_payload(pattern, &header, payload_bytes, buf);
        datagrams += 1;
        let lateness = now.saturating_duration_since(due);
        totals.late_packets += u64::from(lateness > LATE_AFTER);
        totals.lateness_max_ns = totals.lateness_max_ns.max(lateness.as_nanos() as u64);
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
    buf.extend_from_slice(pattern.window(header, payload_bytes - wire::HEADER_BYTES));
}

fn run(peer: &Peer, buf: &[u8], segment_bytes: usize) -> Transmit {
    Transmit { remote: peer.remote, local_ip: peer.local_ip, ecn: None, bytes: buf.len(), segment_bytes }
}

#[cfg(test)]
mod tests;
