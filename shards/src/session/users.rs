//! The users a gateway knows: names, credentials, limits, addresses. Read-only; all shards share one through an `Arc`.
//!
//! When the users change while the gateway runs, the new ones [succeed](Users::succeed) the old ones: whoever is in both keeps the
//! same [`UserIndex`]. One that is gone is remembered by name until the next succession; a new user gets an index that no user had before, so that
//! what is under way about one user never reaches another. (Indices begin again after four billion users, without those in use.)
//!
//! This module never reads files: the configuration crate fills it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tollgate_noise::{Listed, PublicKey};

use crate::ids::{Fingerprint, UserIndex};
use crate::limit::rate::Limit;

/// How many connections a user may have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLimit {
    pub connections_max: NonZeroU32,
    /// What becomes of one more.
    pub when_reached: WhenReached,
}

/// What happens when a user who has all the connections allowed logs in once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WhenReached {
    /// The new connection is refused.
    #[default]
    RefuseNew,
    /// The oldest connection is closed, and the new one takes its place.
    CloseOldest,
}

/// An inclusive range of addresses of one family, `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(IpAddr, IpAddr)", into = "(IpAddr, IpAddr)")]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range from `first` to `last`; `None` if they are of different families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(AddressRange { first, last })
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }
}

impl TryFrom<(IpAddr, IpAddr)> for AddressRange {
    type Error = &'static str;

    fn try_from((first, last): (IpAddr, IpAddr)) -> Result<Self, Self::Error> {
        AddressRange::new(first, last).ok_or("a range of addresses of two families, or in the wrong order")
    }
}

impl From<AddressRange> for (IpAddr, IpAddr) {
    fn from(AddressRange { first, last }: AddressRange) -> Self {
        (first, last)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name, unique.
    pub name: String,
    /// Certificates and Noise keys that log this user in.
    pub credentials: Vec<Fingerprint>,
    /// Limit over all of the user's connections and both directions; `None` for no limit.
    pub limit: Option<Limit>,
    /// Limit to the connections; `None` for as many as there are addresses.
    pub connection_limit: Option<ConnectionLimit>,
    /// Addresses that this user's connections get, and nobody else's; empty for the tunnel network's pool.
    pub pool: Vec<AddressRange>,
    /// Whether the user has carried as much as allowed for now, and may have no connections.
    pub is_over_quota: bool,
}

/// Two users claim the same thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// The same name twice.
    #[error("user '{0}' is defined twice")]
    DuplicateName(String),
    /// The same certificate or Noise key for two users, or twice for one.
    #[error("credential {fingerprint} is authorized for user '{first}' and again for user '{second}'")]
    DuplicateCredential { fingerprint: Fingerprint, first: String, second: String },
}

#[derive(Debug, Default, Clone)]
pub struct Users {
    entries: BTreeMap<UserIndex, Entry>,
    /// Where the search for the index of the next new user begins.
    next: u32,
    by_name: FxHashMap<String, UserIndex>,
    by_credential: FxHashMap<Fingerprint, UserIndex>,
    /// Users' own addresses, by the first of each range. Disjoint.
    claims: BTreeMap<IpAddr, (IpAddr, UserIndex)>,
}

/// A place among the users. It outlasts its user by one succession.
#[derive(Debug, Clone)]
enum Entry {
    Present(User),
    /// One of the users before, by name: the log still speaks of it.
    Gone(String),
}

impl Users {
    /// Indexes `users`.
    ///
    /// # Errors
    ///
    /// If two share a name or a credential.
    pub fn new(users: Vec<User>) -> Result<Self, UsersError> {
        Users::default().succeed(users)
    }

    /// The `users` who take the place of these: users of the same name keep their index.
    ///
    /// # Errors
    ///
    /// If two share a name or a credential.
    pub fn succeed(&self, users: Vec<User>) -> Result<Self, UsersError> {
        let mut next = Users { next: self.next, ..Users::default() };
        for (index, user) in self.users() {
            next.entries.insert(index, Entry::Gone(user.name.clone()));
            next.by_name.insert(user.name.clone(), index);
        }
        users.into_iter().try_for_each(|user| next.insert(self, user))?;
        Ok(next)
    }

