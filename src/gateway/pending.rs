//! The command that a core has begun and not completed, and how many connections were closed for it.
//!
//! This module carries no command out.

use std::sync::Arc;

use tollgate_shards::{CommandId, Snapshot, UserIndex};

/// A command that was given to the shard and is not completed. There is one at a time: the control plane has given up an earlier one.
#[derive(Default)]
pub struct Pending {
    command: Option<Command>,
    /// Users whose connections were closed for a snapshot that this core has not been given yet: a user's home may be ahead by the moment
    /// between the commands to two cores. One entry a connection.
    early: Vec<UserIndex>,
}

struct Command {
    id: CommandId,
    scope: Scope,
    closed_connections: u64,
}

/// The users whose connections a command may close.
enum Scope {
    /// None: homes go over to another process, or come back.
    Nobody,
    User(UserIndex),
    /// Users who differ between the two snapshots.
    Changed(Arc<Snapshot>, Arc<Snapshot>),
}

impl Scope {
    fn contains(&self, user: UserIndex) -> bool {
        match self {
            Scope::Nobody => false,
            Scope::User(kicked) => *kicked == user,
            Scope::Changed(before, next) => before.users.user(user) != next.users.user(user),
        }
    }
}

impl Pending {
    /// The shard is going over from the snapshot `before` to `next`.
    pub fn begin_apply(&mut self, id: CommandId, before: Arc<Snapshot>, next: Arc<Snapshot>) {
        let scope = Scope::Changed(before, next);
        let early = std::mem::take(&mut self.early);
        let closed_connections = early.into_iter().filter(|&user| scope.contains(user)).count() as u64;
        self.command = Some(Command { id, scope, closed_connections });
    }

    /// The shard is closing the connections of `user`.
    pub fn begin_kick(&mut self, id: CommandId, user: UserIndex) {
        self.command = Some(Command { id, scope: Scope::User(user), closed_connections: 0 });
    }

    /// The shard's homes go over to another process, or come back from there.
    pub fn begin_move(&mut self, id: CommandId) {
        self.command = Some(Command { id, scope: Scope::Nobody, closed_connections: 0 });
    }

    /// Counts a connection of `user` that the snapshot numbered `ended_by` has ended, where the core has been given `current`.
    pub fn count_closed(&mut self, user: UserIndex, ended_by: u64, current: u64) {
        if ended_by > current {
            self.early.push(user);
        } else if let Some(command) = &mut self.command {
            command.closed_connections += u64::from(command.scope.contains(user));
        }
    }

    /// The command, for a shard in the place of one that may not have carried it out. While homes move, no shard takes the place of another.
    pub fn again(&self) -> Option<tollgate_shards::Command> {
        let Command { id, scope, .. } = self.command.as_ref()?;
        Some(match scope {
            Scope::Nobody => return None,
            Scope::User(user) => tollgate_shards::Command::Kick { id: *id, user: *user },
            Scope::Changed(_, next) => tollgate_shards::Command::Apply { id: *id, snapshot: next.clone() },
        })
    }

    /// The command, if it is no later than `completed`, and the connections that were closed for it.
    pub fn take_completed(&mut self, completed: CommandId) -> Option<(CommandId, u64)> {
        let command = self.command.take_if(|command| completed >= command.id)?;
        Some((command.id, command.closed_connections))
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::crypto::rustls::QuicServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tollgate_shards::{Handshakes, SessionLimits, User, Users};

    use super::*;

    fn snapshots() -> [Arc<Snapshot>; 2] {
        let certified = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let handshakes = Handshakes { tls: Some(Arc::new(QuicServerConfig::try_from(tls).unwrap())), noise: None };
        let user = |name: &str| User { name: name.to_owned(), ..User::default() };
        let before = Users::new(vec![user("alice"), user("bob")]).unwrap();
        let next = before.succeed(vec![user("alice")]).unwrap();
        [(1, before), (2, next)].map(|(version, users)| {
            Arc::new(Snapshot {
                version,
                users: Arc::new(users),
                isolate_clients: true,
                session_limits: SessionLimits::default(),
                handshakes: handshakes.clone(),
            })
        })
    }

    #[test]
    fn what_a_home_closed_ahead_of_the_command_counts_as_closed_by_the_command() {
        let [before, next] = snapshots();
        let (alice, bob) = (UserIndex(0), UserIndex(1));
        let mut pending = Pending::default();
        // Of a snapshot that comes here later; the second one would have gone anyway, for a newer connection.
        pending.count_closed(bob, 2, 1);
        pending.count_closed(alice, 2, 1);
        pending.begin_apply(CommandId(1), before, next);
        pending.count_closed(bob, 2, 2);
        pending.count_closed(alice, 2, 2);
        assert_eq!(pending.take_completed(CommandId(0)), None);
        assert_eq!(pending.take_completed(CommandId(1)), Some((CommandId(1), 2)));
        assert_eq!(pending.take_completed(CommandId(1)), None);
        pending.begin_kick(CommandId(2), alice);
        pending.count_closed(alice, 2, 2);
        pending.count_closed(bob, 2, 2);
        assert_eq!(pending.take_completed(CommandId(2)), Some((CommandId(2), 1)), "nothing of the command before");
    }
}
