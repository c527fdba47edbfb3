//! A shard in the role of a home: the sessions of the users that hash to it.
//!
//! A session begins with a user's first connection and is retired with the last. It holds the connections, their addresses, and the token
//! bucket, from which owners are lent tokens.
//!
//! This module never sees a packet.

use std::collections::{BTreeSet, VecDeque};
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Instant;

use rustc_hash::FxHashMap;
use siphasher::sip::SipHasher13;

use crate::bucket::Bucket;
use crate::connection_id::ShardIndex;
use crate::directory::{Directory, Fingerprint, Rate, User, UserIndex};
use crate::message::{CloseReason, Login, Message, Outbox};
use crate::routes::ConnectionKey;

/// The shard that keeps the addresses.
pub const KEEPER: ShardIndex = ShardIndex(0);

/// A lease is worth this much of a user's time, in milliseconds: short enough that parked tokens starve no other shard, long enough that
/// messages are rare.
const LEASE_MS: u64 = 5;

/// Smallest lease, in bytes; the largest inner packet must fit.
const LEASE_BYTES_MIN: u64 = 64 * 1024;

/// The home of a user: the same on every shard and after every restart.
pub fn home_of(user: &User, shards: u16) -> ShardIndex {
    let mut hasher = SipHasher13::new();
    hasher.write(user.name.as_bytes());
    ShardIndex((hasher.finish() % u64::from(shards)) as u16)
}

/// Tokens that a user of `rate` is lent at once, in bytes.
pub fn lease_bytes(rate: Rate) -> u64 {
    (rate.bytes_per_s() / 1000 * LEASE_MS).max(LEASE_BYTES_MIN)
}

/// The sessions of one home.
pub struct Home {
    here: ShardIndex,
    sessions: FxHashMap<UserIndex, Session>,
    connections: usize,
    /// When a session can serve its next request, by time. One entry a session.
    due: BTreeSet<(Instant, UserIndex)>,
}

struct Session {
    /// The limit, where there is one.
    bucket: Option<(Rate, Bucket)>,
    members: Vec<Member>,
    /// Owners whose packets wait for tokens, first come first served; one entry an owner.
    requests: VecDeque<(ShardIndex, u64)>,
    due: Option<Instant>,
}

struct Member {
    connection: ConnectionKey,
    certificate: Fingerprint,
    address: Option<IpAddr>,
}

/// Where the kernel is to steer an inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steer {
    /// An inner address.
    pub address: IpAddr,
    /// The shard whose TUN queue gets its packets from now on; `None` when the address is free.
    pub owner: Option<ShardIndex>,
}

impl Home {
    /// A home without sessions.
    pub fn new(here: ShardIndex) -> Self {
        Home { here, sessions: FxHashMap::default(), connections: 0, due: BTreeSet::new() }
    }

    /// Connections of all sessions.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Users with a session.
    pub fn users(&self) -> usize {
        self.sessions.len()
    }

    /// A client has logged in as `user`: it joins the user's session, and the keeper is asked for an address.
    pub fn attach(&mut self, now: Instant, directory: &Directory, login: Login, outbox: &mut Outbox) {
        let Login { user, connection, certificate } = login;
        let session = self.sessions.entry(user).or_insert_with(|| Session {
            bucket: directory.user(user).limit.map(|rate| (rate, Bucket::for_user(rate, now))),
            members: Vec::new(),
            requests: VecDeque::new(),
            due: None,
        });
        if session.members.iter().any(|member| member.connection == connection) {
            return;
        }
        session.members.push(Member { connection, certificate, address: None });
        self.connections += 1;
        outbox.send(KEEPER, Message::AllocateAddress { login, home: self.here });
    }

