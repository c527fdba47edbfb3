//! The near end of a flow: what it asks the far end, what it sends, and what it makes of what comes.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tollgate_shards::TimerEntry;

use crate::load::far_end::LIFETIME_MAX;
use crate::load::latencies::RoundTrips;
use crate::load::packet::Path;
use crate::load::sink::{Credit, Sink};
use crate::load::sizes::SizeCycle;
use crate::load::source::{Source, TRAIN_PACKETS_MAX, phase};
use crate::load::wire::{self, FarCounts, FlowSpec, Header, Kind, SendSpec};
use crate::scenario::{Direction, Scenario, TrafficKind, TrafficPlan};

use super::report::{NearGroup, add_far_counts};

/// How much longer than the scenario's traffic the far end keeps sending to a near end that has fallen silent.
const LIFETIME_MARGIN: Duration = Duration::from_secs(120);

/// What all flows of a group have in common, and what was counted of those that are gone.
#[derive(Debug)]
pub(super) struct Group {
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
    /// Whether the far end is told what has come of its data.
    acknowledges: bool,
    /// Flows of each connection.
    pub flows: usize,
    /// The mean length of a packet that is sent up, in bytes.
    mean_up_bytes: f64,
    /// What was counted of flows that are gone; of all flows, their number and the round trips.
    pub gone: NearGroup,
}

impl Group {
    /// Checks the plan in passing.
    pub fn new(scenario: &Scenario, plan: &TrafficPlan, run: u64) -> Result<Group> {
        let sizes = plan.sizes.0.clone();
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
        let lifetime = (scenario.duration + LIFETIME_MARGIN).min(LIFETIME_MAX);
        let lifetime_ms = lifetime.as_millis() as u64;
        let open = FlowSpec { run, down, answer_bytes: answer_bytes.unwrap_or(0), acknowledge, lifetime_ms };
        Ok(Group {
            is_scheduled: up.is_some() && !is_windowed,
            is_on_grid: !is_request,
            up,
            kind,
            open_body: wire::encode(&open),
            is_windowed,
            acknowledges,
            flows: usize::from(plan.flows),
            mean_up_bytes,
            gone: NearGroup::default(),
        })
    }
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowState {
    /// The far end has not agreed yet.
    New,
    /// Messages may go both ways.
    Open,
    /// The far end has said what it counted. What comes late still counts.
    Closed,
    /// The far end wants none.
    Refused,
}

/// The near end of a flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// Unique in the run.
    pub number: u32,
    /// Its group.
    pub group: u8,
    /// To the far end.
    pub path: Path,
    /// How far it is.
    pub state: FlowState,
    /// What the far end was asked and has not answered: [`Kind::Open`] or [`Kind::Close`].
    pub question: Option<Kind>,
    /// Whether the question is one of the few that may be new at once.
    pub has_turn: bool,
    /// What is sent.
    pub source: Option<Source>,
    sink: Sink,
    /// When the source is to be asked.
    pub armed: TimerEntry,
    /// Whether it waits for its turn to send.
    pub is_ready: bool,
    is_credit_timed: bool,
    report: Option<FarCounts>,
    /// Messages that the far end says to have received.
    acknowledged: u64,
}

/// What an answer of the far end changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// The flow is open now.
    Opened,
    /// The far end refused it, and said why.
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
            armed: TimerEntry::default(),
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

    /// What the far end is to be told of that now; or `true` where it is to be told when [`CREDIT_AFTER`](crate::load::sink::CREDIT_AFTER)
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

    /// The far end says what it received. Returns how many bytes more that are, about, and whether more may be sent.
    pub fn handle_credit(&mut self, now: Instant, header: &Header, group: &Group) -> (u64, bool) {
        let Some(source) = &mut self.source else { return (0, false) };
        if !source.handle_credit(now, header.stamp_ns) {
            return (0, false);
        }
        let packets = header.sequence.saturating_sub(self.acknowledged);
        self.acknowledged = self.acknowledged.max(header.sequence);
        ((packets as f64 * group.mean_up_bytes) as u64, true)
    }

    /// Takes an answer of the far end: [`Kind::Opened`] or [`Kind::Report`].
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
    pub fn add_to(&self, group: &mut NearGroup) {
        add_far_counts(&mut group.near, &self.sink.counts(self.source.as_ref().map_or(0, Source::sequence)));
        group.stalls += self.source.as_ref().map_or(0, Source::stalls);
        if let Some(report) = &self.report {
            add_far_counts(&mut group.far, report);
            group.reports += 1;
        }
    }
}

/// Records the round trip of a request, from when it was due: an answer to it came now, with `header`.
#[inline]
pub(super) fn record(round_trips: &mut RoundTrips, origin: Instant, now: Instant, header: &Header) {
    round_trips.record(wire::stamp_ns(origin, now).saturating_sub(header.stamp_ns));
}
