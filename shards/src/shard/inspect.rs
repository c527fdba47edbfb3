//! What a shard holds, for those who check from outside that shards agree. Nothing here is for the data path: everything is copied, and in
//! order.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Shard;
use crate::ids::{ConnectionKey, Fingerprint, UserIndex};
use crate::limit::issuer::Audit;
use crate::limit::lease::{LeaseId, LeaseReport};
use crate::quic::connections::{ClientConnection, Stage};
use crate::quic::intake::Intake;
use crate::session::addresses::Holding;
use crate::session::home::Member;

/// A look at a shard: see [`Shard::inspect`].
pub struct Inspect<'a>(pub(super) &'a Shard);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTokens {
    pub user: UserIndex,
    pub audit: Audit,
    /// What was granted on each lease in all, in bytes.
    pub leases: Vec<(LeaseId, u64)>,
}

/// Somebody who is logged in.
#[derive(Debug, Clone, Copy)]
pub struct LoggedInNow {
    pub connection: ConnectionKey,
    pub credential: Fingerprint,
    /// DATAGRAM frames that have come from there.
    pub heard: u64,
    /// When there was an inner packet last, or the login.
    pub active_at: Instant,
}

impl Inspect<'_> {
    /// The connections that the shard owns, who has logged in, and the addresses that they have.
    pub fn owned(&self) -> Vec<(ConnectionKey, Option<UserIndex>, Option<IpAddr>)> {
        let connections = self.0.data.quic.connections.iter();
        connections.map(|client| (client.key, client.identity().map(|who| who.user), client.address())).collect()
    }

    /// Sessions on the connections that the shard owns.
    pub fn logged_in(&self) -> impl Iterator<Item = LoggedInNow> {
        self.0.data.quic.connections.iter().filter_map(|client| {
            let (identity, deadlines) = (client.identity()?, client.deadlines?);
            Some(LoggedInNow {
                connection: client.key,
                credential: identity.credential,
                heard: client.tunnel.connection.stats().frame_rx.datagram,
                active_at: deadlines.active_at,
            })
        })
    }

    /// The members of the sessions that the shard is home to, by user.
    pub fn members(&self) -> Vec<Member> {
        self.0.control.sessions.sessions().flat_map(|(_, session)| session.members()).copied().collect()
    }

    /// The tokens of the limited users that the shard is home to.
    pub fn tokens(&self) -> Vec<UserTokens> {
        let issuers = self.0.control.sessions.sessions().filter_map(|(user, session)| Some((user, session.issuer()?)));
        issuers
            .map(|(user, issuer)| UserTokens { user, audit: issuer.audit(), leases: issuer.leases().collect() })
            .collect()
    }

    /// How the leases stand that the shard holds as an owner, by user.
    pub fn leases(&self) -> Vec<LeaseReport> {
        let users = self.0.data.users().into_iter();
        users.filter_map(|user| Some(self.0.data.limits.get(user)?.lease.totals)).collect()
    }

    /// Addresses that are out, where the shard allocates them.
    pub fn holdings(&self) -> Vec<(IpAddr, Holding)> {
        let holdings = self.0.control.addresses.iter().flat_map(|addresses| addresses.holdings());
        holdings.map(|(address, holding)| (address, *holding)).collect()
    }

    /// All routes that the shard knows, by address.
    pub fn routes(&self) -> Vec<(IpAddr, ConnectionKey)> {
        self.0.data.forward.routes.all()
    }

    /// Whether there are frames that the TUN queue has not been given.
    pub fn has_frames(&self) -> bool {
        !self.0.data.forward.coalescer.is_empty()
    }

    /// Answers outside any connection that wait to be sent.
    pub fn responses_waiting(&self) -> usize {
        self.0.data.quic.responses.len()
    }

    /// Handshakes under way, and where they come from.
    pub fn handshakes(&self) -> Vec<(ConnectionKey, SocketAddr)> {
        let under_way =
            self.0.data.quic.connections.iter().filter(|client| matches!(client.stage, Stage::Handshaking { .. }));
        under_way.map(|client| (client.key, client.tunnel.connection.remote_address())).collect()
    }

    /// Packets of `user`'s that wait for tokens, both directions together, and their bytes.
    pub fn waiting(&self, user: UserIndex) -> (usize, usize) {
        let queue = self.0.data.limits.get(user);
        queue.map_or((0, 0), |queue| (queue.shaper.waiting_packets(), queue.shaper.waiting_bytes()))
    }

    /// Users that the shard holds tokens or waiting packets of.
    pub fn user_queues(&self) -> usize {
        self.0.data.limits.len()
    }

    /// Steps taken so far to find the longest queues.
    pub fn longest_queue_steps(&self) -> u64 {
        self.0.data.accounts.memory.backlogs.steps()
    }

    /// The longest queue of one client, in bytes, without what was handed to its connection.
    pub fn longest_backlog_bytes(&self) -> usize {
        self.0.data.quic.connections.iter().map(|client| client.tunnel.backlog_bytes).max().unwrap_or(0)
    }

    /// What quinn-proto has been handed of each connection that it has not sent, in bytes.
    pub fn handed_bytes(&self) -> impl Iterator<Item = usize> {
        self.0.data.quic.connections.iter().map(ClientConnection::accounted_handed_bytes)
    }

    /// Whether home and allocator have their memory, all connections are attached, and all routes are known.
    pub fn is_settled(&self) -> bool {
        let Shard { data, control, attaching, is_taking_over, .. } = self.0;
        let knows_addresses = control.addresses.as_ref().is_none_or(|allocator| allocator.state() != "recovering");
        let is_complete = !control.sessions.is_recovering() && knows_addresses;
        is_complete && attaching.is_none() && !is_taking_over && data.forward.routes.state() == "known"
    }

    /// Whether handshakes begin.
    pub fn takes_clients(&self) -> bool {
        self.0.data.quic.intake == Intake::Open
    }

    /// Handshakes under way, as the admission counts them.
    pub fn handshakes_admitted(&self) -> usize {
        self.0.data.quic.admission.pending()
    }
}
