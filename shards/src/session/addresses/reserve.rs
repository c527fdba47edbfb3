//! What of the shared pool is kept for users who have no address yet, so that one user who logs in as often as it can shuts nobody out.

use std::collections::BTreeMap;

use super::pool::Pool;
use super::pool_for;
use crate::ids::UserIndex;
use crate::session::users::Users;

/// This part of the shared pool is kept, but one address at least.
const KEPT_DIVISOR: u128 = 10;

/// Who has addresses, and how many users of the shared pool have none. Holds no more users than addresses are out.
#[derive(Debug, Default)]
pub struct Reserve {
    /// Who holds addresses, of whichever pool.
    held: BTreeMap<UserIndex, Held>,
    /// Users who get their addresses from the shared pool.
    sharing: usize,
    /// Those of them who have one.
    served: usize,
}

#[derive(Debug, Default)]
struct Held {
    addresses: usize,
    /// Whether the user is one of `served`.
    is_served: bool,
}

impl Reserve {
    /// Begins with the users of `users` and what they hold.
    pub fn new(users: &Users, holders: impl Iterator<Item = UserIndex>) -> Self {
        let sharing = users.users().filter(|(_, user)| user.pool.is_empty()).count();
        let mut reserve = Reserve { sharing, ..Reserve::default() };
        holders.for_each(|user| reserve.took(users, user));
        reserve
    }

    /// A user has got an address.
    pub fn took(&mut self, users: &Users, user: UserIndex) {
        let held = self.held.entry(user).or_default();
        held.addresses += 1;
        if held.addresses == 1 && pool_for(users, user) == Some(Pool::Shared) {
            held.is_served = true;
            self.served += 1;
        }
    }

    /// An address of a user's is out no more.
    pub fn gave_back(&mut self, user: UserIndex) {
        let Some(held) = self.held.get_mut(&user) else { return };
        held.addresses -= 1;
        if held.addresses == 0 {
            self.served -= usize::from(held.is_served);
            self.held.remove(&user);
        }
    }

    /// Whether the shared pool, with `free` of `total` addresses left, has none to spare for `user`: who has one already gets no other of the
    /// last tenth while somebody has none.
    pub fn keeps_from(&self, user: UserIndex, free: u128, total: u128) -> bool {
        self.held.contains_key(&user) && self.served < self.sharing && free <= (total / KEPT_DIVISOR).max(1)
    }
}
