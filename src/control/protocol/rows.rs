//! What an answer says of single users and connections, in rows. An answer has some of them, and where the next ones begin.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tollgate_shards::Usage;

use crate::usage::{Day, Row};

/// A user who is online, whose limit is by order, or who is over a quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRow {
    /// The user's name.
    pub user: String,
    /// Connections that have addresses.
    pub connections: u64,
    /// What they have carried: UDP payload, as metrics count it.
    #[serde(flatten)]
    pub usage: Usage,
    /// The limit in force, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bits_per_s: Option<u64>,
    /// Whether that, or that there is none, is by order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ordered: bool,
    /// Whether a quota is used up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_over_quota: bool,
    /// When the oldest of the connections began, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_s: Option<u64>,
}

/// A connection that has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// The user's name.
    pub user: String,
    /// The client's inner address.
    pub address: IpAddr,
    /// The shard that carries it.
    pub shard: u16,
    /// How the client came in.
    pub mode: String,
    /// When its handshake began, in seconds since 1970.
    pub since_unix_s: u64,
    /// Since the client's last datagram, in milliseconds.
    pub heard_ms: u64,
    /// Smoothed round-trip time of the path (RFC 9002), in microseconds.
    pub rtt_us: u64,
    /// The least one.
    #[serde(default)]
    pub rtt_min_us: u64,
    /// The congestion window towards the client.
    #[serde(default)]
    pub window_bytes: u64,
    /// The longest UDP payload that gets through to the client.
    #[serde(default)]
    pub mtu_bytes: u16,
    /// QUIC packets sent to the client.
    #[serde(default)]
    pub sent_packets: u64,
    /// Those of them that were lost, but for probes of the MTU.
    #[serde(default)]
    pub lost_packets: u64,
    /// How often the window was made smaller for losses, or for marks of congestion.
    #[serde(default)]
    pub congestion_events: u64,
    /// What waits to be sent to the client.
    #[serde(default)]
    pub queued_bytes: u64,
    /// What it has carried: UDP payload, as metrics count it.
    #[serde(flatten)]
    pub usage: Usage,
    /// Where the client's datagrams come from; only where the log would tell it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<SocketAddr>,
}

/// What a user has carried in some time, connections that are gone included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The user's name.
    pub user: String,
    /// The first day of the month, or the day; `None` for all time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<Day>,
    /// What was carried: UDP payload, as metrics count it.
    #[serde(flatten)]
    pub usage: Usage,
    /// Connections that have begun.
    pub connections: u64,
    /// The sum over connections of the time that they lasted, in seconds.
    pub connected_s: u64,
    /// When the first of it was counted, in seconds since 1970.
    pub first_unix_s: u64,
    /// When the last of it was counted.
    pub last_unix_s: u64,
}

impl From<Row> for UsageRow {
    fn from(Row { user, begin, entry }: Row) -> Self {
        UsageRow {
            user,
            begin: (begin > Day(0)).then_some(begin),
            usage: entry.amount.usage,
            connections: entry.amount.connections,
            connected_s: entry.amount.connected_ms / 1000,
            first_unix_s: entry.first_unix_s,
            last_unix_s: entry.last_unix_s,
        }
    }
}

/// A row, by what rows are sorted by: users by name, connections by the user's name, then the address, usage by the user's name, then the day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The user's name.
    pub user: String,
    /// The connection's inner address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The first day of the usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<Day>,
}
