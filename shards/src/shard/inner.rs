//! A shard towards the inner network: what comes out of connections and what goes into them.
//!
//! Never touches a connection's state beyond its datagrams.

use bytes::Bytes;

use super::Shard;
use super::connections::{Owned, Stage};
use super::outer::want_to_send;
use crate::drops::DropReason;
use crate::forward::policy::Verdict;
use crate::ids::ConnectionKey;
use crate::limit::shaper::Direction;
use crate::packet::PacketPool;
use crate::packet::fragment::fragment;
use crate::packet::inner::InnerPacket;
use crate::packet::split::{split, split_first};
use crate::packet::vnet::VnetHeader;
use crate::session::message::Message;

impl Shard {
    /// Takes the inner packets that a connection has received, while there is room for what becomes of them. Returns whether some are left.
    #[must_use]
    pub(super) fn take_inner_packets(&mut self, owned: &mut Owned) -> bool {
        let Stage::Attached { limited, .. } = owned.stage else {
            while owned.link.recv().is_some() {
                self.counters.drops.count(DropReason::NotAttached);
            }
            return false;
        };
        while !self.merger.is_full() {
            let Some(packet) = owned.link.recv() else { break };
            self.up(owned, packet, limited);
        }
        self.merger.is_full()
    }

    /// Judges one inner packet of a client, has it pay where its user is limited and it has not yet, and sends it on.
    pub(super) fn up(&mut self, owned: &mut Owned, packet: Bytes, pays: bool) {
        let Stage::Attached { address, .. } = owned.stage else {
            return self.counters.drops.count(DropReason::NotAttached);
        };
        let Ok(inner) = InnerPacket::parse(&packet) else {
            return self.counters.drops.count(DropReason::Malformed);
        };
        let verdict = self.policy.judge(&inner, address, owned.link.connection.local_ip(), &self.routes);
        // Judged first: what goes nowhere costs nothing. What waits now is judged again when it goes.
        if pays && !matches!(verdict, Verdict::Drop(_)) && !self.pays(owned, Direction::Up, &packet) {
            return;
        }
        match verdict {
            Verdict::Forward => {
                self.counters.up_packets += 1;
                self.counters.up_bytes += packet.len() as u64;
                self.write_to_tun(packet, &inner);
            }
            // To itself: the route is its own, and nothing would be learned from it.
            Verdict::Deliver(connection) if connection == owned.key => self.counters.drops.count(DropReason::NoRoute),
            Verdict::Deliver(connection) => {
                self.counters.relayed_packets += 1;
                let packet = self.arena.copy(&packet);
                self.deliver(connection, packet);
            }
            Verdict::Hairpin(connection) => {
                self.counters.relayed_packets += 1;
                let packet = self.arena.copy(&packet);
                self.outbox.hairpin(connection, packet, self.params.limits.hairpin_packets_max);
            }
            Verdict::Drop(reason) => self.counters.drops.count(reason),
        }
    }

    pub(super) fn write_to_tun(&mut self, packet: Bytes, inner: &InnerPacket) {
        if self.merger.push(packet, inner).is_err() {
            self.counters.drops.count(DropReason::TunWrite);
        }
    }

    /// Inner packets that another shard's connection sent to one of this shard's.
    pub(super) fn deliver_from_mesh(&mut self, connection: ConnectionKey, packets: Vec<Bytes>) {
        packets.into_iter().for_each(|packet| self.deliver(connection, packet));
    }

    fn deliver(&mut self, connection: ConnectionKey, packet: Bytes) {
        let Some(mut owned) = self.connections.take_exact(connection) else {
            return self.counters.drops.count(DropReason::NoRoute);
        };
        if packet.len() > owned.link.inner_mtu_bytes() {
            self.down_too_large(&mut owned, &packet);
        } else {
            let packet = if owned.link.is_behind() { Bytes::copy_from_slice(&packet) } else { packet };
            self.down(&mut owned, packet);
        }
        want_to_send(&mut self.sending, &mut owned);
        self.connections.put_back(owned);
    }

    /// Queues one inner packet for a client.
    pub(super) fn down(&mut self, owned: &mut Owned, packet: Bytes) {
        let Stage::Attached { limited, .. } = owned.stage else {
            return self.counters.drops.count(DropReason::NotAttached);
        };
        if limited {
            if !self.pays(owned, Direction::Down, &packet) {
                return;
            }
            if owned.link.is_behind() {
                return self.queue_down(owned, Bytes::copy_from_slice(&packet));
            }
        }
        self.queue_down(owned, packet);
    }

