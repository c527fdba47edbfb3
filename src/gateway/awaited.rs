//! The order under way at a core, and how many connections are closed for it.

use std::sync::Arc;

use crossbeam_channel::Sender;
use tollgate_shards::{CommandId, Snapshot, UserIndex};

use super::core::Carried;

/// An order that was given to the shard and not answered yet. There is one at a time, and whoever gave an earlier one has given up.
#[derive(Default)]
pub struct Awaited {
    order: Option<Order>,
    /// Whose connections were closed for an epoch that the core has not been ordered into yet: the home of a user may be ahead by the
    /// moment between the orders to two cores. One entry a connection.
    early: Vec<UserIndex>,
}

struct Order {
    ticket: CommandId,
    done: Sender<Carried>,
    concerned: Concerned,
    closed_connections: u64,
}

/// Whose connections an order may close.
enum Concerned {
    User(UserIndex),
    /// Whoever is not in the one epoch as in the other.
    ChangedBetween(Arc<Snapshot>, Arc<Snapshot>),
}

impl Concerned {
    fn contains(&self, user: UserIndex) -> bool {
        match self {
            Concerned::User(kicked) => *kicked == user,
            Concerned::ChangedBetween(before, next) => before.directory.user(user) != next.directory.user(user),
        }
    }
}

impl Awaited {
    /// Awaits that the shard has gone over from the epoch `before` to `next`.
    pub fn begin_apply(
        &mut self,
        ticket: CommandId,
        done: Sender<Carried>,
        before: Arc<Snapshot>,
        next: Arc<Snapshot>,
    ) {
        let concerned = Concerned::ChangedBetween(before, next);
        let early = std::mem::take(&mut self.early);
        let closed_connections = early.into_iter().filter(|&user| concerned.contains(user)).count() as u64;
        self.order = Some(Order { ticket, done, concerned, closed_connections });
    }

    /// Awaits that the connections of `user` are closed.
    pub fn begin_kick(&mut self, ticket: CommandId, done: Sender<Carried>, user: UserIndex) {
        self.order = Some(Order { ticket, done, concerned: Concerned::User(user), closed_connections: 0 });
    }

    /// Counts a connection of `user` that the epoch numbered `ended_by` has ended, where the core has been ordered into `current`.
    pub fn count_closed(&mut self, user: UserIndex, ended_by: u64, current: u64) {
        if ended_by > current {
            self.early.push(user);
        } else if let Some(order) = &mut self.order {
            order.closed_connections += u64::from(order.concerned.contains(user));
        }
    }

    /// Answers as `shard` if the order is no later than `settled`.
    pub fn answer(&mut self, shard: u16, settled: CommandId) {
        if let Some(Order { done, closed_connections, .. }) = self.order.take_if(|order| settled >= order.ticket) {
            // Whoever gave it may have given up waiting.
            let _ = done.send(Carried { shard, closed_connections });
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;
    use quinn_proto::crypto::rustls::QuicServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tollgate_shards::{User, Users};

    use super::*;

    fn epochs() -> [Arc<Snapshot>; 2] {
        let certified = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let tls = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        let user = |name: &str| User { name: name.to_owned(), ..User::default() };
        let before = Users::new(vec![user("alice"), user("bob")]).unwrap();
        let next = before.succeed(vec![user("alice")]).unwrap();
        let mut number = 0;
        [before, next].map(|directory| {
            number += 1;
            Arc::new(Snapshot { number, directory: Arc::new(directory), isolate_clients: true, tls: tls.clone() })
        })
    }

    #[test]
    fn what_a_home_closed_ahead_of_the_order_counts_as_closed_by_the_order() {
        let [before, next] = epochs();
        let (alice, bob) = (UserIndex(0), UserIndex(1));
        let mut awaited = Awaited::default();
        let (done, answers) = bounded(1);
        // Of an epoch that is ordered here later; the second one would have gone anyway, for a newer connection.
        awaited.count_closed(bob, 2, 1);
        awaited.count_closed(alice, 2, 1);
        awaited.begin_apply(CommandId(1), done.clone(), before, next);
        awaited.count_closed(bob, 2, 2);
        awaited.count_closed(alice, 2, 2);
        awaited.answer(0, CommandId(0));
        assert!(answers.is_empty(), "not settled yet");
        awaited.answer(0, CommandId(1));
        assert_eq!(answers.try_recv(), Ok(Carried { shard: 0, closed_connections: 2 }));
        awaited.begin_kick(CommandId(2), done, alice);
        awaited.count_closed(alice, 2, 2);
        awaited.count_closed(bob, 2, 2);
        awaited.answer(0, CommandId(2));
        assert_eq!(answers.try_recv(), Ok(Carried { shard: 0, closed_connections: 1 }), "nothing of the order before");
    }
}
