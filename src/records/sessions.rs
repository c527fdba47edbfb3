//! The sessions that are open. One is a client's connection from the moment that it has an address.
//!
//! Reports may be lost, and a shard that panics tells of no end. What the cores publish of all connections every second mends both: a session that is
//! no longer published has ended, and one that nobody told of has begun.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tollgate_shards::{ConnectionKey, ConnectionUsage, CredentialKind, End, Fingerprint, Peer, Usage, Users};

/// A client with an address.
#[derive(Debug, Clone)]
pub struct Session {
    pub user: String,
    pub connection: ConnectionKey,
    pub kind: CredentialKind,
    /// Not known of a session that nobody told of.
    pub credential: Option<Fingerprint>,
    /// Where its datagrams came from last.
    pub remote: SocketAddr,
    pub address: IpAddr,
    pub began: Instant,
    pub usage: Usage,
}

impl Session {
    pub fn of(user: &str, connection: ConnectionKey, address: IpAddr, peer: &Peer) -> Self {
        let Peer { remote, kind, credential, began, usage, .. } = *peer;
        let began = began.unwrap_or_else(Instant::now);
        Session { user: user.to_owned(), connection, kind, credential, remote, address, began, usage }
    }

    fn published(user: &str, client: &ConnectionUsage) -> Self {
        let ConnectionUsage { connection, kind, remote, address, usage, began, .. } = *client;
        Session { user: user.to_owned(), connection, kind, credential: None, remote, address, began, usage }
    }
}

/// What a core has published last.
#[derive(Debug, Default)]
pub struct Published {
    /// When that was; `None` before the first time.
    pub at: Option<Instant>,
    /// Each client with an address.
    pub clients: Vec<ConnectionUsage>,
}

/// How a session has ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// `None` where nobody told of it: its shard has panicked, or the report was lost.
    pub end: Option<End>,
    pub reason: String,
}

impl Ending {
    fn unknown() -> Self {
        Ending { end: None, reason: "nobody told of its end".to_owned() }
    }
}

/// What is to be kept of a session.
#[derive(Debug, Clone, Copy)]
pub enum Change<'s> {
    Began,
    /// It lasts.
    Lasts,
    Ended(&'s Ending),
}

/// All that are open: as many as there may be connections.
#[derive(Debug)]
pub struct Sessions {
    interim_interval: Duration,
    open: BTreeMap<ConnectionKey, Open>,
    /// Those that were published and that nobody has told of, and when: they may have ended meanwhile.
    untold: BTreeMap<ConnectionKey, Instant>,
}

#[derive(Debug)]
struct Open {
    session: Session,
    /// When the report of its begin came.
    told_at: Instant,
    interim_at: Instant,
}

impl Sessions {
    /// None yet.
    pub fn new(interim_interval: Duration) -> Self {
        Sessions { interim_interval, open: BTreeMap::new(), untold: BTreeMap::new() }
    }

