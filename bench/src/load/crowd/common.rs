//! What all clients of a crowd share: groups, timers, counts, and who is to be looked at in this pass.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::BytesMut;
use quinn_proto::TransportConfig;
use quinn_proto::crypto::HmacKey;
use tollgate::gateway::ephemeral_reset_key;
use tollgate_shards::{Congestion, TransportParams, transport};

use super::flow::Group;
use super::meter::Meters;
use super::report::{CrowdCounts, note};
use super::timers::{FlowName, Intervals, Timers};
use super::trouble::Chance;
use super::{CrowdPlan, THREADS_MAX};
use crate::load::packet::ARENA_BYTES;
use crate::load::pattern::Pattern;
use crate::load::sink::CREDIT_AFTER;
use crate::scenario::{GatewayPlan, Scenario};

/// How long everything waits that waits equally long.
pub(super) const INTERVALS: Intervals = Intervals {
    // A question to the far end is repeated.
    question: Duration::from_millis(500),
    credit: CREDIT_AFTER,
    // A handshake is given up.
    handshake: Duration::from_secs(10),
    // A connection is closed on purpose when nothing was heard for this long after its flows' end: what is on the way would be lost.
    farewell: Duration::from_millis(50),
    // A closed connection is forgotten, although what is left of it (RFC 9000, section 10.2) has not died away.
    closing: Duration::from_secs(3),
};
/// What the first packet's repetition reckons with.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Inner packets of a connection that wait to be sent, in bytes. Scheduled traffic that finds it full is dropped, and counted.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Inner packets of a connection that were received and not looked at, in bytes.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// How long a gateway that runs already is expected to keep silent connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bits of a flow's number that count within its thread.
const FLOW_BITS: u32 = u32::BITS - THREADS_MAX.ilog2();

/// What all clients of a crowd share.
pub(super) struct Common {
    pub remote: SocketAddr,
    pub server_name: String,
    pub transport: Arc<TransportConfig>,
    pub reset_key: Arc<dyn HmacKey>,
    far_ends: Vec<SocketAddrV4>,
    /// In the scenario's order.
    pub groups: Vec<Group>,
    pub pattern: &'static Pattern,
    /// What packets are carved from.
    pub arena: BytesMut,
    /// Stamps count from here.
    pub origin: Instant,
    pub timers: Timers,
    pub counts: CrowdCounts,
    pub failures: BTreeMap<String, u64>,
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

impl Common {
    pub fn new(plan: &CrowdPlan, meters: Meters, now: Instant) -> Result<Common> {
        let scenario = &*plan.scenario;
        let groups = scenario.traffic.iter().map(|traffic| Group::new(scenario, traffic, plan.run));
        Ok(Common {
            remote: plan.remote,
            server_name: plan.server_name.clone(),
            transport: Arc::new(transport(&transport_params(scenario))),
            reset_key: ephemeral_reset_key(),
            far_ends: plan.far_ends.clone(),
            groups: groups.collect::<Result<_>>()?,
            pattern: Pattern::shared(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            origin: now,
            timers: Timers::new(&INTERVALS),
            counts: CrowdCounts { clients: plan.clients.len() as u64, ..CrowdCounts::default() },
            failures: BTreeMap::new(),
            meters,
            chance: Chance::new(scenario.harness.seed, plan.thread),
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

    /// The far end that flow `number` stays with.
    pub fn far_end(&self, number: u32) -> SocketAddrV4 {
        self.far_ends[number as usize % self.far_ends.len()]
    }

    /// Counts a failure under its reason.
    pub fn note(&mut self, reason: &str) {
        note(&mut self.failures, reason, 1);
    }
}

fn transport_params(scenario: &Scenario) -> TransportParams {
    let idle_timeout = match &scenario.gateway {
        GatewayPlan::Started(gateway) => gateway.idle_timeout,
        GatewayPlan::Named(_) => IDLE_TIMEOUT,
    };
    TransportParams {
        mtu_bytes: scenario.mtu_bytes(),
        idle_timeout,
        keep_alive: Some(scenario.users.keep_alive),
        initial_rtt: Some(INITIAL_RTT),
        datagram_send_buffer_bytes_max: SEND_BUFFER_BYTES,
        datagram_receive_buffer_bytes_max: RECEIVE_BUFFER_BYTES,
        congestion: Congestion::Cubic,
    }
}
