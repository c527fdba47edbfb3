//! Where a limited user's packets wait for tokens: one [`Shaper`] for each user and owner shard, for both directions.
//!
//! It is FQ-CoDel (RFC 8290): every flow has its turn, whichever way it goes, flows that send little go first, and CoDel (RFC 8289) keeps the others from letting a
//! standing queue grow. A ping hence passes bulk traffic by, while within a flow nothing is ever reordered. (As everywhere, the fragments
//! of a flow's datagrams show no ports, and are a flow of their own.)
//!
//! **Congestion is told by marks, where that works** (RFC 3168). This queue is the bottleneck at the tunnel's ingress (and, for packets from
//! a client, behind its egress), so it is the inner header that is marked: before encapsulation, or after decapsulation, as any router
//! outside the tunnel would. Marks only ever go from ECT(0) or ECT(1) to CE, and nothing here clears one (RFC 6040, section 4). A packet
//! that is Not-ECT is dropped in their stead. The ECN field of the outer header is QUIC's own, and is not looked at.
//!
//! **Three bounds.** Bytes and packets hold after every call; the flow that has the most waiting loses its oldest packet. Time holds for
//! every packet that is popped, and after [`expire`](Shaper::expire) for all that wait.

mod codel;
mod flows;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use self::codel::{Delays, time_of_largest};
pub use self::flows::FlowKey;
use self::flows::Flows;
use crate::drops::DropReason;
use crate::ids::ConnectionKey;
use crate::limit::rate::Rate;
use crate::packet::ecn;

/// What counts as a large packet, in bytes. Larger ones pass as well.
pub const LARGEST_PACKET_BYTES: usize = 1500;
/// A slow user's packet may wait at least for so many large ones: CoDel takes three to say something, and should do so first.
const WAIT_PACKETS_MIN: u32 = 4;

/// What may wait of one limited user on one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShaperLimits {
    pub bytes_max: usize,
    pub packets_max: usize,
    /// Longest time that a packet waits. At rates below 48 kbps it is the time of four large packets instead, if that is more.
    pub wait_max: Duration,
    /// Most flows with a queue of their own, at least 1: a connection of TCP is two. What it costs is memory, some 120 bytes each while packets wait.
    pub flows_max: u16,
}

