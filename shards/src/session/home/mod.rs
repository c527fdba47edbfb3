//! A shard in the role of a home: the sessions of the users that hash to it.
//!
//! A session begins with a user's first connection. It holds the connections, their addresses, and the tokens, which owners are lent. It ends with
//! the last connection, or when a limited user's bucket is full again after that: to reconnect must not refill it.
//!
//! A home that was started anew beside its siblings *recovers*: it takes in what they tell it, but judges no connection, asks for no address and
//! grants no token that an earlier one may have granted, until every other shard has said all.

mod session;
mod succession;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;

use crate::ids::{ConnectionKey, ShardIndex, Shards, UserIndex};
use crate::limit::lease::{LeaseClose, LeaseReport};
use crate::session::context::Context;
use crate::session::message::{ControlMessage, Login, Refusal};
use crate::session::topology::Topology;

#[cfg(feature = "inspect")]
pub use session::Member;
pub use session::Session;
use succession::Told;

/// Which of `homes` is the home of a user: the same on every shard and after every restart.
pub fn home_of(name: &str, homes: Shards) -> ShardIndex {
    let mut hasher = SipHasher13::new();
    hasher.write(name.as_bytes());
    homes.at((hasher.finish() % u64::from(homes.count)) as u16)
}

/// The sessions of one home. Bounded by the connections of all owners, and one session without connections for each user.
#[derive(Debug)]
pub struct SessionHome {
    here: ShardIndex,
    incarnation: u32,
    /// As last heard.
    allocator_incarnation: u32,
    sessions: BTreeMap<UserIndex, Session>,
    connections: usize,
    users: usize,
    /// When sessions want to be looked at, by time. One entry a session.
    due: BTreeSet<(Instant, UserIndex)>,
    /// Owners that have yet to say which connections they have, where the home has lost its memory.
    awaited: BTreeSet<ShardIndex>,
    /// When that was; once it has it back, since when it mints tokens.
    lost_at: Option<Instant>,
    /// Where it takes over other homes, what it has been told, until it has its memory.
    told: Option<Told>,
}

impl SessionHome {
    /// The home at shard `here`, without sessions. After the first `incarnation`, 0, it has lost its memory.
    pub fn new(here: ShardIndex, topology: Topology, incarnation: u32, now: Instant) -> Self {
        let lost = incarnation > 0;
        let others = topology.all().filter(|&shard| lost && shard != here);
        SessionHome {
            allocator_incarnation: if here == topology.allocator() { incarnation } else { 0 },
            awaited: others.collect(),
            lost_at: lost.then_some(now),
            ..SessionHome::empty(here, incarnation)
        }
    }

    /// One whose allocator is of the same incarnation, and which awaits nothing.
    fn empty(here: ShardIndex, incarnation: u32) -> Self {
        SessionHome {
            here,
            incarnation,
            allocator_incarnation: incarnation,
            sessions: BTreeMap::new(),
            connections: 0,
            users: 0,
            due: BTreeSet::new(),
            awaited: BTreeSet::new(),
            lost_at: None,
            told: None,
        }
    }

    pub fn connections(&self) -> usize {
        self.connections
    }

    pub fn users(&self) -> usize {
        self.users
    }

