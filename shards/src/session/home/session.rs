//! One user's session: the connections, which of them may stay, and their addresses.
//!
//! A connection that is told to go stays a *member*, closing, until its owner confirms that it is gone. Only then does its address go to somebody
//! else: so an address never has two holders.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::ids::{ConnectionKey, Reconnects, ShardIndex, UserIndex};
use crate::limit::issuer::LeaseIssuer;
use crate::limit::lease::{LeaseClose, LeaseGrant, LeaseReport};
use crate::limit::rate::Limit;
use crate::session::context::Context;
use crate::session::message::{CloseReason, ControlMessage, Login, Refusal};
use crate::session::users::{ConnectionLimit, User, Users, WhenReached};

/// A user's connections, in the order of their logins, and tokens.
#[derive(Debug)]
pub struct Session {
    user: UserIndex,
    home: ShardIndex,
    members: Vec<Member>,
    /// Addresses given back to the allocator so far.
    releases: u64,
    issuer: Option<LeaseIssuer>,
    /// When the home is to look at the session.
    pub(super) due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub login: Login,
    /// Of its owner's snapshot when it logged in. A home that is behind has yet to judge it.
    pub version: u64,
    /// Whether its owner has been told to close it, and has yet to confirm.
    pub closing: bool,
    /// When the client logged in, on this connection or the one whose place this one has.
    began: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The allocator has not been asked: the home has yet to catch up, or to get its memory back; or it was closed at once.
    Unasked,
    /// The allocator has been asked, when the session had given so many addresses back.
    Asked { releases: u64 },
    /// None was free, but some connection is closing, and may leave one.
    Waiting,
    /// It has an address.
    Holds(IpAddr),
}

impl Member {
    pub fn address(&self) -> Option<IpAddr> {
        match self.stage {
            Stage::Holds(address) => Some(address),
            _ => None,
        }
    }

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match (self.closing, self.stage) {
            (true, _) => "closing",
            (false, Stage::Unasked) => "unasked",
            (false, Stage::Asked { .. }) => "asked",
            (false, Stage::Waiting) => "waiting",
            (false, Stage::Holds(_)) => "holds",
        }
    }

    /// The address of the connection whose place it is to take.
    fn claimed(&self) -> Option<IpAddr> {
        match self.login.reconnects {
            Reconnects::Moving(address) => Some(address),
            _ => None,
        }
    }

    fn is_waiting(&self) -> bool {
        !self.closing && self.stage == Stage::Waiting
    }

    /// Whether it counts: an owner that is ahead of the home may know better.
    fn counts(&self, context: &Context) -> bool {
        !self.closing && self.version <= context.version
    }

    /// Whether `users` still have it, and let it have its address.
    fn is_valid(&self, users: &Users) -> bool {
        let Login { user, credential, .. } = self.login;
        users.find(&credential) == Some(user) && self.address().is_none_or(|address| users.allows(user, address))
    }

    /// Why it may not stay, whoever else is there.
    fn forbidden(&self, users: &Users) -> Option<CloseReason> {
        if !self.is_valid(users) {
            return Some(CloseReason::Revoked);
        }
        users.user(self.login.user).filter(|user| user.is_over_quota).map(|_| CloseReason::OverQuota)
    }

    fn close(&mut self, context: &mut Context, reason: CloseReason) {
        self.closing = true;
        let connection = self.login.connection;
        context.send(connection.owner, ControlMessage::Close { connection, reason, version: context.version });
    }

    fn hold(&self, context: &mut Context, home: ShardIndex, address: IpAddr) {
        context.send_to_allocator(ControlMessage::HoldAddress { login: self.login, address, home });
    }

    fn assign(&mut self, context: &mut Context, address: IpAddr) {
        self.stage = Stage::Holds(address);
        let connection = self.login.connection;
        let age_ms = context.now.saturating_duration_since(self.began).as_millis() as u64;
        context.send(connection.owner, ControlMessage::Admit { connection, address, age_ms });
    }
}

impl Session {
    /// A session without connections, at a home that had its memory lost at some time, if ever.
    pub(super) fn new(context: &Context, user: UserIndex, home: ShardIndex, lost_at: Option<Instant>) -> Self {
        let issuer = new_issuer(context, user, lost_at);
        Session { user, home, members: Vec::new(), releases: 0, issuer, due: None }
    }

