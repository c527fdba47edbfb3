//! One user's session: the connections, which of them may stay, and their addresses.
//!
//! A connection that is told to go stays a *member*, closing, until its owner confirms that it is gone. Only then does its address go to somebody
//! else: so an address never has two holders.

use std::net::IpAddr;
use std::time::Instant;

use super::ALLOCATOR;
use crate::ids::{ConnectionKey, ShardIndex, UserIndex};
use crate::limit::issuer::LeaseIssuer;
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseReport};
use crate::session::context::Context;
use crate::session::message::{CloseReason, ControlMessage, Login, Outbox, Refusal};
use crate::session::users::{ConnectionLimit, User, Users, WhenReached};

/// A user's connections, in the order of their logins, and tokens.
#[derive(Debug)]
pub struct Session {
    user: UserIndex,
    home: ShardIndex,
    members: Vec<Member>,
    /// Addresses given back to the keeper so far.
    releases: u64,
    ledger: Option<LeaseIssuer>,
    /// When the home is to look at the session.
    pub(super) due: Option<Instant>,
}

/// A connection of a session.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    login: Login,
    epoch: u64,
    stage: Stage,
    closing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The keeper has not been asked: the home has yet to catch up, or to get its memory back; or it was closed at once.
    Unasked,
    /// The keeper has been asked, when the session had given so many addresses back.
    Asked { releases: u64 },
    /// None was free, but some connection is closing, and may leave one.
    Waiting,
    /// It has an address.
    Holds(IpAddr),
}

impl Member {
    /// The client that has logged in.
    pub fn login(&self) -> Login {
        self.login
    }

    /// The inner address, once it has one.
    pub fn address(&self) -> Option<IpAddr> {
        match self.stage {
            Stage::Holds(address) => Some(address),
            _ => None,
        }
    }

    /// Whether its owner has been told to close it, and has yet to confirm.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// The epoch of its owner when it logged in. A home that is behind has yet to judge it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn is_waiting(&self) -> bool {
        !self.closing && self.stage == Stage::Waiting
    }

    /// Whether it counts: an owner that is ahead of the home may know better.
    fn counts(&self, context: &Context<'_>) -> bool {
        !self.closing && self.epoch <= context.epoch
    }

    /// Whether the directory still knows it, and lets it have its address.
    fn is_valid(&self, directory: &Users) -> bool {
        let Login { user, certificate, .. } = self.login;
        directory.find(&certificate) == Some(user)
            && self.address().is_none_or(|address| directory.allows(user, address))
    }

    fn close(&mut self, context: &mut Context<'_>, reason: CloseReason) {
        self.closing = true;
        let connection = self.login.connection;
        context.outbox.send(connection.owner, ControlMessage::Close { connection, reason, epoch: context.epoch });
    }

    fn hold(&self, context: &mut Context<'_>, home: ShardIndex, address: IpAddr) {
        context.outbox.send(ALLOCATOR, ControlMessage::HoldAddress { login: self.login, address, home });
    }

    fn assign(&mut self, context: &mut Context<'_>, address: IpAddr) {
        self.stage = Stage::Holds(address);
        let connection = self.login.connection;
        context.outbox.send(connection.owner, ControlMessage::Admit { connection, address });
    }
}

impl Session {
    /// A session without connections, at a home that had its memory lost at some time, if ever.
    pub(super) fn new(context: &Context<'_>, user: UserIndex, home: ShardIndex, lost_at: Option<Instant>) -> Self {
        let ledger = new_ledger(context, user, lost_at);
        Session { user, home, members: Vec::new(), releases: 0, ledger, due: None }
    }

    /// Its connections, those that are closing included, oldest first.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The tokens of a limited user.
    pub fn ledger(&self) -> Option<&LeaseIssuer> {
        self.ledger.as_ref()
    }

    /// Takes a connection in, with the address that it has already where the home has forgotten it. Says whether it is new.
    pub(super) fn join(
        &mut self,
        context: &mut Context<'_>,
        login: Login,
        epoch: u64,
        address: Option<IpAddr>,
    ) -> bool {
        let known = self.members.iter_mut().find(|member| member.login.connection == login.connection);
        let is_new = known.is_none();
        let resumed = address.map(Stage::Holds);
        let member = match known {
            Some(member) => {
                if member.address().is_none() {
                    member.stage = resumed.unwrap_or(member.stage);
                }
                *member
            }
            None => {
                let member = Member { login, epoch, stage: resumed.unwrap_or(Stage::Unasked), closing: false };
                self.members.push(member);
                member
            }
        };
        if let Some(address) = address {
            member.hold(context, self.home, address);
        }
        is_new
    }

