//! Where every packet went: what one end gave to the tunnel against what the other got out of it, stage by stage, by the counters of all
//! who took part.
//!
//! A drop that somebody counted as a packet is taken as it is. A loss between two counters is a drop only if there is evidence of one: a
//! kernel counter that rose, or a loss that was wanted. Such evidence is in datagrams or aggregates, so it explains up to as many packets
//! as those can hold. What is not explained stays unaccounted, and so does a drop that nothing is missing for.

use std::collections::BTreeMap;

use tollgate::gateway::Status;
use tollgate_shards::DropReason::{
    ConnectionClosed, DatagramQueueFull, ForeignDatagram, ForgedSource, Isolated, Malformed, MemoryLimit, MeshFull,
    Multicast, NoRoute, NotAttached, OuterAddress, OverLimit, QueueDelay, ReceiveQueueFull, TooBig, TunWrite, UdpSend,
    UdpTruncated, Unroutable, WaitedTooLong,
};
use tollgate_shards::{Counters, DropReason};

use super::message::INNER_BYTES_MIN;
use super::report::Counts;
use super::result::Account;
use crate::deploy::{KernelDrops, PACKETS_OF_A_DROP_MAX, Place};

/// Drops of a tunnel's sending side.
const TUNNEL_UP: [DropReason; 3] = [DatagramQueueFull, TooBig, ConnectionClosed];
/// Drops that a gateway counts of packets from clients only, before it counts them as on their way up.
const GATEWAY_UP: [DropReason; 6] = [ForgedSource, Isolated, Multicast, OuterAddress, Unroutable, ReceiveQueueFull];
/// Drops that a gateway counts of packets to clients only.
const GATEWAY_DOWN: [DropReason; 4] = [DatagramQueueFull, TooBig, ConnectionClosed, MemoryLimit];
/// Drops that a gateway counts of both. How many of them were on the way up, the counts around tell.
const GATEWAY_BOTH: [DropReason; 6] = [NotAttached, OverLimit, QueueDelay, WaitedTooLong, NoRoute, Malformed];

/// Everything that was counted anywhere, over the whole run.
#[derive(Debug, Clone, Copy)]
pub struct Accounts<'a> {
    pub generators: &'a Counts,
    /// Of all clients.
    pub tunnels: &'a Counters,
    /// The gateway, where it tells.
    pub gateway: Option<&'a Status>,
    /// The kernel, in the run's namespaces.
    pub kernel: &'a KernelDrops,
    /// Inner MTU in bytes.
    pub mtu_bytes: u16,
}

impl Accounts<'_> {
    /// The accounts, up and down.
    pub fn balance(&self) -> (Account, Account) {
        let Accounts { generators, tunnels, kernel, .. } = *self;
        let (far_sent, far_received) = (generators.far_sent_packets, generators.far_received_packets);
        let client = |reasons: &[DropReason]| named("client", reasons, |reason| tunnels.drops.of(reason));
        let at = |place| kernel.at(place).map(|(what, count)| (format!("kernel: {what}"), count)).collect();
        let outer = |what: &str, count| vec![(format!("outer: {what}"), count)];
        let frames_max = self.frames_max();
        let aggregates_max = PACKETS_OF_A_DROP_MAX * frames_max;
        let (mut up, mut down) = (Way::default(), Way::default());

        up.stage(generators.sent_packets, tunnels.datagrams_sent);
        up.count(client(&TUNNEL_UP));
        // What is not of the way up is of the way down.
        let early_or_late = up.explain(client(&[NotAttached]), 1);

        match self.gateway {
            // Between a tunnel and the far end, only what the kernel dropped is known. Of datagrams lost on purpose, nobody knows how many
            // packets they had.
            None => {
                up.stage(tunnels.datagrams_sent, far_received);
                up.explain(at(Place::OuterUp), aggregates_max);
                down.stage(far_sent, tunnels.datagrams_received);
                down.explain(at(Place::InnerDown), PACKETS_OF_A_DROP_MAX);
            }
            Some(gateway) => {
                let of = |reasons: &[DropReason]| named("gateway", reasons, |reason| gateway.dropped(reason));
                let sum = |count: fn(&Counters) -> u64| gateway.shards.iter().map(|shard| count(&shard.counters)).sum();
                let (received, sent): (u64, u64) = (sum(|of| of.datagrams_received), sum(|of| of.datagrams_sent));
                let judged = sum(|of| of.up_packets + of.relayed_packets);
                up.stage(tunnels.datagrams_sent, received);
                up.explain(outer("lost on purpose", generators.injected_lost_up), frames_max);
                up.explain(outer("refused by the clients' kernel", generators.outer_refused_datagrams), frames_max);
                // The mesh counts what it had no room for as it came: a datagram, a frame, a packet.
                up.explain(of(&[ForeignDatagram, UdpTruncated, MeshFull]), frames_max);
                up.explain(at(Place::OuterUp), aggregates_max);
                up.stage(received, judged);
                up.count(of(&GATEWAY_UP));
                let of_both = up.explain(of(&GATEWAY_BOTH), 1);
                up.stage(judged, far_received);
                up.count(of(&[TunWrite]));

                down.stage(far_sent, sent);
                down.count(of(&GATEWAY_DOWN));
                down.count(of_both);
                down.explain(of(&[MeshFull]), PACKETS_OF_A_DROP_MAX);
                down.explain(at(Place::InnerDown), PACKETS_OF_A_DROP_MAX);
                down.stage(sent, tunnels.datagrams_received);
                down.explain(outer("lost on purpose", generators.injected_lost_down), frames_max);
                let late = generators.outer_stray_datagrams + tunnels.drops.of(ForeignDatagram);
                down.explain(outer("for a connection that was over", late), frames_max);
                let refused = outer("not handed out by the clients' kernel", generators.receive_errors);
                down.explain(refused, aggregates_max);
                down.explain(of(&[UdpSend]), frames_max);
            }
        }
        up.explain(at(Place::InnerUp), PACKETS_OF_A_DROP_MAX);
        down.explain(at(Place::OuterDown), aggregates_max);
        down.stage(tunnels.datagrams_received, tunnels.down_packets);
        down.count(client(&[ReceiveQueueFull]));
        down.count(early_or_late);
        (up.close(generators.sent_packets, far_received), down.close(far_sent, generators.received_packets))
    }

    /// The most inner packets that one outer datagram carries: the shortest, each with a frame's type and length.
    fn frames_max(&self) -> u64 {
        (u64::from(self.mtu_bytes) + 50) / (u64::from(INNER_BYTES_MIN) + 2)
    }
}

