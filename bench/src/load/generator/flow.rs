//! The generator of a flow: what it asks the responder, what it sends, and what it makes of what comes.

use std::net::SocketAddrV4;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::load::flow::packet::Path;
use crate::load::flow::sink::{Credit, Sink};
use crate::load::flow::sizes::SizeCycle;
use crate::load::flow::source::{Source, TRAIN_PACKETS_MAX, phase};
use crate::load::flow::wire::{self, FlowCounts, FlowSpec, Header, Kind, SendSpec};
use crate::load::scenario::{Direction, Scenario, TrafficKind, TrafficPlan};

use super::counts::GroupCounts;

/// Of so few flows each packet is sent when it is due; those of more are put together in time.
const ON_TIME_FLOWS_MAX: u32 = 64;

/// What all flows of a group have in shared, and what was counted of those that are gone.
#[derive(Debug)]
pub struct Group {
    /// What is sent up, if anything.
    up: Option<SendSpec>,
    /// The kind of it.
    pub kind: Kind,
    /// The body of the question for a flow.
    pub open_body: Vec<u8>,
    /// Whether what is sent up waits for room in the tunnel, rather than being dropped there.
    pub is_windowed: bool,
    /// Whether what is sent up has a schedule to be late against.
    pub is_scheduled: bool,
    /// Whether the schedule is for throughput only, and may be followed in small steps.
    pub is_on_grid: bool,
    /// Whether the responder is told what has come of its data.
    acknowledges: bool,
    /// Flows of each connection.
    pub flows: usize,
    /// The mean length of a packet that is sent up, in bytes.
    mean_up_bytes: f64,
    /// What was counted of flows that are gone; of all flows, their number and the round trips.
    pub gone: GroupCounts,
}

impl Group {
    /// Checks the plan in passing.
    pub fn new(scenario: &Scenario, plan: &TrafficPlan) -> Result<Group> {
        let sizes = plan.sizes.clone();
        let (packets_per_second, window_bytes, train_packets, kind, answer_bytes) = match plan.kind {
            // What a window lets through at once goes at once.
            TrafficKind::Bulk { window_bytes } => (None, Some(window_bytes), TRAIN_PACKETS_MAX, Kind::Data, None),
            TrafficKind::Constant { packets_per_second, train_packets } => {
                (Some(packets_per_second), None, train_packets, Kind::Data, None)
            }
            TrafficKind::Request { requests_per_second, answer_bytes } => {
                (Some(requests_per_second), None, 1, Kind::Request, answer_bytes)
            }
        };
        let what = || format!("traffic {:?}", plan.name);
        let mean_up_bytes = SizeCycle::new(&sizes).with_context(what)?.mean();
        let spec = SendSpec { sizes, packets_per_second, window_bytes, train_packets };
        Source::new(&spec, Instant::now()).with_context(what)?;
        let is_request = kind == Kind::Request;
        let up = (is_request || plan.direction != Direction::Down).then(|| spec.clone());
        let down = (!is_request && plan.direction != Direction::Up).then_some(spec);
        let is_windowed = window_bytes.is_some();
        // Of limited users, acknowledgements also tell how much arrives in each second.
        let acknowledge = up.is_some() && (is_windowed || scenario.users.limit.is_some());
        let acknowledges = is_windowed && down.is_some();
        let open = FlowSpec { down, answer_bytes: answer_bytes.unwrap_or(0), acknowledge };
        Ok(Group {
            is_scheduled: up.is_some() && !is_windowed,
            is_on_grid: !is_request && plan.connections * u32::from(plan.flows) > ON_TIME_FLOWS_MAX,
            up,
            kind,
            open_body: wire::encode(&open),
            is_windowed,
            acknowledges,
            flows: usize::from(plan.flows),
            mean_up_bytes,
            gone: GroupCounts::default(),
        })
    }
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// The responder has not agreed yet.
    New,
    /// Messages may go both ways.
    Open,
    /// The responder has said what it counted. What comes late still counts.
    Closed,
    /// The responder wants none.
    Refused,
}

/// The generator of a flow.
#[derive(Debug)]
pub struct Flow {
    /// Unique in the run.
    pub number: u32,
    /// Its group.
    pub group: u8,
    /// To the responder.
    pub path: Path,
    /// How far it is.
    pub state: FlowState,
    /// What the responder was asked and has not answered: [`Kind::Open`] or [`Kind::Close`].
    pub question: Option<Kind>,
    /// Whether the question is one of the few that may be new at once.
    pub has_turn: bool,
    /// What is sent.
    pub source: Option<Source>,
    sink: Sink,
    /// When the source is to be asked.
    pub armed: Option<Instant>,
    /// Whether it waits for its turn to send.
    pub is_ready: bool,
    is_credit_timed: bool,
    report: Option<FlowCounts>,
    /// Messages that the responder says to have received.
    acknowledged: u64,
}