    /// The same users at the same indices, but for the limits of those who are named.
    #[must_use]
    pub fn with_limits<'n>(&self, limits: impl Iterator<Item = (&'n str, Option<Limit>)>) -> Self {
        let mut next = self.clone();
        for (name, limit) in limits {
            if let Some(index) = next.find_name(name)
                && let Some(Entry::Present(user)) = next.entries.get_mut(&index)
            {
                user.limit = limit;
            }
        }
        next
    }

    /// The same users at the same indices, of whom those are over their quotas whom `is_over` names.
    #[must_use]
    pub fn with_quotas(&self, is_over: impl Fn(&str) -> bool) -> Self {
        let mut next = self.clone();
        for entry in next.entries.values_mut() {
            if let Entry::Present(user) = entry {
                user.is_over_quota = is_over(&user.name);
            }
        }
        next
    }

    fn insert(&mut self, before: &Users, user: User) -> Result<(), UsersError> {
        let index = match self.by_name.get(&user.name).or_else(|| before.by_name.get(&user.name)) {
            Some(&index) => index,
            None => self.fresh_index(before),
        };
        if self.user(index).is_some() {
            return Err(UsersError::DuplicateName(user.name));
        }
        self.by_name.insert(user.name.clone(), index);
        for fingerprint in &user.credentials {
            if let Some(first) = self.by_credential.insert(*fingerprint, index) {
                return Err(UsersError::DuplicateCredential {
                    fingerprint: *fingerprint,
                    first: self.user(first).map_or(&user.name, |first| &first.name).clone(),
                    second: user.name.clone(),
                });
            }
        }
        self.claims.extend(user.pool.iter().map(|range| (range.first(), (range.last(), index))));
        self.entries.insert(index, Entry::Present(user));
        Ok(())
    }

    /// An index that is nobody's, now or before.
    fn fresh_index(&mut self, before: &Users) -> UserIndex {
        loop {
            let index = UserIndex(self.next);
            self.next = self.next.wrapping_add(1);
            if index != UserIndex::NOBODY && !self.entries.contains_key(&index) && !before.entries.contains_key(&index)
            {
                return index;
            }
        }
    }

    pub fn find(&self, credential: &Fingerprint) -> Option<UserIndex> {
        self.by_credential.get(credential).copied()
    }

    /// The user whose own address it is.
    pub fn claimant(&self, address: IpAddr) -> Option<UserIndex> {
        let (_, &(last, user)) = self.claims.range(..=address).next_back()?;
        (last.is_ipv4() == address.is_ipv4() && address <= last).then_some(user)
    }

    /// Whether a connection of the user may have an address of the tunnel network: one of the user's own, or one that is nobody's where the user
    /// has none.
    pub fn allows(&self, user: UserIndex, address: IpAddr) -> bool {
        match self.claimant(address) {
            Some(claimant) => claimant == user,
            None => self.user(user).is_some_and(|user| user.pool.is_empty()),
        }
    }

    pub fn find_name(&self, name: &str) -> Option<UserIndex> {
        self.find_known(name).filter(|&index| self.user(index).is_some())
    }

    /// The user at `index`; `None` if it is gone, or not known yet.
    pub fn user(&self, index: UserIndex) -> Option<&User> {
        match self.entries.get(&index)? {
            Entry::Present(user) => Some(user),
            Entry::Gone(_) => None,
        }
    }

    /// The name at `index`, also of a user who has gone with the last succession.
    pub(crate) fn known_name(&self, index: UserIndex) -> Option<&str> {
        Some(match self.entries.get(&index)? {
            Entry::Present(user) => &user.name,
            Entry::Gone(name) => name,
        })
    }

    /// The user of that name, also one who has gone with the last succession.
    pub(crate) fn find_known(&self, name: &str) -> Option<UserIndex> {
        self.by_name.get(name).copied()
    }

    /// The name at `index`, as far as it is known. For the log.
    pub fn name(&self, index: UserIndex) -> &str {
        self.known_name(index).unwrap_or("unknown")
    }

    pub fn len(&self) -> usize {
        self.users().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All users, in the order of their indices.
    pub fn users(&self) -> impl Iterator<Item = (UserIndex, &User)> {
        self.entries.iter().filter_map(|(&index, entry)| match entry {
            Entry::Present(user) => Some((index, user)),
            Entry::Gone(_) => None,
        })
    }
}

