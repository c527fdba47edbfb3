//! Nobody is sent away without right: as revoked only where some snapshot since the login says so, and for want of an address never whose address is
//! nobody else's.
//!
//! The book has every snapshot that was given, and none of it is the gateway's.

use std::sync::Arc;

use tollgate_shards::{AddressRange, ClientEvent, CloseCause, Fingerprint, Snapshot, UserIndex, Users};

use super::Violation;

/// The gateway's code and words for a login that is not valid any more; an operator's are others.
const REVOKED: (u64, &str) = (4, "Access revoked");

#[derive(Debug)]
pub struct Refusals {
    /// The users of all snapshots so far, by version.
    given: Vec<(u64, Arc<Users>)>,
}

impl Refusals {
    pub(super) fn new(first: &Snapshot) -> Self {
        Refusals { given: vec![(first.version, first.users.clone())] }
    }

    pub(super) fn given(&mut self, snapshot: &Snapshot) {
        self.given.push((snapshot.version, snapshot.users.clone()));
    }

    /// A client is told something that began to log in with `credential` when `version` was in force everywhere.
    pub(super) fn told(&self, event: &ClientEvent, (credential, version): (Fingerprint, u64)) -> Result<(), Violation> {
        let ClientEvent::Closed(CloseCause::Gateway { code, reason }) = event else { return Ok(()) };
        if (*code, &reason[..]) != REVOKED {
            return Ok(());
        }
        // The shard that it came to went by one that knows it.
        let mut since = self.given.iter().filter(|(given, _)| *given >= version);
        let Some((first, users)) = since.find(|(_, users)| users.find(&credential).is_some()) else { return Ok(()) };
        let (user, pools) = (users.find(&credential), pools_of(users));
        if !since.all(|(_, later)| later.find(&credential) == user && pools_of(later) == pools) {
            return Ok(());
        }
        let what = format!("access by {credential} is revoked, which every snapshot from {first} on allows");
        Err(Violation::new("refusals", what))
    }

    /// A shard tells that there is no address for a user.
    pub(super) fn exhausted(&self, user: UserIndex) -> Result<(), Violation> {
        let own = |(_, users): &(u64, Arc<Users>)| match users.user(user)?.pool.as_slice() {
            [range] if range.first() == range.last() => Some(range.first()),
            _ => None,
        };
        let Some(address) = self.given.first().and_then(own) else { return Ok(()) };
        if self.given.iter().any(|given| own(given) != Some(address)) {
            return Ok(());
        }
        let what =
            format!("there is no address for {user:?}, who has had {address} for its newest connection all along");
        Err(Violation::new("refusals", what))
    }
}

/// Which addresses are whose.
fn pools_of(users: &Users) -> Vec<(UserIndex, &[AddressRange])> {
    users.users().map(|(index, user)| (index, &user.pool[..])).filter(|(_, pool)| !pool.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use tollgate_shards::User;

    use super::*;

    const CREDENTIAL: Fingerprint = Fingerprint([1; 32]);
    const OTHER: Fingerprint = Fingerprint([2; 32]);

    fn book(users: &[(Fingerprint, &str)]) -> Refusals {
        let users = users.iter().map(|&(credential, address)| {
            let address = address.parse().unwrap();
            let pool = vec![AddressRange::new(address, address).unwrap()];
            let user = User { name: "alice".to_owned(), credentials: vec![credential], pool, ..User::default() };
            Arc::new(Users::new(vec![user]).unwrap())
        });
        Refusals { given: (0..).zip(users).collect() }
    }

    #[test]
    fn who_is_revoked_without_any_snapshots_saying_so_is_found() {
        let told = |users: &[(Fingerprint, &str)], version| {
            let cause = CloseCause::Gateway { code: REVOKED.0, reason: REVOKED.1.to_owned() };
            book(users).told(&ClientEvent::Closed(cause), (CREDENTIAL, version)).is_ok()
        };
        let (first, renewed, moved) = ((CREDENTIAL, "198.18.0.9"), (OTHER, "198.18.0.9"), (CREDENTIAL, "198.18.0.8"));
        assert!(!told(&[first], 0) && !told(&[renewed, first], 0) && !told(&[first, renewed, first], 2));
        assert!(told(&[first, renewed], 0) && told(&[first, renewed], 1) && told(&[first, moved], 0));
        assert!(!told(&[first, renewed, first], 1), "it came to a shard with the last one");
    }

    #[test]
    fn who_has_an_address_alone_and_is_refused_for_want_of_one_is_found() {
        let (first, moved) = ((CREDENTIAL, "198.18.0.9"), (CREDENTIAL, "198.18.0.8"));
        assert!(book(&[first, first]).exhausted(UserIndex(0)).is_err());
        assert!(book(&[first, moved]).exhausted(UserIndex(0)).is_ok(), "somebody may have it still");
        assert!(book(&[first]).exhausted(UserIndex(1)).is_ok());
    }
}
