//! What all clients of a generator share: groups, timers, counts, and who is to be looked at in this pass.

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::BytesMut;
use quinn_proto::TransportConfig;
use quinn_proto::crypto::HmacKey;
use tollgate::gateway::ephemeral_reset_key;
use tollgate_shards::{Congestion, TransportParams, transport};
use tollgate_testkit::chance::Chance;

use super::counts::{Failures, GeneratorCounts, TunnelTotals};
use super::flow::Group;
use super::impairment::Meters;
use super::timers::{Delay, TimerQueue};
use super::{CLIENT_FLOWS_MAX, GeneratorPlan};
use crate::load::flow::packet::ARENA_BYTES;
use crate::load::flow::pattern::Pattern;
use crate::load::flow::sink::CREDIT_AFTER;
use crate::load::scenario::Scenario;

/// A question to the responder is repeated.
const QUESTION_INTERVAL: Duration = Duration::from_millis(500);
/// A handshake is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is closed on purpose when nothing was heard for this long after its flows' end: what is on the way would be lost.
pub const FAREWELL: Duration = Duration::from_millis(50);
/// A closed connection is forgotten, although what is left of it (RFC 9000, section 10.2) has not died away.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(3);
/// What the first packet's repetition reckons with.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Inner packets of a connection that wait to be sent, in bytes. Scheduled traffic that finds it full is dropped, and counted.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Inner packets of a connection that were received and not looked at, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Bits of a flow's number that count within its thread.
const FLOW_BITS: u32 = u32::BITS - 6;

/// What all clients of a generator share.
pub struct Shared {
    pub remote: SocketAddr,
    pub transport: Arc<TransportConfig>,
    pub reset_key: Arc<dyn HmacKey>,
    responders: Vec<SocketAddrV4>,
    /// In the scenario's order.
    pub groups: Vec<Group>,
    pub pattern: &'static Pattern,
    /// What packets are carved from.
    pub arena: BytesMut,
    /// Stamps count from here.
    pub origin: Instant,
    pub timers: Timers,
    pub counts: GeneratorCounts,
    /// Of connections that are over.
    pub tunnels: TunnelTotals,
    pub failures: Failures,
    pub meters: Meters,
    pub chance: Chance,
    /// Clients that are to be looked at in this pass, each at most once.
    pub touched: Vec<u32>,
    /// Clients that have more to do in the next pass.
    pub again: Vec<u32>,
    /// Clients that want to be connected.
    pub waiting: VecDeque<u32>,
    /// Flows with a question that was not asked yet.
    pub to_ask: VecDeque<FlowName>,
    /// Questions that were asked for the first time and not answered yet.
    pub asking: usize,
    /// Whether flows are to be open.
    pub is_traffic: bool,
    /// Whether no more connections are to be made.
    pub is_ending: bool,
    thread: u16,
    flows_numbered: u32,
}

impl Shared {
    pub fn new(plan: &GeneratorPlan, meters: Meters, now: Instant) -> Result<Shared> {
        let scenario = &*plan.scenario;
        let groups = scenario.traffic.iter().map(|traffic| Group::new(scenario, traffic));
        Ok(Shared {
            remote: plan.remote,
            transport: Arc::new(transport(&transport_params(scenario))),
            reset_key: ephemeral_reset_key(),
            responders: plan.responders.clone(),
            groups: groups.collect::<Result<_>>()?,
            pattern: Pattern::shared(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            origin: now,
            timers: Timers::new(),
            counts: GeneratorCounts::default(),
            tunnels: TunnelTotals::default(),
            failures: Failures::default(),
            meters,
            chance: Chance::new(scenario.harness.seed ^ u64::from(plan.thread) << 32),
            touched: Vec::new(),
            again: Vec::new(),
            waiting: VecDeque::new(),
            to_ask: VecDeque::new(),
            asking: 0,
            is_traffic: false,
            is_ending: false,
            thread: plan.thread,
            flows_numbered: 0,
        })
    }

    /// Numbers for `flows` more flows, one after the other: the first of them. Unique among all threads, until one has made 67 million.
    pub fn flow_numbers(&mut self, flows: usize) -> u32 {
        let end = 1 << FLOW_BITS;
        if self.flows_numbered + flows as u32 > end {
            self.flows_numbered = 0;
        }
        let first = self.flows_numbered;
        self.flows_numbered += flows as u32;
        u32::from(self.thread) << FLOW_BITS | first
    }

    /// The responder that flow `number` stays with.
    pub fn responder(&self, number: u32) -> SocketAddrV4 {
        self.responders[number as usize % self.responders.len()]
    }

    /// Counts a failure under its reason.
    pub fn note(&mut self, reason: &str) {
        self.failures.note(reason, 1);
    }
}

fn transport_params(scenario: &Scenario) -> TransportParams {
    TransportParams {
        mtu_bytes: scenario.mtu_bytes(),
        idle_timeout: scenario.gateway.idle_timeout,
        keep_alive: Some(scenario.users.keep_alive),
        initial_rtt: Some(INITIAL_RTT),
        datagram_send_buffer_bytes_max: SEND_BUFFER_BYTES,
        datagram_receive_buffer_bytes_max: RECEIVE_BUFFER_BYTES,
        congestion: Congestion::Cubic,
    }
}

/// A flow that may be gone by the time it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowName {
    /// The client's slot.
    pub client: u32,
    /// The flow's number in the run.
    pub flow: u32,
}

/// All times that a generator waits for, but for paced events.
#[derive(Debug)]
pub struct Timers {
    /// Of clients' tunnels, by client.
    pub tunnels: TimerQueue,
    /// When sources are to be asked, by [`source_slot`].
    pub sources: TimerQueue,
    /// Questions to the responder that are to be repeated.
    pub questions: Delay<FlowName>,
    /// Acknowledgements that are due although few packets came.
    pub credits: Delay<FlowName>,
    /// Clients, each with the number of its attempt, whose handshake has to be over.
    pub handshakes: Delay<(u32, u64)>,
    /// Clients that are to be closed once nothing comes any more.
    pub farewells: Delay<(u32, u64)>,
    /// Clients whose connection was closed a while ago.
    pub closings: Delay<(u32, u64)>,
}

impl Timers {
    fn new() -> Timers {
        Timers {
            tunnels: TimerQueue::default(),
            sources: TimerQueue::default(),
            questions: Delay::new(QUESTION_INTERVAL),
            credits: Delay::new(CREDIT_AFTER),
            handshakes: Delay::new(HANDSHAKE_TIMEOUT),
            farewells: Delay::new(FAREWELL),
            closings: Delay::new(CLOSING_TIMEOUT),
        }
    }

    pub fn next_at(&self) -> Option<Instant> {
        let queues = [self.tunnels.next_at(), self.sources.next_at(), self.questions.next_at(), self.credits.next_at()];
        let clients = [self.handshakes.next_at(), self.farewells.next_at(), self.closings.next_at()];
        queues.into_iter().chain(clients).flatten().min()
    }
}

/// The slot of a client's flow in [`Timers::sources`].
pub fn source_slot(client: u32, flow: usize) -> u32 {
    client * CLIENT_FLOWS_MAX as u32 + flow as u32
}

/// The client and the flow with this slot.
pub fn client_and_flow(slot: u32) -> (u32, usize) {
    (slot / CLIENT_FLOWS_MAX as u32, slot as usize % CLIENT_FLOWS_MAX)
}
