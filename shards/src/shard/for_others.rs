//! What the data plane has for the control plane, for other shards and for the log.

use bytes::Bytes;

use super::action::Event;
use crate::ids::{ConnectionKey, Fingerprint, ShardIndex};
use crate::io::Received;
use crate::limit::lease::{LeaseClose, LeaseReport};
use crate::quic::connections::Identity;

/// What the data plane has for others, in the order in which it came about.
#[derive(Debug)]
pub enum ForOthers {
    /// An inner packet for a client, whoever owns its connection.
    Packet { to: ConnectionKey, packet: Bytes },
    /// A TUN frame that the kernel gave to the wrong queue.
    Frame { owner: ShardIndex, frame: Bytes },
    /// A UDP datagram that the kernel gave to the wrong socket.
    Datagram { owner: ShardIndex, received: Received },
    /// For a user's home: how its lease stands, and what is wanted.
    LeaseWanted { home: ShardIndex, report: LeaseReport },
    /// For a user's home: the last word on a lease.
    LeaseClosed { home: ShardIndex, close: LeaseClose },
    /// A connection on which somebody had logged in is gone.
    Gone(Gone),
    /// For the log.
    Event(Event),
}

/// The end of a connection on which somebody had logged in.
#[derive(Debug)]
pub struct Gone {
    pub identity: Identity,
    pub connection: ConnectionKey,
    /// Why, if it had an address.
    pub reason: Option<String>,
    /// Version of the snapshot that ended it, where that is another shard's.
    pub version: Option<u64>,
}

/// Somebody has proved to hold the key of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct LoggedIn {
    pub connection: ConnectionKey,
    pub certificate: Fingerprint,
}
