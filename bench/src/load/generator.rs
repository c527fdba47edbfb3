//! A generator: one pinned thread that drives thousands of clients, and is both ends of their flows.
//!
//! Each client is a [`Tunnel`](tollgate_shards::Tunnel), the engine's own state machine, with an identity and an outer address of its own. The
//! far ends of all flows share a second socket, the *responder*, an ordinary UDP service behind the gateway. Both ends know which flows there
//! are; what each knows of packets, it has from its own socket.
//!
//! The thread makes no decision about the run: the controller gives [`Order`]s and reads counts. A pass is: receive; what has fallen due; churn
//! and rebinding; a look at each client that was touched, which sends all it has; sleep; orders. The clock is read once in it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::thread::set_current_timer_slack;
use tollgate::io::{UdpOptions, UdpSocket};
use tollgate_shards::Received;
use tollgate_testkit::chance::Chance;

use super::client::{Client, State};
use super::context::Context;
use super::logins::Login;
use super::message::{Header, OVERHEAD_BYTES};
use super::report::Report;
use super::scenario::{Scenario, TrafficKind, TrafficPlan};
use super::sockets::{Loss, Port, Sources, wait};
use super::timers::Pacer;
use super::worker::{Desk, Order};

const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Of so few flows each packet is sent when it is due. Of more, those that fall due within the time go together: thousands of them would
/// otherwise wake the thread for each packet, and an eighth of what counts as late is no harm.
const ON_TIME_FLOWS_MAX: u32 = 64;
const SLEEP_MIN: Duration = Duration::from_micros(125);
/// Connections that are closed at the end, a second: more would be a burst that fills the gateway's queues.
const CLOSINGS_PER_SECOND: f64 = 5000.0;
/// Clients that are looked at to find one that can be closed or moved.
const DRAWS_MAX: usize = 16;
/// Events of one kind in a pass.
const EVENTS_MAX: u32 = 64;
/// The buffers of the clients' socket, each way.
const BUFFER_BYTES: usize = 16 << 20;

#[derive(Clone)]
pub struct ClientPlan {
    /// Its user's number. All clients of a user belong to one generator: that is where their rates are added up.
    pub user: u32,
    /// Its identity, and what it trusts.
    pub login: Login,
    /// Its outer address, no other client's.
    pub source: IpAddr,
    /// Its traffic, as an index into the scenario's; `None` for an idle client.
    pub group: Option<u8>,
}

/// What a generator is told at its start.
pub struct GeneratorPlan {
    /// The whole scenario. Of rates and bounds over all clients, the generator takes its clients' share.
    pub scenario: Arc<Scenario>,
    /// The number of this generator in the run.
    pub thread: u16,
    pub clients: Vec<ClientPlan>,
    /// Outer addresses for clients that change theirs.
    pub spare_sources: Vec<IpAddr>,
    /// The gateway's outer address.
    pub remote: SocketAddr,
    /// The socket behind the gateway.
    pub responder: UdpSocket,
}

/// What a generator's thread owns.
pub struct Driver {
    desk: Desk,
    clients: Vec<Client>,
    context: Context,
    /// The clients' socket and the responder's.
    outer: Port,
    inner: Port,
    sources: Sources,
    /// What is lost on purpose.
    loss: Option<Loss>,
    sleep_min: Duration,
    /// Handshakes that may be in progress.
    handshakes_max: u64,
    churn: Pacer,
    /// All clients, and those whose connections may be made anew.
    slots: Vec<u32>,
    churned: Vec<u32>,
    rebinds: Pacer,
    loss_share: f64,
    to_close: VecDeque<u32>,
    closings: Pacer,
}

