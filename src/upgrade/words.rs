//! What the control planes of the two processes say to each other once both have begun.

use serde::{Deserialize, Serialize};
use tollgate_shards::sibling::MESSAGE_BYTES_MAX;
use tollgate_shards::{Rate, SessionLimits, User};

use crate::usage::{Book, Entry};

/// Of the users said at a time, in bytes: half of what the link takes.
const USERS_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// Rows of usage said at a time: names have 128 bytes at most, and figures 80.
const USAGE_ROWS_MAX: usize = 4096;

/// One message. Orders have the numbers that the newer process has given them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Words {
    /// The newer process: its shards are there, this many, and may become homes.
    Ready {
        /// The number of its shards.
        shards: u16,
    },
    /// The newer process: it gives up, and why.
    Refused {
        /// For people, in one line.
        reason: String,
    },
    /// The newer process: new clients come to it from now on, and so do orders.
    Serving,
    /// The newer process: some of the users of the snapshot that follows.
    Users(Vec<User>),
    /// The newer process: which of their limits are by order.
    Limits(Vec<(String, Option<Rate>)>),
    /// The newer process: a snapshot with all users that were said since the last one.
    Apply {
        /// The order.
        order: u64,
        /// The snapshot's number.
        version: u64,
        /// Whether clients are kept apart.
        isolate_clients: bool,
        /// How long sessions may last.
        session_limits: SessionLimits,
    },
    /// The newer process: close a user's connections.
    Kick {
        /// The order.
        order: u64,
        /// The user's name.
        user: String,
    },
    /// The newer process: it stops, so both do.
    Stop,
    /// The older process: an order is carried out.
    Done {
        /// The order.
        order: u64,
        /// Connections that were closed for it.
        closed_connections: u64,
    },
    /// The older process: an order is not carried out, as far as it knows.
    NotDone {
        /// The order.
        order: u64,
        /// For people, in one line.
        reason: String,
    },
    /// The older process: what its clients have carried, by user.
    Usage(Vec<(String, Entry)>),
    /// The older process: so many clients are left.
    Left {
        /// Clients that have logged in.
        clients: u64,
    },
}

impl Words {
    /// As bytes.
    ///
    /// # Panics
    ///
    /// Never: plain values can always be written.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain values can always be written")
    }

    /// From bytes. `None` for what no process of this version says.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::take_from_bytes(bytes) {
            Ok((words, [])) => Some(words),
            _ => None,
        }
    }
}

/// `users` in messages, each within the link's bound.
pub fn users<'a>(users: impl Iterator<Item = &'a User>) -> Vec<Words> {
    let (mut said, mut some, mut some_bytes) = (Vec::new(), Vec::new(), 0);
    for user in users {
        let bytes = postcard::experimental::serialized_size(user).unwrap_or(0);
        if some_bytes + bytes > USERS_BYTES_MAX {
            said.push(Words::Users(std::mem::take(&mut some)));
            some_bytes = 0;
        }
        some.push(user.clone());
        some_bytes += bytes;
    }
    said.push(Words::Users(some));
    said
}

/// `book` in messages, each within the link's bound.
pub fn usage(mut book: Book) -> Vec<Words> {
    book.take_rows().chunks(USAGE_ROWS_MAX).map(|rows| Words::Usage(rows.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use tollgate_shards::Fingerprint;

    use super::*;

    #[test]
    fn what_is_said_is_understood_and_what_was_cut_off_is_not() {
        let user = User { name: "alice".to_owned(), ..User::default() };
        let said = [
            Words::Ready { shards: 3 },
            Words::Users(vec![user]),
            Words::Limits(vec![("alice".to_owned(), None)]),
            Words::Apply { order: 7, version: 9, isolate_clients: true, session_limits: SessionLimits::default() },
            Words::Done { order: 7, closed_connections: 2 },
        ];
        for words in said {
            let bytes = words.encode();
            assert_eq!(Words::decode(&bytes), Some(words));
            assert_eq!(Words::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Words::decode(&[&bytes[..], &[0]].concat()), None);
        }
        assert_eq!(Words::decode(&[200]), None);
    }

    #[test]
    fn usage_is_said_in_parts() {
        let mut book = Book::default();
        let most = Entry::of_figures([u64::MAX; 8]);
        (0..2 * USAGE_ROWS_MAX + 1).for_each(|number| book.add(&format!("{number:0>128}"), most));
        let said = usage(book.clone());
        assert_eq!(said.len(), 3);
        let mut heard = Book::default();
        for words in said {
            let bytes = words.encode();
            assert!(bytes.len() < MESSAGE_BYTES_MAX);
            let Some(Words::Usage(rows)) = Words::decode(&bytes) else { panic!("something else") };
            rows.into_iter().for_each(|(user, entry)| heard.add(&user, entry));
        }
        assert_eq!(heard, book);
    }

    #[test]
    fn users_are_said_in_parts() {
        let credentials = vec![Fingerprint([7; 32]); 3];
        let user = |number| User { name: format!("user{number}"), credentials: credentials.clone(), ..User::default() };
        let all: Vec<User> = (0..25_000).map(user).collect();
        let said = users(all.iter());
        assert_eq!(said.len(), 3);
        assert!(said.iter().all(|words| words.encode().len() < MESSAGE_BYTES_MAX));
        let understood = said.into_iter().flat_map(|words| match words {
            Words::Users(users) => users,
            other => panic!("{other:?}"),
        });
        assert!(understood.eq(all));
    }
}
