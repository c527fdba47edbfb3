//! What a shard holds, for those who check from outside that shards agree. Nothing here is for the data path: everything is copied, and in
//! order.

use std::net::IpAddr;

use super::Shard;
use crate::ids::{ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::limit::issuer::Audit;
use crate::limit::lease::LeaseId;
use crate::quic::connections::Stage;
use crate::quic::responses::RESPONSES_MAX;

/// A look at a shard: see [`Shard::inspect`].
pub struct Inspect<'a>(pub(super) &'a Shard);

/// Where a connection stands, as its owner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnedStage {
    /// The handshake is under way.
    Handshaking,
    /// Logged in as a user; the home has been asked.
    Attaching(UserIndex),
    /// Has an address.
    Attached(UserIndex, IpAddr),
    /// Says goodbye.
    Closed,
}

/// A member of a session, as its home sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionMember {
    /// Whose session.
    pub user: UserIndex,
    /// Which connection.
    pub connection: ConnectionKey,
    /// The certificate.
    pub certificate: Fingerprint,
    /// The inner address, once it has one.
    pub address: Option<IpAddr>,
    /// Whether it has been told to go.
    pub closing: bool,
}

/// A limited user's tokens, as the home sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTokens {
    /// The user.
    pub user: UserIndex,
    /// Where all tokens are.
    pub audit: Audit,
    /// What was granted on each lease in all, in bytes.
    pub leases: Vec<(LeaseId, u64)>,
}

/// A lease, as its holder sees it: all that was ever granted, spent and given back, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// The user.
    pub user: UserIndex,
    /// The lease.
    pub lease: LeaseId,
    /// Granted, as far as the holder has heard.
    pub granted_bytes: u64,
    /// Spent.
    pub spent_bytes: u64,
    /// Given back.
    pub returned_bytes: u64,
}

impl Inspect<'_> {
    /// The connections that the shard owns, and where they stand.
    pub fn owned(&self) -> Vec<(ConnectionKey, OwnedStage)> {
        let owned = self.0.data.quic.connections.iter().map(|client| {
            let stage = match client.stage {
                Stage::Handshaking { .. } => OwnedStage::Handshaking,
                Stage::LoggedIn(identity) => OwnedStage::Attaching(identity.user),
                Stage::Attached { identity, address, .. } => OwnedStage::Attached(identity.user, address),
                Stage::Closed => OwnedStage::Closed,
            };
            (client.key, stage)
        });
        owned.collect()
    }

    /// The members of the sessions that the shard is home to, by user.
    pub fn members(&self) -> Vec<SessionMember> {
        let sessions = self.0.control.sessions.sessions();
        let members = sessions.flat_map(|(user, session)| {
            session.members().iter().map(move |member| SessionMember {
                user,
                connection: member.login().connection,
                certificate: member.login().certificate,
                address: member.address(),
                closing: member.is_closing(),
            })
        });
        members.collect()
    }

    /// Whether the shard, as a home, waits for its siblings to tell it what it has forgotten.
    pub fn is_recovering(&self) -> bool {
        self.0.control.sessions.is_recovering()
    }

    /// The tokens of the limited users that the shard is home to.
    pub fn tokens(&self) -> Vec<UserTokens> {
        let sessions = self.0.control.sessions.sessions();
        let issuers = sessions.filter_map(|(user, session)| session.ledger().map(|issuer| (user, issuer)));
        issuers
            .map(|(user, issuer)| UserTokens { user, audit: issuer.audit(), leases: issuer.leases().collect() })
            .collect()
    }

    /// The leases that the shard holds as an owner, by user.
    pub fn leases(&self) -> Vec<HeldLease> {
        let held = self.0.data.users().into_iter().filter_map(|user| {
            let lease = &self.0.data.limits.get(user)?.lease;
            Some(HeldLease {
                user,
                lease: lease.id(),
                granted_bytes: lease.granted_bytes(),
                spent_bytes: lease.spent_bytes(),
                returned_bytes: lease.returned_bytes(),
            })
        });
        held.collect()
    }

    /// Addresses that are out and the homes that they are out for, where the shard allocates them.
    pub fn holdings(&self) -> Vec<(IpAddr, ConnectionKey, ShardIndex)> {
        let holdings = self.0.control.addresses.iter().flat_map(|addresses| addresses.holdings());
        holdings.map(|(address, holding)| (address, holding.login.connection, holding.home)).collect()
    }

    /// All routes that the shard knows, by address.
    pub fn routes(&self) -> Vec<(IpAddr, ConnectionKey)> {
        self.0.data.forward.routes.all()
    }

    /// Answers outside any connection that wait to be sent, and their bound.
    pub fn responses_waiting(&self) -> (usize, usize) {
        (self.0.data.quic.responses(), RESPONSES_MAX)
    }

    /// Packets of `user`'s that wait for tokens, both directions together.
    pub fn packets_waiting(&self, user: UserIndex) -> usize {
        self.0.data.limits.get(user).map_or(0, |queue| queue.waiting_packets())
    }

    /// Bytes of inner packets of `user`'s that wait for tokens, both directions together.
    pub fn bytes_waiting(&self, user: UserIndex) -> usize {
        self.0.data.limits.get(user).map_or(0, |queue| queue.waiting_bytes())
    }

    /// Users that the shard holds tokens or waiting packets of.
    pub fn user_queues(&self) -> usize {
        self.0.data.limits.len()
    }

    /// Steps taken so far to find the longest queues.
    pub fn longest_queue_steps(&self) -> u64 {
        self.0.data.memory.backlogs.steps()
    }

    /// Handshakes under way, as the admission counts them.
    pub fn handshakes_admitted(&self) -> usize {
        self.0.data.quic.pending_handshakes()
    }
}
