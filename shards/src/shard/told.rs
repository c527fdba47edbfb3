//! What a shard tells of its clients: an event, which a log may have, and who is at the other end, for records that name clients.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use quinn_proto::ConnectionError;

use super::action::Event;
use super::usage::Usage;
use crate::deadlines::SessionEnd;
use crate::ids::{CredentialKind, Fingerprint};
use crate::quic::connections::ClientConnection;

/// An event, and what whoever keeps records of clients is told beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub event: Event,
    /// Of the connection that it is about, if it is about one. Not for everybody who reads the events.
    pub peer: Option<Peer>,
}

/// Who is, or was, at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where its datagrams come from.
    pub remote: SocketAddr,
    /// With what it logs in.
    pub kind: CredentialKind,
    /// What it has shown, where it has got that far.
    pub credential: Option<Fingerprint>,
    /// Its inner address, if it had one.
    pub address: Option<IpAddr>,
    /// When its handshake began; `None` where none did.
    pub began: Option<Instant>,
    /// What the connection has carried.
    pub usage: Usage,
    /// How it has ended, if it has.
    pub end: Option<End>,
}

impl Peer {
    pub(super) fn of(client: &ClientConnection) -> Self {
        let connection = &client.tunnel.connection;
        Peer {
            remote: connection.remote_address(),
            kind: client.kind,
            credential: client.identity().map(|identity| identity.credential),
            address: client.address(),
            began: Some(client.began),
            usage: Usage::of(&connection.stats()),
            end: None,
        }
    }

    /// Somebody whose handshake came to nothing.
    pub fn stranger(remote: SocketAddr, kind: CredentialKind) -> Self {
        Peer { remote, kind, credential: None, address: None, began: None, usage: Usage::default(), end: None }
    }
}

/// How a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The gateway has closed it, with this code.
    Gateway(u32),
    /// The gateway has closed it, for the session was over.
    Session(SessionEnd),
    /// The client has closed it, with this code.
    Client(u64),
    /// Nothing was heard of the client any more.
    TimedOut,
    /// The client has lost it, or has broken the protocol.
    Failed,
}

impl End {
    pub(super) fn of(reason: &ConnectionError) -> Self {
        match reason {
            ConnectionError::ApplicationClosed(close) => End::Client(close.error_code.into_inner()),
            ConnectionError::TimedOut => End::TimedOut,
            _ => End::Failed,
        }
    }
}
