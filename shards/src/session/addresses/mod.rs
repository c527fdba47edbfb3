//! The address allocator: which address is whose, in one place for all shards.
//!
//! The tunnel network's pool and the users' own must never hand out one address twice, and "lowest free first" is a property of a whole pool, so
//! one shard answers for all of them. It is asked once a connection.
//!
//! The allocator is also the one who tells every shard the routes. Channels between two shards keep their order, so what a shard hears of one
//! address is in the order in which the address changed hands, whichever homes it went through.
//!
//! This module never closes a connection, and takes no address away: homes give them back.

mod pool;
mod reserve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::ids::{ConnectionKey, Fingerprint, ShardIndex, UserIndex};
use crate::session::context::Context;
use crate::session::message::{ControlMessage, Login, Refusal};
use crate::session::users::Users;

use pool::{FreeAddresses, Pool};
use reserve::Reserve;

/// Where the kernel is to steer an inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteeringUpdate {
    pub address: IpAddr,
    /// The shard whose TUN queue gets its packets from now on; `None` when the address is free.
    pub owner: Option<ShardIndex>,
}

/// An address that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Who has logged in, and where.
    pub login: Login,
    /// Where its session is.
    pub home: ShardIndex,
    /// Whether the home knows. One that has lost its memory has yet to say.
    pub confirmed: bool,
}

/// A home's question that cannot be answered yet.
#[derive(Debug)]
struct Early {
    login: Login,
    home: ShardIndex,
    version: u64,
}

/// The allocator of all addresses of a gateway. Time for an address is logarithmic in how many are out.
#[derive(Debug)]
pub struct AddressAllocator {
    incarnation: u32,
    tunnel: IpNet,
    free: FreeAddresses,
    held: BTreeMap<IpAddr, Holding>,
    reserve: Reserve,
    /// The address of each connection in `held`.
    of_connection: FxHashMap<ConnectionKey, IpAddr>,
    remembered: FxHashMap<Fingerprint, IpAddr>,
    remembered_order: VecDeque<Fingerprint>,
    remembered_max: usize,
    /// Homes that have yet to say what they hold, where the allocator has lost its memory.
    awaited: BTreeSet<ShardIndex>,
    /// Whether it tells no route until all have.
    is_silent: bool,
    /// No more than connections that wait for an address.
    early: VecDeque<Early>,
}

impl AddressAllocator {
    /// All addresses of `tunnel` but the network's, the broadcast and the gateway's own are free.
    pub fn new(tunnel: IpNet, users: &Users, remembered_max: usize) -> Self {
        AddressAllocator {
            incarnation: 0,
            tunnel,
            free: FreeAddresses::new(tunnel, users),
            held: BTreeMap::new(),
            reserve: Reserve::new(users, std::iter::empty()),
            of_connection: FxHashMap::default(),
            remembered: FxHashMap::default(),
            remembered_order: VecDeque::new(),
            remembered_max,
            awaited: BTreeSet::new(),
            is_silent: false,
            early: VecDeque::new(),
        }
    }

    /// In this `incarnation` it has no memory: it answers when all of `homes` have said what they hold.
    #[must_use]
    pub fn recovering(self, incarnation: u32, homes: impl Iterator<Item = ShardIndex>) -> Self {
        AddressAllocator { incarnation, awaited: homes.collect(), ..self }
    }

    /// Likewise, where another shard allocated before: until then it tells no route. What that one has told last may still be under way.
    #[must_use]
    pub fn succeeding(self, incarnation: u32, homes: impl Iterator<Item = ShardIndex>) -> Self {
        AddressAllocator { is_silent: true, ..self.recovering(incarnation, homes) }
    }

    /// Who had which address, the oldest first.
    pub fn remembered(&self) -> Vec<(Fingerprint, IpAddr)> {
        let order = self.remembered_order.iter();
        order.filter_map(|credential| Some((*credential, *self.remembered.get(credential)?))).collect()
    }

