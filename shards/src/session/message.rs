//! What the control planes of shards say to each other.

use std::net::IpAddr;

use crate::ids::{CommandId, ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseReport};

/// A client that has proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    pub user: UserIndex,
    pub connection: ConnectionKey,
    pub credential: Fingerprint,
}

/// What the control planes of two shards say to each other. It arrives in order, and nothing is lost but what the next one of its kind repairs.
#[derive(Debug)]
pub enum ControlMessage {
    /// Owner to home: a client has logged in. A home whose snapshot is older than `version`, the owner's, takes the message when it has caught up.
    Login {
        login: Login,
        version: u64,
        /// The one that the connection has already, where the home has lost its memory.
        address: Option<IpAddr>,
    },
    /// Owner to home: a connection is gone.
    Gone { user: UserIndex, connection: ConnectionKey },
    /// Home to allocator: a connection needs an address. An allocator whose snapshot is older than `version`, the home's, answers when it has
    /// caught up.
    AllocateAddress { login: Login, home: ShardIndex, version: u64 },
    /// Allocator to home: the answer.
    AddressAllocated { login: Login, address: Result<IpAddr, Refusal> },
    /// Home to allocator: an address is free again.
    ReleaseAddress { login: Login, address: IpAddr },
    /// Home to allocator: an address is held, which the allocator has forgotten, or which the home has moved from one connection of a user to
    /// another.
    HoldAddress { login: Login, address: IpAddr, home: ShardIndex },
    /// Home to owner: the session has taken the connection in.
    Admit { connection: ConnectionKey, address: IpAddr },
    /// Home to owner: the connection is to be closed. The owner's snapshot may still be older than `version`, the home's.
    Close { connection: ConnectionKey, reason: CloseReason, version: u64 },
    /// Allocator to every shard: who has an address now.
    Route { address: IpAddr, connection: ConnectionKey },
    /// Allocator to every shard: an address has left a connection.
    Unroute { address: IpAddr, connection: ConnectionKey },
    /// Allocator that has lost its memory to every shard: every route there is has been told.
    RoutesTold,
    /// Owner to home: how a lease stands, and what is wanted. May be lost.
    LeaseWanted(LeaseReport),
    /// Home to owner: tokens. May be lost.
    Tokens(LeaseGrant),
    /// Owner to home: a lease is closed.
    LeaseClosed(LeaseClose),
    /// To every shard: everything that `from` sent before it executed `command` precedes this message. The connections that had the addresses
    /// `revoked` are closed: what they sent to others before waits nowhere any more.
    Barrier { from: ShardIndex, command: CommandId, revoked: Vec<IpAddr> },
    /// To every shard, as the first message of a shard that was started anew beside them: all that it held is lost.
    Restarted { shard: ShardIndex, incarnation: u32 },
    /// Owner to a home that has lost its memory: every connection of its users has been attached again. Void in another incarnation of the home
    /// than `home_incarnation`.
    Reattached { owner: ShardIndex, owner_incarnation: u32, home_incarnation: u32 },
    /// Home to allocator, after either has lost its memory: every address that the home holds has been said. Void in another incarnation of the
    /// allocator than `allocator_incarnation`.
    Held { home: ShardIndex, allocator_incarnation: u32 },
}

impl ControlMessage {
    /// Whether the message may be lost, because the next one of its kind repairs it.
    pub fn is_repeated(&self) -> bool {
        matches!(self, ControlMessage::LeaseWanted(_) | ControlMessage::Tokens(_))
    }
}

/// Why the allocator gives a connection no address.
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
