//! Changes while the gateway runs: another configuration for all shards at once, and connections closed by order.
//!
//! Whatever can fail is done before a shard hears of a change: a configuration that is refused has changed nothing. A change is
//! completed when every shard has carried it out and nothing that it forbids is under way any more.
//!
//! This module reads no configuration file.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_config::{ServerConfig, UserChanges, needs_restart};
use tollgate_shards::{CommandId, Handshakes, Limit, Snapshot, UserIndex, Users};

use super::Gateway;
use super::commands::CHANGE_TIMEOUT;
use super::core::CoreCommand;
use super::limits::{LimitOrder, Limited, ORDERED_MAX, OrderedLimits};
use super::quotas::Barred;
use super::status::Status;
use super::successor::{NotUpgraded, Upgraded};
use crate::handshakes::{Mode, Served};
use crate::upgrade::{Words, words};

/// What to do where a reload does not help.
const UPGRADE: &str = "run `tollgate upgrade`, or restart the gateway";

/// Another configuration is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// The number of its snapshot.
    pub epoch: u64,
    /// Shards on which it is.
    pub shards: usize,
    /// Differences from before, for people.
    pub changes: Vec<String>,
    /// Connections that were closed because their users are gone or may not have them any more.
    pub closed_connections: u64,
    /// Time from the command to the last shard's answer.
    pub took: Duration,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reloaded { epoch, shards, changes, closed_connections, took } = self;
        let changes = if changes.is_empty() { "nothing has changed".to_owned() } else { changes.join("; ") };
        let (shards, closed) = (counted(*shards as u64, "shard"), counted(*closed_connections, "connection"));
        write!(f, "{changes}; {closed} closed; epoch {epoch} is in force on {shards} after {took:.1?}")
    }
}

/// Every reason against another configuration, in a line each. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

/// The shards have another configuration, but not all have said that they carried it out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("epoch {epoch} was ordered, but {unanswered}")]
pub struct ReloadUnanswered {
    /// The number of the snapshot.
    epoch: u64,
    unanswered: Unanswered,
}

/// Somebody has not carried an order out in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Shards of these indices.
    #[error("shard {} did not say within {CHANGE_TIMEOUT:?} that the order is carried out", list(.0))]
    Shards(BTreeSet<u16>),
    /// The process that was there before an upgrade, and still has clients.
    #[error("process {process}, which this one has taken over from, has not carried the order out: {reason}")]
    Predecessor {
        /// The ID of that process.
        process: u32,
        /// Why not, as far as is known.
        reason: String,
    },
}

/// A user's connections were closed. They may log in again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kicked {
    /// The user's name.
    pub user: String,
    /// The number of connections.
    pub closed_connections: u64,
    /// Time from the command to the last shard's answer.
    pub took: Duration,
}

impl fmt::Display for Kicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = counted(self.closed_connections, "connection");
        write!(f, "{closed} of user '{}' closed after {:.1?}", self.user, self.took)
    }
}

/// No user has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no user is named {name:?}{}", .near.as_ref().map(|near| format!(": did you mean {near:?}?")).unwrap_or_default())]
pub struct UnknownUser {
    /// The name that was asked for.
    pub name: String,
    /// A user's name that is like it.
    pub near: Option<String>,
}

/// Why a user's limit stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLimited {
    /// There is no such user.
    #[error(transparent)]
    UnknownUser(#[from] UnknownUser),
    /// There are too many.
    #[error(
        "{ORDERED_MAX} users have limits by order already: write limits into the users file, then `tollgate reload` and \
         `tollgate limit USER --file`"
    )]
    TooMany,
}

/// A change that the cores are carrying out.
pub enum Change {
    /// Another configuration.
    Reload {
        /// The number of its snapshot.
        epoch: u64,
        /// Shards that go over to it.
        shards: usize,
        /// Differences from before, for people.
        changes: Vec<String>,
    },
    /// A user's limit is another one.
    Limit {
        /// The user's name.
        user: String,
        /// What is to hold.
        limit: Option<Limit>,
        /// Whether it is as the files say.
        is_of_file: bool,
        /// The number of the snapshot.
        epoch: u64,
    },
    /// Other users are over their quotas.
    Bar {
        /// How many.
        users: usize,
    },
    /// Connections are closed.
    Kick {
        /// The user's name.
        user: String,
    },
    /// An order of the process that has taken over.
    ForSuccessor {
        /// The order.
        order: CommandId,
    },
}

