//! One client of a generator, from one connection to the next, and its ends of its flows: packets out of its tunnel, and into it.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use tollgate_shards::{ClientEvent, CloseCause, Received, Transmit, Tunnel, TunnelParams};

use super::flow::{End, Outgoing, TRAIN_PACKETS_MAX};
use super::generator::{ClientPlan, Context};
use super::message::{self, INNER_BYTES_MIN, Kind, Path, stamp_ns};
use super::report::{self, GeneratorCounts};
use super::responder::{FarOrder, Opening};

/// How often a handshake is tried before it counts as failed for good, and how long one may take.
const ATTEMPTS_MAX: u8 = 4;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is closed on purpose when nothing was heard for this long after its flows' end, or after the longer time: what is in flight
/// would be lost.
const FAREWELL: Duration = Duration::from_millis(50);
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// A closed connection is forgotten, although what is left of it (RFC 9000, section 10.2) has not died away.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(3);
/// A packet that is sent later than this after it was due counts as late.
const LATE_AFTER: Duration = Duration::from_millis(1);
/// The port of a client's first flow.
const PORT_FIRST: u16 = 20_000;

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody wants it yet, or any more.
    Out,
    /// It waits for its turn to connect.
    Waiting,
    /// In a handshake.
    Connecting,
    /// It has an address.
    Open,
    /// It has an address, and is about to close.
    Leaving,
    /// Its connection is over, and what is left of it dies away before the next.
    Again,
    /// The same for good.
    Closing,
    /// It never came up, and is not tried any more.
    Failed,
}

pub struct Client {
    slot: u32,
    user: u32,
    group: Option<u8>,
    tls: Arc<dyn CryptoConfig>,
    pub state: State,
    tunnel: Option<Box<Tunnel>>,
    /// Its inner address, once it has one.
    inner: Ipv4Addr,
    /// Whether it was ever to connect.
    pub is_begun: bool,
    /// Attempts that failed in a row.
    failed: u8,
    /// Their numbers follow each other.
    flows: Vec<Flow>,
    /// The flow that is first to send in this pass.
    turn: usize,
    /// When its state is over.
    deadline: Option<Instant>,
    armed: Option<Instant>,
    is_touched: bool,
    heard_at: Instant,
    leaving_since: Instant,
}

struct Flow {
    end: End,
    path: Path,
}

impl Client {
    pub fn new(slot: u32, plan: &ClientPlan, now: Instant) -> Client {
        Client {
            slot,
            user: plan.user,
            group: plan.group,
            tls: Arc::clone(&plan.tls),
            state: State::Out,
            tunnel: None,
            inner: Ipv4Addr::UNSPECIFIED,
            is_begun: false,
            failed: 0,
            flows: Vec::new(),
            turn: 0,
            deadline: None,
            armed: None,
            is_touched: false,
            heard_at: now,
            leaving_since: now,
        }
    }

    /// Sees to it that the client is looked at in this pass.
    #[inline]
    fn touch(&mut self, touched: &mut Vec<u32>) {
        if !self.is_touched {
            self.is_touched = true;
            touched.push(self.slot);
        }
    }

    pub fn connect(&mut self, context: &mut Context) -> Result<()> {
        let params = TunnelParams {
            remote: context.remote,
            server_name: context.remote.ip().to_string(),
            transport: Arc::clone(&context.transport),
            send_datagrams_max: usize::from(TRAIN_PACKETS_MAX),
            seed: context.chance.seed(),
        };
        let tunnel = Tunnel::new(params, Arc::clone(&self.tls), Arc::clone(&context.reset_key), context.now)
            .with_context(|| format!("cannot connect to {}", context.remote))?;
        self.tunnel = Some(Box::new(tunnel));
        self.set_state(State::Connecting, Some(HANDSHAKE_TIMEOUT), context);
        self.touch(&mut context.touched);
        Ok(())
    }

    /// Takes what the client's socket received. Returns whether there is a connection for it.
    #[inline]
    pub fn handle_udp(&mut self, now: Instant, received: Received, touched: &mut Vec<u32>) -> bool {
        let Some(tunnel) = &mut self.tunnel else { return false };
        tunnel.handle_udp(now, received);
        self.heard_at = now;
        self.touch(touched);
        true
    }

    /// The time has come that the client had armed.
    pub fn handle_timeout(&mut self, context: &mut Context) {
        let now = context.now;
        self.armed = self.armed.filter(|at| *at > now);
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.handle_timeout(now);
        self.touch(&mut context.touched);
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        match self.state {
            State::Connecting => {
                let seconds = HANDSHAKE_TIMEOUT.as_secs();
                self.fail(&format!("the gateway assigned no address within {seconds} s"), context);
                self.close(context);
            }
            State::Leaving => {
                let since = |at| now.saturating_duration_since(at);
                if since(self.heard_at) >= FAREWELL || since(self.leaving_since) >= FAREWELL_MAX {
                    self.close(context);
                } else {
                    self.deadline = Some(now + FAREWELL);
                }
            }
            State::Again | State::Closing => self.end(context),
            State::Out | State::Waiting | State::Open | State::Failed => {}
        }
    }