    pub fn begin(&mut self, session: Session, now: Instant, tell: &mut impl FnMut(&Session, Change<'_>)) {
        self.untold.remove(&session.connection);
        tell(&session, Change::Began);
        let interim_at = now + self.interim_interval;
        self.open.insert(session.connection, Open { session, told_at: now, interim_at });
    }

    pub fn end(&mut self, session: &Session, ending: &Ending, tell: &mut impl FnMut(&Session, Change<'_>)) {
        self.untold.remove(&session.connection);
        if self.open.remove(&session.connection).is_none() {
            tell(session, Change::Began);
        }
        tell(session, Change::Ended(ending));
    }

    /// Takes what the cores have published.
    pub fn carried(
        &mut self,
        cores: &[Published],
        users: &Users,
        now: Instant,
        tell: &mut impl FnMut(&Session, Change<'_>),
    ) {
        let mut untold = BTreeMap::new();
        let published: Vec<Option<Instant>> = cores.iter().map(|core| core.at).collect();
        let mut seen = Vec::new();
        for (core, at) in cores.iter().filter_map(|core| Some((core, core.at?))) {
            for client in &core.clients {
                let key = client.connection;
                seen.push(key);
                if let Some(open) = self.open.get_mut(&key) {
                    (open.session.usage, open.session.remote) = (client.usage, client.remote);
                    if open.interim_at <= now {
                        open.interim_at = now + self.interim_interval;
                        tell(&open.session, Change::Lasts);
                    }
                } else if self.untold.get(&key).is_some_and(|before| *before < at) {
                    // It was there before, and still is: no report of its end is on the way.
                    self.begin(Session::published(users.name(client.user), client), at, tell);
                } else {
                    untold.insert(key, at);
                }
            }
        }
        self.untold = untold;
        seen.sort_unstable();
        let is_gone = |open: &Open| {
            let owner = open.session.connection.owner.place();
            let is_newer = published.get(owner).copied().flatten().is_some_and(|at| open.told_at < at);
            is_newer && seen.binary_search(&open.session.connection).is_err()
        };
        let gone: Vec<ConnectionKey> =
            self.open.values().filter(|open| is_gone(open)).map(|open| open.session.connection).collect();
        self.end_all(gone, &Ending::unknown(), tell);
    }

    /// Nobody tells of any any more.
    pub fn finish(&mut self, tell: &mut impl FnMut(&Session, Change<'_>)) {
        let all = self.open.keys().copied().collect();
        self.end_all(all, &Ending::unknown(), tell);
    }

    fn end_all(&mut self, keys: Vec<ConnectionKey>, ending: &Ending, tell: &mut impl FnMut(&Session, Change<'_>)) {
        for open in keys.iter().filter_map(|key| self.open.remove(key)) {
            tell(&open.session, Change::Ended(ending));
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{PathState, ShardIndex, User, UserIndex};

    use super::*;

    const INTERIM: Duration = Duration::from_secs(60);

    /// A core whose sessions are told of, at a time in seconds since its begin.
    struct Core {
        sessions: Sessions,
        began: Instant,
        users: Users,
        told: Vec<(u64, &'static str, u64)>,
    }

    fn client(generation: u64, bytes: u64, began: Instant) -> ConnectionUsage {
        ConnectionUsage {
            connection: ConnectionKey { owner: ShardIndex(0), slot: 0, generation },
            user: UserIndex(0),
            kind: CredentialKind::Certificate,
            remote: ([198, 18, 0, 1], 4433).into(),
            address: [198, 19, 0, 2].into(),
            usage: Usage { sent_bytes: bytes, ..Usage::default() },
            path: PathState::default(),
            queued_bytes: 0,
            began,
            heard_at: began,
        }
    }

    impl Core {
        fn new() -> Self {
            let users = Users::new(vec![User { name: "alice".to_owned(), ..User::default() }]).unwrap();
            Core { sessions: Sessions::new(INTERIM), began: Instant::now(), users, told: Vec::new() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.began + Duration::from_secs(seconds)
        }

        fn session(&self, generation: u64, bytes: u64) -> Session {
            Session::published("alice", &client(generation, bytes, self.began))
        }

        fn begins(&mut self, at: u64, generation: u64) {
            let (session, now, told) = (self.session(generation, 0), self.at(at), &mut self.told);
            self.sessions.begin(session, now, &mut |session, change| told.push(entry(session, change)));
        }

        fn ends(&mut self, generation: u64, bytes: u64) {
            let (session, told) = (self.session(generation, bytes), &mut self.told);
            let ending = Ending { end: Some(End::TimedOut), reason: String::new() };
            self.sessions.end(&session, &ending, &mut |session, change| told.push(entry(session, change)));
        }

        /// Published `at`, and seen then or a second later.
        fn publishes(&mut self, at: u64, clients: &[(u64, u64)]) {
            let clients = clients.iter().map(|&(generation, bytes)| client(generation, bytes, self.began)).collect();
            let (published, now) = (Published { at: Some(self.at(at)), clients }, self.at(at));
            let told = &mut self.told;
            let tell = &mut |session: &Session, change: Change<'_>| told.push(entry(session, change));
            self.sessions.carried(&[published], &self.users, now, tell);
        }

        fn take(&mut self) -> Vec<(u64, &'static str, u64)> {
            std::mem::take(&mut self.told)
        }
    }

    fn entry(session: &Session, change: Change<'_>) -> (u64, &'static str, u64) {
        let what = match change {
            Change::Began => "began",
            Change::Lasts => "lasts",
            Change::Ended(Ending { end: Some(_), .. }) => "ended",
            Change::Ended(Ending { end: None, .. }) => "is gone",
        };
        (session.connection.generation, what, session.usage.sent_bytes)
    }

    #[test]
    fn a_session_is_told_of_when_it_begins_and_ends_and_each_interval_between() {
        let mut core = Core::new();
        core.begins(0, 1);
        (1..=150).for_each(|at| core.publishes(at, &[(1, at)]));
        core.ends(1, 200);
        core.publishes(151, &[]);
        assert_eq!(core.take(), [(1, "began", 0), (1, "lasts", 60), (1, "lasts", 120), (1, "ended", 200)]);
    }

    #[test]
    fn one_of_whose_end_nobody_told_ends_with_what_was_published_last() {
        let mut core = Core::new();
        core.begins(0, 1);
        // Published before the report of the second one's begin came.
        core.publishes(1, &[(1, 10)]);
        core.begins(1, 2);
        core.publishes(1, &[(1, 10)]);
        core.publishes(2, &[(1, 11), (2, 5)]);
        // The shard has panicked, and another one is there.
        core.publishes(3, &[]);
        assert_eq!(core.take(), [(1, "began", 0), (2, "began", 0), (1, "is gone", 11), (2, "is gone", 5)]);
    }

    #[test]
    fn one_of_whose_begin_nobody_told_begins_late_and_ends_once() {
        let mut core = Core::new();
        core.publishes(1, &[(1, 10)]);
        core.publishes(1, &[(1, 10)]);
        assert_eq!(core.take(), [], "it may have ended since, and that was told before");
        core.publishes(2, &[(1, 20)]);
        core.ends(1, 21);
        assert_eq!(core.take(), [(1, "began", 20), (1, "ended", 21)]);
        core.ends(2, 5);
        assert_eq!(core.take(), [(2, "began", 5), (2, "ended", 5)]);
    }

    #[test]
    fn what_was_published_before_its_end_is_not_taken_for_another_one() {
        let mut core = Core::new();
        core.begins(0, 1);
        core.ends(1, 7);
        core.publishes(1, &[(1, 6)]);
        core.publishes(2, &[]);
        assert_eq!(core.take(), [(1, "began", 0), (1, "ended", 7)]);
    }

    #[test]
    fn all_that_are_open_end_with_the_process() {
        let mut core = Core::new();
        core.begins(0, 1);
        let told = &mut core.told;
        core.sessions.finish(&mut |session, change| told.push(entry(session, change)));
        assert_eq!(core.take(), [(1, "began", 0), (1, "is gone", 0)]);
    }
}
