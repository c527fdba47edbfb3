//! What a shard holds, for those who check from outside that shards agree. Nothing here is for the data path: everything is copied, and in
//! order.
//!
//! Never changes anything.

use std::net::IpAddr;

use super::Shard;
use super::connections::Stage;
use crate::ids::{ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::limit::issuer::Audit;
use crate::limit::lease::LeaseId;

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
    /// By which certificate.
    pub certificate: Fingerprint,
    /// The inner address, once it has one.
    pub address: Option<IpAddr>,
    /// Whether it has been told to go.
    pub closing: bool,
}

/// A limited user's tokens, as the home sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTokens {
    /// Whose.
    pub user: UserIndex,
    /// Where all tokens are.
    pub audit: Audit,
    /// What was granted on each lease in all, in bytes.
    pub leases: Vec<(LeaseId, u64)>,
}

/// A lease, as its holder sees it: all that was ever granted, spent and given back, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// Whose.
    pub user: UserIndex,
    /// Which.
    pub lease: LeaseId,
    /// Granted, as far as the holder has heard.
    pub granted_bytes: u64,
    /// Spent.
    pub spent_bytes: u64,
    /// Given back.
    pub returned_bytes: u64,
}

impl Shard {
    /// The connections that this shard owns, and where they stand.
    pub fn owned(&self) -> Vec<(ConnectionKey, OwnedStage)> {
        let owned = self.connections.iter().map(|owned| {
            let stage = match owned.stage {
                Stage::Handshaking { .. } => OwnedStage::Handshaking,
                Stage::Attaching(member) => OwnedStage::Attaching(member.user),
                Stage::Attached { member, address, .. } => OwnedStage::Attached(member.user, address),
                Stage::Closed => OwnedStage::Closed,
            };
            (owned.key, stage)
        });
        owned.collect()
    }

    /// The members of the sessions that this shard is home to, by user.
    pub fn members(&self) -> Vec<SessionMember> {
        let sessions = self.home.sessions();
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

    /// Whether this shard, as a home, waits for its siblings to tell it what it has forgotten.
    pub fn is_recovering(&self) -> bool {
        self.home.is_recovering()
    }

    /// The ledgers of the limited users that this shard is home to.
    pub fn ledgers(&self) -> Vec<UserTokens> {
        let sessions = self.home.sessions();
        let ledgers = sessions.filter_map(|(user, session)| session.ledger().map(|ledger| (user, ledger)));
        ledgers
            .map(|(user, ledger)| UserTokens { user, audit: ledger.audit(), leases: ledger.leases().collect() })
            .collect()
    }

    /// The leases that this shard holds as an owner, by user.
    pub fn leases(&self) -> Vec<HeldLease> {
        let held = self.users_here().into_iter().filter_map(|user| {
            let lease = &self.allowances.get(&user)?.lease;
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

    /// Addresses that are out and the homes that they are out for, where this shard keeps them.
    pub fn holdings(&self) -> Vec<(IpAddr, ConnectionKey, ShardIndex)> {
        let holdings = self.keeper.iter().flat_map(|keeper| keeper.holdings());
        holdings.map(|(address, holding)| (address, holding.login.connection, holding.home)).collect()
    }

    /// All routes that this shard knows, by address.
    pub fn routes(&self) -> Vec<(IpAddr, ConnectionKey)> {
        self.routes.all()
    }

    /// Answers outside any connection that wait to be sent, and their bound.
    pub fn responses_waiting(&self) -> (usize, usize) {
        (self.responses.len(), crate::quic::responses::RESPONSES_MAX)
    }

    /// Packets of `user`'s that wait for tokens, both directions together.
    pub fn packets_waiting(&self, user: UserIndex) -> usize {
        self.allowances.get(&user).map_or(0, |allowance| allowance.waiting_packets())
    }

    /// Bytes of inner packets of `user`'s that wait for tokens, both directions together.
    pub fn bytes_waiting(&self, user: UserIndex) -> usize {
        self.allowances.get(&user).map_or(0, |allowance| allowance.waiting_bytes())
    }

    /// Users that this shard holds tokens or waiting packets of.
    pub fn allowances(&self) -> usize {
        self.allowances.len()
    }

    /// Handshakes under way, as the admission counts them.
    pub fn handshakes_admitted(&self) -> usize {
        self.admission.pending()
    }
}
