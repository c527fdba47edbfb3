//! A generator: one pinned thread that drives thousands of clients, and is the near end of their flows.
//!
//! Each client is a [`Tunnel`](tollgate_shards::Tunnel), the engine's own state machine, with an identity and an outer address of its own. The
//! thread makes no decision about the run: the controller gives [`Order`]s and reads counts. A pass is: receive; what has fallen due; churn and
//! rebinding; a look at each client that was touched, which sends all it has; sleep; orders. The clock is read once in it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::BytesMut;
use crossbeam_channel::Sender;
use quinn_proto::TransportConfig;
use quinn_proto::crypto::{ClientConfig as CryptoConfig, HmacKey};
use rustix::thread::set_current_timer_slack;
use tollgate::gateway::ephemeral_reset_key;
use tollgate_shards::{Congestion, Counters, TransportParams, transport};
use tollgate_testkit::Namespace;
use tollgate_testkit::chance::Chance;

use super::client::{Client, State};
use super::flow::{Schedule, SendPlan};
use super::message::{ARENA_BYTES, Kind};
use super::report::{GeneratorCounts, GeneratorReport};
use super::responder::{FarPlan, Meters, ResponderInbox};
use super::scenario::{Direction, Scenario, TrafficKind, TrafficPlan};
use super::sink::FlowCounts;
use super::sockets::{Loss, Sockets};
use super::timers::{Pacer, Timers};
use super::worker::{Desk, Worker};
use crate::measure::round_trips::RoundTrips;

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
/// What the first packet's repetition reckons with.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Inner packets of a connection that wait to be sent, in bytes. Scheduled traffic that finds it full is dropped, and counted.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Inner packets of a connection that were received and not looked at, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Bits of a flow's number that count within its thread.
const FLOW_BITS: u32 = u32::BITS - 6;
/// The most different reasons of failures that are told apart.
const REASONS_MAX: usize = 16;

#[derive(Clone)]
pub struct ClientPlan {
    /// Its user's number. All clients of a user belong to one generator: that is where their rates are added up.
    pub user: u32,
    /// Its identity, and what it trusts.
    pub tls: Arc<dyn CryptoConfig>,
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
    /// At least one. Each user stays with one, where their rates are added up.
    pub responders: Vec<(SocketAddrV4, ResponderInbox)>,
}

/// What a generator is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Bring all clients up that never were, with no more handshakes at once than the scenario allows.
    Connect,
    /// Open the flows of all clients that are up, and begin with churn, losses and rebinding.
    StartTraffic,
    /// End churn, losses and rebinding, and stop sending in all flows.
    StopTraffic,
    /// Close all connections, and make no new ones. What is still queued is dropped and counted.
    Close,
}

/// A generator says when it has begun what it was told: counts that are read afterwards show it.
pub type Generator = Worker<(Order, Sender<()>), GeneratorCounts, GeneratorReport>;

/// What all flows of a group have in common.
#[derive(Debug)]
pub struct GroupPlan {
    /// Flows of each connection.
    pub flows: u16,
    /// What is sent up.
    pub send: Option<Arc<SendPlan>>,
    /// Whether the responder wants credit for what it sends.
    pub gives_credit: bool,
    pub far: Arc<FarPlan>,
}

impl GroupPlan {
    fn new(plan: &TrafficPlan, mtu_bytes: u16) -> GroupPlan {
        let (kind, schedule) = match plan.kind {
            TrafficKind::Bulk => (Kind::Data, Schedule::Window { bytes: plan.window_bytes }),
            TrafficKind::Constant => (Kind::Data, Schedule::Even { per_second: plan.rate, train: plan.train }),
            TrafficKind::Request => (Kind::Request, Schedule::Even { per_second: plan.rate, train: 1 }),
        };
        let is_windowed = plan.kind == TrafficKind::Bulk;
        let is_request = plan.kind == TrafficKind::Request;
        let send = Arc::new(SendPlan { kind, sizes: plan.size.lengths(mtu_bytes), schedule });
        let up = (is_request || plan.direction != Direction::Down).then(|| Arc::clone(&send));
        let down = (!is_request && plan.direction != Direction::Up).then_some(send);
        let gives_credit = is_windowed && down.is_some();
        let far_gives_credit = is_windowed && up.is_some();
        let far = FarPlan { send: down, answer_bytes: plan.answer_bytes, gives_credit: far_gives_credit };
        GroupPlan { flows: plan.flows, send: up, gives_credit, far: Arc::new(far) }
    }

    /// Whether what is sent up waits for room in the tunnel.
    pub fn is_windowed(&self) -> bool {
        self.far.gives_credit
    }
}

pub struct Group {
    pub plan: Arc<GroupPlan>,
    /// Of flows that are gone.
    pub counts: FlowCounts,
    pub round_trips: Option<Box<RoundTrips>>,
}

