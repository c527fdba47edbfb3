//! The way down: inner packets are cut to what a client's path carries, paid for where the client's user is limited, and queued.
//!
//! A packet that is too large never vanishes without a word: it is fragmented, or its sender is told (RFC 1191, RFC 8201).

use std::time::Instant;

use bytes::Bytes;

use super::message::Outbox;
use crate::drops::DropReason;
use crate::forward::forwarder::Forwarder;
use crate::limit::shaper::Direction;
use crate::limit::user_queues::UserQueues;
use crate::memory::Accounts;
use crate::packet::fragment::{fragment, may_be_fragmented};
use crate::packet::pool::PacketPool;
use crate::packet::split::{split, split_first};
use crate::packet::vnet::VnetHeader;
use crate::quic::connections::{Connections, Stage};

/// The longest queue loses half of what can be taken from it, and so many bytes at least.
const TAKEN_BYTES_MIN: usize = 64 * 1024;

/// What of the data plane a packet to a client needs.
pub struct Downlink<'a> {
    pub connections: &'a mut Connections,
    pub limits: &'a mut UserQueues,
    pub accounts: &'a mut Accounts,
    pub outbox: &'a mut Outbox,
    pub now: Instant,
}

impl Downlink<'_> {
    /// Splits a frame into packets for one client, or tells its sender how long they may be.
    pub fn frame(
        &mut self,
        slot: u32,
        header: &VnetHeader,
        packet: &[u8],
        forward: &mut Forwarder,
    ) -> Result<(), DropReason> {
        let client = self.connections.at(slot).ok_or(DropReason::NoRoute)?;
        let packet_bytes = header.segment_bytes(packet);
        if packet_bytes > client.tunnel.inner_mtu_bytes() {
            if may_be_fragmented(packet) {
                let split = split(header, packet, &mut PacketPool::for_one_frame(), &mut |packet| {
                    self.too_large(slot, &packet, forward);
                });
                return split.map(|_| ()).map_err(|_| DropReason::Malformed);
            }
            self.tell_sender(slot, packet, packet_bytes, forward);
            return Err(DropReason::TooBig);
        }
        let is_limited = !matches!(client.stage, Stage::Attached { limited: false, .. });
        if client.tunnel.is_behind && !is_limited && !client.tunnel.connection.is_closed() {
            return self.frame_to_backlog(slot, header, packet);
        }
        let sent = split(header, packet, &mut forward.pool, &mut |packet| self.packet(slot, packet));
        sent.map(|_| ()).map_err(|_| DropReason::Malformed)
    }

    /// Splits as much of a frame as there is room for, where what is queued waits: those packets get memory of their own and no more than
    /// they need. The rest is not even copied: in a flood that is most of it.
    fn frame_to_backlog(&mut self, slot: u32, header: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let client = self.connections.at(slot).ok_or(DropReason::NoRoute)?;
        let room = client.tunnel.room_for_packets(header.segment_bytes(packet));
        if room == 0 {
            return Err(DropReason::DatagramQueueFull);
        }
        let mut pool = PacketPool::for_one_frame();
        let sent = split_first(header, packet, &mut pool, room, &mut |packet| self.packet(slot, packet));
        let sent = sent.map_err(|_| DropReason::Malformed)?;
        self.accounts
            .counters
            .drops
            .add(DropReason::DatagramQueueFull, header.packets(packet).saturating_sub(sent as u64));
        Ok(())
    }

    pub fn deliver(&mut self, slot: u32, packet: Bytes, forward: &mut Forwarder) {
        let Some(client) = self.connections.at(slot) else { return };
        if packet.len() > client.tunnel.inner_mtu_bytes() {
            self.too_large(slot, &packet, forward);
        } else {
            let packet = if client.tunnel.is_behind { Bytes::copy_from_slice(&packet) } else { packet };
            self.packet(slot, packet);
        }
    }

    /// Queues a packet that fits, once it is paid for.
    fn packet(&mut self, slot: u32, packet: Bytes) {
        let Some(client) = self.connections.at(slot) else { return };
        let Stage::Attached { limited, .. } = client.stage else {
            return self.accounts.counters.drops.count(DropReason::NotAttached);
        };
        if !limited {
            return self.queue(slot, packet);
        }
        let is_behind = client.tunnel.is_behind;
        if self.is_paid(slot, &packet) {
            self.queue(slot, if is_behind { Bytes::copy_from_slice(&packet) } else { packet });
        }
    }

    /// Whether a packet for the client in `slot` may pass now. Otherwise it waits, or is dropped.
    fn is_paid(&mut self, slot: u32, packet: &[u8]) -> bool {
        let Some(client) = self.connections.at(slot) else { return false };
        let Stage::Attached { identity, limited, .. } = client.stage else {
            self.accounts.counters.drops.count(DropReason::NotAttached);
            return false;
        };
        !limited || self.limits.pay(self.now, (identity.user, client.key), Direction::Down, packet, self.accounts)
    }

    /// Queues a packet that is paid for, in fragments where the client's path carries less: the path may have shrunk while it waited.
    pub fn released(&mut self, slot: u32, packet: Bytes) {
        let Some(client) = self.connections.at(slot) else { return };
        let mtu_bytes = client.tunnel.inner_mtu_bytes();
        if packet.len() <= mtu_bytes || !may_be_fragmented(&packet) {
            return self.queue(slot, packet);
        }
        let mut fragments = 0;
        let is_split = fragment(&packet, mtu_bytes, &mut |fragment| {
            fragments += 1;
            self.queue(slot, fragment);
        });
        if is_split {
            self.accounts.counters.fragmented_packets += 1;
            self.accounts.counters.own_packets += fragments - 1;
        } else {
            self.accounts.counters.drops.count(DropReason::TooBig);
        }
    }

    #[inline]
    fn queue(&mut self, slot: u32, packet: Bytes) {
        let bytes = packet.len();
        if !self.accounts.memory.has_room(bytes) && !self.make_room(slot, bytes) {
            return self.accounts.counters.drops.count(DropReason::MemoryLimit);
        }
        let Some(client) = self.connections.at(slot) else { return };
        let handed_bytes_max = client.handed_bytes_max(&self.accounts.memory);
        if client.tunnel.send(packet, handed_bytes_max, &mut self.accounts.counters.drops) {
            client.account_packet(&mut self.accounts.memory, bytes);
            self.accounts.counters.down_packets += 1;
            self.accounts.counters.down_bytes += bytes as u64;
        }
    }

    /// Makes room for a packet of so many bytes to the connection in `slot`, at the cost of whoever has the longest queue. Returns whether there is.
    #[cold]
    fn make_room(&mut self, slot: u32, bytes: usize) -> bool {
        let longest = self.accounts.memory.backlogs.longest().unwrap_or(slot);
        let mut backlog_bytes = |slot| self.connections.at(slot).map_or(0, |client| client.tunnel.backlog_bytes);
        let loser = if backlog_bytes(longest) > backlog_bytes(slot) { longest } else { slot };
        if let Some(client) = self.connections.at(loser) {
            let packets = client.tunnel.take_back((client.tunnel.backlog_bytes / 2).max(TAKEN_BYTES_MIN));
            self.accounts.counters.drops.add(DropReason::MemoryLimit, packets);
            client.account(&mut self.accounts.memory);
        }
        self.accounts.memory.has_room(bytes)
    }

    /// Sends a packet to a client whose path carries less than its length: in fragments, or not at all, and then its sender is told.
    fn too_large(&mut self, slot: u32, packet: &Bytes, forward: &mut Forwarder) {
        let Some(client) = self.connections.at(slot) else { return };
        let mtu_bytes = client.tunnel.inner_mtu_bytes();
        if packet.len() <= mtu_bytes {
            // The last one of a super-packet.
            return self.packet(slot, packet.clone());
        }
        if may_be_fragmented(packet) {
            // Paid for as a whole: fragments show no ports, and would wait apart from the rest of their flow.
            if self.is_paid(slot, packet) {
                self.released(slot, packet.clone());
            }
        } else {
            self.accounts.counters.drops.count(DropReason::TooBig);
            self.tell_sender(slot, packet, packet.len(), forward);
        }
    }

    /// Tells the sender of `packet`, which was dropped, how long its packets to this client may be: now, or when that is known. `packet` may be
    /// the head of one, or of a super-packet whose segments are `packet_bytes` long. Nothing is said in the name of a client that has gone.
    fn tell_sender(&mut self, slot: u32, packet: &[u8], packet_bytes: usize, forward: &mut Forwarder) {
        let Some(client) = self.connections.at(slot) else { return };
        if client.address().is_none() {
            // The address is another one's by now, or nobody's.
            return;
        }
        if client.tunnel.path.is_searching() {
            return client.tunnel.path.answer_later(packet, packet_bytes);
        }
        let reply =
            forward.reply_too_big(self.now, packet, client.tunnel.inner_mtu_bytes(), &mut self.accounts.counters);
        reply.into_iter().for_each(|(to, packet)| self.outbox.hairpin(to, packet));
    }
}
