//! One client of a generator, from one connection to the next, and both ends of its flows: the near ones in its tunnel, and the far ones at the
//! responder's socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tollgate_shards::{ClientEvent, CloseCause, Received, Transmit, Tunnel, TunnelParams};

use super::context::Context;
use super::flow::{End, Outgoing, TRAIN_PACKETS_MAX};
use super::generator::ClientPlan;
use super::logins::Login;
use super::message::{self, HEADER_BYTES, Header, INNER_BYTES_MIN, Kind, OVERHEAD_BYTES, Path, stamp_ns};
use super::report::{self, Counts};
use super::timers::{Agenda, Entry};

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
/// How long the far ends wait when nothing is due and nothing arrives: what falls due meanwhile goes together.
const FAR_SLEEP_MIN: Duration = Duration::from_micros(200);
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
    login: Login,
    pub state: State,
    tunnel: Option<Box<Tunnel>>,
    /// Its inner address, once it has one.
    inner: Ipv4Addr,
    /// Attempts that failed in a row.
    failed: u8,
    /// Their numbers follow each other. They count what arrives until what is left of their connection has died away.
    flows: Vec<Flow>,
    /// The flow that is first to send in this pass.
    turn: usize,
    /// When its state is over.
    deadline: Option<Instant>,
    near: Entry,
    far: Entry,
    /// When anything arrived, at either end.
    heard_at: Instant,
    leaving_since: Instant,
}

struct Flow {
    near: End,
    far: End,
    path: Path,
}

impl Client {
    pub fn new(slot: u32, plan: &ClientPlan, now: Instant) -> Client {
        Client {
            slot,
            user: plan.user,
            group: plan.group,
            login: plan.login.clone(),
            state: State::Out,
            tunnel: None,
            inner: Ipv4Addr::UNSPECIFIED,
            failed: 0,
            flows: Vec::new(),
            turn: 0,
            deadline: None,
            near: Entry::default(),
            far: Entry::default(),
            heard_at: now,
            leaving_since: now,
        }
    }

    /// Sees to it that the client is looked at in this pass.
    #[inline]
    fn touch(&mut self, agenda: &mut Agenda) {
        agenda.touch(self.slot, &mut self.near);
    }

    pub fn connect(&mut self, context: &mut Context) -> Result<()> {
        let params = TunnelParams {
            remote: context.remote,
            quic_version: self.login.quic_version,
            server_name: context.remote.ip().to_string(),
            transport: Arc::clone(&context.transport),
            send_datagrams_max: usize::from(TRAIN_PACKETS_MAX),
            seed: context.chance.seed(),
        };
        let tunnel = Tunnel::new(params, Arc::clone(&self.login.config), Arc::clone(&context.reset_key), context.now)
            .with_context(|| format!("cannot connect to {}", context.remote))?;
        self.tunnel = Some(Box::new(tunnel));
        self.set_state(State::Connecting, Some(HANDSHAKE_TIMEOUT), context);
        self.touch(&mut context.near);
        Ok(())
    }

    /// Takes what the client's socket received. Returns whether there is a connection for it.
    #[inline]
    pub fn handle_udp(&mut self, received: Received, context: &mut Context) -> bool {
        let Some(tunnel) = &mut self.tunnel else { return false };
        tunnel.handle_udp(context.now, received);
        self.heard_at = context.now;
        self.touch(&mut context.near);
        true
    }

    /// Takes a message from `port` of its inner address, as the responder.
    #[inline]
    pub fn take_far(&mut self, port: u16, header: &Header, body: &[u8], context: &mut Context) {
        let (now, index) = (context.now, usize::from(port.wrapping_sub(PORT_FIRST)));
        let Some(flow) = self.flows.get_mut(index).filter(|flow| flow.far.number == header.flow) else { return };
        let inner_bytes = body.len() + HEADER_BYTES + OVERHEAD_BYTES;
        flow.far.take(now, header, inner_bytes as u16, message::is_intact(header, body));
        if let Some([sent, _]) = &mut context.meters {
            sent.add(now, self.user, inner_bytes as u64);
        }
        self.heard_at = now;
        context.far.touch(self.slot, &mut self.far);
    }

    /// The time has come that the client had armed.
    pub fn handle_timeout(&mut self, context: &mut Context) {
        let now = context.now;
        self.near.expire(now);
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.handle_timeout(now);
        self.touch(&mut context.near);
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

    /// The time has come that the far ends had armed.
    pub fn handle_far_timeout(&mut self, context: &mut Context) {
        self.far.expire(context.now);
        context.far.touch(self.slot, &mut self.far);
    }

    /// Looks at everything that has happened to the client, and queues in its tunnel what it has to send.
    pub fn look(&mut self, context: &mut Context) {
        self.near.begin();
        let Some(mut tunnel) = self.tunnel.take() else { return };
        while let Some(event) = tunnel.poll_event() {
            self.handle_event(event, &mut tunnel, context);
        }
        while let Some(packet) = tunnel.poll_packet() {
            self.take(&packet, context);
        }
        let (group, turn, flows) = (self.group, self.turn, self.sending());
        for index in 0..flows.len() {
            flows[(index + turn) % flows.len()].send(group, &mut tunnel, context);
        }
        self.turn += 1;
        self.tunnel = Some(tunnel);
    }

    #[inline]
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.tunnel.as_mut()?.poll_transmit(now, buf)
    }