    /// Queues a packet that has waited for tokens. The path may have shrunk meanwhile.
    pub(super) fn queue_released(&mut self, owned: &mut Owned, packet: Bytes) {
        let mtu_bytes = owned.link.inner_mtu_bytes();
        if packet.len() <= mtu_bytes || !Self::fragments(&packet) {
            return self.queue_down(owned, packet);
        }
        let mut fragments = 0;
        let is_split = fragment(&packet, mtu_bytes, &mut |fragment| {
            fragments += 1;
            self.queue_down(owned, fragment);
        });
        if is_split {
            self.counters.own_packets += fragments - 1;
        } else {
            self.counters.drops.count(DropReason::TooBig);
        }
    }

    #[inline]
    fn queue_down(&mut self, owned: &mut Owned, packet: Bytes) {
        let bytes = packet.len();
        if !self.memory.has_room(bytes) && !self.make_queue_room(owned, bytes) {
            return self.counters.drops.count(DropReason::MemoryLimit);
        }
        if owned.link.send(packet, &mut self.counters.drops) {
            owned.account_packet(&mut self.memory, bytes);
            self.counters.down_packets += 1;
            self.counters.down_bytes += bytes as u64;
        }
    }

    /// Takes a frame of the TUN: to a connection of this shard, or once across the mesh.
    pub(super) fn route_frame(&mut self, frame: &[u8], may_cross: bool) {
        let Some((header, packet)) = VnetHeader::parse(frame) else {
            return self.counters.drops.count(DropReason::Malformed);
        };
        if let Err(reason) = self.route_packet(&header, packet, frame, may_cross) {
            self.counters.drops.add(reason, header.packets(packet));
        }
    }

    fn route_packet(
        &mut self,
        header: &VnetHeader,
        packet: &[u8],
        frame: &[u8],
        may_cross: bool,
    ) -> Result<(), DropReason> {
        let inner = InnerPacket::parse(packet).map_err(|_| DropReason::Malformed)?;
        let connection = self.routes.find(inner.destination).ok_or(DropReason::NoRoute)?;
        if connection.owner != self.params.index {
            if !may_cross {
                return Err(DropReason::NoRoute);
            }
            self.counters.misrouted_frames += 1;
            self.outbox.send(connection.owner, Message::Frame(self.arena.copy(frame)));
            return Ok(());
        }
        let mut owned = self.connections.take_exact(connection).ok_or(DropReason::NoRoute)?;
        let sent = self.frame_down(&mut owned, header, packet);
        want_to_send(&mut self.sending, &mut owned);
        self.connections.put_back(owned);
        sent
    }

    /// Splits a frame into packets for one client, or tells its sender how long they may be.
    fn frame_down(&mut self, owned: &mut Owned, header: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let packet_bytes = header.segment_bytes(packet);
        if packet_bytes > owned.link.inner_mtu_bytes() {
            if Self::fragments(packet) {
                let split = split(header, packet, &mut PacketPool::for_one_frame(), &mut |packet| {
                    self.down_too_large(owned, &packet)
                });
                return split.map(|_| ()).map_err(|_| DropReason::Malformed);
            }
            self.tell_sender(owned, packet, packet_bytes);
            return Err(DropReason::TooBig);
        }
        let is_limited = !matches!(owned.stage, Stage::Attached { limited: false, .. });
        if owned.link.is_behind() && !is_limited && !owned.link.connection.is_closed() {
            return self.frame_to_backlog(owned, header, packet);
        }
        let mut arena = std::mem::take(&mut self.arena);
        let sent = split(header, packet, &mut arena, &mut |packet| self.down(owned, packet));
        self.arena = arena;
        sent.map(|_| ()).map_err(|_| DropReason::Malformed)
    }

    /// Splits as much of a frame as there is room for, where what is queued waits: those packets get memory of their own and no more than
    /// they need. The rest is not even copied: in a flood that is most of it.
    fn frame_to_backlog(&mut self, owned: &mut Owned, header: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let room = owned.link.room_for_packets(header.segment_bytes(packet));
        if room == 0 {
            return Err(DropReason::DatagramQueueFull);
        }
        let sent =
            split_first(header, packet, &mut PacketPool::for_one_frame(), room, &mut |packet| self.down(owned, packet));
        let sent = sent.map_err(|_| DropReason::Malformed)?;
        self.counters.drops.add(DropReason::DatagramQueueFull, header.packets(packet).saturating_sub(sent as u64));
        Ok(())
    }
}
