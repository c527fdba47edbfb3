//! What a generator counts.

use std::collections::BTreeMap;

use tollgate_shards::{Counters, DropReason};

use crate::load::flow::wire::FlowCounts;
use crate::measure::round_trips::RoundTrips;

/// The most different reasons of failures that are told apart.
const REASONS_MAX: usize = 16;

crate::load::counts! {
    /// Counts of a generator, cheap to read at any time: since its start, but for those that are said to be of now.
    GeneratorCounts {
        /// Clients that are on the way, now: waiting for their turn, in a handshake, or between two connections.
        connecting,
        /// Those of them that are in a handshake.
        handshaking,
        /// Clients with an address, now.
        connected,
        /// Clients that never got an address, and that nobody tries to connect any more, now.
        failed,
        /// Handshakes that led to an address.
        handshakes,
        /// Handshakes that led to none, repeated ones included.
        failed_handshakes,
        /// Connections closed on purpose, after they were up.
        closed,
        /// Connections that ended although nobody wanted it, after they were up.
        lost,
        /// Changes of a client's outer address.
        rebound,
        /// Flows that the responder refused, with a reason.
        flows_refused,
        /// Questions to the responder (open, close) that are not answered, those that wait for their turn included, now.
        questions_pending,
        /// Connections that are being closed, or are to be, now.
        closing,
        /// Flows that ended without their counts at the responder, for example with their connection.
        reports_missing,
        /// Inner packets given to tunnels, of all kinds.
        sent_packets,
        /// Inner packets that came out of tunnels and are messages of the responder, of all kinds.
        received_packets,
        received_bytes,
        /// Outer datagrams that were to be sent, or were received, and were lost on purpose.
        injected_lost_up,
        injected_lost_down,
        /// Outer datagrams that the kernel refused to send.
        outer_refused_datagrams,
        /// Outer datagrams for an address that no client has.
        outer_stray_datagrams,
        /// Receives that brought an error, or more than fits.
        receive_errors,
        /// Packets of flows that have a schedule, sent, and those sent later than 1 ms after they were due.
        scheduled_packets,
        late_packets,
        /// CPU time of the thread, no more than 100 ms old.
        cpu_ns,
    }
}

impl GeneratorCounts {
    /// Whether nothing is under way that ends by itself: no handshake, no question, no farewell.
    pub fn is_settled(&self) -> bool {
        self.connecting == 0 && self.questions_pending == 0 && self.closing == 0
    }
}

/// What all tunnels of clients counted, those that are gone included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelTotals {
    pub datagrams_sent: u64,
    pub datagrams_received: u64,
    pub down_packets: u64,
    pub drops: BTreeMap<&'static str, u64>,
}

impl TunnelTotals {
    pub fn add(&mut self, counters: &Counters) {
        self.datagrams_sent += counters.datagrams_sent;
        self.datagrams_received += counters.datagrams_received;
        self.down_packets += counters.down_packets;
        counters.drops.iter().for_each(|(reason, packets)| self.drop(reason, packets));
    }

    pub fn drop(&mut self, reason: DropReason, packets: u64) {
        *self.drops.entry(reason.name()).or_default() += packets;
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.name()).copied().unwrap_or(0)
    }

    fn merge(&mut self, other: &TunnelTotals) {
        self.datagrams_sent += other.datagrams_sent;
        self.datagrams_received += other.datagrams_received;
        self.down_packets += other.down_packets;
        other.drops.iter().for_each(|(reason, packets)| *self.drops.entry(reason).or_default() += packets);
    }
}

/// Everything that a generator counted.
#[derive(Debug, Clone, Default)]
pub struct GeneratorReport {
    pub counts: GeneratorCounts,
    /// Each group of traffic, in the scenario's order.
    pub groups: Vec<GroupCounts>,
    pub tunnels: TunnelTotals,
    pub failures: Failures,
}

/// Why handshakes failed, connections were lost and flows were refused, with how often.
#[derive(Debug, Clone, Default)]
pub struct Failures(pub BTreeMap<String, u64>);

impl Failures {
    /// Counts `reason`, by name while there are few.
    pub fn note(&mut self, reason: &str, times: u64) {
        let known = self.0.len() < REASONS_MAX || self.0.contains_key(reason);
        *self.0.entry(if known { reason } else { "other reasons" }.to_owned()).or_default() += times;
    }
}

/// A group's traffic, all flows that there ever were together.
#[derive(Debug, Clone, Default)]
pub struct GroupCounts {
    /// What this end sent (up) and received (down).
    pub near: FlowCounts,
    /// What the responder reported: sent (down) and received (up).
    pub far: FlowCounts,
    /// Round trips of requests, from when each was due.
    pub round_trips: Option<Box<RoundTrips>>,
    /// The most that one user with a connection of this group received in a whole second, in bytes of inner packets, all of its connections
    /// together. The first second of each user does not count, as a limited user's full bucket may empty in it. 0 where no user is limited.
    pub user_peak_down_bytes: u64,
    /// Likewise what the responder received of one user, by the acknowledgements that came back.
    pub user_peak_up_bytes: u64,
}

impl GeneratorReport {
    /// Adds another generator's of the same scenario; of maxima, the larger one stays.
    pub fn merge(&mut self, other: &GeneratorReport) {
        self.counts += other.counts;
        self.tunnels.merge(&other.tunnels);
        self.groups.resize_with(self.groups.len().max(other.groups.len()), GroupCounts::default);
        for (group, other) in self.groups.iter_mut().zip(&other.groups) {
            group.near += other.near;
            group.far += other.far;
            if let Some(trips) = &other.round_trips {
                group.round_trips.get_or_insert_default().add(trips);
            }
            group.user_peak_down_bytes = group.user_peak_down_bytes.max(other.user_peak_down_bytes);
            group.user_peak_up_bytes = group.user_peak_up_bytes.max(other.user_peak_up_bytes);
        }
        other.failures.0.iter().for_each(|(reason, times)| self.failures.note(reason, *times));
    }
}
