//! What the driver is told of the paths to clients.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use super::action::{ClientMtu, Event};
use crate::counters::Counters;
use crate::ids::UserIndex;
use crate::limit::bucket::RateLimiter;
use crate::packet::inner::MTU_BYTES_MIN_V6;
use crate::quic::connections::ClientConnection;

/// Narrowed paths that a shard tells of at once; beyond that, one a second.
const NARROWINGS_BURST: u32 = 10;

pub struct ClientMtus {
    /// One entry for each change of a connection's path; the driver takes them in every pass.
    pub changes: VecDeque<ClientMtu>,
    narrowings_told: RateLimiter,
    tunnel_mtu_bytes: u16,
}

impl ClientMtus {
    pub fn new(tunnel_mtu_bytes: u16, now: Instant) -> Self {
        let narrowings_told = RateLimiter::new(1, NARROWINGS_BURST, now);
        ClientMtus { changes: VecDeque::new(), narrowings_told, tunnel_mtu_bytes }
    }

    /// The path to a client carries `carried_bytes` now. Returns what is to be logged of it.
    pub fn set(
        &mut self,
        now: Instant,
        client: &mut ClientConnection,
        (user, address): (UserIndex, IpAddr),
        carried_bytes: usize,
        counters: &mut Counters,
    ) -> Option<Event> {
        let mtu_bytes = u16::try_from(carried_bytes).ok().filter(|&bytes| bytes < self.tunnel_mtu_bytes);
        if mtu_bytes == client.told_mtu_bytes {
            return None;
        }
        let connection = client.key;
        let before = std::mem::replace(&mut client.told_mtu_bytes, mtu_bytes).unwrap_or(self.tunnel_mtu_bytes);
        self.changes.push_back(ClientMtu { address, connection, mtu_bytes });
        let mtu_bytes = mtu_bytes.filter(|&bytes| bytes < before)?;
        let is_too_narrow = address.is_ipv6() && usize::from(mtu_bytes) < MTU_BYTES_MIN_V6;
        counters.narrowed_paths += 1;
        counters.too_narrow_paths += u64::from(is_too_narrow);
        let is_told = self.narrowings_told.allows(now);
        is_told.then_some(Event::PathNarrowed { user, connection, mtu_bytes, is_too_narrow })
    }

    /// A client gives its address up.
    pub fn forget(&mut self, client: &mut ClientConnection, address: IpAddr) {
        if client.told_mtu_bytes.take().is_some() {
            self.changes.push_back(ClientMtu { address, connection: client.key, mtu_bytes: None });
        }
    }
}