/// What has come to an end.
pub enum Completed {
    /// The status of all cores that have answered.
    Status(Status),
    /// Another configuration.
    Reload(Result<Reloaded, ReloadUnanswered>),
    /// Closed connections.
    Kick(Result<Kicked, Unanswered>),
    /// Another limit of a user.
    Limit(Result<Limited, Unanswered>),
    /// Other users over their quotas.
    Bar(Result<Barred, Unanswered>),
    /// An order of the process that has taken over, with the connections that were closed for it.
    ForSuccessor {
        /// The order.
        order: CommandId,
        /// What it has come to.
        result: Result<u64, Unanswered>,
    },
    /// An upgrade.
    Upgrade(Result<Upgraded, NotUpgraded>),
    /// The process that had taken over is dead: this one serves again.
    SuccessorLost,
    /// The process that has taken over stops, and this one is to.
    Stop,
}

impl Completed {
    /// With so many connections more that were closed.
    pub fn with_closed(mut self, more: u64) -> Self {
        match &mut self {
            Completed::Reload(Ok(Reloaded { closed_connections, .. }))
            | Completed::Bar(Ok(Barred { closed_connections, .. }))
            | Completed::Kick(Ok(Kicked { closed_connections, .. })) => *closed_connections += more,
            _ => {}
        }
        self
    }

    /// Not known to be done after all.
    pub fn unanswered(self, unanswered: Unanswered) -> Self {
        match self {
            Completed::Reload(Ok(Reloaded { epoch, .. })) => {
                Completed::Reload(Err(ReloadUnanswered { epoch, unanswered }))
            }
            Completed::Kick(Ok(_)) => Completed::Kick(Err(unanswered)),
            Completed::Limit(Ok(_)) => Completed::Limit(Err(unanswered)),
            Completed::Bar(Ok(_)) => Completed::Bar(Err(unanswered)),
            completed => completed,
        }
    }
}

impl Change {
    /// The change as `result` has it: connections that were closed, and the time that it took.
    pub fn complete(self, result: Result<(u64, Duration), Unanswered>) -> Completed {
        match self {
            Change::Reload { epoch, shards, changes } => Completed::Reload(match result {
                Ok((closed_connections, took)) => Ok(Reloaded { epoch, shards, changes, closed_connections, took }),
                Err(unanswered) => Err(ReloadUnanswered { epoch, unanswered }),
            }),
            Change::ForSuccessor { order } => {
                Completed::ForSuccessor { order, result: result.map(|(closed_connections, _)| closed_connections) }
            }
            Change::Limit { user, limit, is_of_file, epoch } => {
                Completed::Limit(result.map(|(_, took)| Limited { user, limit, is_of_file, epoch, took }))
            }
            Change::Bar { users } => {
                Completed::Bar(result.map(|(closed_connections, took)| Barred { users, closed_connections, took }))
            }
            Change::Kick { user } => {
                Completed::Kick(result.map(|(closed_connections, took)| Kicked { user, closed_connections, took }))
            }
        }
    }
}

impl Gateway {
    /// Puts `next` in force on every shard, as one snapshot; [`Gateway::poll_completed`] tells when that is done. Unless forced to, it does
    /// not where fewer than half of the users in force, told by their names, would remain: that is what a file looks like that was emptied,
    /// cut off or mistaken for another one. `over_quota` are those who are over the quotas of `next`.
    ///
    /// # Errors
    ///
    /// If it cannot be put in force while the gateway runs, or not at all: then nothing has changed.
    pub fn begin_reload(
        &mut self,
        mut next: ServerConfig,
        over_quota: BTreeSet<String>,
        force: bool,
        now: Instant,
    ) -> Result<(), Refused> {
        let open = self.upkeep.host().opener();
        let load = |reasons: &mut Vec<String>| {
            let served = Served::load(&next.protocol, &open).map_err(|error| reasons.push(error.to_string())).ok()?;
            reasons.extend(other_modes(&self.served, &served));
            let handshakes = served.handshakes.clone();
            Some((served, handshakes))
        };
        let succeeded = successor(&self.snapshot, &self.config, &next, force, load);
        drop(open);
        let (snapshot, served) = succeeded.map_err(Refused)?;

        let mut changes = self.changes(&next, &served);
        let epoch = snapshot.version;
        // From here on with the indexes that shards know.
        next.users = snapshot.users;
        self.limits.retain(&next.users);
        changes.extend(self.limits.line());
        let users = self.limits.apply(&next.users, &next);
        let users = Arc::new(users.with_quotas(|name| over_quota.contains(name)));
        self.over_quota = over_quota;
        self.snapshot = Arc::new(Snapshot { users, ..snapshot });
        (self.config, self.served) = (next, served);
        self.want_usage();
        self.put_in_force(Change::Reload { epoch, shards: self.cores.len(), changes }, now);
        Ok(())
    }

