//! What shards say to each other. Between any two shards messages arrive in order.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::ids::{CommandId, ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseReport};

/// A client that has proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: UserIndex,
    /// The connection.
    pub connection: ConnectionKey,
    /// The certificate.
    pub certificate: Fingerprint,
}

/// What the control planes of two shards say to each other. Between any two shards it arrives in order, and nothing is lost but what the next one
/// of its kind repairs.
#[derive(Debug)]
pub enum ControlMessage {
    /// Owner to home: a client has logged in.
    Login {
        /// Who has logged in, and where.
        login: Login,
        /// The epoch of the owner's look-up. A home that is behind takes the message when it has caught up.
        epoch: u64,
        /// The address that the connection has already, where the home has lost its memory.
        address: Option<IpAddr>,
    },
    /// Owner to home: a connection is gone.
    Gone {
        /// The user.
        user: UserIndex,
        /// The connection.
        connection: ConnectionKey,
    },
    /// SessionHome to keeper: a connection needs an address.
    AllocateAddress {
        /// Who has logged in, and where.
        login: Login,
        /// The user's home.
        home: ShardIndex,
        /// The home's epoch. A keeper that is behind takes the message when it has caught up.
        epoch: u64,
    },
    /// AddressAllocator to home: the answer.
    AddressAllocated {
        /// Who has logged in, and where.
        login: Login,
        /// The address, or why there is none.
        address: Result<IpAddr, Refusal>,
    },
    /// SessionHome to keeper: an address is free again.
    ReleaseAddress {
        /// Who has logged in, and where.
        login: Login,
        /// The inner address.
        address: IpAddr,
    },
    /// SessionHome to keeper: an address is held, which the keeper has forgotten, or which the home has moved from one connection of a user to another.
    HoldAddress {
        /// Who has logged in, and where.
        login: Login,
        /// The inner address.
        address: IpAddr,
        /// Where the session is.
        home: ShardIndex,
    },
    /// SessionHome to owner: the session has taken the connection in.
    Admit {
        /// The connection.
        connection: ConnectionKey,
        /// Its inner address.
        address: IpAddr,
    },
    /// SessionHome to owner: the connection is to be closed.
    Close {
        /// The connection.
        connection: ConnectionKey,
        /// The reason.
        reason: CloseReason,
        /// The home's epoch. The owner may not have entered it yet.
        epoch: u64,
    },
    /// AddressAllocator to every shard: who has an address now.
    Route {
        /// The inner address.
        address: IpAddr,
        /// The connection.
        connection: ConnectionKey,
    },
    /// AddressAllocator to every shard: an address has left a connection.
    Unroute {
        /// The inner address.
        address: IpAddr,
        /// The connection.
        connection: ConnectionKey,
    },
    /// AddressAllocator that has lost its memory to every shard: every route there is has been told.
    RoutesTold,
    /// Owner to home: how a lease stands, and what is wanted. May be lost.
    LeaseWanted(LeaseReport),
    /// SessionHome to owner: tokens. May be lost.
    Tokens(LeaseGrant),
    /// Owner to home: a lease is closed.
    LeaseClosed(LeaseClose),
    /// To every shard: what the sender sent before it carried out an order, it has sent before this.
    Barrier {
        /// The shard that has executed it.
        from: ShardIndex,
        /// The order.
        command: CommandId,
        /// Inner addresses of the sender's connections that the order has closed. What they sent to others before waits nowhere any more.
        revoked: Vec<IpAddr>,
    },
    /// To every shard, as the first message of a shard that was started anew beside them: all that it held is lost.
    Restarted {
        /// The shard.
        shard: ShardIndex,
        /// How often it has been by now.
        incarnation: u32,
    },
    /// Owner to a home that has lost its memory: every connection of its users has been attached again.
    Reattached {
        /// The owner of the connections.
        owner: ShardIndex,
        /// The owner's incarnation.
        owner_incarnation: u32,
        /// The incarnation of the home that is answered. What was meant for an earlier one is void.
        home_incarnation: u32,
    },
    /// SessionHome to keeper, after either has lost its memory: every address that the home holds has been said.
    Held {
        /// The user's home.
        home: ShardIndex,
        /// The incarnation of the keeper that it was said to. What was meant for an earlier one is void.
        keeper_incarnation: u32,
    },
}

impl ControlMessage {
    /// Whether the message may be lost, because the next one of its kind repairs it.
    pub fn is_repeated(&self) -> bool {
        matches!(self, ControlMessage::LeaseWanted(_) | ControlMessage::Tokens(_))
    }
}

/// Why the keeper gives a connection no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// All are out.
    Exhausted,
    /// The user has one, and those that are left are for users who have none.
    Reserved,
}

/// Why a home wants a connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// No address is free.
    PoolExhausted,
    /// The addresses that are left are for users who have none.
    PoolReserved,
    /// The user's fixed address, or the place of its oldest connection, has gone to a newer connection.
    Superseded,
    /// The user has as many connections as allowed.
    TooManyConnections,
    /// The user is not known any more.
    Revoked,
}

/// Messages on their way out, and those of a shard to itself.
#[derive(Debug, Default)]
pub struct Outbox {
    here: ShardIndex,
    shards: u16,
    remote: VecDeque<(ShardIndex, ControlMessage)>,
    local: VecDeque<ControlMessage>,
}

impl Outbox {
    /// The outbox of shard `here` among `shards`.
    pub fn new(here: ShardIndex, shards: u16) -> Self {
        Outbox { here, shards, ..Outbox::default() }
    }

    /// Sends `message` to shard `to`, which may be this one.
    pub fn send(&mut self, to: ShardIndex, message: ControlMessage) {
        if to == self.here {
            self.local.push_back(message);
        } else {
            self.remote.push_back((to, message));
        }
    }

    /// Sends what `message` makes to every shard, this one included.
    pub fn broadcast(&mut self, message: impl Fn() -> ControlMessage) {
        (0..self.shards).for_each(|index| self.send(ShardIndex(index), message()));
    }

    /// The next message for another shard.
    pub fn poll_remote(&mut self) -> Option<(ShardIndex, ControlMessage)> {
        self.remote.pop_front()
    }

    /// The next message of this shard to itself.
    pub fn poll_local(&mut self) -> Option<ControlMessage> {
        self.local.pop_front()
    }
}