/// Which Noise clients a handshake goes on with. Who a client is counts once it is established, by the users of that moment.
impl Listed for Users {
    fn is_listed(&self, key: &PublicKey) -> bool {
        self.find(&Fingerprint::of_key(key)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::rate::{BURST_BYTES_MIN, Rate};

    fn user(name: &str, credential: u8) -> User {
        User { name: name.to_owned(), credentials: vec![Fingerprint([credential; 32])], ..User::default() }
    }

    #[test]
    fn a_user_keeps_its_index_through_every_change() {
        let first = Users::new(vec![user("alice", 1), user("bob", 2)]).unwrap();
        let second = first.succeed(vec![user("carol", 3), user("bob", 4)]).unwrap();
        let third = second.succeed(vec![user("alice", 5), user("carol", 3)]).unwrap();
        assert_eq!(second.find(&Fingerprint([4; 32])), Some(UserIndex(1)));
        assert_eq!((second.user(UserIndex(0)), second.name(UserIndex(0))), (None, "alice"));
        assert_eq!(second.find(&Fingerprint([2; 32])), None, "an old credential");
        assert_eq!(third.find_name("alice"), Some(UserIndex(0)));
        assert_eq!(third.find_name("bob"), None);
        assert_eq!(third.users().map(|(index, _)| index.0).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn ten_thousand_reloads_with_ever_new_names_leave_nothing_behind_and_give_no_index_twice() {
        let mut all = Users::new(vec![user("stays", 0)]).unwrap();
        let mut last = UserIndex(0);
        for reload in 0..10_000 {
            let users = [user("stays", 0), user(&format!("a{reload}"), 1), user(&format!("b{reload}"), 2)];
            all = all.succeed(users.into()).unwrap();
            assert_eq!(all.find_name("stays"), Some(UserIndex(0)));
            let new = [1, 2].map(|credential| all.find(&Fingerprint([credential; 32])).unwrap());
            assert!(last < new[0] && new[0] < new[1], "{new:?} after {last:?}");
            last = new[1];
            assert!(all.entries.len() <= 5, "{all:?}");
            assert!(all.by_name.len() <= 5, "{all:?}");
        }
    }

    #[test]
    fn indices_begin_again_without_those_in_use() {
        let before = Users { next: u32::MAX - 1, ..Users::new(vec![user("alice", 1), user("bob", 2)]).unwrap() };
        let first = before.succeed(vec![user("bob", 2), user("carol", 3), user("dave", 4)]).unwrap();
        assert_eq!(first.find_name("carol"), Some(UserIndex(u32::MAX - 1)));
        assert_eq!(
            first.find_name("dave"),
            Some(UserIndex(2)),
            "the next is nobody's, 0 was alice's before, 1 is bob's"
        );
        let second = first.succeed(vec![user("bob", 2), user("erin", 5)]).unwrap();
        let third = second.succeed(vec![user("bob", 2), user("frank", 6)]).unwrap();
        assert_eq!([second.find_name("erin"), third.find_name("frank")], [Some(UserIndex(3)), Some(UserIndex(4))]);
    }

    #[test]
    fn who_was_gone_for_longer_than_one_reload_is_a_new_user() {
        let first = Users::new(vec![user("alice", 1)]).unwrap();
        let without = first.succeed(vec![]).unwrap();
        assert_eq!((without.name(UserIndex(0)), without.find_name("alice")), ("alice", None));
        let still_without = without.succeed(vec![]).unwrap();
        assert_eq!(still_without.name(UserIndex(0)), "unknown");
        assert_eq!(still_without.succeed(vec![user("alice", 1)]).unwrap().find_name("alice"), Some(UserIndex(1)));
    }

    #[test]
    fn other_limits_change_nothing_else_and_nobody_who_is_gone() {
        let limit = |bits| Some(Limit::new(Rate::from_bits_per_s(bits).unwrap()));
        let bob = User { limit: limit(5_000), ..user("bob", 2) };
        let users = Users::new(vec![user("alice", 1), bob, user("carol", 3)]).unwrap();
        let users = users.succeed(vec![user("alice", 1), users.user(UserIndex(1)).unwrap().clone()]).unwrap();
        let other = users.with_limits([("alice", limit(1_000)), ("bob", None), ("carol", limit(1))].into_iter());
        let limits = |users: &Users| users.users().map(|(_, user)| user.limit).collect::<Vec<_>>();
        assert_eq!((limits(&users), limits(&other)), (vec![None, limit(5_000)], vec![limit(1_000), None]));
        assert_eq!((other.find(&Fingerprint([2; 32])), other.name(UserIndex(2))), (Some(UserIndex(1)), "carol"));
        let next = other.succeed(vec![user("dave", 4)]).unwrap();
        assert_eq!(next.find_name("dave"), Some(UserIndex(3)), "an index is given once");
    }

    #[test]
    fn names_and_credentials_belong_to_one_user() {
        let twice = Users::new(vec![user("alice", 1), user("alice", 2)]).unwrap_err();
        assert_eq!(twice, UsersError::DuplicateName("alice".to_owned()));
        let shared = Users::new(vec![user("alice", 1), user("bob", 1)]).unwrap_err();
        assert!(
            matches!(shared, UsersError::DuplicateCredential { first, second, .. } if first == "alice" && second == "bob")
        );
        let own = User { credentials: vec![Fingerprint([7; 32]); 2], ..user("alice", 1) };
        assert!(Users::new(vec![own]).is_err());
    }

    #[test]
    fn an_address_is_for_its_claimant_or_for_whoever_has_none_of_their_own() {
        let range = |first: &str, last: &str| AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap();
        let pool = vec![range("198.18.0.8", "198.18.0.11"), range("198.18.0.20", "198.18.0.20")];
        let users = Users::new(vec![User { pool, ..user("alice", 1) }, user("bob", 2)]).unwrap();
        let (alice, bob) = (UserIndex(0), UserIndex(1));
        for (address, by) in [
            ("198.18.0.7", bob),
            ("198.18.0.8", alice),
            ("198.18.0.11", alice),
            ("198.18.0.12", bob),
            ("198.18.0.20", alice),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                (users.allows(alice, address), users.allows(bob, address)),
                (by == alice, by == bob),
                "{address}"
            );
        }
        assert_eq!(users.claimant("fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn a_burst_is_a_second_of_rate_and_a_super_packet_at_least() {
        let rate = |bits| Rate::from_bits_per_s(bits).unwrap();
        assert_eq!(Limit::new(rate(100_000_000_000)).burst_bytes, 12_500_000_000);
        assert_eq!(Limit::new(rate(1_000)).burst_bytes, BURST_BYTES_MIN);
        assert_eq!(Limit::with_burst(rate(80_000_000), Duration::from_millis(10), 1500).burst_bytes, 100_000);
    }
}
