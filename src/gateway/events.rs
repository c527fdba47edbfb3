//! The log's lines of what the shards tell.

use tollgate_shards::{CredentialKind, Event, ShardIndex, Snapshot};
use tracing::{debug, info, warn};

use crate::log::{self, Kind};

/// Logs what `shard` tells; `snapshot` knows the users.
pub fn log(shard: ShardIndex, event: Event, snapshot: &Snapshot) {
    let name = |user| snapshot.users.name(user);
    if kind(&event).is_some_and(|kind| !log::admits(kind)) {
        return;
    }
    match event {
        Event::Attached { user, connection, address } => {
            info!(user = name(user), shard = connection.owner.place(), "client connected");
            debug!(user = name(user), %address, "address leased");
        }
        Event::Detached { user, connection, reason, .. } => {
            // The peer's words in it are escaped already.
            let reason = format_args!("\"{reason}\"");
            info!(user = name(user), shard = connection.owner.place(), %reason, "client disconnected");
        }
        Event::UnknownCredential { kind: CredentialKind::Certificate, fingerprint } => {
            warn!(certificate = %fingerprint, "client refused: no user has this certificate");
        }
        Event::UnknownCredential { kind: CredentialKind::NoiseKey(kind), fingerprint } => {
            warn!(key = %fingerprint, %kind, "client refused: no user has this Noise key");
        }
        Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow: false } => {
            info!(user = name(user), shard = connection.owner.place(), mtu_bytes, "client's path has a smaller MTU");
        }
        Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow: true } => {
            let reason = "its path carries less than the 1280 bytes that IPv6 needs: give it a path with a larger MTU";
            warn!(user = name(user), shard = connection.owner.place(), mtu_bytes, reason, "client loses large packets");
        }
        Event::PoolExhausted { user } => {
            let reason = "no address is free: widen tunnel_network or the user's address_pool";
            warn!(user = name(user), reason, "client refused");
        }
        Event::PoolReserved { user } => {
            let reason = "the last tenth of the addresses is kept for users who have none: widen tunnel_network";
            warn!(user = name(user), reason, "client refused");
        }
        Event::TooManyConnections { user } => {
            let reason = "the user has all the connections that max_connections allows";
            warn!(user = name(user), reason, "client refused");
        }
        Event::OverQuota { user } => {
            let reason = "the user's quota is used up: raise quota_per_day or quota_per_month, or let the day or the month (UTC) end";
            warn!(user = name(user), reason, "client refused");
        }
        Event::CertificateEnds { user, days } => {
            let remedy = "give the user another one, and add its fingerprint to authorized_certs";
            warn!(user = name(user), days, remedy, "client's certificate ends soon, and its sessions with it");
        }
        Event::HandshakeFailed { reason } => debug!("handshake failed: {reason}"),
        Event::Forgotten { events } => {
            warn!("{events} events of shard {} are not told of: they were too many at once", shard.place());
        }
    }
}

/// The kind of this event's lines, each of which has a rate limit of its own.
fn kind(event: &Event) -> Option<Kind> {
    match event {
        Event::Attached { .. } => Some(Kind::Connected),
        Event::Detached { .. } => Some(Kind::Disconnected),
        Event::UnknownCredential { .. } => Some(Kind::UnknownCredential),
        Event::PoolExhausted { .. } | Event::PoolReserved { .. } => Some(Kind::NoAddress),
        Event::TooManyConnections { .. } => Some(Kind::TooManyConnections),
        Event::OverQuota { .. } => Some(Kind::OverQuota),
        Event::HandshakeFailed { .. } => Some(Kind::HandshakeFailed),
        Event::CertificateEnds { .. } => Some(Kind::CertificateEnds),
        // Thousands of events make one; narrowed paths are limited by the shard.
        Event::Forgotten { .. } | Event::PathNarrowed { .. } => None,
    }
}
