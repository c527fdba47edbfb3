//! The gateway's counters, summed over its shards.

use tollgate_shards::Drops;

use crate::gateway::Status;

/// What all shards together have moved in data-carrying messages and frames, and what they have dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// From clients: datagrams, and the receives that brought them.
    pub(super) received: Carried,
    /// To clients: datagrams, and the sends that took them.
    pub(super) sent: Carried,
    /// To the network behind: bytes, and the TUN frames with them.
    pub(super) written: Carried,
    /// From the network behind: bytes, and the TUN frames with them.
    pub(super) read: Carried,
    /// Packets dropped by all shards, by reason.
    pub(super) drops: Drops,
}

/// How much was moved, in how many system calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) load: u64,
    pub(super) calls: u64,
}

impl Tally {
    /// All there was since the gateway's start.
    pub(super) fn of(status: &Status) -> Self {
        let mut sum = Tally::default();
        for report in &status.shards {
            let traffic = &report.traffic;
            sum.received.add(traffic.udp_received_datagrams, traffic.udp_receives);
            sum.sent.add(traffic.udp_data_datagrams, traffic.udp_data_sends);
            sum.written.add(traffic.tun_data_write_bytes, traffic.tun_data_writes);
            sum.read.add(traffic.tun_data_read_bytes, traffic.tun_data_reads);
            report.counters.drops.iter().for_each(|(reason, packets)| sum.drops.add(reason, packets));
        }
        sum
    }

    /// The difference to an earlier tally.
    pub(super) fn since(&self, before: &Tally) -> Self {
        let mut drops = Drops::default();
        for (reason, packets) in self.drops.iter() {
            drops.add(reason, packets.saturating_sub(before.drops.of(reason)));
        }
        Tally {
            received: self.received.since(before.received),
            sent: self.sent.since(before.sent),
            written: self.written.since(before.written),
            read: self.read.since(before.read),
            drops,
        }
    }
}

impl Carried {
    /// The mean load of a call; 0 without calls.
    pub(super) fn mean(self) -> f64 {
        if self.calls == 0 { 0.0 } else { self.load as f64 / self.calls as f64 }
    }

    fn add(&mut self, load: u64, calls: u64) {
        self.load += load;
        self.calls += calls;
    }

    fn since(self, before: Carried) -> Carried {
        Carried { load: self.load.saturating_sub(before.load), calls: self.calls.saturating_sub(before.calls) }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{Counters, DropReason};

    use super::*;
    use crate::gateway::Report;
    use crate::packet_io::Traffic;

    fn report(shard: u16, scale: u64) -> Report {
        let mut drops = Drops::default();
        drops.add(DropReason::Isolated, scale);
        drops.add(DropReason::TunWrite, 7);
        Report {
            shard,
            cpu: shard.into(),
            owned_connections: 1,
            clients: 1,
            addresses_held: (shard == 0).then_some(2),
            counters: Counters { up_packets: 5 * scale, connections: 1, drops, ..Counters::default() },
            traffic: Traffic { udp_data_sends: scale, udp_data_datagrams: 20 * scale, ..Traffic::default() },
            ..Report::default()
        }
    }

    #[test]
    fn counters_survive_the_line_of_json() {
        let status = Status { shards: vec![report(0, 3), report(1, 10)], ..Status::default() };
        assert_eq!(serde_json::from_str::<Status>(&status.to_json()).unwrap(), status);
    }

    #[test]
    fn a_tally_sums_over_shards_and_counts_from_an_earlier_one() {
        let before = Tally::of(&Status { shards: vec![report(0, 1), report(1, 2)], ..Status::default() });
        let after = Tally::of(&Status { shards: vec![report(0, 4), report(1, 6)], ..Status::default() });
        assert_eq!((after.sent, after.drops.of(DropReason::Isolated)), (Carried { load: 200, calls: 10 }, 10));
        let since = after.since(&before);
        assert_eq!(since.sent, Carried { load: 140, calls: 7 });
        assert_eq!((since.sent.mean(), since.read.mean()), (20.0, 0.0));
        assert_eq!((since.drops.of(DropReason::Isolated), since.drops.of(DropReason::TunWrite)), (7, 0));
    }
}
