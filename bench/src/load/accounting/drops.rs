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

use crate::deploy::{KernelDrops, PACKETS_OF_A_DROP_MAX, Place};
use crate::load::flow::sizes::INNER_BYTES_MIN;
use crate::load::generator::{GeneratorCounts, TunnelTotals};
use crate::load::result::Account;

/// Drops of a tunnel's sending side.
const TUNNEL_UP: [DropReason; 3] = [DatagramQueueFull, TooBig, ConnectionClosed];
/// Drops that a gateway counts of packets from clients only, before it counts them as on their way up.
const GATEWAY_UP: [DropReason; 6] = [ForgedSource, Isolated, Multicast, OuterAddress, Unroutable, ReceiveQueueFull];
/// Drops that a gateway counts of packets to clients only.
const GATEWAY_DOWN: [DropReason; 4] = [DatagramQueueFull, TooBig, ConnectionClosed, MemoryLimit];
/// Drops that a gateway counts of both. How many of them were on the way up, the counts around tell.
const GATEWAY_BOTH: [DropReason; 6] = [NotAttached, OverLimit, QueueDelay, WaitedTooLong, NoRoute, Malformed];

/// What both ends counted of packets inside the tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// Given to tunnels by clients.
    pub up_sent: u64,
    /// Received by the responder.
    pub up_received: u64,
    /// Sent by the responder.
    pub down_sent: u64,
    /// Handed out to clients.
    pub down_received: u64,
}

/// Everything that was counted anywhere, over the whole run.
#[derive(Debug, Clone, Copy)]
pub struct Accounts<'a> {
    /// Both ends.
    pub ends: Ends,
    /// All tunnels of clients.
    pub tunnels: &'a TunnelTotals,
    /// The generators.
    pub generators: &'a GeneratorCounts,
    /// The gateway, where it tells.
    pub gateway: Option<&'a Status>,
    /// The kernel, in the run's namespaces.
    pub kernel: &'a KernelDrops,
    /// Inner MTU in bytes.
    pub mtu_bytes: u16,
}