    /// Its connections, those that are closing included, oldest first.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn issuer(&self) -> Option<&LeaseIssuer> {
        self.issuer.as_ref()
    }

    /// Takes a connection in, with the address that it has already where the home has forgotten it. Says whether it is new.
    pub(super) fn join(
        &mut self,
        context: &mut Context,
        login: Login,
        version: u64,
        address: Option<IpAddr>,
        age: Duration,
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
                let began = context.now.checked_sub(age).unwrap_or(context.now);
                let stage = resumed.unwrap_or(Stage::Unasked);
                let member = Member { login, version, closing: false, began, stage };
                self.members.push(member);
                member
            }
        };
        if let Some(address) = address {
            member.hold(context, self.home, address);
        }
        self.tell_limit(context, login.connection.owner);
        is_new
    }

    /// Judges the newest member, and asks for an address if it may stay.
    pub(super) fn admit_newest(&mut self, context: &mut Context) {
        let Some(newest) = self.members.last_mut() else { return };
        if !newest.counts(context) {
            return;
        }
        if let Some(reason) = newest.forbidden(&context.users) {
            return newest.close(context, reason);
        }
        let newest = self.members.len() - 1;
        self.take_over(context, newest);
        self.enforce(context);
        self.ask_if_early(context, newest);
    }

    /// Judges all members, after the users have changed or the home has got its memory back.
    pub(super) fn review(&mut self, context: &mut Context) {
        for member in &mut self.members {
            if let Some(reason) = member.forbidden(&context.users).filter(|_| member.counts(context)) {
                member.close(context, reason);
            }
        }
        (0..self.members.len()).for_each(|place| self.take_over(context, place));
        self.enforce(context);
        (0..self.members.len()).for_each(|place| self.ask_if_early(context, place));
    }

    /// The allocator's answer.
    pub(super) fn address_allocated(&mut self, context: &mut Context, login: Login, address: Result<IpAddr, Refusal>) {
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

    /// The connections that `is_gone` picks are gone. Their addresses go to those that wait for one, or back to the allocator. Says how many it
    /// were.
    pub(super) fn leave(&mut self, context: &mut Context, is_gone: impl Fn(ConnectionKey) -> bool) -> usize {
        let gone: Vec<_> = self.members.extract_if(.., |member| is_gone(member.login.connection)).collect();
        for member in &gone {
            if let Some(address) = member.address() {
                self.let_go(context, member.login, address);
            }
        }
        self.ask_for_waiting(context);
        gone.len()
    }

    /// The allocator has lost its memory: it is told again what is held, and asked again.
    pub(super) fn tell_allocator(&mut self, context: &mut Context) {
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

    /// Takes the limit that is in force now.
    pub(super) fn apply_limit(&mut self, context: &mut Context, lost_at: Option<Instant>) {
        let limit = limit_of(context, self.user);
        let before = self.issuer.as_ref().map(LeaseIssuer::limit);
        match (&mut self.issuer, limit) {
            (Some(issuer), Some(limit)) => issuer.set_limit(context.now, limit, &mut sender(context)),
            _ => self.issuer = new_issuer(context, self.user, lost_at),
        }
        if limit != before {
            let owners: BTreeSet<_> = self.members.iter().map(|member| member.login.connection.owner).collect();
            owners.into_iter().for_each(|owner| self.tell_limit(context, owner));
        }
    }

    /// An owner of another process may know another one. That of a user who is gone holds for what waits until the connections are closed.
    fn tell_limit(&self, context: &mut Context, owner: ShardIndex) {
        if !context.topology.own.contains(owner)
            && let Some(user) = context.users.user(self.user)
        {
            let (user, limit) = (self.user, user.limit);
            context.send(owner, ControlMessage::Limit { user, limit });
        }
    }

    /// The home has its memory back, and nobody has tokens of an earlier home any more. It has so many where that one has told. Connections without an
    /// address came after those with one.
    pub(super) fn recover(&mut self, context: &mut Context, level_bytes: Option<u64>, lost_at: Option<Instant>) {
        self.issuer = new_issuer(context, self.user, lost_at);
        if let (Some(issuer), Some(level_bytes)) = (&mut self.issuer, level_bytes) {
            *issuer = LeaseIssuer::holding(self.user, issuer.limit(), level_bytes, context.now);
        }
        self.members.sort_by_key(|member| member.address().is_none());
        self.review(context);
    }

    /// How an owner's lease stands, and what it wants.
    pub(super) fn report_lease(&mut self, context: &mut Context, report: &LeaseReport) {
        let Some(issuer) = &mut self.issuer else { return };
        let known = issuer.leases().any(|(lease, _)| lease == report.lease);
        // A lease from a issuer that is gone: its holder will begin another, and this one's tokens are not of this issuer.
        if known || report.granted_bytes == 0 {
            issuer.report(context.now, report, &mut sender(context));
        }
    }

    /// An owner's last word on a lease.
    pub(super) fn close_lease(&mut self, context: &mut Context, close: &LeaseClose) {
        if let Some(issuer) = &mut self.issuer {
            issuer.close(context.now, close, &mut sender(context));
        }
    }

    /// A shard has died with the lease it held.
    pub(super) fn holder_lost(&mut self, context: &mut Context, shard: ShardIndex) {
        if let Some(issuer) = &mut self.issuer {
            issuer.holder_lost(context.now, shard, &mut sender(context));
        }
    }

    /// Grants what has become due.
    pub(super) fn handle_timeout(&mut self, context: &mut Context) {
        if let Some(issuer) = &mut self.issuer {
            issuer.handle_timeout(context.now, &mut sender(context));
        }
    }

    /// When the home is to look at the session: for tokens somebody waits for, or where nobody is left, to forget it.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let issuer = self.issuer.as_ref()?;
        if self.members.is_empty() { issuer.full_at() } else { issuer.poll_timeout() }
    }

    /// Whether nothing is lost if the session is forgotten: nobody is in it, and a new one would have as many tokens.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let full = |issuer: &LeaseIssuer| issuer.full_at().is_some_and(|at| at <= now);
        self.members.is_empty() && self.issuer.as_ref().is_none_or(full)
    }

    /// Closes what is over the limits.
    fn enforce(&mut self, context: &mut Context) {
        let users = context.users.clone();
        let Some(user) = users.user(self.user) else { return };
        while let Some((place, reason)) = self.surplus(context, user) {
            self.members[place].close(context, reason);
        }
    }

    /// A client that moves gets the address of its other connection, when that is closed.
    fn take_over(&mut self, context: &mut Context, place: usize) {
        let member = self.members[place];
        let Some(claimed) = member.claimed().filter(|_| member.stage == Stage::Unasked && member.counts(context))
        else {
            return;
        };
        let is_former = |other: &&mut Member| {
            other.address() == Some(claimed) && other.login.credential == member.login.credential && !other.closing
        };
        if let Some(former) = self.members.iter_mut().find(is_former) {
            former.close(context, CloseReason::Moved);
            let began = former.began;
            let member = &mut self.members[place];
            (member.stage, member.began) = (Stage::Waiting, member.began.min(began));
        }
    }

    /// A member that is to go, and why. A fixed address is for one connection, the newest.
    fn surplus(&self, context: &Context, user: &User) -> Option<(usize, CloseReason)> {
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

    fn ask_if_early(&mut self, context: &mut Context, place: usize) {
        let member = &self.members[place];
        if member.stage == Stage::Unasked && member.counts(context) {
            self.ask(context, place);
        }
    }

    fn ask(&mut self, context: &mut Context, place: usize) {
        let member = &mut self.members[place];
        member.stage = Stage::Asked { releases: self.releases };
        let (login, home, version) = (member.login, self.home, context.version);
        context.send_to_allocator(ControlMessage::AllocateAddress { login, home, version });
    }

    /// An address of this session is free: it goes to a member that waits for one, or back to the allocator.
    fn let_go(&mut self, context: &mut Context, former: Login, address: IpAddr) {
        let allowed = context.users.allows(self.user, address);
        let waiting =
            |member: &Member| member.is_waiting() && member.claimed().is_none_or(|claimed| claimed == address);
        let is_claimed = |member: &Member| waiting(member) && member.claimed().is_some();
        let place = self.members.iter().position(is_claimed).or_else(|| self.members.iter().position(waiting));
        if let Some(place) = place.filter(|_| allowed) {
            let member = &mut self.members[place];
            member.hold(context, self.home, address);
            member.assign(context, address);
        } else {
            context.send_to_allocator(ControlMessage::ReleaseAddress { login: former, address });
            self.releases += 1;
        }
    }

    /// Whether somebody in this session may yet leave an address to another.
    fn may_come_free(&self) -> bool {
        self.members.iter().any(|member| member.closing)
    }

    /// When nobody is left to wait for, those who wait ask the allocator once more.
    fn ask_for_waiting(&mut self, context: &mut Context) {
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

fn limit_of(context: &Context, user: UserIndex) -> Option<Limit> {
    context.users.user(user)?.limit
}

/// The tokens of a limited user who had none here: a burst, unless the user may have spent it before the home lost its memory.
fn new_issuer(context: &Context, user: UserIndex, lost_at: Option<Instant>) -> Option<LeaseIssuer> {
    let limit = limit_of(context, user)?;
    Some(match lost_at {
        Some(at) => LeaseIssuer::empty(user, limit, at),
        None => LeaseIssuer::full(user, limit, context.now),
    })
}

fn sender(context: &mut Context) -> impl FnMut(LeaseGrant) {
    |grant| context.send(grant.lease.holder, ControlMessage::Tokens(grant))
}
