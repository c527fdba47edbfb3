//! What shards say to each other. Between any two shards messages arrive in order.
//!
//! This module sends nothing.

use std::collections::VecDeque;
use std::net::IpAddr;

use bytes::Bytes;

use crate::connection_id::ShardIndex;
use crate::directory::{Fingerprint, UserIndex};
use crate::machine::Received;
use crate::packet::vnet::VnetHeader;
use crate::routes::ConnectionKey;

/// A client that has proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// As whom.
    pub user: UserIndex,
    /// On which connection.
    pub connection: ConnectionKey,
    /// By which certificate.
    pub certificate: Fingerprint,
}

/// A message to another shard.
#[derive(Debug)]
pub enum Message {
    /// Owner to home: a client has logged in.
    Attach(Login),
    /// Owner to home: a connection is gone.
    Detach {
        /// Whose.
        user: UserIndex,
        /// Which.
        connection: ConnectionKey,
    },
    /// Home to keeper: a connection needs an address.
    AllocateAddress {
        /// For whom.
        login: Login,
        /// Whom to answer.
        home: ShardIndex,
    },
    /// Keeper to home: the answer.
    AddressAllocated {
        /// For whom.
        login: Login,
        /// The address; `None` when the pool is exhausted.
        address: Option<IpAddr>,
    },
    /// Home to keeper: an address is free again.
    ReleaseAddress {
        /// Whose it was.
        user: UserIndex,
        /// By which certificate.
        certificate: Fingerprint,
        /// Which.
        address: IpAddr,
    },
    /// Home to owner: the session has taken the connection in.
    Attached {
        /// Which.
        connection: ConnectionKey,
        /// Its inner address.
        address: IpAddr,
        /// Whether its packets need tokens.
        limited: bool,
    },
    /// Home to owner: the connection is to be closed.
    Close {
        /// Which.
        connection: ConnectionKey,
        /// Why.
        reason: CloseReason,
    },
    /// Home to every shard: who has an address now.
    Route {
        /// The address.
        address: IpAddr,
        /// Who has it.
        connection: ConnectionKey,
    },
    /// Home to every shard: an address has left a connection.
    Unroute {
        /// The address.
        address: IpAddr,
        /// Who had it.
        connection: ConnectionKey,
    },
    /// Owner to home: packets wait for tokens.
    RequestLease {
        /// Whose.
        user: UserIndex,
        /// Where the packets wait.
        owner: ShardIndex,
        /// Tokens wanted, in bytes.
        wanted_bytes: u64,
    },
    /// Home to owner: tokens, debited from the bucket.
    GrantLease {
        /// Whose.
        user: UserIndex,
        /// Tokens lent, in bytes.
        bytes: u64,
    },
    /// Inner packets for a connection of another shard, in order.
    Hairpin {
        /// To whom.
        connection: ConnectionKey,
        /// What.
        packets: Vec<Bytes>,
    },
    /// A TUN frame (virtio header in front) that the kernel gave to the wrong queue.
    Frame(Bytes),
    /// A UDP datagram that the kernel gave to the wrong socket.
    Datagram(Received),
}

impl Message {
    /// Inner packets or UDP datagrams that are lost if the message is: `None` if it must not be lost.
    pub fn expendable(&self) -> Option<u64> {
        match self {
            Message::Hairpin { packets, .. } => Some(packets.len() as u64),
            Message::Frame(frame) => {
                Some(VnetHeader::parse(frame).map_or(1, |(header, packet)| header.packets(packet)))
            }
            Message::Datagram(_) => Some(1),
            _ => None,
        }
    }
}

/// Why a home wants a connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// No address is free.
    PoolExhausted,
    /// The user's fixed address has gone to a newer connection.
    Superseded,
}

/// Messages on their way out, and those of a shard to itself.
#[derive(Debug, Default)]
pub struct Outbox {
    here: ShardIndex,
    shards: u16,
    remote: VecDeque<(ShardIndex, Message)>,
    local: VecDeque<Message>,
}

impl Outbox {
    /// The outbox of shard `here` among `shards`.
    pub fn new(here: ShardIndex, shards: u16) -> Self {
        Outbox { here, shards, ..Outbox::default() }
    }

    /// Sends `message` to shard `to`, which may be this one.
    pub fn send(&mut self, to: ShardIndex, message: Message) {
        if to == self.here {
            self.local.push_back(message);
        } else {
            self.remote.push_back((to, message));
        }
    }

    /// Sends what `message` makes to every shard, this one included.
    pub fn broadcast(&mut self, message: impl Fn() -> Message) {
        (0..self.shards).for_each(|index| self.send(ShardIndex(index), message()));
    }

    /// Adds `packet` to the message on its way to `connection`, or begins a new one after `packets_max`.
    pub fn hairpin(&mut self, connection: ConnectionKey, packet: Bytes, packets_max: usize) {
        if let Some((_, Message::Hairpin { connection: last, packets })) = self.remote.back_mut()
            && *last == connection
            && packets.len() < packets_max
        {
            packets.push(packet);
        } else {
            self.send(connection.owner, Message::Hairpin { connection, packets: vec![packet] });
        }
    }

    /// The next message for another shard.
    pub fn poll_remote(&mut self) -> Option<(ShardIndex, Message)> {
        self.remote.pop_front()
    }

    /// The next message of this shard to itself.
    pub fn poll_local(&mut self) -> Option<Message> {
        self.local.pop_front()
    }
}