impl Accounts<'_> {
    /// The accounts, up and down.
    pub fn accounts(&self) -> (Account, Account) {
        let Ends { up_sent, up_received, down_sent, down_received } = self.ends;
        let (mut up, mut down) = (Stages::default(), Stages::default());
        let mut shared = self.shared();
        up.stage(up_sent, self.tunnels.datagrams_sent, &self.of_tunnels(&TUNNEL_UP));
        shared.explain_tunnels(&mut up);
        match self.gateway {
            Some(gateway) => self.through_gateway(gateway, &mut shared, &mut up, &mut down),
            None => self.through_peer(&mut up, &mut down),
        }
        let late: Vec<_> = shared.tunnels.take().into_iter().collect();
        let counted = [self.of_tunnels(&[ReceiveQueueFull]), late].concat();
        down.stage(self.tunnels.datagrams_received, self.tunnels.down_packets, &counted);
        down.stage(self.tunnels.down_packets, down_received, &[]);
        (up.close(up_sent, up_received), down.close(down_sent, down_received))
    }

    /// From the tunnels' frames to the responder, and back, past the counters of a gateway of ours.
    fn through_gateway(&self, gateway: &Status, shared: &mut Shared, up: &mut Stages, down: &mut Stages) {
        let kernel = self.kernel;
        let sum =
            |count: fn(&Counters) -> u64| gateway.shards.iter().map(|report| count(&report.counters)).sum::<u64>();
        let of = |reasons: &[DropReason]| counts_of(reasons, "gateway", |reason| gateway.dropped(reason));
        let (received, sent) = (sum(|counters| counters.datagrams_received), sum(|counters| counters.datagrams_sent));
        let judged = sum(|counters| counters.up_packets + counters.relayed_packets);

        up.stage(self.tunnels.datagrams_sent, received, &[]);
        self.explain_outer_up(up);
        // The mesh counts what it had no room for as it came: a datagram, a frame, a packet.
        for (what, count) in of(&[ForeignDatagram, UdpTruncated, MeshFull]) {
            up.explain(&what, count, self.frames_max());
        }
        up.explain_all(kernel, Place::OuterUp, PACKETS_OF_A_DROP_MAX * self.frames_max());
        up.stage(received, judged, &of(&GATEWAY_UP));
        shared.explain_gateway(up);
        up.stage(judged, self.ends.up_received, &of(&[TunWrite]));
        up.explain_all(kernel, Place::InnerUp, PACKETS_OF_A_DROP_MAX);

        let counted: Vec<_> = of(&GATEWAY_DOWN).into_iter().chain(shared.gateway.drain(..)).collect();
        down.stage(self.ends.down_sent, sent, &counted);
        for (what, count) in of(&[MeshFull]) {
            down.explain(&what, count, PACKETS_OF_A_DROP_MAX);
        }
        down.explain_all(kernel, Place::InnerDown, PACKETS_OF_A_DROP_MAX);
        down.stage(sent, self.tunnels.datagrams_received, &[]);
        self.explain_outer_down(down);
        for (what, count) in of(&[UdpSend]) {
            down.explain(&what, count, self.frames_max());
        }
        down.explain_all(kernel, Place::OuterDown, PACKETS_OF_A_DROP_MAX * self.frames_max());
    }

    /// The same past a gateway that tells nothing: only what the kernel dropped is known. Of datagrams lost on purpose, nobody knows how many
    /// packets they had.
    fn through_peer(&self, up: &mut Stages, down: &mut Stages) {
        let kernel = self.kernel;
        let outer = PACKETS_OF_A_DROP_MAX * self.frames_max();
        up.stage(self.tunnels.datagrams_sent, self.ends.up_received, &[]);
        up.explain_all(kernel, Place::OuterUp, outer);
        up.explain_all(kernel, Place::InnerUp, PACKETS_OF_A_DROP_MAX);
        down.stage(self.ends.down_sent, self.tunnels.datagrams_received, &[]);
        down.explain_all(kernel, Place::InnerDown, PACKETS_OF_A_DROP_MAX);
        down.explain_all(kernel, Place::OuterDown, outer);
    }

    fn explain_outer_up(&self, up: &mut Stages) {
        up.explain("outer: lost on purpose", self.generators.injected_lost_up, self.frames_max());
        up.explain("outer: refused by the clients' kernel", self.generators.outer_refused_datagrams, self.frames_max());
    }

    fn explain_outer_down(&self, down: &mut Stages) {
        let frames_max = self.frames_max();
        down.explain("outer: lost on purpose", self.generators.injected_lost_down, frames_max);
        let late = self.generators.outer_stray_datagrams + self.tunnels.dropped(ForeignDatagram);
        down.explain("outer: for a connection that was over", late, frames_max);
        let errors = self.generators.receive_errors;
        down.explain("outer: not handed out by the clients' kernel", errors, PACKETS_OF_A_DROP_MAX * frames_max);
    }

    /// The most inner packets that one outer datagram carries: the shortest, each with a frame's type and length.
    fn frames_max(&self) -> u64 {
        (u64::from(self.mtu_bytes) + 50) / (u64::from(INNER_BYTES_MIN) + 2)
    }

    fn of_tunnels(&self, reasons: &[DropReason]) -> Vec<(String, u64)> {
        counts_of(reasons, "client", |reason| self.tunnels.dropped(reason))
    }

    fn shared(&self) -> Shared {
        let gateway = |gateway: &Status| counts_of(&GATEWAY_BOTH, "gateway", |reason| gateway.dropped(reason));
        Shared {
            tunnels: self.of_tunnels(&[NotAttached]).pop(),
            gateway: self.gateway.map(gateway).unwrap_or_default(),
        }
    }
}

/// Those of `reasons` that were counted.
fn counts_of(reasons: &[DropReason], who: &str, count: impl Fn(DropReason) -> u64) -> Vec<(String, u64)> {
    let named = reasons.iter().map(|reason| (format!("{who}: {}", reason.name()), count(*reason)));
    named.filter(|(_, count)| *count > 0).collect()
}

/// Drops that were counted without saying in which direction. What is not taken for the way up is of the way down.
struct Shared {
    tunnels: Option<(String, u64)>,
    gateway: Vec<(String, u64)>,
}

impl Shared {
    fn explain_tunnels(&mut self, up: &mut Stages) {
        if let Some((what, count)) = &mut self.tunnels {
            *count -= up.explain(what, *count, 1);
        }
    }

    fn explain_gateway(&mut self, up: &mut Stages) {
        for (what, count) in &mut self.gateway {
            *count -= up.explain(what, *count, 1);
        }
    }
}

/// A account in the making.
#[derive(Default)]
struct Stages {
    drops: BTreeMap<String, u64>,
    /// What is missing at the present stage and not explained yet.
    missing: i64,
}