    /// The next run of datagrams of the far ends, all of one flow. `next` is the flow that has its turn.
    pub fn poll_far(&mut self, next: &mut u16, context: &Context, buf: &mut Vec<u8>) -> Option<Transmit> {
        loop {
            let flow = self.sending().get_mut(usize::from(*next))?;
            if let Some(segment_bytes) = flow.far.write_run(context.now, context.origin, buf) {
                let remote = SocketAddr::from((self.inner, PORT_FIRST + *next));
                return Some(Transmit { remote, local_ip: None, ecn: None, bytes: buf.len(), segment_bytes });
            }
            *next += 1;
        }
    }

    /// After all of the far ends was sent: sees to it that they are looked at when they are to be.
    pub fn conclude_far(&mut self, context: &mut Context) {
        self.far.begin();
        match self.sending().iter().filter_map(|flow| flow.far.next_at(context.now, u16::MAX)).min() {
            Some(at) if at <= context.now => context.far.touch(self.slot, &mut self.far),
            Some(at) => context.far.arm(self.slot, &mut self.far, at.max(context.now + FAR_SLEEP_MIN)),
            None => {}
        }
    }

    /// After everything was sent: ends a connection that is over, and sees to it that the client is looked at when it is to be.
    pub fn conclude(&mut self, context: &mut Context) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if tunnel.is_drained() {
            return self.end(context);
        }
        let (room, timeout) = (room(self.group, tunnel, context), tunnel.poll_timeout());
        let flows = self.sending().iter().filter_map(|flow| flow.near.next_at(context.now, room)).min();
        if flows.is_some_and(|at| at <= context.now) {
            return self.touch(&mut context.near);
        }
        let times = [flows, timeout.map(|(at, _)| at), self.deadline];
        if let Some(at) = times.into_iter().flatten().min() {
            context.near.arm(self.slot, &mut self.near, at);
        }
    }

    /// Opens the client's flows, if it is up and has any.
    pub fn open_flows(&mut self, context: &mut Context) {
        let (State::Open, Some(group)) = (self.state, self.group) else { return };
        let plan = Arc::clone(&context.plans[usize::from(group)]);
        let first = context.flow_numbers(plan.flows.into());
        for index in 0..plan.flows {
            let number = first + u32::from(index);
            let [near, far] = [&plan.near, &plan.far].map(|plan| End::new(number, plan, context.now));
            let path = Path::new(SocketAddrV4::new(self.inner, PORT_FIRST + index), context.responder);
            self.flows.push(Flow { near, far, path });
        }
        self.touch(&mut context.near);
        context.far.touch(self.slot, &mut self.far);
    }

    /// Ends what both ends send of their own accord.
    pub fn stop(&mut self) {
        self.flows.iter_mut().flat_map(|flow| [&mut flow.near, &mut flow.far]).for_each(End::stop);
    }

    /// Ends a connection, after its flows if it has any, so that the next one is made.
    pub fn leave(&mut self, context: &mut Context) {
        if self.flows.is_empty() {
            return self.close(context);
        }
        self.stop();
        self.leaving_since = context.now;
        self.set_state(State::Leaving, Some(FAREWELL), context);
        self.touch(&mut context.near);
    }

    pub fn close(&mut self, context: &mut Context) {
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.close(context.now);
        self.begin_closing(context);
        self.touch(&mut context.near);
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
        for flow in self.flows.drain(..) {
            let group = &mut context.groups[usize::from(self.group.unwrap_or_default())];
            group.near += flow.near.counts();
            group.far += flow.far.counts();
        }
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
                context.by_inner.insert(address.into(), self.slot);
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
        let Some(first) = self.flows.first().map(|flow| flow.near.number) else { return };
        let index = header.flow.wrapping_sub(first) as usize;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if usize::from(arrival.destination_port) != usize::from(PORT_FIRST) + index {
            return;
        }
        let is_new = flow.near.take(now, &header, packet.len() as u16, arrival.is_intact);
        if let Some([_, received]) = &mut context.meters {
            received.add(now, self.user, packet.len() as u64);
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

    /// The flows whose ends may send.
    #[inline]
    fn sending(&mut self) -> &mut [Flow] {
        if matches!(self.state, State::Open | State::Leaving) { &mut self.flows } else { &mut [] }
    }
}

impl Flow {
    /// Sends what is due, as far as there is room for it.
    #[inline]
    fn send(&mut self, group: Option<u8>, tunnel: &mut Tunnel, context: &mut Context) {
        loop {
            let room = room(group, tunnel, context);
            let Some(Outgoing { header, inner_bytes, due }) = self.near.poll(context.now, context.origin, room) else {
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
        Some(group) if context.plans[usize::from(group)].is_windowed() => {
            tunnel.send_room_bytes().min(u16::MAX.into()) as u16
        }
        _ => u16::MAX,
    }
}

/// The count of clients in `state`.
fn count(state: State, counts: &mut Counts) -> &mut u64 {
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
