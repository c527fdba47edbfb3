//! What a shard knows of ways for inner packets: routes, rules, frames for the TUN queue, and the memory of packets under way.

use std::time::Instant;

use bytes::Bytes;

use super::policy::Policy;
use super::routes::Routes;
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::ids::ConnectionKey;
use crate::limit::bucket::RateLimiter;
use crate::packet::coalesce::{Coalescer, MergeLimits};
use crate::packet::icmp::packet_too_big;
use crate::packet::inner::{InnerPacket, MTU_BYTES_MIN_V6, addresses};
use crate::packet::pool::PacketPool;

/// ICMP messages that a shard sends in a second, and at once (RFC 4443, section 2.4 f).
const REPLIES_PER_S: u32 = 1000;
const REPLIES_BURST: u32 = 100;

/// Where inner packets go, and the TUN's side of it.
pub struct Forwarder {
    pub policy: Policy,
    pub routes: Routes,
    pub coalescer: Coalescer,
    pub pool: PacketPool,
    replies: RateLimiter,
}

impl Forwarder {
    pub fn new(policy: Policy, merge: MergeLimits, now: Instant) -> Self {
        Forwarder {
            policy,
            routes: Routes::default(),
            coalescer: Coalescer::new(merge),
            pool: PacketPool::default(),
            replies: RateLimiter::new(REPLIES_PER_S, REPLIES_BURST, now),
        }
    }

    #[inline]
    pub fn write_to_tun(&mut self, packet: Bytes, inner: &InnerPacket, counters: &mut Counters) {
        if self.coalescer.push(packet, inner).is_err() {
            counters.drops.count(DropReason::TunWrite);
        }
    }

    /// Tells the sender of `packet`, of which there may be only the head, that its packets to this destination may have `mtu_bytes`. The message is
    /// returned where a client is to get it.
    pub fn reply_too_big(
        &mut self,
        now: Instant,
        packet: &[u8],
        mtu_bytes: usize,
        counters: &mut Counters,
    ) -> Option<(ConnectionKey, Bytes)> {
        let (source, destination) = addresses(packet)?;
        let sender = self.routes.find(source);
        // To the kernel, an ICMP message from one of its own IPv4 addresses is a martian: there, the client itself answers.
        let from = if sender.is_none() && destination.is_ipv4() { destination } else { self.policy.tunnel.addr() };
        let mtu_bytes = if destination.is_ipv6() { mtu_bytes.max(MTU_BYTES_MIN_V6) } else { mtu_bytes };
        let reply = packet_too_big(packet, mtu_bytes as u16, from)?;
        if !self.replies.allows(now) {
            counters.drops.count(DropReason::ReplyLimit);
            return None;
        }
        counters.too_big_replies += 1;
        if let Some(sender) = sender {
            counters.own_packets += 1;
            return Some((sender, reply));
        }
        if let Ok(inner) = InnerPacket::parse(&reply) {
            self.write_to_tun(reply, &inner, counters);
        }
        None
    }
}