/// What was dropped, and how often.
type Drops = Vec<(String, u64)>;

fn named(who: &str, reasons: &[DropReason], count: impl Fn(DropReason) -> u64) -> Drops {
    reasons.iter().map(|reason| (format!("{who}: {}", reason.name()), count(*reason))).collect()
}

/// An account in the making.
#[derive(Default)]
struct Way {
    drops: BTreeMap<String, u64>,
    /// What is missing at the present stage and not explained yet.
    missing: i64,
}

impl Way {
    /// Goes on to the next stage: so many went in and came out.
    fn stage(&mut self, entered: u64, left: u64) {
        self.missing = entered as i64 - left as i64;
    }

    /// Takes drops that were counted packet by packet.
    fn count(&mut self, drops: Drops) {
        for (what, packets) in drops.into_iter().filter(|(_, packets)| *packets > 0) {
            self.missing -= packets as i64;
            *self.drops.entry(what).or_default() += packets;
        }
    }

    /// Explains what is missing at this stage by events that each took at most `packets_max`. Returns what is left of them, where each is a
    /// packet.
    fn explain(&mut self, mut events: Drops, packets_max: u64) -> Drops {
        for (what, events) in &mut events {
            let explained = events.saturating_mul(packets_max).min(self.missing.max(0) as u64);
            self.count(vec![(what.clone(), explained)]);
            *events = events.saturating_sub(explained);
        }
        events
    }