    /// Gives the user `name` another limit, at once, on connections that are there too; [`Gateway::poll_completed`] tells when that is done. It holds
    /// through reloads and upgrades.
    ///
    /// # Errors
    ///
    /// If there is no such user, or too many have limits by order. Nothing has changed then.
    pub fn begin_limit(&mut self, name: &str, order: LimitOrder, now: Instant) -> Result<(), NotLimited> {
        self.find_user(name)?;
        if !self.limits.set(name, order) {
            return Err(NotLimited::TooMany);
        }
        let users = &self.config.users;
        let of_file = users.find_name(name).and_then(|user| users.user(user)?.limit);
        let limit = match order {
            LimitOrder::Rate(rate) => Some(self.config.limit(name, rate)),
            LimitOrder::Unlimited => None,
            LimitOrder::File => of_file,
        };
        let users = Arc::new(self.snapshot.users.with_limits([(name, limit)].into_iter()));
        let (epoch, handshakes) = (self.snapshot.version + 1, self.snapshot.handshakes.listing(users.clone()));
        self.snapshot = Arc::new(Snapshot { version: epoch, users, handshakes, ..*self.snapshot });
        let is_of_file = order == LimitOrder::File;
        let change = Change::Limit { user: name.to_owned(), limit, is_of_file, epoch };
        self.put_in_force(change, now);
        Ok(())
    }

    /// Has every core, and the process before this one, go over to the snapshot.
    pub(super) fn put_in_force(&mut self, change: Change, now: Instant) {
        let snapshot = &self.snapshot;
        let command = |id| CoreCommand::Apply { id, snapshot: snapshot.clone() };
        self.commands.begin_change(&self.cores, now, change, command);
        let limits = self.limits.told();
        self.prepare_to_pass_on(|order, snapshot| {
            let mut words = words::users(snapshot.users.users().map(|(_, user)| user));
            let Snapshot { version, isolate_clients, session_limits, .. } = *snapshot;
            let apply = Words::Apply { order, version, isolate_clients, session_limits };
            words.extend([Words::Limits(limits), apply]);
            words
        });
    }

    /// The users with limits by order.
    pub fn limits(&self) -> &OrderedLimits {
        &self.limits
    }

    /// The user in force of that name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn find_user(&self, name: &str) -> Result<UserIndex, UnknownUser> {
        let users = &self.snapshot.users;
        users.find_name(name).ok_or_else(|| UnknownUser { name: name.to_owned(), near: nearest(name, users) })
    }

    /// Closes every connection of the user `name`; [`Gateway::poll_completed`] tells when that is done.
    ///
    /// # Errors
    ///
    /// If there is no such user.
    pub fn begin_kick(&mut self, name: &str, now: Instant) -> Result<(), UnknownUser> {
        let user = self.find_user(name)?;
        let change = Change::Kick { user: name.to_owned() };
        self.commands.begin_change(&self.cores, now, change, |id| CoreCommand::Kick { id, user });
        self.prepare_to_pass_on(|order, _| vec![Words::Kick { order, user: name.to_owned() }]);
        Ok(())
    }

    /// In what `next`, with what it serves, is different from what is in force.
    fn changes(&self, next: &ServerConfig, served: &Served) -> Vec<String> {
        let users = Some(self.config.user_changes(next)).filter(|users| *users != UserChanges::default());
        let keys = self.config.live_changes(next);
        let mut changes: Vec<String> = users.iter().map(ToString::to_string).collect();
        changes.extend(keys.iter().map(ToString::to_string));
        changes.extend(self.served.identity.changes(&served.identity));
        changes
    }
}

/// The snapshot that succeeds `now` where `next` is to be in force instead of `config`, or every reason against it. `load` has what is served,
/// with its handshakes.
///
/// # Errors
///
/// If `next` cannot be put in force while the gateway runs, or not at all.
pub fn successor<T>(
    now: &Snapshot,
    config: &ServerConfig,
    next: &ServerConfig,
    force: bool,
    load: impl FnOnce(&mut Vec<String>) -> Option<(T, Handshakes)>,
) -> Result<(Snapshot, T), Vec<String>> {
    let restart = config.restart_needed(next);
    let mut reasons: Vec<String> = restart
        .iter()
        .map(|changed| format!("{changed} cannot change by a reload: {}", remedy(&changed.key)))
        .collect();
    if !force {
        reasons.extend(few_remain(&now.users, &next.users));
    }
    let users = now.users.succeed(next.users.users().map(|(_, user)| user.clone()).collect()).map(Arc::new);
    let loaded = load(&mut reasons);
    match (loaded, users) {
        (Some((loaded, handshakes)), Ok(users)) if reasons.is_empty() => {
            let (version, isolate_clients) = (now.version + 1, next.isolate_clients);
            let session_limits = next.sessions.limits();
            let handshakes = handshakes.listing(users.clone());
            Ok((Snapshot { version, users, isolate_clients, session_limits, handshakes }, loaded))
        }
        (_, users) => {
            reasons.extend(users.err().map(|error| error.to_string()));
            Err(reasons)
        }
    }
}

