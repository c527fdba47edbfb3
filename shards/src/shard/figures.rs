//! What a shard has done and has, in figures, for whoever asks between two passes.

use super::Shard;
use super::data::DataPlane;
use crate::counters::Counters;
use crate::memory::{Accounts, Held};
use crate::session::addresses::AddressAllocator;

impl Shard {
    pub fn counters(&self) -> Counters {
        let sessions = &self.control.sessions;
        let (connections, users) = (sessions.connections() as u64, sessions.users() as u64);
        let thinned_acks = self.data.forward.coalescer.thinned_acks();
        let DataPlane { quic, limits, accounts: Accounts { counters, memory }, outbox, .. } = &self.data;
        Counters {
            connections,
            users,
            thinned_acks,
            forgotten_events: outbox.forgotten_events,
            handshake_ends: quic.handshake_ends,
            leases: limits.leases_begun(),
            open_leases: limits.len() as u64,
            waiting_packets: memory.waiting_packets as u64,
            queued_packets: memory.queued_packets as u64,
            ..*counters
        }
    }

    /// Inner packets that passed so far, whichever way.
    pub fn passed_packets(&self) -> u64 {
        let counters = &self.data.accounts.counters;
        counters.up_packets + counters.down_packets + counters.relayed_packets
    }

    /// Addresses held, where this shard allocates them; `None` on every other shard.
    pub fn addresses_held(&self) -> Option<u64> {
        self.control.addresses.as_ref().map(AddressAllocator::held)
    }

    /// Addresses that there are for users without their own, and how many of those are free, where this shard allocates them. As many as can be
    /// told, where an IPv6 network has more.
    pub fn address_pool(&self) -> Option<(u64, u64)> {
        let (free, all) = self.control.addresses.as_ref()?.shared();
        let told = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
        Some((told(all), told(free)))
    }

    /// Connections that this shard owns, handshakes and closing ones included.
    pub fn owned_connections(&self) -> usize {
        self.data.quic.connections.len()
    }

    /// Connections on which somebody has logged in.
    pub fn clients(&self) -> usize {
        self.data.quic.connections.logged_in
    }

    /// What is held for others now.
    pub fn held(&self) -> Held {
        let DataPlane { quic, forward, accounts: Accounts { memory, .. }, .. } = &self.data;
        Held {
            limit_bytes: memory.limit_bytes as u64,
            receive_buffers_bytes: memory.receive_buffers_bytes as u64,
            packet_chunks_bytes: forward.pool.held_bytes() as u64,
            queued_bytes: memory.queued_bytes as u64,
            waiting_bytes: memory.waiting_bytes as u64,
            connections_bytes: quic.connections_bytes() as u64,
            unacknowledged_bytes: quic.unacknowledged_bytes() as u64,
        }
    }
}