impl Stages {
    /// Goes on to the next stage: so many went in and came out, and so many were counted as dropped in between.
    fn stage(&mut self, entered: u64, left: u64, counted: &[(String, u64)]) {
        self.missing = entered as i64 - left as i64;
        for (what, count) in counted {
            self.drop(what, *count);
        }
    }

    /// Explains what is missing at this stage by `count` events that each took at most `packets_max`. Returns how many packets they explain.
    fn explain(&mut self, what: &str, count: u64, packets_max: u64) -> u64 {
        let explained = count.saturating_mul(packets_max).min(self.missing.max(0) as u64);
        self.drop(what, explained);
        explained
    }

    fn explain_all(&mut self, kernel: &KernelDrops, place: Place, packets_max: u64) {
        for (what, count) in kernel.at(place) {
            self.explain(&format!("kernel: {what}"), count, packets_max);
        }
    }

    fn drop(&mut self, what: &str, packets: u64) {
        self.missing -= packets as i64;
        if packets > 0 {
            *self.drops.entry(what.to_owned()).or_default() += packets;
        }
    }

    fn close(self, sent: u64, received: u64) -> Account {
        let dropped: u64 = self.drops.values().sum();
        Account { sent, received, drops: self.drops, unaccounted: sent as i64 - received as i64 - dropped as i64 }
    }
}

#[cfg(test)]
mod tests {
    use tollgate::gateway::Report;

    use super::*;

    /// A run of 1,000 packets each way, through a gateway of two shards, without any drop.
    struct Run {
        ends: Ends,
        tunnels: TunnelTotals,
        generators: GeneratorCounts,
        gateway: Counters,
        kernel: KernelDrops,
    }

    impl Run {
        fn whole() -> Self {
            let n = 1000;
            Run {
                ends: Ends { up_sent: n, up_received: n, down_sent: n, down_received: n },
                tunnels: TunnelTotals {
                    datagrams_sent: n,
                    datagrams_received: n,
                    down_packets: n,
                    ..TunnelTotals::default()
                },
                generators: GeneratorCounts::default(),
                gateway: Counters {
                    up_packets: n,
                    datagrams_received: n,
                    datagrams_sent: n,
                    down_packets: n,
                    ..Counters::default()
                },
                kernel: KernelDrops::default(),
            }
        }

        fn accounts(&self) -> (Account, Account) {
            let report = |shard, counters| Report {
                shard,
                cpu: 0,
                owned_connections: 0,
                addresses_held: None,
                memory: Default::default(),
                counters,
                traffic: Default::default(),
            };
            // All shards count together.
            let status =
                Status { shards: vec![report(0, self.gateway), report(1, Counters::default())], ..Status::default() };
            self.balance(Some(&status))
        }

        fn balance(&self, gateway: Option<&Status>) -> (Account, Account) {
            let Run { ends, tunnels, generators, kernel, .. } = self;
            Accounts { ends: *ends, tunnels, generators, gateway, kernel, mtu_bytes: 1400 }.accounts()
        }

        fn with_peer(&self) -> (Account, Account) {
            self.balance(None)
        }
    }

    fn drops(account: &Account) -> Vec<(&str, u64)> {
        account.drops.iter().map(|(what, count)| (what.as_str(), *count)).collect()
    }

    #[test]
    fn what_all_arrives_balances() {
        for (up, down) in [Run::whole().accounts(), Run::whole().with_peer()] {
            let expected = Account { sent: 1000, received: 1000, ..Account::default() };
            assert_eq!((up, down), (expected.clone(), expected));
        }
    }

    #[test]
    fn a_packet_that_nobody_counted_is_unaccounted() {
        let mut run = Run::whole();
        run.ends.up_received -= 1;
        run.ends.down_received -= 2;
        for (up, down) in [run.accounts(), run.with_peer()] {
            assert_eq!((up.unaccounted, down.unaccounted), (1, 2));
            assert!(drops(&up).is_empty() && drops(&down).is_empty());
        }
    }