impl Driver {
    /// Opens the clients' socket in the thread's network namespace. No packet is sent before [`Order::Connect`].
    pub fn new(plan: GeneratorPlan, desk: Desk) -> Result<Driver> {
        // The kernel's 50 microseconds would be in every round trip. Where it refuses, they are.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let context = Context::new(&plan)?;
        let GeneratorPlan { scenario, clients, spare_sources, remote, responder, .. } = plan;
        let sources = clients.iter().map(|client| client.source).collect();
        let share = clients.len() as f64 / f64::from(scenario.connections().max(1));
        let may_churn = |client: &ClientPlan| client.group.is_none() || !scenario.trouble.churn_idle_only;
        let is_even = |plan: &&TrafficPlan| plan.kind == TrafficKind::Constant;
        let even_flows =
            scenario.traffic.iter().filter(is_even).map(|plan| plan.connections * u32::from(plan.flows)).max();
        let options =
            UdpOptions { send_buffer_bytes: BUFFER_BYTES, receive_buffer_bytes: BUFFER_BYTES, ..UdpOptions::default() };
        Ok(Driver {
            desk,
            outer: Port::new(UdpSocket::for_remote(remote, &options)?),
            inner: Port::new(responder),
            sources: Sources::new(sources, spare_sources),
            loss: None,
            sleep_min: if even_flows > Some(ON_TIME_FLOWS_MAX) { SLEEP_MIN } else { Duration::ZERO },
            handshakes_max: (f64::from(scenario.ramp.handshakes_max) * share).round().max(1.0) as u64,
            churn: Pacer::new(scenario.trouble.churn_per_second * share),
            slots: (0..clients.len() as u32).collect(),
            churned: (0..).zip(&clients).filter(|(_, client)| may_churn(client)).map(|(slot, _)| slot).collect(),
            rebinds: Pacer::new(scenario.trouble.rebinds_per_second * share),
            loss_share: scenario.trouble.loss,
            to_close: VecDeque::new(),
            closings: Pacer::new(CLOSINGS_PER_SECOND),
            clients: (0..).zip(&clients).map(|(slot, client)| Client::new(slot, client, context.now)).collect(),
            context,
        })
    }

    /// Makes passes until the owner ends them.
    pub fn run(mut self) -> Result<Report> {
        loop {
            self.receive();
            self.expire();
            self.impair();
            self.connect_and_close()?;
            self.serve()?;
            self.publish();
            let timeout = self.timeout();
            wait([&mut self.outer, &mut self.inner], &self.desk.wake, timeout)?;
            self.context.now = Instant::now().max(self.context.now + Duration::from_nanos(1));
            while let Ok((order, reply)) = self.desk.orders.try_recv() {
                if order == Order::End {
                    return Ok(self.report());
                }
                self.obey(order);
                self.publish();
                // Who has gone away needs no reply.
                let _ = reply.send(());
            }
        }
    }

    fn receive(&mut self) {
        let Driver { clients, context, sources, loss, .. } = self;
        let mut take = |mut received: Received| {
            let mut left = received.data.len().div_ceil(received.segment_bytes) as u64;
            if let Some(loss) = loss {
                let (bytes, lost) = loss.thin(&mut received.data, received.segment_bytes);
                received.data.truncate(bytes);
                context.counts.injected_lost_down += lost;
                left -= lost;
            }
            let client = received.local_ip.and_then(|ip| sources.client(ip));
            if left > 0 && !client.is_some_and(|client| clients[client as usize].handle_udp(received, context)) {
                context.counts.outer_stray_datagrams += left;
            }
        };
        let received = self.outer.receive(&mut take);
        context.counts.receive_errors += u64::from(received.is_err());
        let mut take = |received: Received| {
            let mut client = context.by_inner.get(&received.remote.ip()).map(|slot| &mut clients[*slot as usize]);
            for payload in received.data.chunks(received.segment_bytes) {
                let Some((header, body)) = Header::parse(payload) else { continue };
                context.counts.far_received_packets += 1;
                context.counts.far_received_bytes += (payload.len() + OVERHEAD_BYTES) as u64;
                if let Some(client) = &mut client {
                    client.take_far(received.remote.port(), &header, body, context);
                }
            }
        };
        // An error of an earlier send, reported here, concerns that datagram only.
        let _ = self.inner.receive(&mut take);
    }

    /// Finds what is due.
    fn expire(&mut self) {
        let Driver { clients, context, .. } = self;
        while let Some(client) = context.near.pop_due(context.now) {
            clients[client as usize].handle_timeout(context);
        }
        while let Some(client) = context.far.pop_due(context.now) {
            clients[client as usize].handle_far_timeout(context);
        }
    }

    fn obey(&mut self, order: Order) {
        let (clients, context) = (&mut self.clients, &mut self.context);
        match order {
            Order::Connect => {
                context.waiting.extend(0..clients.len() as u32);
                clients.iter_mut().for_each(|client| client.set_state(State::Waiting, None, context));
            }
            Order::StartTraffic => {
                context.is_traffic = true;
                self.churn.start(context.now);
                self.rebinds.start(context.now);
                self.loss = Loss::new(Chance::new(context.chance.number()), self.loss_share);
                clients.iter_mut().for_each(|client| client.open_flows(context));
            }
            Order::StopTraffic => {
                context.is_traffic = false;
                self.churn.stop();
                self.rebinds.stop();
                self.loss = None;
                clients.iter_mut().for_each(Client::stop);
            }
            Order::Close => {
                context.is_ending = true;
                context.waiting.clear();
                self.closings.start(context.now);
                for (slot, client) in (0..).zip(clients) {
                    match client.state {
                        State::Waiting => client.set_state(State::Out, None, context),
                        State::Connecting => self.to_close.push_back(slot),
                        State::Open | State::Leaving => {
                            client.set_state(State::Leaving, None, context);
                            self.to_close.push_back(slot);
                        }
                        State::Again | State::Closing | State::Out | State::Failed => {}
                    }
                }
            }
            Order::End => {}
        }
    }

