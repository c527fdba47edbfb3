//! What all clients of a generator share: their groups' plans, the passing time, agendas and counts.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::BytesMut;
use quinn_proto::TransportConfig;
use quinn_proto::crypto::HmacKey;
use rustc_hash::FxHashMap;
use tollgate::gateway::ephemeral_reset_key;
use tollgate_shards::{Congestion, Counters, TransportParams, transport};
use tollgate_testkit::chance::Chance;

use super::flow::{EndPlan, Schedule, SendPlan};
use super::generator::GeneratorPlan;
use super::message::{ARENA_BYTES, Kind};
use super::meters::Meters;
use super::report::{Counts, GroupReport};
use super::scenario::{Direction, TrafficKind, TrafficPlan};
use super::timers::Agenda;

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

/// What all flows of a group have in common.
#[derive(Debug)]
pub struct GroupPlan {
    /// Flows of each connection.
    pub flows: u16,
    pub near: EndPlan,
    pub far: EndPlan,
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
        let (near_credit, far_credit) = (is_windowed && down.is_some(), is_windowed && up.is_some());
        GroupPlan {
            flows: plan.flows,
            near: EndPlan { send: up, gives_credit: near_credit, answer_bytes: None },
            far: EndPlan { send: down, gives_credit: far_credit, answer_bytes: plan.answer_bytes },
        }
    }

    /// Whether what is sent up waits for room in the tunnel.
    pub fn is_windowed(&self) -> bool {
        self.far.gives_credit
    }
}

/// What all clients of a generator share.
pub struct Context {
    pub now: Instant,
    /// Stamps count from here.
    pub origin: Instant,
    pub remote: SocketAddr,
    pub transport: Arc<TransportConfig>,
    pub reset_key: Arc<dyn HmacKey>,
    pub responder: SocketAddrV4,
    pub plans: Vec<Arc<GroupPlan>>,
    /// Whose an inner address is, or was last.
    pub by_inner: FxHashMap<IpAddr, u32>,
    /// What packets are carved from.
    pub arena: BytesMut,
    /// Clients that are to be looked at, for their connections and near ends, and for their far ends.
    pub near: Agenda,
    pub far: Agenda,
    pub counts: Counts,
    /// Of flows that are gone.
    pub groups: Vec<GroupReport>,
    /// Of connections that are over.
    pub tunnels: Counters,
    pub failures: BTreeMap<String, u64>,
    /// What users send and what they receive, where they are limited.
    pub meters: Option<[Meters; 2]>,
    pub chance: Chance,
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
    pub fn new(plan: &GeneratorPlan) -> Result<Context> {
        let (scenario, now) = (&*plan.scenario, Instant::now());
        let SocketAddr::V4(responder) = plan.responder.local_address() else {
            bail!("a responder has no IPv4 address")
        };
        let transport_params = TransportParams {
            mtu_bytes: scenario.mtu_bytes(),
            idle_timeout: scenario.gateway.idle_timeout,
            keep_alive: Some(scenario.users.keep_alive),
            initial_rtt: Some(INITIAL_RTT),
            datagram_send_buffer_bytes_max: SEND_BUFFER_BYTES,
            datagram_receive_buffer_bytes_max: RECEIVE_BUFFER_BYTES,
            congestion: Congestion::Cubic,
        };
        let group = |traffic: &TrafficPlan| Arc::new(GroupPlan::new(traffic, scenario.mtu_bytes()));
        Ok(Context {
            now,
            origin: now,
            remote: plan.remote,
            transport: Arc::new(transport(&transport_params)),
            reset_key: ephemeral_reset_key(),
            responder,
            plans: scenario.traffic.iter().map(group).collect(),
            groups: scenario.traffic.iter().map(|_| GroupReport::default()).collect(),
            by_inner: FxHashMap::default(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
            near: Agenda::default(),
            far: Agenda::default(),
            counts: Counts { out: plan.clients.len() as u64, ..Counts::default() },
            tunnels: Counters::default(),
            failures: BTreeMap::new(),
            meters: scenario.users.limit.as_ref().map(|_| Default::default()),
            chance: Chance::new(scenario.harness.seed ^ u64::from(plan.thread) << 32),
            waiting: VecDeque::new(),
            is_traffic: false,
            is_ending: false,
            thread: plan.thread,
            flows_numbered: 0,
        })
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
