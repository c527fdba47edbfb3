//! What the driver of a shard gives it and gets from it beside packets.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::message::Message;
use super::told::Told;
use crate::ids::{CommandId, ConnectionKey, CredentialKind, Fingerprint, ShardIndex, Shards, UserIndex};
use crate::session::addresses::SteeringUpdate;
use crate::session::snapshot::Snapshot;

#[derive(Clone)]
pub enum Command {
    /// Close every connection and take no new ones.
    Stop,
    /// Take no new clients, and send those that are here away one after the other: all of them `over` this time at an even pace, but whoever is left
    /// when `within` has passed at once. In place of a drain before. Where they go `to_successor`, the process beside this one, those who do not come back
    /// by themselves stay until `within` has passed.
    Drain { over: Duration, within: Duration, to_successor: bool },
    /// Take clients again, and send nobody away any more.
    Resume,
    /// Go over to another snapshot: who is not in it any more is closed, limits and addresses are those of the new one.
    Apply { id: CommandId, snapshot: Arc<Snapshot> },
    /// Close a user's connections.
    Kick { id: CommandId, user: UserIndex },
    /// The process that takes over is ready: its shards `to`, in their `incarnation`, are the homes from now on. Owners stay what they are.
    HandOver { id: CommandId, to: Shards, incarnation: u32 },
    /// The process that has taken over is dead, and nothing that it has said is under way. The homes are here again, in an `incarnation` that no shard
    /// has had.
    TakeBack { id: CommandId, incarnation: u32 },
    /// The process from which this one takes over, or has, is no more, and nothing that it has said is under way.
    PredecessorGone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client has its address.
    Attached { user: UserIndex, connection: ConnectionKey, address: IpAddr },
    /// A client that was logged in is gone. It ended with the snapshot `version`, a later one than the shard's where the user's home is ahead.
    Detached { user: UserIndex, connection: ConnectionKey, reason: String, version: u64 },
    /// Somebody came with a certificate or a Noise key that no user has.
    UnknownCredential { kind: CredentialKind, fingerprint: Fingerprint },
    /// The path to a client carries less than before: inner packets of `mtu_bytes`. `is_too_narrow` is less than the tunnel's IPv6 needs.
    PathNarrowed { user: UserIndex, connection: ConnectionKey, mtu_bytes: u16, is_too_narrow: bool },
    /// A client was turned away after its login, because no address is free.
    PoolExhausted { user: UserIndex },
    /// A client was turned away after its login: its user has an address, and those that are left are for users who have none.
    PoolReserved { user: UserIndex },
    /// A client was turned away after its login, because its user has all the connections allowed.
    TooManyConnections { user: UserIndex },
    /// A client was turned away, because its user has carried as much as allowed for now.
    OverQuota { user: UserIndex },
    /// A handshake came to nothing.
    HandshakeFailed { reason: String },
    /// The certificate of somebody who is logged in ends in so many days, and the session with it.
    CertificateEnds { user: UserIndex, days: u64 },
    /// There were so many more events than anybody asked for.
    Forgotten { events: u64 },
}

/// What the driver of a shard has to carry out beside packets.
#[derive(Debug)]
pub enum Action {
    Steering(SteeringUpdate),
    ClientMtu(ClientMtu),
    /// May release what a steering update before it has held.
    Send(ShardIndex, Message),
    Tell(Told),
}

/// What the path to one client carries, for the kernel's route to its inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientMtu {
    /// The client's inner address.
    pub address: IpAddr,
    /// The connection that has it. Of two shards, the one whose connection is older may be heard later.
    pub connection: ConnectionKey,
    /// Largest inner packet, in bytes, where it is less than the tunnel's MTU; `None` where it is not, or the client is gone.
    pub mtu_bytes: Option<u16>,
}