/// What an answer of the responder changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The flow is open now.
    Opened,
    /// The responder refused it, and said why.
    Refused(String),
    /// It is closed now.
    Closed,
}

impl Flow {
    pub fn new(number: u32, group: u8, near: SocketAddrV4, far: SocketAddrV4) -> Flow {
        Flow {
            number,
            group,
            path: Path::new(near, far),
            state: FlowState::New,
            question: None,
            has_turn: false,
            source: None,
            sink: Sink::new(),
            armed: None,
            is_ready: false,
            is_credit_timed: false,
            report: None,
            acknowledged: 0,
        }
    }

    /// Begins to send, the first packet at its place between those of all other flows.
    pub fn start(&mut self, now: Instant, group: &Group) {
        // The group's plan was checked when it was made.
        self.source = group.up.as_ref().and_then(|up| Source::new(up, now + phase(up, self.number)).ok());
    }

    /// Ends sending.
    pub fn stop(&mut self) {
        self.source.iter_mut().for_each(Source::stop);
    }

    /// Counts data or an answer. Returns whether it is new and intact.
    #[inline]
    pub fn take(&mut self, now: Instant, sequence: u64, inner_bytes: usize, is_intact: bool) -> bool {
        self.sink.take(now, sequence, inner_bytes, is_intact)
    }

    /// What the responder is to be told of that now; or `true` where it is to be told when [`CREDIT_AFTER`](crate::load::flow::sink::CREDIT_AFTER)
    /// is over, for which there is no timer yet.
    #[inline]
    pub fn acknowledge(&mut self, now: Instant, group: &Group) -> (Option<Credit>, bool) {
        if !group.acknowledges {
            return (None, false);
        }
        let credit = self.sink.credit_due(now);
        let wants_timer = credit.is_none() && !self.is_credit_timed && self.sink.credit_at().is_some();
        self.is_credit_timed |= wants_timer;
        (credit, wants_timer)
    }

    /// The timer for an acknowledgement is over.
    pub fn credit_timer_fired(&mut self) {
        self.is_credit_timed = false;
    }

    /// The responder says what it received. Returns how many bytes more that are, about, and whether more may be sent.
    pub fn handle_credit(&mut self, now: Instant, header: &Header, group: &Group) -> (u64, bool) {
        let Some(source) = &mut self.source else { return (0, false) };
        if !source.handle_credit(now, header.stamp_ns) {
            return (0, false);
        }
        let packets = header.sequence.saturating_sub(self.acknowledged);
        self.acknowledged = self.acknowledged.max(header.sequence);
        ((packets as f64 * group.mean_up_bytes) as u64, true)
    }

    /// Takes an answer of the responder: [`Kind::Opened`] or [`Kind::Report`].
    pub fn handle_answer(&mut self, header: &Header, body: &[u8]) -> Change {
        match (header.kind, self.state) {
            (Kind::Opened, FlowState::New) if body.is_empty() => {
                self.state = FlowState::Open;
                Change::Opened
            }
            (Kind::Opened, FlowState::New) => {
                self.state = FlowState::Refused;
                Change::Refused(String::from_utf8_lossy(body).into_owned())
            }
            (Kind::Report, FlowState::Open | FlowState::Closed) => {
                let Ok(counts) = wire::decode(body) else { return Change::None };
                self.report = Some(counts);
                match std::mem::replace(&mut self.state, FlowState::Closed) {
                    FlowState::Open => Change::Closed,
                    _ => Change::None,
                }
            }
            _ => Change::None,
        }
    }

    /// Whether `kind` answers what was asked.
    pub fn is_answered_by(&self, kind: Kind) -> bool {
        matches!((self.question, kind), (Some(Kind::Open), Kind::Opened) | (Some(Kind::Close), Kind::Report))
    }

    /// Adds what was counted to its group's.
    pub fn add_to(&self, group: &mut GroupCounts) {
        group.near += self.sink.counts(self.source.as_ref().map_or(0, Source::sequence));
        if let Some(report) = &self.report {
            group.far += *report;
        }
    }
}