/// Why `next` cannot be served instead of `now`: which versions of QUIC an endpoint knows is settled when it is made.
fn other_modes(now: &Served, next: &Served) -> Option<String> {
    let [now, next] =
        [now, next].map(|served| served.modes().iter().map(Mode::to_string).collect::<Vec<_>>().join(", "));
    (now != next)
        .then(|| format!("[protocol] ({now} -> {next}): which modes are served cannot change by a reload: {UPGRADE}"))
}

/// How a change of `key` comes into force.
fn remedy(key: &str) -> &'static str {
    if needs_restart(key) { "restart the gateway" } else { UPGRADE }
}

/// Why `next` must be meant if it is to replace `now`: fewer than half of the users would remain, or none.
fn few_remain(now: &Users, next: &Users) -> Option<String> {
    let users = now.users().count();
    let remaining = now.users().filter(|(_, user)| next.find_name(&user.name).is_some()).count();
    (2 * remaining < users).then(|| {
        format!(
            "the users file has only {remaining} of the {} in force, and the others would be cut off at once: if that is meant, run \
             `tollgate reload --force`",
            counted(users as u64, "user")
        )
    })
}

/// The user whose name is most like `name`, if any is like enough.
fn nearest(name: &str, users: &Users) -> Option<String> {
    tollgate_config::nearest(name, users.users().map(|(_, user)| &user.name[..])).map(str::to_owned)
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn list(shards: &BTreeSet<u16>) -> String {
    shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use tollgate_shards::User;

    use super::*;

    #[test]
    fn a_name_that_is_like_a_users_finds_it() {
        let users = ["alice", "bob", "Carol"].map(|name| User { name: name.to_owned(), ..User::default() });
        let users = Users::new(users.to_vec()).unwrap();
        for (name, expected) in [("alcie", Some("alice")), ("carol", Some("Carol")), ("zed", None), ("", None)] {
            assert_eq!(nearest(name, &users).as_deref(), expected, "{name}");
        }
        let error = UnknownUser { name: "bbo".to_owned(), near: Some("bob".to_owned()) };
        assert_eq!(error.to_string(), "no user is named \"bbo\": did you mean \"bob\"?");
    }

    #[test]
    fn it_takes_force_to_turn_out_more_than_half_of_the_users() {
        let users = |names: &[&str]| {
            Users::new(names.iter().map(|name| User { name: (*name).to_owned(), ..User::default() }).collect()).unwrap()
        };
        for (now, next, is_refused) in [
            (&[][..], &[][..], false),
            (&[], &["a"], false),
            (&["a"], &["a", "b", "c"], false),
            (&["a"], &[], true),
            (&["a"], &["b"], true),
            (&["a", "b"], &["a"], false),
            (&["a", "b"], &["b", "c"], false),
            (&["a", "b"], &["c", "d"], true),
            (&["a", "b", "c"], &["a", "b"], false),
            (&["a", "b", "c"], &["a"], true),
            (&["a", "b", "c", "d"], &["c", "d"], false),
        ] {
            let refusal = few_remain(&users(now), &users(next));
            assert_eq!(refusal.is_some(), is_refused, "{now:?} to {next:?}: {refusal:?}");
            assert!(refusal.is_none_or(|line| line.contains("reload --force") && !line.contains('\n')));
        }
    }

    #[test]
    fn results_are_sentences() {
        let took = Duration::from_micros(1500);
        let reloaded = Reloaded { epoch: 3, shards: 1, changes: Vec::new(), closed_connections: 0, took };
        let expected = "nothing has changed; 0 connections closed; epoch 3 is in force on 1 shard after 1.5ms";
        assert_eq!(reloaded.to_string(), expected);
        let kicked = Kicked { user: "bob".to_owned(), closed_connections: 1, took };
        assert_eq!(kicked.to_string(), "1 connection of user 'bob' closed after 1.5ms");
        let unanswered = Unanswered::Shards([0, 2].into());
        assert_eq!(unanswered.to_string(), "shard 0, 2 did not say within 2s that the order is carried out");
    }
}