    #[test]
    fn each_counted_drop_is_counted_once_and_where_it_happened() {
        let mut run = Run::whole();
        // Up: one lost to each in turn.
        run.tunnels.drop(DatagramQueueFull, 1);
        run.tunnels.drop(ConnectionClosed, 1);
        run.tunnels.datagrams_sent = 998;
        run.gateway.datagrams_received = 998;
        run.gateway.drops.add(ForgedSource, 1);
        run.gateway.up_packets = 997;
        run.gateway.drops.add(TunWrite, 1);
        run.ends.up_received = 996;
        // Down likewise.
        run.gateway.drops.add(TooBig, 2);
        run.gateway.datagrams_sent = 998;
        run.tunnels.datagrams_received = 998;
        run.tunnels.drop(ReceiveQueueFull, 3);
        run.tunnels.down_packets = 995;
        run.ends.down_received = 995;
        let (up, down) = run.accounts();
        assert_eq!(
            drops(&up),
            [
                ("client: connection_closed", 1),
                ("client: datagram_queue_full", 1),
                ("gateway: forged_source", 1),
                ("gateway: tun_write", 1)
            ]
        );
        assert_eq!(drops(&down), [("client: receive_queue_full", 3), ("gateway: too_big", 2)]);
        assert!(up.unaccounted == 0 && down.unaccounted == 0);
    }

    #[test]
    fn a_reason_of_both_directions_is_parted_by_the_counts_around_it() {
        let mut run = Run::whole();
        run.gateway.drops.add(OverLimit, 100);
        run.gateway.up_packets = 970;
        run.ends.up_received = 970;
        run.gateway.datagrams_sent = 930;
        run.tunnels.datagrams_received = 930;
        run.tunnels.down_packets = 930;
        run.ends.down_received = 930;
        let (up, down) = run.accounts();
        assert_eq!(drops(&up), [("gateway: over_limit", 30)]);
        assert_eq!(drops(&down), [("gateway: over_limit", 70)]);
        assert!(up.unaccounted == 0 && down.unaccounted == 0);
        // The same of a tunnel: 4 were sent too early, 6 came too late.
        let mut run = Run::whole();
        run.tunnels.drop(NotAttached, 10);
        run.ends.up_sent = 1004;
        run.tunnels.down_packets = 994;
        run.ends.down_received = 994;
        let (up, down) = run.accounts();
        assert_eq!((drops(&up), drops(&down)), (vec![("client: not_attached", 4)], vec![("client: not_attached", 6)]));
        assert!(up.unaccounted == 0 && down.unaccounted == 0);
    }

    #[test]
    fn a_loss_outside_needs_evidence() {
        let mut run = Run::whole();
        run.gateway.datagrams_received = 990;
        run.gateway.up_packets = 990;
        run.ends.up_received = 990;
        assert_eq!(run.accounts().0.unaccounted, 10);
        // One datagram has no more than 26 packets of the shortest length.
        run.generators.injected_lost_up = 1;
        let (up, _) = run.accounts();
        assert_eq!((drops(&up), up.unaccounted), (vec![("outer: lost on purpose", 10)], 0));
        run.gateway.datagrams_received = 900;
        run.gateway.up_packets = 900;
        run.ends.up_received = 900;
        assert_eq!(run.accounts().0.unaccounted, 100 - 26);
        run.kernel.add(Place::OuterUp, "gateway: Udp InErrors", 1);
        let (up, _) = run.accounts();
        assert_eq!(drops(&up), [("kernel: gateway: Udp InErrors", 74), ("outer: lost on purpose", 26)]);
        assert!(up.unaccounted == 0);
    }

    #[test]
    fn evidence_of_another_place_explains_nothing() {
        let mut run = Run::whole();
        run.ends.up_received = 999;
        run.generators.injected_lost_up = 50;
        run.gateway.drops.add(ForeignDatagram, 50);
        for place in [Place::OuterUp, Place::OuterDown, Place::InnerDown] {
            run.kernel.add(place, "x", 50);
        }
        let (up, down) = run.accounts();
        assert_eq!((up.unaccounted, down.unaccounted), (1, 0));
        assert!(drops(&up).is_empty() && drops(&down).is_empty());
    }

    #[test]
    fn what_a_peer_loses_is_explained_by_the_kernel_only() {
        let mut run = Run::whole();
        run.ends.up_received = 997;
        run.generators.injected_lost_up = 3;
        assert_eq!(run.with_peer().0.unaccounted, 3);
        run.kernel.add(Place::InnerUp, "network: Udp InErrors", 3);
        let (up, _) = run.with_peer();
        assert_eq!((drops(&up), up.unaccounted), (vec![("kernel: network: Udp InErrors", 3)], 0));
    }
}
