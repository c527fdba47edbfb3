//! What each client's connection has carried, for whoever tells of single ones.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Add, AddAssign};
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionStats, PathStats};
use serde::{Deserialize, Serialize};

use super::Shard;
use crate::ids::{ConnectionKey, CredentialKind, UserIndex};

/// UDP datagrams of a connection as the gateway sees them, those of its handshake included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// UDP payload sent to the client.
    pub sent_bytes: u64,
    /// UDP payload received from the client.
    pub received_bytes: u64,
    pub sent_datagrams: u64,
    pub received_datagrams: u64,
}

impl Usage {
    pub(super) fn of(stats: &ConnectionStats) -> Self {
        Usage {
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_datagrams: stats.udp_tx.datagrams,
            received_datagrams: stats.udp_rx.datagrams,
        }
    }

    /// Both ways together.
    pub fn bytes(self) -> u64 {
        self.sent_bytes + self.received_bytes
    }

    /// What has come since `earlier`; nothing where there was more then.
    #[must_use]
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            sent_datagrams: self.sent_datagrams.saturating_sub(earlier.sent_datagrams),
            received_datagrams: self.received_datagrams.saturating_sub(earlier.received_datagrams),
        }
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            sent_bytes: self.sent_bytes + other.sent_bytes,
            received_bytes: self.received_bytes + other.received_bytes,
            sent_datagrams: self.sent_datagrams + other.sent_datagrams,
            received_datagrams: self.received_datagrams + other.received_datagrams,
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

/// What connections of one user have carried that are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndedUsage {
    pub usage: Usage,
    pub connections: u64,
    /// The sum of the times from a handshake's begin to its connection's end.
    pub lasted: Duration,
}

impl AddAssign for EndedUsage {
    fn add_assign(&mut self, other: EndedUsage) {
        self.usage += other.usage;
        self.connections += other.connections;
        self.lasted += other.lasted;
    }
}

/// How the path to a client stands (RFC 9002).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathState {
    /// Smoothed round-trip time (section 5.3).
    pub rtt: Duration,
    /// The least one (section 5.2).
    pub rtt_min: Duration,
    /// The congestion window.
    pub window_bytes: u64,
    /// The longest UDP payload that gets through.
    pub mtu_bytes: u16,
    /// QUIC packets, probes of the MTU left out of those lost.
    pub sent_packets: u64,
    pub lost_packets: u64,
    pub congestion_events: u64,
}

impl PathState {
    fn of(stats: &PathStats) -> Self {
        PathState {
            rtt: stats.rtt,
            rtt_min: stats.min_rtt,
            window_bytes: stats.cwnd,
            mtu_bytes: stats.current_mtu,
            sent_packets: stats.sent_packets,
            lost_packets: stats.lost_packets,
            congestion_events: stats.congestion_events,
        }
    }
}

/// A connection whose client has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionUsage {
    pub connection: ConnectionKey,
    pub user: UserIndex,
    /// With what the client has logged in.
    pub kind: CredentialKind,
    /// The client's inner address.
    pub address: IpAddr,
    /// Where its datagrams come from. Not for everybody who reads the others.
    pub remote: SocketAddr,
    pub usage: Usage,
    pub path: PathState,
    /// What waits to be sent to it, with what holds it, in bytes.
    pub queued_bytes: usize,
    /// When its handshake began.
    pub began: Instant,
    /// When the last datagram of it came.
    pub heard_at: Instant,
}

impl Shard {
    /// What each client with an address has carried. Looks at all connections.
    pub fn usage(&self) -> impl Iterator<Item = ConnectionUsage> {
        self.data.quic.connections.iter().filter_map(|client| {
            let (identity, address, connection) = (client.identity()?, client.address()?, &client.tunnel.connection);
            let stats = connection.stats();
            Some(ConnectionUsage {
                connection: client.key,
                user: identity.user,
                kind: identity.kind,
                address,
                remote: connection.remote_address(),
                usage: Usage::of(&stats),
                path: PathState::of(&stats.path),
                queued_bytes: client.queued_bytes(),
                began: client.began,
                heard_at: client.heard_at,
            })
        })
    }

    /// What all clients together have carried that are gone.
    pub fn former_usage(&self) -> Usage {
        self.data.former_usage
    }

    /// What clients have carried that are gone since this was called last, by user. The driver calls it in each pass.
    pub fn take_ended_usage(&mut self) -> BTreeMap<UserIndex, EndedUsage> {
        std::mem::take(&mut self.data.ended_usage)
    }
}