/// What all clients of a generator share.
pub struct Context {
    pub now: Instant,
    /// Stamps count from here.
    pub origin: Instant,
    pub remote: SocketAddr,
    pub transport: Arc<TransportConfig>,
    pub reset_key: Arc<dyn HmacKey>,
    pub responders: Vec<(SocketAddrV4, ResponderInbox)>,
    pub groups: Vec<Group>,
    /// What packets are carved from.
    pub arena: BytesMut,
    pub timers: Timers,
    pub counts: GeneratorCounts,
    /// Of connections that are over.
    pub tunnels: Counters,
    failures: BTreeMap<String, u64>,
    pub meters: Option<Meters>,
    pub chance: Chance,
    /// Clients that are to be looked at in this pass, each at most once.
    pub touched: Vec<u32>,
    /// Clients that have more to do in the next pass.
    pub again: Vec<u32>,
    /// Clients that want to be connected.
    pub waiting: VecDeque<u32>,
    /// Whether flows are to be open.
    pub is_traffic: bool,
    /// Whether no more connections are to be made.
    pub is_ending: bool,
    thread: u16,
    flows_numbered: u32,
}

impl Context {
    fn new(plan: &mut GeneratorPlan) -> Context {
        let (scenario, now) = (&*plan.scenario, Instant::now());
        let transport_params = TransportParams {
            mtu_bytes: scenario.mtu_bytes(),
            idle_timeout: scenario.gateway.idle_timeout,
            keep_alive: Some(scenario.users.keep_alive),
            initial_rtt: Some(INITIAL_RTT),
            datagram_send_buffer_bytes_max: SEND_BUFFER_BYTES,
            datagram_receive_buffer_bytes_max: RECEIVE_BUFFER_BYTES,
            congestion: Congestion::Cubic,
        };
        let group = |traffic: &TrafficPlan| {
            let plan = Arc::new(GroupPlan::new(traffic, scenario.mtu_bytes()));
            Group { plan, counts: FlowCounts::default(), round_trips: None }
        };
        Context {
            now,
            origin: now,
            remote: plan.remote,
            transport: Arc::new(transport(&transport_params)),
            reset_key: ephemeral_reset_key(),
            responders: std::mem::take(&mut plan.responders),
            groups: scenario.traffic.iter().map(group).collect(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            timers: Timers::default(),
            counts: GeneratorCounts { out: plan.clients.len() as u64, ..GeneratorCounts::default() },
            tunnels: Counters::default(),
            failures: BTreeMap::new(),
            meters: scenario.users.limit.as_ref().map(|_| Meters::default()),
            chance: Chance::new(scenario.harness.seed ^ u64::from(plan.thread) << 32),
            touched: Vec::new(),
            again: Vec::new(),
            waiting: VecDeque::new(),
            is_traffic: false,
            is_ending: false,
            thread: plan.thread,
            flows_numbered: 0,
        }
    }

    /// Numbers for `flows` more flows, one after the other: the first of them. Unique among all threads, until one has made 67 million.
    pub fn flow_numbers(&mut self, flows: u32) -> u32 {
        if self.flows_numbered + flows > 1 << FLOW_BITS {
            self.flows_numbered = 0;
        }
        let first = self.flows_numbered;
        self.flows_numbered += flows;
        u32::from(self.thread) << FLOW_BITS | first
    }

    /// Counts a failure under its reason, by name while there are few.
    pub fn note(&mut self, reason: &str) {
        let is_known = self.failures.len() < REASONS_MAX || self.failures.contains_key(reason);
        *self.failures.entry(if is_known { reason } else { "other reasons" }.to_owned()).or_default() += 1;
    }
}

/// Starts a generator on `cpu`, and opens its socket in `namespace`. No packet is sent before [`Order::Connect`].
pub fn start(plan: GeneratorPlan, cpu: usize, namespace: &Namespace) -> Result<Generator> {
    let name = format!("generator-{}", plan.thread);
    Worker::start(&name, cpu, namespace, move |desk| {
        let driver = Driver::new(plan, desk)?;
        Ok(move || driver.run())
    })
}

/// What a thread owns.
struct Driver {
    desk: Desk<(Order, Sender<()>), GeneratorCounts>,
    clients: Vec<Client>,
    context: Context,
    sockets: Sockets,
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
    fn new(mut plan: GeneratorPlan, desk: Desk<(Order, Sender<()>), GeneratorCounts>) -> Result<Driver> {
        // The kernel's 50 microseconds would be in every round trip. Where it refuses, they are.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let context = Context::new(&mut plan);
        let GeneratorPlan { scenario, clients, spare_sources, remote, .. } = plan;
        let sources = clients.iter().map(|client| client.source).collect();
        let share = clients.len() as f64 / f64::from(scenario.connections().max(1));
        let may_churn = |client: &ClientPlan| client.group.is_none() || !scenario.trouble.churn_idle_only;
        let is_even = |plan: &&TrafficPlan| plan.kind == TrafficKind::Constant;
        let even_flows =
            scenario.traffic.iter().filter(is_even).map(|plan| plan.connections * u32::from(plan.flows)).max();
        Ok(Driver {
            sockets: Sockets::open(sources, spare_sources, remote, &desk.wake)?,
            desk,
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
    fn run(mut self) -> Result<GeneratorReport> {
        loop {
            self.pass()?;
            self.publish();
            if self.sockets.wait(self.timeout())? {
                self.desk.wake.drain();
            }
            self.context.now = Instant::now().max(self.context.now + Duration::from_nanos(1));
            while let Ok(message) = self.desk.inbox.try_recv() {
                let Some((order, reply)) = message else { return Ok(self.report()) };
                self.obey(order);
                self.publish();
                // Who has gone away needs no reply.
                let _ = reply.send(());
            }
        }
    }

    fn pass(&mut self) -> Result<()> {
        let Driver { clients, context, sockets, .. } = self;
        if sockets.is_readable {
            let Context { now, counts, touched, .. } = context;
            sockets
                .receive(counts, &mut |client, received| clients[client as usize].handle_udp(*now, received, touched));
        }
        while let Some(client) = context.timers.pop_due(context.now) {
            clients[client as usize].handle_timeout(context);
        }
        self.impair();
        self.connect_and_close()?;
        self.serve()?;
        self.sockets.flush(&mut self.context.counts)
    }

    fn obey(&mut self, order: Order) {
        let (clients, context) = (&mut self.clients, &mut self.context);
        match order {
            Order::Connect => {
                for (slot, client) in (0..).zip(clients) {
                    if !std::mem::replace(&mut client.is_begun, true) {
                        client.set_state(State::Waiting, None, context);
                        context.waiting.push_back(slot);
                    }
                }
            }
            Order::StartTraffic => {
                context.is_traffic = true;
                self.churn.start(context.now);
                self.rebinds.start(context.now);
                self.sockets.loss = Loss::new(Chance::new(context.chance.number()), self.loss_share);
                clients.iter_mut().for_each(|client| client.open_flows(context));
            }
            Order::StopTraffic => {
                context.is_traffic = false;
                self.churn.stop();
                self.rebinds.stop();
                self.sockets.loss = None;
                clients.iter_mut().for_each(Client::stop);
            }
            Order::Close => {
                context.is_ending = true;
                context.waiting.clear();
                self.closings.start(context.now);
                for (slot, client) in (0..).zip(clients) {
                    match client.state {
                        State::Waiting => client.set_state(State::Out, None, context),
                        State::Connecting | State::Open | State::Leaving => self.to_close.push_back(slot),
                        State::Again | State::Closing | State::Out | State::Failed => {}
                    }
                }
            }
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
                context.counts.rebound += u64::from(self.sockets.rebind(client));
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
        let context = &mut self.context;
        let mut next = 0;
        while let Some(&slot) = context.touched.get(next) {
            next += 1;
            let (client, now) = (&mut self.clients[slot as usize], context.now);
            client.look(context);
            self.sockets.transmit(slot, &mut context.counts, &mut |buf| client.poll_transmit(now, buf))?;
            client.conclude(context);
        }
        context.touched.clear();
        std::mem::swap(&mut context.touched, &mut context.again);
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let context = &self.context;
        if !context.touched.is_empty() || self.sockets.is_readable {
            return Duration::ZERO;
        }
        let may_connect = context.counts.handshaking < self.handshakes_max && !context.waiting.is_empty();
        let connect_at = may_connect.then_some(context.now);
        let paced = [&self.churn, &self.rebinds, &self.closings].map(Pacer::next_at);
        let times = [connect_at, context.timers.next_at()].into_iter().chain(paced);
        let until = times.flatten().min().map(|at| at.saturating_duration_since(context.now));
        until.map_or(SLEEP_MAX, |until| until.clamp(self.sleep_min, SLEEP_MAX))
    }

    fn publish(&mut self) {
        let counts = &mut self.context.counts;
        counts.cpu_ns = self.desk.cpu_ns(self.context.now);
        counts.to_close = self.to_close.len() as u64;
        self.desk.publish(*counts);
    }

    fn report(mut self) -> GeneratorReport {
        for client in &mut self.clients {
            client.add_to(&mut self.context);
        }
        let Context { counts, groups, tunnels, failures, meters, .. } = self.context;
        let groups = groups.into_iter().map(|group| (group.counts, group.round_trips)).collect();
        let user_peak_bytes = meters.map_or(0, |meters| meters.peak_bytes);
        GeneratorReport { counts, groups, tunnels, failures, user_peak_bytes }
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