impl Default for ShaperLimits {
    /// - 512 KiB: ten times what CoDel leaves standing at 80 mbps, and room for eight super-packets of the TUN. Above 800 mbps it is less
    ///   than CoDel's target, so that only this bound acts.
    /// - 1,024 packets: 512 KiB of packets of half a kilobyte. Smaller ones cost more to hold than they are long.
    /// - 1 s: a retransmission is under way by then (RFC 6298, section 2).
    /// - 128 flows: one user's, on one shard, that have something waiting at the same time.
    fn default() -> Self {
        ShaperLimits { bytes_max: 512 * 1024, packets_max: 1024, wait_max: Duration::from_secs(1), flows_max: 128 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

#[derive(Debug)]
pub struct QueuedPacket {
    pub direction: Direction,
    /// Whose connection it came from or goes to.
    pub connection: ConnectionKey,
    pub packet: Bytes,
    pub since: Instant,
}

/// Packets that wait for one user's tokens. Small while none do.
///
/// Everything that is pushed comes out once: from [`pop`](Shaper::pop), [`take_where`](Shaper::take_where) or [`drain`](Shaper::drain), or dropped
/// for a reason: [`QueueDelay`](DropReason::QueueDelay), [`OverLimit`](DropReason::OverLimit) or
/// [`WaitedTooLong`](DropReason::WaitedTooLong).
#[derive(Debug)]
pub struct Shaper {
    limits: ShaperLimits,
    key: FlowKey,
    delays: Delays,
    wait_max: Duration,
    /// There while packets wait, and for a while after: CoDel remembers how much it took to keep the queue short.
    flows: Option<Box<Flows>>,
}

impl Shaper {
    /// An empty shaper for a fast user; see [`set_rate`](Shaper::set_rate). Which flows share a queue when there are too many depends on
    /// `key`, so that nobody who does not know it can choose (RFC 8290, section 4.1).
    pub fn new(limits: ShaperLimits, key: FlowKey) -> Shaper {
        Shaper { limits, key, delays: Delays::default(), wait_max: limits.wait_max, flows: None }
    }

    /// Says at which rate tokens come. What is an acceptable delay, and the bound in time, follow it for all that waits.
    pub fn set_rate(&mut self, rate: Rate) {
        self.delays = Delays::at(rate);
        self.wait_max = self.limits.wait_max.max(WAIT_PACKETS_MIN * time_of_largest(rate));
    }

    pub fn is_empty(&self) -> bool {
        self.waiting_packets() == 0
    }

    pub fn waiting_bytes(&self) -> usize {
        self.flows.as_ref().map_or(0, |flows| flows.bytes())
    }

    pub fn waiting_packets(&self) -> usize {
        self.flows.as_ref().map_or(0, |flows| flows.packets())
    }

    /// Length of the packet that goes next, in bytes: what [`pop`](Shaper::pop) lacked if it gave nothing. A push may change it.
    pub fn head_bytes(&self) -> Option<usize> {
        self.flows.as_ref()?.head().map(|waiting| waiting.packet.len())
    }

    /// Lets a packet wait. When that is too much, the flow with the most bytes loses its oldest packets (RFC 8290, section 4.1), be it the
    /// new packet's or another.
    pub fn push(
        &mut self,
        now: Instant,
        direction: Direction,
        connection: ConnectionKey,
        packet: Bytes,
        dropped: &mut impl FnMut(DropReason, QueuedPacket),
    ) {
        let flows = self.flows.get_or_insert_with(|| Box::new(Flows::new(self.limits.flows_max, now)));
        let tag = self.key.tag(direction, connection, &packet);
        flows.push(tag, QueuedPacket { direction, connection, packet, since: now });
        while (flows.bytes() > self.limits.bytes_max || flows.packets() > self.limits.packets_max)
            && let Some(waiting) = flows.drop_from_fattest()
        {
            dropped(DropReason::OverLimit, waiting);
        }
        flows.used_at = now;
    }

    /// The next packet, if `tokens_bytes` pay for it; the caller then spends its length. CoDel acts on what the tokens pay for: it comes
    /// marked, or is dropped and the next one takes its place.
    ///
    /// Tokens that do not suffice change nothing, but that packets are dropped that have waited too long.
    pub fn pop(
        &mut self,
        now: Instant,
        tokens_bytes: u64,
        dropped: &mut impl FnMut(DropReason, QueuedPacket),
    ) -> Option<QueuedPacket> {
        let flows = self.flows.as_mut()?;
        loop {
            let head = flows.head()?;
            let waited = now.saturating_duration_since(head.since);
            let reason = if waited >= self.wait_max {
                DropReason::WaitedTooLong
            } else if head.packet.len() as u64 > tokens_bytes {
                return None;
            } else {
                let is_capable = ecn::codepoint(&head.packet).is_some();
                let (codel, behind_bytes) = flows.head_codel()?;
                let must_signal = codel.must_signal(now, &self.delays, waited, behind_bytes);
                if !must_signal || is_capable {
                    flows.used_at = now;
                    let mut served = flows.serve_head()?;
                    if must_signal {
                        served.packet = marked(served.packet);
                    }
                    return Some(served);
                }
                DropReason::QueueDelay
            };
            flows.used_at = now;
            dropped(reason, flows.drop_head()?);
        }
    }

    /// When to call [`expire`](Shaper::expire): the bound in time of the packet that has waited longest or, once after the last packet,
    /// when memory can be given back.
    pub fn expires_at(&self) -> Option<Instant> {
        let flows = self.flows.as_ref()?;
        match flows.oldest() {
            Some(since) => since.checked_add(self.wait_max),
            None => flows.used_at.checked_add(self.delays.memory()),
        }
    }

    /// Drops what has waited too long. Gives memory back if nothing has waited for some time.
    pub fn expire(&mut self, now: Instant, dropped: &mut impl FnMut(DropReason, QueuedPacket)) {
        let Some(flows) = &mut self.flows else { return };
        if flows.packets() == 0 {
            if now.saturating_duration_since(flows.used_at) >= self.delays.memory() {
                self.flows = None;
            }
        } else if let Some(until) = now.checked_sub(self.wait_max) {
            flows.take_until(until, &mut |waiting| dropped(DropReason::WaitedTooLong, waiting));
            flows.used_at = now;
        }
    }

    /// What waits and is `chosen` waits no longer: it is given to `taken`, in order within each flow.
    pub fn take_where(&mut self, chosen: impl Fn(&QueuedPacket) -> bool, taken: &mut impl FnMut(QueuedPacket)) {
        if let Some(flows) = &mut self.flows {
            flows.take_where(chosen, taken);
        }
    }

    /// A limit was lifted: all that waits is given to `taken`, in order within each flow, and memory back.
    pub fn drain(&mut self, taken: &mut impl FnMut(QueuedPacket)) {
        if let Some(mut flows) = self.flows.take() {
            while let Some(waiting) = flows.serve_head() {
                taken(waiting);
            }
        }
    }
}

/// The packet with CE. It is copied only if somebody else holds its buffer too.
fn marked(packet: Bytes) -> Bytes {
    let mut packet = packet.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let is_marked = ecn::mark_ce(&mut packet);
    debug_assert!(is_marked, "only what is ECN-capable is marked");
    packet.freeze()
}
