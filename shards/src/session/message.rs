//! What the control planes of shards say to each other.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{CommandId, ConnectionKey, Fingerprint, Reconnects, ShardIndex, UserIndex};
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseReport};
use crate::limit::rate::Limit;

/// A client that has proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    #[serde(skip)]
    pub user: UserIndex,
    pub connection: ConnectionKey,
    pub credential: Fingerprint,
    pub reconnects: Reconnects,
}

/// What the control planes of two shards say to each other. It arrives in order, and nothing is lost but what the next one of its kind repairs.
///
/// What stays within a process comes last. To another process it goes without the numbers of users, who have other ones there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// Owner to home: a client has logged in. A home whose snapshot is older than `version`, the owner's, takes the message when it has caught up.
    Login {
        login: Login,
        version: u64,
        /// The one that the connection has already, where the home has lost its memory.
        address: Option<IpAddr>,
        /// How long the session has lasted.
        age_ms: u64,
    },
    /// Owner to home: a connection is gone.
    Gone {
        #[serde(skip)]
        user: UserIndex,
        connection: ConnectionKey,
    },
    /// Home to owner: the session has taken the connection in, and is that old: as old as that of the connection whose place this one has.
    Admit { connection: ConnectionKey, address: IpAddr, age_ms: u64 },
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
    /// Owner to a home that has lost its memory: every connection of its users has been attached again. Void in another incarnation of the home
    /// than `home_incarnation`.
    Reattached { owner: ShardIndex, owner_incarnation: u32, home_incarnation: u32 },
    /// Former home to the home of the same user in the process that takes over: what the user's bucket holds, in bytes.
    Level {
        #[serde(skip)]
        user: UserIndex,
        level_bytes: u64,
    },
    /// Former home to every home of the process that takes over: all levels are told. It had lost its memory so long ago, if ever.
    Yielded { lost_ms: Option<u64> },
    /// Former allocator to the one of the process that takes over: who had which address, some of those and the oldest first.
    Remembered { addresses: Vec<(Fingerprint, IpAddr)> },
    /// Home to an owner of another process: the user's limit, whatever the owner's own snapshot says.
    Limit {
        #[serde(skip)]
        user: UserIndex,
        limit: Option<Limit>,
    },
    /// Home to allocator: a connection needs an address. An allocator whose snapshot is older than `version`, the home's, answers when it has
    /// caught up.
    #[serde(skip)]
    AllocateAddress { login: Login, home: ShardIndex, version: u64 },
    /// Allocator to home: the answer.
    #[serde(skip)]
    AddressAllocated { login: Login, address: Result<IpAddr, Refusal> },
    /// Home to allocator: an address is free again.
    #[serde(skip)]
    ReleaseAddress { login: Login, address: IpAddr },
    /// Home to allocator: an address is held, which the allocator has forgotten, or which the home has moved from one connection of a user to
    /// another.
    #[serde(skip)]
    HoldAddress { login: Login, address: IpAddr, home: ShardIndex },
    /// To every shard, as the first message of a shard that was started anew beside them: all that it held is lost.
    #[serde(skip)]
    Restarted { shard: ShardIndex, incarnation: u32 },
    /// Home to allocator, after either has lost its memory: every address that the home holds has been said. Void in another incarnation of the
    /// allocator than `allocator_incarnation`.
    #[serde(skip)]
    Held { home: ShardIndex, allocator_incarnation: u32 },
}

impl ControlMessage {
    /// The user that it speaks of, if it may go to another process.
    pub(crate) fn user_mut(&mut self) -> Option<&mut UserIndex> {
        use ControlMessage as M;
        match self {
            M::Login { login, .. } => Some(&mut login.user),
            M::Gone { user, .. } => Some(user),
            M::LeaseWanted(report) => Some(&mut report.user),
            M::Tokens(grant) => Some(&mut grant.user),
            M::LeaseClosed(close) => Some(&mut close.user),
            M::Level { user, .. } | M::Limit { user, .. } => Some(user),
            M::Admit { .. } | M::Close { .. } | M::Route { .. } | M::Unroute { .. } | M::RoutesTold => None,
            M::Barrier { .. } | M::Reattached { .. } | M::Yielded { .. } | M::Remembered { .. } => None,
            M::AllocateAddress { .. } | M::AddressAllocated { .. } | M::ReleaseAddress { .. } => None,
            M::HoldAddress { .. } | M::Restarted { .. } | M::Held { .. } => None,
        }
    }

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The client has moved to a newer connection, which gets the address.
    Moved,
    /// The user has carried as much as allowed for now.
    OverQuota,
}