    fn close(self, sent: u64, received: u64) -> Account {
        let dropped: u64 = self.drops.values().sum();
        let unaccounted = sent as i64 - received as i64 - dropped as i64;
        Account { sent, received, drops: self.drops, unaccounted, user_peak_bits_per_second: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use tollgate::gateway::Report;

    use super::*;

    /// A run of 1,000 packets each way without any drop, or with some.
    struct Run {
        generators: Counts,
        tunnels: Counters,
        gateway: Counters,
        kernel: KernelDrops,
    }

    impl Run {
        fn whole() -> Self {
            let n = 1000;
            let (datagrams_sent, datagrams_received) = (n, n);
            let counters =
                Counters { datagrams_sent, datagrams_received, up_packets: n, down_packets: n, ..Counters::default() };
            let [sent_packets, received_packets, far_sent_packets, far_received_packets] = [n; 4];
            let generators =
                Counts { sent_packets, received_packets, far_sent_packets, far_received_packets, ..Counts::default() };
            let kernel = KernelDrops::default();
            Run { generators, tunnels: counters, gateway: counters, kernel }
        }

        /// Up, so many packets are lost before the gateway counts them as received, and so many more in it.
        fn lose_up(&mut self, before: u64, within: u64) {
            self.gateway.datagrams_received -= before;
            self.gateway.up_packets -= before + within;
            self.generators.far_received_packets -= before + within;
        }

        /// Down, so many are lost in the gateway, and so many behind it.
        fn lose_down(&mut self, within: u64, behind: u64) {
            self.gateway.datagrams_sent -= within;
            self.tunnels.datagrams_received -= within;
            self.tunnels.down_packets -= within + behind;
            self.generators.received_packets -= within + behind;
        }

        fn accounts(&self) -> (Account, Account) {
            let counters = [self.gateway, Counters::default()];
            // All shards count together.
            let shards = counters.map(|counters| Report { counters, ..Report::default() });
            self.balance(Some(&Status { shards: shards.to_vec(), ..Status::default() }))
        }

        fn balance(&self, gateway: Option<&Status>) -> (Account, Account) {
            let Run { generators, tunnels, kernel, .. } = self;
            Accounts { tunnels, generators, gateway, kernel, mtu_bytes: 1400 }.balance()
        }
    }

    fn drops(account: &Account) -> Vec<(&str, u64)> {
        account.drops.iter().map(|(what, count)| (what.as_str(), *count)).collect()
    }

    #[test]
    fn a_packet_that_nobody_counted_is_unaccounted() {
        let mut run = Run::whole();
        for (up, down) in [run.accounts(), run.balance(None)] {
            assert_eq!((up.sent, up.received, up.unaccounted), (1000, 1000, 0));
            assert_eq!(up, down);
        }
        run.generators.far_received_packets -= 1;
        run.generators.received_packets -= 2;
        for (up, down) in [run.accounts(), run.balance(None)] {
            assert_eq!((up.unaccounted, down.unaccounted), (1, 2));
            assert!(drops(&up).is_empty() && drops(&down).is_empty());
        }
    }

    #[test]
    fn each_counted_drop_is_counted_once_and_where_it_happened() {
        let mut run = Run::whole();
        run.tunnels.drops.add(DatagramQueueFull, 2);
        run.tunnels.datagrams_sent -= 2;
        run.lose_up(2, 1);
        run.gateway.drops.add(ForgedSource, 1);
        run.gateway.drops.add(TunWrite, 1);
        run.generators.far_received_packets -= 1;
        run.gateway.drops.add(TooBig, 2);
        run.tunnels.drops.add(ReceiveQueueFull, 3);
        run.lose_down(2, 3);
        let (up, down) = run.accounts();
        let expected = [("client: datagram_queue_full", 2), ("gateway: forged_source", 1), ("gateway: tun_write", 1)];
        assert_eq!((drops(&up), up.unaccounted), (expected.to_vec(), 0));
        let expected = [("client: receive_queue_full", 3), ("gateway: too_big", 2)];
        assert_eq!((drops(&down), down.unaccounted), (expected.to_vec(), 0));
    }

    #[test]
    fn a_reason_of_both_directions_is_parted_by_the_counts_around_it() {
        let mut run = Run::whole();
        run.gateway.drops.add(OverLimit, 100);
        run.lose_up(0, 30);
        run.tunnels.drops.add(NotAttached, 10);
        run.generators.sent_packets += 4;
        run.lose_down(69, 6);
        let (up, down) = run.accounts();
        assert_eq!((drops(&up), up.unaccounted), (vec![("client: not_attached", 4), ("gateway: over_limit", 30)], 0));
        let expected = vec![("client: not_attached", 6), ("gateway: over_limit", 70)];
        assert_eq!((drops(&down), down.unaccounted), (expected, -1), "one that nothing is missing for");
    }

    #[test]
    fn a_loss_outside_needs_evidence_of_its_place() {
        let mut run = Run::whole();
        run.lose_up(100, 0);
        run.generators.injected_lost_down = 50;
        run.gateway.drops.add(UdpSend, 50);
        for place in [Place::InnerUp, Place::OuterDown, Place::InnerDown] {
            run.kernel.add(place, "x", 50);
        }
        let (up, down) = run.accounts();
        assert_eq!((up.unaccounted, drops(&up), drops(&down)), (100, vec![], vec![]));
        // One datagram has no more than 26 packets of the shortest length.
        run.generators.injected_lost_up = 1;
        let (up, _) = run.accounts();
        assert_eq!((drops(&up), up.unaccounted), (vec![("outer: lost on purpose", 26)], 74));
        run.kernel.add(Place::OuterUp, "gateway: Udp InErrors", 1);
        let (up, _) = run.accounts();
        let expected = vec![("kernel: gateway: Udp InErrors", 74), ("outer: lost on purpose", 26)];
        assert_eq!((drops(&up), up.unaccounted), (expected, 0));
        // What a peer loses is explained by the kernel only.
        assert_eq!(drops(&run.balance(None).0), [("kernel: gateway: Udp InErrors", 100)]);
    }
}