    /// Looks at everything that has happened to the client, and queues in its tunnel what it has to send.
    pub fn look(&mut self, context: &mut Context) {
        self.is_touched = false;
        let Some(mut tunnel) = self.tunnel.take() else { return };
        while let Some(event) = tunnel.poll_event() {
            self.handle_event(event, &mut tunnel, context);
        }
        while let Some(packet) = tunnel.poll_packet() {
            self.take(&packet, context);
        }
        for index in 0..self.flows.len() {
            let index = (index + self.turn) % self.flows.len();
            self.flows[index].send(self.group, &mut tunnel, context);
        }
        self.turn += 1;
        self.tunnel = Some(tunnel);
    }

    #[inline]
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.tunnel.as_mut()?.poll_transmit(now, buf)
    }

    /// After everything was sent: ends a connection that is over, and sees to it that the client is looked at when it is to be.
    pub fn conclude(&mut self, context: &mut Context) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if tunnel.is_drained() {
            return self.end(context);
        }
        let room = room(self.group, tunnel, context);
        let flows = self.flows.iter().filter_map(|flow| flow.end.next_at(context.now, room)).min();
        if flows.is_some_and(|at| at <= context.now) {
            return self.touch(&mut context.again);
        }
        let times = [flows, tunnel.poll_timeout().map(|(at, _)| at), self.deadline];
        if let Some(at) = times.into_iter().flatten().min() {
            context.timers.arm(self.slot, &mut self.armed, at);
        }
    }

    /// Opens the client's flows, if it is up and has any.
    pub fn open_flows(&mut self, context: &mut Context) {
        let (State::Open, Some(group)) = (self.state, self.group) else { return };
        let plan = Arc::clone(&context.groups[usize::from(group)].plan);
        let first = context.flow_numbers(plan.flows.into());
        for index in 0..plan.flows {
            let number = first + u32::from(index);
            let peer = SocketAddrV4::new(self.inner, PORT_FIRST + index);
            let (address, responder) = &context.responders[self.user as usize % context.responders.len()];
            let opening = Opening { number, group, user: self.user, peer, plan: Arc::clone(&plan.far) };
            responder.send(FarOrder::Open(opening));
            let end = End::new(number, plan.send.as_ref(), plan.gives_credit, context.now);
            self.flows.push(Flow { end, path: Path::new(peer, *address) });
        }
        self.touch(&mut context.touched);
    }

    /// Ends what the client sends of its own accord.
    pub fn stop(&mut self) {
        self.flows.iter_mut().for_each(|flow| flow.end.stop());
    }

    /// Ends a connection, after its flows if it has any, so that the next one is made.
    pub fn leave(&mut self, context: &mut Context) {
        if self.flows.is_empty() {
            return self.close(context);
        }
        self.stop();
        self.close_far_ends(context);
        self.leaving_since = context.now;
        self.set_state(State::Leaving, Some(FAREWELL), context);
        self.touch(&mut context.touched);
    }

    pub fn close(&mut self, context: &mut Context) {
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.close(context.now);
        context.counts.closed += u64::from(matches!(self.state, State::Open | State::Leaving));
        self.end_flows(context);
        self.begin_closing(context);
        self.touch(&mut context.touched);
    }

    /// Moves the client on, for so long, and keeps the counts of how many are how far.
    pub fn set_state(&mut self, state: State, timeout: Option<Duration>, context: &mut Context) {
        *count(self.state, &mut context.counts) -= 1;
        *count(state, &mut context.counts) += 1;
        self.state = state;
        self.deadline = timeout.map(|timeout| context.now + timeout);
    }

    /// Adds what the connection and the flows there are have counted.
    pub fn add_to(&mut self, context: &mut Context) {
        self.end_flows(context);
        if let Some(tunnel) = self.tunnel.take() {
            report::add(&mut context.tunnels, &tunnel.counters());
        }
    }

    fn handle_event(&mut self, event: ClientEvent, tunnel: &mut Tunnel, context: &mut Context) {
        match (event, self.state) {
            (ClientEvent::Assigned(assignment), State::Connecting) => {
                let IpAddr::V4(address) = assignment.client_address.addr() else {
                    self.failed = ATTEMPTS_MAX;
                    self.fail("the gateway assigned an IPv6 address, but inner traffic is IPv4 here", context);
                    tunnel.close(context.now);
                    return self.begin_closing(context);
                };
                (self.inner, self.failed) = (address, 0);
                context.counts.handshakes += 1;
                self.set_state(State::Open, None, context);
                if context.is_traffic {
                    self.open_flows(context);
                }
            }
            (ClientEvent::Closed(cause), State::Connecting) => {
                self.fail(&cause.to_string(), context);
                self.begin_closing(context);
            }
            (ClientEvent::Closed(cause), State::Open | State::Leaving) if cause != CloseCause::Local => {
                context.counts.lost += 1;
                context.note(&format!("connection lost: {cause}"));
                self.end_flows(context);
                self.set_state(State::Closing, Some(CLOSING_TIMEOUT), context);
            }
            _ => {}
        }
    }

    #[inline]
    fn take(&mut self, packet: &[u8], context: &mut Context) {
        let Some(arrival) = message::parse(packet) else { return };
        let (now, header) = (context.now, arrival.header);
        context.counts.received_packets += 1;
        context.counts.received_bytes += packet.len() as u64;
        let Some(first) = self.flows.first().map(|flow| flow.end.number) else { return };
        let index = header.flow.wrapping_sub(first) as usize;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if usize::from(arrival.destination_port) != usize::from(PORT_FIRST) + index {
            return;
        }
        let is_new = flow.end.take(now, &header, packet.len() as u16, arrival.is_intact, None);
        if let Some(meters) = &mut context.meters {
            meters.add(now, self.user, packet.len() as u64);
        }
        if let (Kind::Answer, true, Some(group)) = (header.kind, is_new, self.group) {
            let took_ns = stamp_ns(context.origin, now).saturating_sub(header.stamp_ns);
            context.groups[usize::from(group)].round_trips.get_or_insert_default().record(took_ns);
        }
    }

    fn fail(&mut self, reason: &str, context: &mut Context) {
        self.failed += 1;
        context.counts.failed_handshakes += 1;
        context.note(reason);
    }

    /// The connection is over; what is left of it has to die away.
    fn begin_closing(&mut self, context: &mut Context) {
        let state = if context.is_ending || self.failed >= ATTEMPTS_MAX { State::Closing } else { State::Again };
        self.set_state(state, Some(CLOSING_TIMEOUT), context);
    }

    /// The connection is over and everything said.
    fn end(&mut self, context: &mut Context) {
        self.add_to(context);
        let next = match self.state {
            _ if context.is_ending => State::Out,
            State::Again => State::Waiting,
            _ if self.failed >= ATTEMPTS_MAX => State::Failed,
            _ => State::Out,
        };
        self.set_state(next, None, context);
        if next == State::Waiting {
            context.waiting.push_back(self.slot);
        }
    }

    fn close_far_ends(&self, context: &Context) {
        for flow in &self.flows {
            let (_, responder) = &context.responders[self.user as usize % context.responders.len()];
            responder.send(FarOrder::Close(flow.end.number));
        }
    }

    fn end_flows(&mut self, context: &mut Context) {
        let Some(group) = self.group else { return };
        self.close_far_ends(context);
        for flow in self.flows.drain(..) {
            context.groups[usize::from(group)].counts += flow.end.counts();
        }
    }
}