    /// [`ControlMessage::Remembered`]: a former allocator tells who had which address.
    pub fn remember_all(&mut self, addresses: &[(Fingerprint, IpAddr)]) {
        addresses.iter().for_each(|&(credential, address)| self.remember(credential, address));
    }

    #[cfg(feature = "inspect")]
    pub fn state(&self) -> &'static str {
        match (self.awaited.is_empty(), self.early.is_empty()) {
            (false, _) => "recovering",
            (true, false) => "behind",
            (true, true) => "up_to_date",
        }
    }

    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// How many addresses of the pool for all users are free, and how many it has in all.
    pub fn shared(&self) -> (u128, u128) {
        self.free.shared()
    }

    pub fn holdings(&self) -> impl Iterator<Item = (IpAddr, &Holding)> {
        self.held.iter().map(|(&address, holding)| (address, holding))
    }

    /// How many ranges the free addresses lie in: what time and memory depend on.
    pub fn free_ranges(&self) -> usize {
        self.free.ranges()
    }

    /// [`ControlMessage::AllocateAddress`]: answers the home of `login`, now or when it can: not before the allocator has the snapshot `version`, the home's.
    pub fn allocate(&mut self, context: &mut Context, login: Login, home: ShardIndex, version: u64) {
        if !self.awaited.is_empty() || version > context.version {
            return self.early.push_back(Early { login, home, version });
        }
        let address = match self.find(login) {
            Some(address) => Ok(address),
            None => self.choose(&context.users, &login),
        };
        if let Ok(address) = address
            && !self.held.contains_key(&address)
        {
            self.insert(context, login, address, home);
        }
        context.send(home, ControlMessage::AddressAllocated { login, address });
    }

    /// [`ControlMessage::ReleaseAddress`]: takes an address back and remembers who had it. Says whether `login` held it; if not, nothing changes.
    pub fn release(&mut self, context: &mut Context, login: Login, address: IpAddr) -> bool {
        let holds = self.held.get(&address).is_some_and(|holding| holding.login.connection == login.connection);
        if holds {
            self.remove(context, address);
        }
        holds
    }

    /// [`ControlMessage::HoldAddress`]: a home says that `login` has an address: one that the home has moved there from another connection, or that the
    /// allocator has forgotten. Says whether that can be; if not, as when another home has the address, nothing changes.
    pub fn hold(&mut self, context: &mut Context, login: Login, address: IpAddr, home: ShardIndex) -> bool {
        match self.held.get_mut(&address) {
            Some(holding) if holding.home != home => return false,
            Some(holding) if holding.login.connection == login.connection => holding.confirmed = true,
            Some(holding) => {
                let former = std::mem::replace(holding, Holding { login, home, confirmed: true });
                self.reserve.gave_back(former.login.user);
                self.reserve.took(&context.users, login.user);
                self.of_connection.remove(&former.login.connection);
                self.of_connection.insert(login.connection, address);
                self.tell(context, address, login.connection);
            }
            None => {
                if let Some(pool) = self.free.pool_of(&context.users, address) {
                    self.free.take(pool, address);
                }
                self.insert(context, login, address, home);
            }
        }
        true
    }

    /// [`ControlMessage::Held`]: a home has said all that it holds. What it did not say after it had lost its memory is free.
    pub fn home_held(&mut self, context: &mut Context, home: ShardIndex, allocator_incarnation: u32) {
        if allocator_incarnation != self.incarnation {
            return;
        }
        let forgotten = |holding: &Holding| holding.home == home && !holding.confirmed;
        let forgotten = self.held.iter().filter(|(_, holding)| forgotten(holding));
        for address in forgotten.map(|(&address, _)| address).collect::<Vec<_>>() {
            self.remove(context, address);
        }
        if self.awaited.remove(&home) && self.awaited.is_empty() {
            if std::mem::take(&mut self.is_silent) {
                context.topology.all().for_each(|shard| self.tell_all(context, shard));
            }
            context.broadcast(|| ControlMessage::RoutesTold);
            self.answer_early(context);
        }
    }

    /// [`ControlMessage::Restarted`]: another shard has lost its memory. It is told every route; what it held as a home stays held until it has said
    /// what of that it still holds.
    pub fn shard_restarted(&mut self, context: &mut Context, shard: ShardIndex) {
        self.early.retain(|early| early.home != shard);
        self.held.values_mut().for_each(|holding| holding.confirmed &= holding.home != shard);
        self.tell_all(context, shard);
    }

    fn tell_all(&self, context: &mut Context, shard: ShardIndex) {
        for (&address, holding) in &self.held {
            let connection = holding.login.connection;
            context.send(shard, ControlMessage::Route { address, connection });
        }
    }

    /// Another snapshot is in force. Addresses that are held stay so, whatever pool they belong to now.
    pub fn apply(&mut self, context: &mut Context) {
        self.free = FreeAddresses::new(self.tunnel, &context.users);
        for &address in self.held.keys() {
            if let Some(pool) = self.free.pool_of(&context.users, address) {
                self.free.take(pool, address);
            }
        }
        self.reserve = Reserve::new(&context.users, self.held.values().map(|holding| holding.login.user));
        self.answer_early(context);
    }

    fn answer_early(&mut self, context: &mut Context) {
        for Early { login, home, version } in std::mem::take(&mut self.early) {
            self.allocate(context, login, home, version);
        }
    }

    /// The address that a connection has already: its home asks again after it, or the allocator, has lost its memory.
    fn find(&mut self, login: Login) -> Option<IpAddr> {
        let address = *self.of_connection.get(&login.connection)?;
        self.held.get_mut(&address)?.confirmed = true;
        Some(address)
    }

    /// Takes an address for a client: the one it had last, if that is free, else the lowest.
    fn choose(&mut self, users: &Users, login: &Login) -> Result<IpAddr, Refusal> {
        let pool = pool_for(users, login.user).ok_or(Refusal::Exhausted)?;
        let (free, total) = self.free.shared();
        if pool == Pool::Shared && free > 0 && self.reserve.keeps_from(login.user, free, total) {
            return Err(Refusal::Reserved);
        }
        match self.remembered.get(&login.credential) {
            Some(&last) if self.free.take(pool, last) => Ok(last),
            _ => self.free.take_lowest(pool).ok_or(Refusal::Exhausted),
        }
    }

    fn insert(&mut self, context: &mut Context, login: Login, address: IpAddr, home: ShardIndex) {
        self.held.insert(address, Holding { login, home, confirmed: true });
        self.reserve.took(&context.users, login.user);
        self.of_connection.insert(login.connection, address);
        self.tell(context, address, login.connection);
    }

    /// Every shard learns who has an address now, and the kernel.
    fn tell(&self, context: &mut Context, address: IpAddr, connection: ConnectionKey) {
        context.steers.push_back(SteeringUpdate { address, owner: Some(connection.owner) });
        if !self.is_silent {
            context.broadcast(|| ControlMessage::Route { address, connection });
        }
    }

    fn remove(&mut self, context: &mut Context, address: IpAddr) {
        let Some(Holding { login, .. }) = self.held.remove(&address) else { return };
        self.reserve.gave_back(login.user);
        let connection = login.connection;
        if self.of_connection.get(&connection) == Some(&address) {
            self.of_connection.remove(&connection);
        }
        if let Some(pool) = self.free.pool_of(&context.users, address) {
            self.free.put_back(pool, address);
        }
        self.remember(login.credential, address);
        context.steers.push_back(SteeringUpdate { address, owner: None });
        context.broadcast(|| ControlMessage::Unroute { address, connection });
    }

    fn remember(&mut self, credential: Fingerprint, address: IpAddr) {
        if self.remembered.insert(credential, address).is_none() {
            self.remembered_order.push_back(credential);
            if self.remembered_order.len() > self.remembered_max {
                self.remembered_order.pop_front().and_then(|oldest| self.remembered.remove(&oldest));
            }
        }
    }
}

fn pool_for(users: &Users, user: UserIndex) -> Option<Pool> {
    users.user(user).map(|configured| if configured.pool.is_empty() { Pool::Shared } else { Pool::Own(user) })
}
