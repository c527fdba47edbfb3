//! What shards send each other. Between any two shards messages arrive in order.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::ids::{ConnectionKey, ShardIndex};
use crate::io::Received;
use crate::packet::vnet::VnetHeader;
use crate::session::message::ControlMessage;

#[derive(Debug)]
pub enum Message {
    /// From data plane to data plane. May be lost.
    Packet(PacketMessage),
    /// From control plane to control plane.
    Control(ControlMessage),
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

/// Messages of both planes on their way out, and those of a shard to itself.
#[derive(Debug)]
pub struct Outbox {
    here: ShardIndex,
    remote: VecDeque<(ShardIndex, Message)>,
    local: VecDeque<Message>,
}

impl Outbox {
    pub fn new(here: ShardIndex) -> Self {
        Outbox { here, remote: VecDeque::new(), local: VecDeque::new() }
    }

    pub fn send(&mut self, to: ShardIndex, message: impl Into<Message>) {
        if to == self.here {
            self.local.push_back(message.into());
        } else {
            self.remote.push_back((to, message.into()));
        }
    }

    /// Adds `packet` to the message on its way to `connection`, or begins a new one after `packets_max`.
    pub fn hairpin(&mut self, connection: ConnectionKey, packet: Bytes, packets_max: usize) {
        if let Some((_, Message::Packet(PacketMessage::Hairpin { connection: last, packets }))) = self.remote.back_mut()
            && *last == connection
            && packets.len() < packets_max
        {
            packets.push(packet);
        } else {
            self.send(connection.owner, PacketMessage::Hairpin { connection, packets: vec![packet] });
        }
    }

    pub fn poll_remote(&mut self) -> Option<(ShardIndex, Message)> {
        self.remote.pop_front()
    }

    pub fn poll_local(&mut self) -> Option<Message> {
        self.local.pop_front()
    }
}
