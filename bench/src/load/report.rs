//! What a generator counts.

use std::collections::BTreeMap;

use tollgate_shards::Counters;

use super::sink::FlowCounts;
use crate::measure::round_trips::RoundTrips;

super::counts! {
    /// Counts since the start, but for those that are said to be of now.
    Counts {
        /// Clients by how far they are now: see [`State`](super::client::State).
        out,
        waiting,
        handshaking,
        open,
        leaving,
        again,
        closing,
        failed,
        /// Handshakes that led to an address, and those that led to none, repeated ones included.
        handshakes,
        failed_handshakes,
        /// Connections that ended although nobody wanted it.
        lost,
        /// Changes of a client's outer address.
        rebound,
        /// Inner packets given to tunnels, of all kinds.
        sent_packets,
        /// Inner packets that came out of tunnels and are messages of the responder, of all kinds.
        received_packets,
        received_bytes,
        /// Messages of all kinds that the kernel took from the responder, and that came to it.
        far_sent_packets,
        far_received_packets,
        /// As inner packets.
        far_received_bytes,
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
    }
}

impl Counts {
    /// Clients that are on the way to a connection.
    pub fn connecting(&self) -> u64 {
        self.waiting + self.handshaking + self.again
    }

    /// Clients with an address.
    pub fn connected(&self) -> u64 {
        self.open + self.leaving
    }

    /// Clients that are doing something that ends by itself.
    pub fn unsettled(&self) -> u64 {
        self.connecting() + self.leaving + self.closing
    }

    /// What arrived at either end, in bytes of inner packets.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes + self.far_received_bytes
    }

    /// What changes while packets are under way.
    pub fn packets(&self) -> [u64; 4] {
        [self.sent_packets, self.received_packets, self.far_sent_packets, self.far_received_packets]
    }
}

/// What the ends of a group's flows counted: the clients' and the responder's.
#[derive(Debug, Default)]
pub struct GroupReport {
    pub near: FlowCounts,
    pub far: FlowCounts,
    pub round_trips: Option<Box<RoundTrips>>,
}

/// Everything that a generator counted.
#[derive(Debug, Default)]
pub struct Report {
    pub counts: Counts,
    /// In the scenario's order.
    pub groups: Vec<GroupReport>,
    /// Of all tunnels that there were: datagrams, packets handed out, drops.
    pub tunnels: Counters,
    /// Why handshakes failed and connections were lost, with how often.
    pub failures: BTreeMap<String, u64>,
    /// The most that one user sent and received in a whole second, in bytes; 0 where no user is limited.
    pub user_peak_bytes: [u64; 2],
}

impl Report {
    /// Adds another generator's of the same scenario.
    pub fn merge(&mut self, other: Report) {
        self.counts += other.counts;
        add(&mut self.tunnels, &other.tunnels);
        self.groups.resize_with(other.groups.len(), Default::default);
        for (sum, group) in self.groups.iter_mut().zip(other.groups) {
            sum.near += group.near;
            sum.far += group.far;
            if let Some(trips) = group.round_trips {
                sum.round_trips.get_or_insert_default().add(&trips);
            }
        }
        for (reason, times) in other.failures {
            *self.failures.entry(reason).or_default() += times;
        }
        for (peak, other) in self.user_peak_bytes.iter_mut().zip(other.user_peak_bytes) {
            *peak = other.max(*peak);
        }
    }
}

/// Adds what accounts ask of a tunnel's counters.
pub fn add(sum: &mut Counters, counters: &Counters) {
    sum.datagrams_sent += counters.datagrams_sent;
    sum.datagrams_received += counters.datagrams_received;
    sum.down_packets += counters.down_packets;
    counters.drops.iter().for_each(|(reason, packets)| sum.drops.add(reason, packets));
}
