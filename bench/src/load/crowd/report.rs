//! What a crowd counts.

use std::collections::BTreeMap;

use tollgate_shards::Counters;

use crate::load::latencies::RoundTrips;
use crate::load::wire::FarCounts;

/// Counts of a crowd, cheap to read at any time. All are since its start, but for those that are said to be of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CrowdCounts {
    /// Clients that there are.
    pub clients: u64,
    /// Clients that are on the way, now: waiting for their turn, in a handshake, or between two connections.
    pub connecting: u64,
    /// Those of them that are in a handshake.
    pub handshaking: u64,
    /// Clients with an address, now.
    pub connected: u64,
    /// Clients that never got an address, and that nobody tries to connect any more, now.
    pub failed: u64,
    /// Handshakes that led to an address.
    pub handshakes: u64,
    /// Handshakes that led to none, repeated ones included.
    pub failed_handshakes: u64,
    /// Connections closed on purpose, after they were up.
    pub closed: u64,
    /// Connections that ended although nobody wanted it, after they were up.
    pub lost: u64,
    /// Changes of a client's outer address or port.
    pub rebound: u64,
    /// Flows that the far end agreed to and that were not closed yet, now.
    pub flows_open: u64,
    /// Flows that the far end refused, with a reason.
    pub flows_refused: u64,
    /// Questions to the far end (open, close) that are not answered, those that wait for their turn included, now.
    pub questions_pending: u64,
    /// Connections that are being closed, or are to be, now.
    pub closing: u64,
    /// Flows that ended without their counts at the far end, for example with their connection.
    pub reports_missing: u64,
    /// Inner packets given to tunnels, of all kinds.
    pub sent_packets: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Inner packets that came out of tunnels and are messages of the far end, of all kinds.
    pub received_packets: u64,
    /// Bytes of those.
    pub received_bytes: u64,
    /// Inner packets, not among [`received_packets`](Self::received_packets), that are no messages.
    pub foreign_packets: u64,
    /// Inner packets, among [`received_packets`](Self::received_packets), of no flow of the client.
    pub stray_packets: u64,
    /// Inner packets, among [`received_packets`](Self::received_packets), with a wrong byte, that no flow counts: control messages and
    /// strays.
    pub damaged_packets: u64,
    /// Outer datagrams that were to be sent and were lost on purpose.
    pub injected_lost_up: u64,
    /// Outer datagrams that were received and were lost on purpose.
    pub injected_lost_down: u64,
    /// Outer datagrams that the kernel took.
    pub outer_sent_datagrams: u64,
    /// Outer datagrams that the kernel handed out, those lost on purpose included.
    pub outer_received_datagrams: u64,
    /// Outer datagrams that the kernel refused to send.
    pub outer_refused_datagrams: u64,
    /// Outer datagrams, among those received, for an address or port that no client has.
    pub outer_stray_datagrams: u64,
    /// Receives that brought an error, or more than fits.
    pub receive_errors: u64,
    /// How long the thread waited for a full socket, in nanoseconds.
    pub blocked_ns: u64,
    /// Packets of flows that have a schedule, sent.
    pub scheduled_packets: u64,
    /// Those that were sent later than 1 ms after they were due.
    pub late_packets: u64,
    /// How far behind its schedule a packet was at most, in nanoseconds.
    pub lateness_max_ns: u64,
    /// CPU time of the thread, in nanoseconds, no more than 100 ms old.
    pub cpu_ns: u64,
    /// Times that the thread looked for work.
    pub passes: u64,
    /// Times that it slept.
    pub sleeps: u64,
}

/// Everything that a crowd counted.
#[derive(Debug, Clone, Default)]
pub struct CrowdReport {
    /// What is counted in passing.
    pub counts: CrowdCounts,
    /// Each group of traffic, in the scenario's order.
    pub groups: Vec<NearGroup>,
    /// The counters of all tunnels, those that are gone included.
    pub counters: Counters,
    /// Why handshakes failed, connections were lost and flows were refused, with how often; at most [`REASONS_MAX`](super::REASONS_MAX),
    /// the rest under `other reasons`.
    pub failures: BTreeMap<String, u64>,
}

/// A group's traffic as its near end sees it, all flows that there ever were together.
#[derive(Debug, Clone, Default)]
pub struct NearGroup {
    /// Flows that the far end agreed to.
    pub flows: u64,
    /// What this end sent (up) and received (down).
    pub near: FarCounts,
    /// What the far end reported: sent (down) and received (up). Of each flow the last report; `reports` of `flows` have one.
    pub far: FarCounts,
    /// Flows with a report.
    pub reports: u64,
    /// Windows that this end took as lost.
    pub stalls: u64,
    /// Round trips of requests, from when each was due.
    pub round_trips: RoundTrips,
    /// The most that one user with a connection of this group received in a whole second, in bytes of inner packets, all of its connections
    /// together. The first second of each user does not count, as a limited user's full bucket may empty in it. 0 where no user is limited.
    pub user_peak_down_bytes: u64,
    /// Likewise what the far end received of one user, by the acknowledgements that came back.
    pub user_peak_up_bytes: u64,
}

impl CrowdCounts {
    /// Whether nothing is under way that ends by itself: no handshake, no question, no farewell.
    pub fn is_settled(&self) -> bool {
        self.connecting == 0 && self.questions_pending == 0 && self.closing == 0
    }