    /// Whether it has lost its memory, and not every shard has reported yet.
    pub fn is_recovering(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Those without connections included, in the order of users.
    pub fn sessions(&self) -> impl Iterator<Item = (UserIndex, &Session)> {
        self.sessions.iter().map(|(&user, session)| (user, session))
    }

    /// [`ControlMessage::Login`]: a client has logged in at an owner whose snapshot is `version`, or had before and has `address` already
    /// where this home has lost its memory. One that is known changes nothing.
    pub fn attach(
        &mut self,
        context: &mut Context,
        login: Login,
        version: u64,
        address: Option<IpAddr>,
        age: Duration,
    ) {
        let user = login.user;
        let (here, lost_at, recovering) = (self.here, self.lost_at, self.is_recovering());
        let session = self.sessions.entry(user).or_insert_with(|| Session::new(context, user, here, lost_at));
        let is_first = session.members().is_empty();
        if session.join(context, login, version, address, age) {
            self.connections += 1;
            self.users += usize::from(is_first);
            if !recovering {
                session.admit_newest(context);
            }
        }
        self.reschedule(context.now, user);
    }

    /// [`ControlMessage::Gone`]: a connection is gone. An unknown one changes nothing.
    pub fn detach(&mut self, context: &mut Context, user: UserIndex, connection: ConnectionKey) {
        let has_it = |session: &Session| session.members().iter().any(|member| member.login.connection == connection);
        let user = if user == UserIndex::NOBODY {
            // The user may have been known when the connection came.
            self.sessions().find(|(_, session)| has_it(session)).map_or(user, |(user, _)| user)
        } else {
            user
        };
        self.leave(context, user, |gone| gone == connection);
    }

    /// [`ControlMessage::AddressAllocated`]: the allocator's answer. What nobody waits for goes back.
    pub fn address_allocated(&mut self, context: &mut Context, login: Login, address: Result<IpAddr, Refusal>) {
        // An answer to the home that was here before. The allocator takes back what is not asked for again.
        if self.is_recovering() {
            return;
        }
        match (self.sessions.get_mut(&login.user), address) {
            (Some(session), address) => session.address_allocated(context, login, address),
            (None, Ok(address)) => context.send_to_allocator(ControlMessage::ReleaseAddress { login, address }),
            (None, Err(_)) => {}
        }
        self.reschedule(context.now, login.user);
    }

    /// [`ControlMessage::LeaseWanted`]: how an owner's lease stands, and what it wants. It will ask again where the home has yet to hear that nobody
    /// has tokens of an earlier home any more.
    pub fn report_lease(&mut self, context: &mut Context, report: &LeaseReport) {
        if self.is_recovering() {
            self.report_early(report);
        } else {
            self.with_session(context, report.user, |session, context| session.report_lease(context, report));
        }
    }

    /// [`ControlMessage::LeaseClosed`]: an owner's last word on a lease.
    pub fn close_lease(&mut self, context: &mut Context, close: &LeaseClose) {
        self.with_session(context, close.user, |session, context| session.close_lease(context, close));
    }

    /// Another snapshot is in force. Other limits hold, and who may not stay is closed; owners have it confirmed as always.
    pub fn apply(&mut self, context: &mut Context) {
        let (lost_at, recovering) = (self.lost_at, self.is_recovering());
        self.each_session(context, |session, context| {
            session.apply_limit(context, lost_at);
            if !recovering {
                session.review(context);
            }
        });
    }

    /// [`ControlMessage::Restarted`]: another shard has lost its memory. Its connections and leases are gone; as the allocator, it is told what is held.
    pub fn shard_restarted(&mut self, context: &mut Context, shard: ShardIndex, incarnation: u32) {
        self.owner_lost(context, shard);
        let is_allocator = shard == context.topology.allocator();
        if is_allocator {
            self.allocator_incarnation = incarnation;
            self.each_session(context, Session::tell_allocator);
        }
        if self.is_recovering() {
            self.reported(context, shard);
        } else if is_allocator {
            self.report_held(context);
        }
    }

    /// [`ControlMessage::Reattached`]: a shard has said which connections it has.
    pub fn reattached(
        &mut self,
        context: &mut Context,
        owner: ShardIndex,
        owner_incarnation: u32,
        home_incarnation: u32,
    ) {
        if home_incarnation == self.incarnation {
            if owner == context.topology.allocator() {
                self.allocator_incarnation = owner_incarnation;
            }
            self.reported(context, owner);
        }
    }

    /// A shard is gone, and its connections and leases with it.
    fn owner_lost(&mut self, context: &mut Context, shard: ShardIndex) {
        for user in self.sessions.keys().copied().collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(&user) {
                session.holder_lost(context, shard);
            }
            self.leave(context, user, |gone| gone.owner == shard);
        }
    }

    /// A shard has reported all that it has to. When all have, the home has its memory back.
    fn reported(&mut self, context: &mut Context, shard: ShardIndex) {
        if self.awaited.remove(&shard) && self.awaited.is_empty() {
            self.recover(context);
            self.report_held(context);
        }
    }

    fn report_held(&self, context: &mut Context) {
        let (home, allocator_incarnation) = (self.here, self.allocator_incarnation);
        context.send_to_allocator(ControlMessage::Held { home, allocator_incarnation });
    }

    /// Grants the tokens that have come, and forgets the sessions that nobody needs any more.
    pub fn handle_timeout(&mut self, context: &mut Context) {
        while let Some(&(at, user)) = self.due.first()
            && at <= context.now
        {
            self.with_session(context, user, Session::handle_timeout);
        }
    }

    /// When [`SessionHome::handle_timeout`] is wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    fn leave(&mut self, context: &mut Context, user: UserIndex, is_gone: impl Fn(ConnectionKey) -> bool) {
        let Some(session) = self.sessions.get_mut(&user) else { return };
        let gone = session.leave(context, is_gone);
        self.connections -= gone;
        self.users -= usize::from(gone > 0 && session.members().is_empty());
        self.reschedule(context.now, user);
    }

    fn with_session(&mut self, context: &mut Context, user: UserIndex, act: impl FnOnce(&mut Session, &mut Context)) {
        if let Some(session) = self.sessions.get_mut(&user) {
            act(session, context);
            self.reschedule(context.now, user);
        }
    }

    fn each_session(&mut self, context: &mut Context, mut act: impl FnMut(&mut Session, &mut Context)) {
        for user in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.with_session(context, user, &mut act);
        }
    }

    /// Notes when a session wants to be looked at next, or forgets it.
    fn reschedule(&mut self, now: Instant, user: UserIndex) {
        let Some(session) = self.sessions.get_mut(&user) else { return };
        let due = session.poll_timeout();
        if due != session.due {
            if let Some(due) = session.due {
                self.due.remove(&(due, user));
            }
            self.due.extend(due.map(|at| (at, user)));
            session.due = due;
        }
        if session.is_over(now) {
            if let Some(due) = session.due {
                self.due.remove(&(due, user));
            }
            self.sessions.remove(&user);
        }
    }
}
