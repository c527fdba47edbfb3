//! Packets that are too large for a client's path, and what is told of paths.
//!
//! Never lets a packet vanish without a word: it is fragmented, or its sender is told (RFC 1191, RFC 8201).

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::connections::{Member, Owned, Stage};
use super::outer::want_to_send;
use super::{ClientMtu, Event, Shard};
use crate::drops::DropReason;
use crate::packet::fragment::{fragment, may_be_fragmented};
use crate::packet::icmp::{packet_too_big, unasked_reply};
use crate::packet::inner::{InnerPacket, MTU_BYTES_MIN_V6};

impl Shard {
    /// Sends a packet to a client whose path carries less than its length: in fragments, or not at all, and then its sender is told.
    pub(super) fn down_too_large(&mut self, owned: &mut Owned, packet: &Bytes) {
        let mtu_bytes = owned.link.inner_mtu_bytes();
        if packet.len() <= mtu_bytes {
            // The last one of a super-packet.
            return self.down(owned, packet.clone());
        }
        let mut fragments = Vec::new();
        if fragment(packet, mtu_bytes, &mut |fragment| fragments.push(fragment)) {
            self.counters.fragmented_packets += 1;
            self.counters.own_packets += fragments.len() as u64 - 1;
            fragments.into_iter().for_each(|fragment| self.down(owned, fragment));
        } else {
            self.counters.drops.count(DropReason::TooBig);
            self.tell_sender(owned, packet, packet.len());
        }
    }

    /// Whether packets of `packet`'s kind that are too large for a client are to be split into fragments.
    pub(super) fn fragments(packet: &[u8]) -> bool {
        may_be_fragmented(packet)
    }

    /// Tells the sender of `packet`, which was dropped, how long its packets to this client may be: now, or when that is known. `packet` may be
    /// the head of one, or of a super-packet whose segments are `packet_bytes` long. Nothing is said in the name of a client that has gone.
    pub(super) fn tell_sender(&mut self, owned: &mut Owned, packet: &[u8], packet_bytes: usize) {
        if !matches!(owned.stage, Stage::Attached { .. }) {
            // The address is another one's by now, or nobody's.
            return;
        }
        if owned.link.path.is_searching() {
            owned.link.path.answer_later(packet, packet_bytes);
        } else {
            let mtu_bytes = owned.link.inner_mtu_bytes();
            self.reply_too_big(packet, mtu_bytes);
        }
    }

    fn reply_too_big(&mut self, packet: &[u8], mtu_bytes: usize) {
        let Some((source, destination)) = addresses(packet) else { return };
        let sender = self.routes.find(source);
        // To the kernel, an ICMP message from one of its own IPv4 addresses is a martian: there, the client itself answers.
        let from = if sender.is_none() && destination.is_ipv4() { destination } else { self.params.server_address() };
        let mtu_bytes = if destination.is_ipv6() { mtu_bytes.max(MTU_BYTES_MIN_V6) } else { mtu_bytes };
        let Some(reply) = packet_too_big(packet, mtu_bytes as u16, from) else { return };
        if !self.replies.allows(self.now) {
            return self.counters.drops.count(DropReason::ReplyLimit);
        }
        self.counters.too_big_replies += 1;
        match sender {
            Some(sender) => {
                self.counters.own_packets += 1;
                self.outbox.hairpin(sender, reply, self.params.limits.hairpin_packets_max);
            }
            None => {
                if let Ok(inner) = InnerPacket::parse(&reply) {
                    self.write_to_tun(reply, &inner);
                }
            }
        }
    }

    /// Looks, once a batch, whether the path of a connection carries something else than was told, and tells.
    pub(super) fn follow_path(&mut self, now: Instant, owned: &mut Owned) {
        let carried_bytes = owned.link.told_mtu_bytes(now);
        let Stage::Attached { member, address, .. } = owned.stage else { return };
        self.tell_driver(owned, member, address, carried_bytes);
        while let Some(unanswered) = owned.link.path.poll_unanswered() {
            self.reply_too_big(&unanswered.head, carried_bytes);
        }
        if owned.link.path.wants_filler()
            && let Some(filler) = unasked_reply(self.params.server_address(), address, owned.link.inner_mtu_bytes())
        {
            owned.link.path.confirm_with(filler);
        }
        if owned.link.path.has_confirmation() {
            want_to_send(&mut self.sending, owned);
        }
    }

    fn tell_driver(&mut self, owned: &mut Owned, member: Member, address: IpAddr, carried_bytes: usize) {
        let tunnel_mtu_bytes = self.params.transport.mtu_bytes;
        let mtu_bytes = u16::try_from(carried_bytes).ok().filter(|&bytes| bytes < tunnel_mtu_bytes);
        if mtu_bytes == owned.told_mtu_bytes {
            return;
        }
        let before = owned.told_mtu_bytes.unwrap_or(tunnel_mtu_bytes);
        owned.told_mtu_bytes = mtu_bytes;
        self.client_mtus.push_back(ClientMtu { address, connection: owned.key, mtu_bytes });
        if let Some(mtu_bytes) = mtu_bytes
            && mtu_bytes < before
        {
            let is_too_narrow = address.is_ipv6() && usize::from(mtu_bytes) < MTU_BYTES_MIN_V6;
            self.counters.narrowed_paths += 1;
            self.counters.too_narrow_paths += u64::from(is_too_narrow);
            if self.narrowings_told.allows(self.now) {
                let (user, connection) = (member.user, owned.key);
                self.tell(Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow });
            }
        }
    }

    /// A connection that had `address` is no longer there.
    pub(super) fn forget_mtu(&mut self, owned: &mut Owned, address: IpAddr) {
        if owned.told_mtu_bytes.take().is_some() {
            self.client_mtus.push_back(ClientMtu { address, connection: owned.key, mtu_bytes: None });
        }
    }
}

/// Source and destination of a packet of which there may be only the head.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let [source, destination] = [12, 16].map(|at| packet.get(at..)?.first_chunk::<4>().copied());
            Some((source?.into(), destination?.into()))
        }
        6 => {
            let [source, destination] = [8, 24].map(|at| packet.get(at..)?.first_chunk::<16>().copied());
            Some((source?.into(), destination?.into()))
        }
        _ => None,
    }
}