impl Flow {
    /// Sends what is due, as far as there is room for it.
    #[inline]
    fn send(&mut self, group: Option<u8>, tunnel: &mut Tunnel, context: &mut Context) {
        loop {
            let room = room(group, tunnel, context);
            let Some(Outgoing { header, inner_bytes, due }) = self.end.poll(context.now, context.origin, room) else {
                return;
            };
            if let Some(due) = due {
                let lateness = context.now.saturating_duration_since(due);
                context.counts.scheduled_packets += 1;
                context.counts.late_packets += u64::from(lateness > LATE_AFTER);
            }
            context.counts.sent_packets += 1;
            tunnel.send(self.path.packet(&mut context.arena, &header, inner_bytes.max(INNER_BYTES_MIN)));
        }
    }
}

/// The longest packet that the flows of `group` may send now. Those with a window wait for room in the tunnel: an acknowledgement, or a timer
/// of the tunnel, makes some and brings the client back. Scheduled traffic does not wait: what finds no room is dropped by the tunnel, and
/// counted there.
fn room(group: Option<u8>, tunnel: &mut Tunnel, context: &Context) -> u16 {
    match group {
        Some(group) if context.groups[usize::from(group)].plan.is_windowed() => {
            tunnel.send_room_bytes().min(u16::MAX.into()) as u16
        }
        _ => u16::MAX,
    }
}

/// The count of clients in `state`.
fn count(state: State, counts: &mut GeneratorCounts) -> &mut u64 {
    match state {
        State::Out => &mut counts.out,
        State::Waiting => &mut counts.waiting,
        State::Connecting => &mut counts.handshaking,
        State::Open => &mut counts.open,
        State::Leaving => &mut counts.leaving,
        State::Again => &mut counts.again,
        State::Closing => &mut counts.closing,
        State::Failed => &mut counts.failed,
    }
}