    /// The keeper's answer. Where a user's one fixed address is out, the newest connection wins it at once.
    pub fn address_allocated(
        &mut self,
        directory: &Directory,
        login: Login,
        address: Option<IpAddr>,
        outbox: &mut Outbox,
        steer: &mut VecDeque<Steer>,
    ) {
        let Login { user, connection, certificate } = login;
        let session = self.sessions.get_mut(&user);
        let member = session.and_then(|session| {
            let place = session.members.iter().position(|member| member.connection == connection)?;
            Some((session, place))
        });
        let Some((session, place)) = member else {
            if let Some(address) = address {
                outbox.send(KEEPER, Message::ReleaseAddress { user, certificate, address });
            }
            return;
        };
        let address = address.or_else(|| session.supersede(directory.user(user), connection, outbox));
        match address {
            Some(address) => {
                session.members[place].address = Some(address);
                let limited = session.bucket.is_some();
                outbox.broadcast(|| Message::Route { address, connection });
                outbox.send(connection.owner, Message::Attached { connection, address, limited });
                steer.push_back(Steer { address, owner: Some(connection.owner) });
            }
            None => {
                outbox.send(connection.owner, Message::Close { connection, reason: CloseReason::PoolExhausted });
                self.detach(user, connection, outbox, steer);
            }
        }
    }

    /// A connection is gone. An unknown one changes nothing.
    pub fn detach(
        &mut self,
        user: UserIndex,
        connection: ConnectionKey,
        outbox: &mut Outbox,
        steer: &mut VecDeque<Steer>,
    ) {
        let Some(session) = self.sessions.get_mut(&user) else { return };
        let Some(place) = session.members.iter().position(|member| member.connection == connection) else { return };
        let member = session.members.remove(place);
        self.connections -= 1;
        if let Some(address) = member.address {
            outbox.broadcast(|| Message::Unroute { address, connection });
            steer.push_back(Steer { address, owner: None });
            outbox.send(KEEPER, Message::ReleaseAddress { user, certificate: member.certificate, address });
        }
        if session.members.is_empty() {
            if let Some(due) = session.due {
                self.due.remove(&(due, user));
            }
            self.sessions.remove(&user);
        }
    }

    /// Packets of `user` wait for tokens at `owner`.
    pub fn request_lease(
        &mut self,
        now: Instant,
        user: UserIndex,
        owner: ShardIndex,
        wanted_bytes: u64,
        outbox: &mut Outbox,
    ) {
        let Some(session) = self.sessions.get_mut(&user) else { return };
        match session.requests.iter_mut().find(|(requester, _)| *requester == owner) {
            Some((_, wanted)) => *wanted = wanted_bytes,
            None => session.requests.push_back((owner, wanted_bytes)),
        }
        self.grant(now, user, outbox);
    }

    /// Serves the requests whose tokens have come.
    pub fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox) {
        while let Some(&(at, user)) = self.due.first()
            && at <= now
        {
            self.grant(now, user, outbox);
        }
    }

    /// When tokens come that somebody waits for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }

    fn grant(&mut self, now: Instant, user: UserIndex, outbox: &mut Outbox) {
        let Some(session) = self.sessions.get_mut(&user) else { return };
        if let Some(due) = session.due.take() {
            self.due.remove(&(due, user));
        }
        let Some((rate, bucket)) = &mut session.bucket else { return };
        let lease = lease_bytes(*rate);
        while let Some(&(owner, wanted)) = session.requests.front() {
            let wanted = wanted.clamp(1, lease);
            // A slow user's first packet goes as soon as its own tokens are there, a fast user's wait for a worthwhile grant.
            let least = wanted.min((rate.bytes_per_s() / 1000).max(1500));
            match bucket.take(now, wanted, least) {
                Ok(bytes) => {
                    outbox.send(owner, Message::GrantLease { user, bytes });
                    session.requests.pop_front();
                }
                Err(ready) => {
                    session.due = Some(ready);
                    self.due.insert((ready, user));
                    return;
                }
            }
        }
    }
}

impl Session {
    /// Takes the user's one fixed address from the connection that has it.
    fn supersede(&mut self, user: &User, newer: ConnectionKey, outbox: &mut Outbox) -> Option<IpAddr> {
        let fixed = matches!(user.pool.as_slice(), [range] if range.first() == range.last());
        let holder =
            self.members.iter_mut().find(|member| fixed && member.connection != newer && member.address.is_some())?;
        outbox.send(
            holder.connection.owner,
            Message::Close { connection: holder.connection, reason: CloseReason::Superseded },
        );
        holder.address.take()
    }
}
