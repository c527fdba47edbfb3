//! What shards send each other. Between any two shards messages arrive in order.

use std::collections::VecDeque;

use bytes::Bytes;

use super::action::Event;
use super::told::{Peer, Told};
use crate::ids::{ConnectionKey, ShardIndex};
use crate::io::Received;
use crate::packet::vnet::VnetHeader;
use crate::quic::placement::Load;
use crate::session::message::ControlMessage;

#[derive(Debug)]
pub enum Message {
    /// From data plane to data plane. May be lost.
    Packet(PacketMessage),
    /// From control plane to control plane.
    Control(ControlMessage),
    /// From placement to placement: what a shard has to do. May be lost, and what is lost is told once more.
    Load { from: ShardIndex, load: Load },
}

/// Packets that belong to another shard.
#[derive(Debug)]
pub enum PacketMessage {
    /// Inner packets for a connection, in order.
    Hairpin { connection: ConnectionKey, packets: Vec<Bytes> },
    /// A TUN frame (virtio header in front) that the kernel gave to the wrong queue.
    Frame(Bytes),
    /// A UDP datagram that the kernel gave to the wrong socket.
    Datagram(Received),
}

impl PacketMessage {
    /// Inner packets or UDP datagrams in it.
    pub fn packets(&self) -> u64 {
        match self {
            PacketMessage::Hairpin { packets, .. } => packets.len() as u64,
            PacketMessage::Frame(frame) => {
                VnetHeader::parse(frame).map_or(1, |(header, packet)| header.packets(packet))
            }
            PacketMessage::Datagram(_) => 1,
        }
    }
}

impl Message {
    /// Inner packets or UDP datagrams that are lost if the message is: `None` if it must not be lost.
    pub fn expendable(&self) -> Option<u64> {
        match self {
            Message::Packet(message) => Some(message.packets()),
            Message::Control(message) => message.is_repeated().then_some(0),
            Message::Load { .. } => Some(0),
        }
    }
}

impl From<ControlMessage> for Message {
    fn from(message: ControlMessage) -> Self {
        Message::Control(message)
    }
}

impl From<PacketMessage> for Message {
    fn from(message: PacketMessage) -> Self {
        Message::Packet(message)
    }
}

/// Events that nobody has asked for yet; further ones are counted only. Beyond it goes nothing but the end of each connection, once.
const EVENTS_MAX: usize = 4096;

/// Messages of both planes on their way out, those of a shard to itself, and what is to be logged.
#[derive(Debug)]
pub struct Outbox {
    here: ShardIndex,
    hairpin_packets_max: usize,
    pub remote: VecDeque<(ShardIndex, Message)>,
    pub local: VecDeque<Message>,
    events: VecDeque<Told>,
    /// How many events were only counted, and of how many of those nobody was told yet.
    pub forgotten_events: u64,
    untold_events: u64,
}

impl Outbox {
    pub fn new(here: ShardIndex, hairpin_packets_max: usize) -> Self {
        let (remote, local, events) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Outbox { here, hairpin_packets_max, remote, local, events, forgotten_events: 0, untold_events: 0 }
    }

    pub fn send(&mut self, to: ShardIndex, message: impl Into<Message>) {
        if to == self.here {
            self.local.push_back(message.into());
        } else {
            self.remote.push_back((to, message.into()));
        }
    }

    /// Adds an inner packet to the message on its way to `connection`, or begins a new one where that is full.
    pub fn hairpin(&mut self, connection: ConnectionKey, packet: Bytes) {
        if let Some((_, Message::Packet(PacketMessage::Hairpin { connection: last, packets }))) = self.remote.back_mut()
            && *last == connection
            && packets.len() < self.hairpin_packets_max
        {
            packets.push(packet);
        } else {
            self.send(connection.owner, PacketMessage::Hairpin { connection, packets: vec![packet] });
        }
    }

    pub fn tell(&mut self, event: Event, peer: Option<Peer>) {
        if self.events.len() < EVENTS_MAX || matches!(event, Event::Detached { .. }) {
            self.events.push_back(Told { event, peer });
        } else {
            self.forgotten_events += 1;
            self.untold_events += 1;
        }
    }

    pub fn poll_told(&mut self) -> Option<Told> {
        match std::mem::take(&mut self.untold_events) {
            0 => self.events.pop_front(),
            events => Some(Told { event: Event::Forgotten { events }, peer: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_events_only_the_ends_of_connections_are_kept_and_the_others_counted() {
        let mut outbox = Outbox::new(ShardIndex(0), 1);
        (0..EVENTS_MAX + 7).for_each(|_| outbox.tell(Event::HandshakeFailed { reason: String::new() }, None));
        let told = outbox.poll_told().map(|told| told.event);
        assert_eq!((outbox.events.len(), told), (EVENTS_MAX, Some(Event::Forgotten { events: 7 })));
    }

    #[test]
    fn packets_to_one_connection_share_messages_up_to_the_bound() {
        let mut outbox = Outbox::new(ShardIndex(0), 4);
        let [one, other] = [1, 2].map(|slot| ConnectionKey { owner: ShardIndex(1), slot, generation: 0 });
        for connection in [[one; 10].as_slice(), &[other, one]].concat() {
            outbox.hairpin(connection, Bytes::from_static(b"packet"));
        }
        let length = |(_, message): &(ShardIndex, Message)| match message {
            Message::Packet(PacketMessage::Hairpin { packets, .. }) => packets.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(outbox.remote.iter().map(length).collect::<Vec<_>>(), [4, 4, 2, 1, 1]);
    }
}