    /// Judges the newest member, and asks for an address if it may stay.
    pub(super) fn admit_newest(&mut self, context: &mut Context<'_>) {
        let Some(newest) = self.members.last_mut() else { return };
        if !newest.counts(context) {
            return;
        }
        if !newest.is_valid(context.directory) {
            return newest.close(context, CloseReason::Revoked);
        }
        self.enforce(context);
        let newest = self.members.len() - 1;
        self.ask_if_early(context, newest);
    }

    /// Judges all members, after the directory has changed or the home has got its memory back.
    pub(super) fn review(&mut self, context: &mut Context<'_>) {
        for member in &mut self.members {
            if member.counts(context) && !member.is_valid(context.directory) {
                member.close(context, CloseReason::Revoked);
            }
        }
        self.enforce(context);
        (0..self.members.len()).for_each(|place| self.ask_if_early(context, place));
    }

    /// The home has its memory back: connections without an address came after those with one.
    pub(super) fn restore_order(&mut self) {
        self.members.sort_by_key(|member| member.address().is_none());
    }

    /// The keeper's answer.
    pub(super) fn address_allocated(
        &mut self,
        context: &mut Context<'_>,
        login: Login,
        address: Result<IpAddr, Refusal>,
    ) {
        let place = self.members.iter().position(|member| member.login.connection == login.connection);
        let Some(place) = place else {
            if let Ok(address) = address {
                self.let_go(context, login, address);
            }
            return;
        };
        let may_come_free = self.may_come_free();
        let member = &mut self.members[place];
        if let Stage::Holds(has) = member.stage {
            // The second answer to a question that was put twice.
            if let Some(address) = address.ok().filter(|&address| address != has) {
                self.let_go(context, login, address);
            }
            return;
        }
        match (member.stage, address) {
            (_, Ok(address)) if member.closing => self.let_go(context, login, address),
            (_, Ok(address)) => member.assign(context, address),
            (_, Err(_)) if member.closing => {}
            (Stage::Asked { releases }, Err(_)) if releases < self.releases => self.ask(context, place),
            (Stage::Asked { .. }, Err(_)) if may_come_free => member.stage = Stage::Waiting,
            (Stage::Asked { .. }, Err(Refusal::Exhausted)) => member.close(context, CloseReason::PoolExhausted),
            (Stage::Asked { .. }, Err(Refusal::Reserved)) => member.close(context, CloseReason::PoolReserved),
            (_, Err(_)) => {}
        }
    }

    /// The connections that `is_gone` picks are gone. Their addresses go to those that wait for one, or back to the keeper. Says how many it
    /// were.
    pub(super) fn leave(&mut self, context: &mut Context<'_>, is_gone: impl Fn(ConnectionKey) -> bool) -> usize {
        let gone: Vec<_> = self.members.extract_if(.., |member| is_gone(member.login.connection)).collect();
        for member in &gone {
            if let Some(address) = member.address() {
                self.let_go(context, member.login, address);
            }
        }
        self.ask_for_waiting(context);
        gone.len()
    }

    /// The keeper has lost its memory: it is told again what is held, and asked again.
    pub(super) fn tell_keeper(&mut self, context: &mut Context<'_>) {
        for member in &self.members {
            if let Some(address) = member.address() {
                member.hold(context, self.home, address);
            }
        }
        for place in 0..self.members.len() {
            let member = &self.members[place];
            if !member.closing && matches!(member.stage, Stage::Asked { .. }) {
                self.ask(context, place);
            }
        }
    }

    /// Takes the limit of the context's epoch.
    pub(super) fn apply_limit(&mut self, context: &mut Context<'_>, lost_at: Option<Instant>) {
        let limit = context.directory.user(self.user).and_then(|user| user.limit);
        match (&mut self.ledger, limit) {
            (Some(ledger), Some(limit)) => ledger.set_limit(context.now, limit, &mut sender(context.outbox)),
            _ => self.ledger = new_ledger(context, self.user, lost_at),
        }
    }

    /// The home has its memory back, and nobody has tokens of an earlier home any more.
    pub(super) fn mint_from_now(&mut self, context: &Context<'_>) {
        self.ledger = new_ledger(context, self.user, Some(context.now));
    }

    /// How an owner's lease stands, and what it wants.
    pub(super) fn report_lease(&mut self, context: &mut Context<'_>, report: &LeaseReport) {
        let Some(ledger) = &mut self.ledger else { return };
        let known = ledger.leases().any(|(lease, _)| lease == report.lease);
        // A lease from a ledger that is gone: its holder will begin another, and this one's tokens are not of this ledger.
        if known || report.granted_bytes == 0 {
            ledger.report(context.now, report, &mut sender(context.outbox));
        }
    }