    /// Churn and rebinding.
    fn impair(&mut self) {
        let context = &mut self.context;
        for _ in 0..self.churn.take(context.now, EVENTS_MAX) {
            if let Some(client) = draw(&self.churned, &self.clients, &mut context.chance) {
                self.clients[client as usize].leave(context);
            }
        }
        for _ in 0..self.rebinds.take(context.now, EVENTS_MAX) {
            if let Some(client) = draw(&self.slots, &self.clients, &mut context.chance) {
                context.counts.rebound += u64::from(self.sources.rebind(client));
            }
        }
    }

    fn connect_and_close(&mut self) -> Result<()> {
        let (clients, context) = (&mut self.clients, &mut self.context);
        let free = self.handshakes_max.saturating_sub(context.counts.handshaking) as usize;
        for _ in 0..free {
            let Some(client) = context.waiting.pop_front() else { break };
            clients[client as usize].connect(context)?;
        }
        for _ in 0..self.closings.take(context.now, EVENTS_MAX) {
            match self.to_close.pop_front() {
                Some(client) => clients[client as usize].close(context),
                None => self.closings.stop(),
            }
        }
        Ok(())
    }

    /// Looks at every client that was touched, once, and sends all it has.
    fn serve(&mut self) -> Result<()> {
        let Driver { clients, context, sources, loss, .. } = self;
        for _ in 0..context.near.touched() {
            let Some(slot) = context.near.pop_touched() else { break };
            let (client, now, local_ip) = (&mut clients[slot as usize], context.now, Some(sources.of(slot)));
            client.look(context);
            let lost = &mut context.counts.injected_lost_up;
            self.outer.transmit(&mut |buf| {
                loop {
                    let mut transmit = client.poll_transmit(now, buf)?;
                    transmit.local_ip = local_ip;
                    if let Some(loss) = loss {
                        let (left, lost_now) = loss.thin(&mut buf[..transmit.bytes], transmit.segment_bytes);
                        *lost += lost_now;
                        buf.truncate(left);
                        transmit.bytes = left;
                    }
                    if transmit.bytes > 0 {
                        return Some(transmit);
                    }
                }
            })?;
            client.conclude(context);
        }
        for _ in 0..context.far.touched() {
            let Some(slot) = context.far.pop_touched() else { break };
            let (client, mut flow) = (&mut clients[slot as usize], 0);
            self.inner.transmit(&mut |buf| client.poll_far(&mut flow, context, buf))?;
            client.conclude_far(context);
        }
        self.outer.flush()?;
        self.inner.flush()
    }

    fn timeout(&self) -> Duration {
        let context = &self.context;
        if self.outer.is_readable || self.inner.is_readable {
            return Duration::ZERO;
        }
        let may_connect = context.counts.handshaking < self.handshakes_max && !context.waiting.is_empty();
        let connect_at = may_connect.then_some(context.now);
        let paced = [&self.churn, &self.rebinds, &self.closings].map(Pacer::next_at);
        let looks = [&context.near, &context.far].map(|agenda| agenda.next_at(context.now));
        let until = paced.into_iter().chain(looks).chain([connect_at]).flatten().min();
        match until.map(|at| at.saturating_duration_since(context.now)) {
            Some(Duration::ZERO) => Duration::ZERO,
            Some(until) => until.clamp(self.sleep_min, SLEEP_MAX),
            None => SLEEP_MAX,
        }
    }

    fn publish(&mut self) {
        let counts = &mut self.context.counts;
        counts.outer_refused_datagrams = self.outer.sent().dropped;
        counts.far_sent_packets = self.inner.sent().datagrams;
        self.desk.publish(*counts);
    }

    fn report(mut self) -> Report {
        for client in &mut self.clients {
            client.add_to(&mut self.context);
        }
        let Context { counts, groups, tunnels, failures, meters, .. } = self.context;
        let user_peak_bytes = meters.map_or([0; 2], |meters| meters.map(|meters| meters.peak_bytes));
        Report { counts, groups, tunnels, failures, user_peak_bytes }
    }
}

/// One of `slots` whose client is up, by chance.
fn draw(slots: &[u32], clients: &[Client], chance: &mut Chance) -> Option<u32> {
    if slots.is_empty() {
        return None;
    }
    let mut draws = (0..DRAWS_MAX).map(|_| slots[chance.below(slots.len())]);
    draws.find(|slot| clients[*slot as usize].state == State::Open)
}