    /// Both together; of maxima, the larger.
    pub fn plus(self, other: CrowdCounts) -> CrowdCounts {
        CrowdCounts {
            clients: self.clients + other.clients,
            connecting: self.connecting + other.connecting,
            handshaking: self.handshaking + other.handshaking,
            connected: self.connected + other.connected,
            failed: self.failed + other.failed,
            handshakes: self.handshakes + other.handshakes,
            failed_handshakes: self.failed_handshakes + other.failed_handshakes,
            closed: self.closed + other.closed,
            lost: self.lost + other.lost,
            rebound: self.rebound + other.rebound,
            flows_open: self.flows_open + other.flows_open,
            flows_refused: self.flows_refused + other.flows_refused,
            questions_pending: self.questions_pending + other.questions_pending,
            closing: self.closing + other.closing,
            reports_missing: self.reports_missing + other.reports_missing,
            sent_packets: self.sent_packets + other.sent_packets,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_packets: self.received_packets + other.received_packets,
            received_bytes: self.received_bytes + other.received_bytes,
            foreign_packets: self.foreign_packets + other.foreign_packets,
            stray_packets: self.stray_packets + other.stray_packets,
            damaged_packets: self.damaged_packets + other.damaged_packets,
            injected_lost_up: self.injected_lost_up + other.injected_lost_up,
            injected_lost_down: self.injected_lost_down + other.injected_lost_down,
            outer_sent_datagrams: self.outer_sent_datagrams + other.outer_sent_datagrams,
            outer_received_datagrams: self.outer_received_datagrams + other.outer_received_datagrams,
            outer_refused_datagrams: self.outer_refused_datagrams + other.outer_refused_datagrams,
            outer_stray_datagrams: self.outer_stray_datagrams + other.outer_stray_datagrams,
            receive_errors: self.receive_errors + other.receive_errors,
            blocked_ns: self.blocked_ns + other.blocked_ns,
            scheduled_packets: self.scheduled_packets + other.scheduled_packets,
            late_packets: self.late_packets + other.late_packets,
            lateness_max_ns: self.lateness_max_ns.max(other.lateness_max_ns),
            cpu_ns: self.cpu_ns + other.cpu_ns,
            passes: self.passes + other.passes,
            sleeps: self.sleeps + other.sleeps,
        }
    }
}

impl CrowdReport {
    /// Adds another crowd's of the same scenario; of maxima, the larger one stays.
    pub fn merge(&mut self, other: &CrowdReport) {
        self.counts = self.counts.plus(other.counts);
        add_counters(&mut self.counters, &other.counters);
        if self.groups.len() < other.groups.len() {
            self.groups.resize_with(other.groups.len(), NearGroup::default);
        }
        for (group, other) in self.groups.iter_mut().zip(&other.groups) {
            group.merge(other);
        }
        for (reason, times) in &other.failures {
            note(&mut self.failures, reason, *times);
        }
    }
}

impl NearGroup {
    fn merge(&mut self, other: &NearGroup) {
        self.flows += other.flows;
        add_far_counts(&mut self.near, &other.near);
        add_far_counts(&mut self.far, &other.far);
        self.reports += other.reports;
        self.stalls += other.stalls;
        self.round_trips.merge(&other.round_trips);
        self.user_peak_down_bytes = self.user_peak_down_bytes.max(other.user_peak_down_bytes);
        self.user_peak_up_bytes = self.user_peak_up_bytes.max(other.user_peak_up_bytes);
    }
}

/// Counts `reason`, by name while there are few.
pub(super) fn note(failures: &mut BTreeMap<String, u64>, reason: &str, times: u64) {
    let known = failures.len() < super::REASONS_MAX || failures.contains_key(reason);
    *failures.entry(if known { reason } else { "other reasons" }.to_owned()).or_default() += times;
}

pub(super) fn add_far_counts(sum: &mut FarCounts, other: &FarCounts) {
    sum.sent_packets += other.sent_packets;
    sum.received_packets += other.received_packets;
    sum.received_bytes += other.received_bytes;
    sum.reordered_packets += other.reordered_packets;
    sum.duplicated_packets += other.duplicated_packets;
    sum.corrupted_packets += other.corrupted_packets;
}

pub(super) fn add_counters(sum: &mut Counters, other: &Counters) {
    // Destructured, so that a counter that is new is not forgotten here.
    let Counters {
        up_packets,
        up_bytes,
        thinned_acks,
        down_packets,
        down_bytes,
        datagrams_received,
        datagrams_sent,
        relayed_packets,
        misrouted_frames,
        misrouted_datagrams,
        retries,
        handshakes,
        stateless_responses,
        too_big_replies,
        narrowed_paths,
        too_narrow_paths,
        fragmented_packets,
        own_packets,
        messages,
        connections,
        users,
        forgotten_events,
        drops,
    } = other;
    sum.up_packets += up_packets;
    sum.up_bytes += up_bytes;
    sum.thinned_acks += thinned_acks;
    sum.down_packets += down_packets;
    sum.down_bytes += down_bytes;
    sum.datagrams_received += datagrams_received;
    sum.datagrams_sent += datagrams_sent;
    sum.relayed_packets += relayed_packets;
    sum.misrouted_frames += misrouted_frames;
    sum.misrouted_datagrams += misrouted_datagrams;
    sum.retries += retries;
    sum.handshakes += handshakes;
    sum.stateless_responses += stateless_responses;
    sum.too_big_replies += too_big_replies;
    sum.narrowed_paths += narrowed_paths;
    sum.too_narrow_paths += too_narrow_paths;
    sum.fragmented_packets += fragmented_packets;
    sum.own_packets += own_packets;
    sum.messages += messages;
    sum.connections += connections;
    sum.users += users;
    sum.forgotten_events += forgotten_events;
    for (reason, packets) in drops.iter() {
        sum.drops.add(reason, packets);
    }
}