    /// An owner's last word on a lease.
    pub(super) fn close_lease(&mut self, context: &mut Context<'_>, close: &LeaseClose) {
        if let Some(ledger) = &mut self.ledger {
            ledger.close(context.now, close, &mut sender(context.outbox));
        }
    }

    /// A shard has died with the lease it held.
    pub(super) fn holder_lost(&mut self, context: &mut Context<'_>, shard: ShardIndex) {
        if let Some(ledger) = &mut self.ledger {
            ledger.holder_lost(context.now, shard, &mut sender(context.outbox));
        }
    }

    /// Grants what has become due.
    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) {
        if let Some(ledger) = &mut self.ledger {
            ledger.handle_timeout(context.now, &mut sender(context.outbox));
        }
    }

    /// When the home is to look at the session: for tokens somebody waits for, or where nobody is left, to forget it.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let ledger = self.ledger.as_ref()?;
        if self.members.is_empty() { ledger.full_at() } else { ledger.poll_timeout() }
    }

    /// Whether nothing is lost if the session is forgotten: nobody is in it, and a new one would have as many tokens.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let full = |ledger: &LeaseIssuer| ledger.full_at().is_some_and(|at| at <= now);
        self.members.is_empty() && self.ledger.as_ref().is_none_or(full)
    }

    /// Closes what is over the limits.
    fn enforce(&mut self, context: &mut Context<'_>) {
        let Some(user) = context.directory.user(self.user) else { return };
        while let Some((place, reason)) = self.surplus(context, user) {
            self.members[place].close(context, reason);
        }
    }

    /// A member that is to go, and why. A fixed address is for one connection, the newest.
    fn surplus(&self, context: &Context<'_>, user: &User) -> Option<(usize, CloseReason)> {
        let fixed = matches!(user.pool.as_slice(), [range] if range.first() == range.last());
        if user.connection_limit.is_none() && !fixed {
            return None;
        }
        let mut live = (0..self.members.len()).filter(|&place| self.members[place].counts(context));
        let count = live.clone().count();
        match user.connection_limit {
            Some(ConnectionLimit { connections_max, when_reached }) if count > connections_max.get() as usize => {
                match when_reached {
                    WhenReached::RefuseNew => live.next_back().map(|place| (place, CloseReason::TooManyConnections)),
                    WhenReached::CloseOldest => live.next().map(|place| (place, CloseReason::Superseded)),
                }
            }
            _ if fixed && count > 1 => live.next().map(|place| (place, CloseReason::Superseded)),
            _ => None,
        }
    }

    fn ask_if_early(&mut self, context: &mut Context<'_>, place: usize) {
        let member = &self.members[place];
        if member.stage == Stage::Unasked && member.counts(context) {
            self.ask(context, place);
        }
    }

    fn ask(&mut self, context: &mut Context<'_>, place: usize) {
        let member = &mut self.members[place];
        member.stage = Stage::Asked { releases: self.releases };
        let (login, home, epoch) = (member.login, self.home, context.epoch);
        context.outbox.send(ALLOCATOR, ControlMessage::AllocateAddress { login, home, epoch });
    }

    /// An address of this session is free: it goes to a member that waits for one, or back to the keeper.
    fn let_go(&mut self, context: &mut Context<'_>, former: Login, address: IpAddr) {
        let allowed = context.directory.allows(self.user, address);
        let waiting = self.members.iter_mut().find(|member| member.is_waiting());
        if let Some(member) = waiting.filter(|_| allowed) {
            member.hold(context, self.home, address);
            member.assign(context, address);
        } else {
            context.outbox.send(ALLOCATOR, ControlMessage::ReleaseAddress { login: former, address });
            self.releases += 1;
        }
    }

    /// Whether somebody in this session may yet leave an address to another.
    fn may_come_free(&self) -> bool {
        self.members.iter().any(|member| member.closing)
    }

    /// When nobody is left to wait for, those who wait ask the keeper once more.
    fn ask_for_waiting(&mut self, context: &mut Context<'_>) {
        if self.may_come_free() {
            return;
        }
        for place in 0..self.members.len() {
            if self.members[place].is_waiting() {
                self.ask(context, place);
            }
        }
    }
}

/// The tokens of a limited user who had none here: a burst, unless the user may have spent it before the home lost its memory.
fn new_ledger(context: &Context<'_>, user: UserIndex, lost_at: Option<Instant>) -> Option<LeaseIssuer> {
    let limit = context.directory.user(user)?.limit?;
    Some(match lost_at {
        Some(at) => LeaseIssuer::empty(user, limit, at),
        None => LeaseIssuer::full(user, limit, context.now),
    })
}

fn sender(outbox: &mut Outbox) -> impl FnMut(LeaseGrant) {
    |grant| outbox.send(grant.lease.holder, ControlMessage::Tokens(grant))
}
