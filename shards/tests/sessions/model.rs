//! A model of homes and the address allocator: the real ones on several shards, joined by one ordered queue for each pair of shards. The owners' side
//! is modelled: it attaches, believes that it holds an address when it is told so, and detaches. Every choice comes from one seed.
//!
//! The simulator's world has all of that too, and a handshake for each login. Here a login is one message, so that thousands of them race in every
//! order within a second.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use tollgate_shards::inspect::{AddressAllocator, Context, ControlPlane, Login, Routes, Topology};
use tollgate_shards::{
    AddressRange, CloseReason, ConnectionKey, ControlMessage, Fingerprint, Reconnects, ShardIndex, Shards, User, Users,
    home_of,
};

const ALLOCATOR: ShardIndex = ShardIndex(0);

pub fn credential(number: u8) -> Fingerprint {
    Fingerprint([number; 32])
}

/// The user of credential `number`, with addresses of its own, if any.
pub fn user(number: u8, pool: &[(&str, &str)]) -> User {
    let range = |&(first, last): &(&str, &str)| AddressRange::new(first.parse().unwrap(), last.parse().unwrap());
    User {
        name: format!("user{number}"),
        credentials: vec![credential(number)],
        pool: pool.iter().map(|pair| range(pair).unwrap()).collect(),
        ..User::default()
    }
}

/// A connection, from its owner's view.
#[derive(Debug, Clone, Copy)]
pub struct Owned {
    pub login: Login,
    home: ShardIndex,
    pub address: Option<IpAddr>,
    /// Its end was confirmed though it lives on: only where a fault is planted.
    lingers: bool,
}

/// A shard without packets: its control plane, and what the data plane would know.
pub struct Node {
    pub control: ControlPlane,
    pub routes: Routes,
    pub connections: BTreeMap<ConnectionKey, Owned>,
    pub version: usize,
    incarnation: u32,
    opened: u64,
}

pub struct Model {
    pub random: Pcg64Mcg,
    pub nodes: Vec<Node>,
    /// Users of every snapshot so far, by version.
    pub snapshots: Vec<Arc<Users>>,
    /// Which connection is sure to hold each address. Two are a violation.
    pub beliefs: BTreeMap<IpAddr, ConnectionKey>,
    /// The order in which the homes heard of connections.
    pub arrivals: Vec<ConnectionKey>,
    pub closed: Vec<(ConnectionKey, CloseReason)>,
    /// What went wrong first.
    pub violation: Option<String>,
    /// A fault to plant: owners confirm that a connection is gone while it still has its address.
    pub confirms_early: bool,
    /// From `from * shards + to`.
    channels: Vec<VecDeque<ControlMessage>>,
    /// How soon each channel is served, relative to others.
    weights: Vec<usize>,
    now: Instant,
    tunnel: IpNet,
}

impl Model {
    pub fn new(seed: u64, shards: u16, tunnel: &str, users: Vec<User>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = Instant::now();
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let tunnel: IpNet = tunnel.parse().unwrap();
        let users = Arc::new(Users::new(users).unwrap());
        let pairs = usize::from(shards) * usize::from(shards);
        let weights = (0..pairs).map(|_| [1, 10, 10, 100][random.random_range(0..4)]).collect();
        let nodes = (0..shards).map(|index| Node::new(index, shards, tunnel, &users, 0, 0, now)).collect();
        Model {
            random,
            nodes,
            snapshots: vec![users],
            beliefs: BTreeMap::new(),
            arrivals: Vec::new(),
            closed: Vec::new(),
            violation: None,
            confirms_early: false,
            channels: (0..pairs).map(|_| VecDeque::new()).collect(),
            weights,
            now,
            tunnel,
        }
    }

    /// A client logs in at `shard`; `None` if the shard does not know its credential.
    pub fn login(&mut self, shard: usize, credential: Fingerprint) -> Option<ConnectionKey> {
        let shards = self.nodes.len() as u16;
        let node = &mut self.nodes[shard];
        let users = &self.snapshots[node.version];
        let user = users.find(&credential)?;
        node.opened += 1;
        let generation = (u64::from(node.incarnation) << 32) + node.opened;
        let connection = ConnectionKey { owner: ShardIndex(shard as u16), slot: 0, generation };
        let login = Login { user, connection, credential, reconnects: Reconnects::default() };
        let home = home_of(users.name(user), Shards::alone(shards));
        node.connections.insert(connection, Owned { login, home, address: None, lingers: false });
        node.control
            .context
            .send(home, ControlMessage::Login { login, version: node.version as u64, address: None, age_ms: 0 });
        self.flush(shard);
        Some(connection)
    }

    /// A client goes, or the owner closes the connection. What is gone already stays so.
    pub fn disconnect(&mut self, connection: ConnectionKey) {
        let shard = usize::from(connection.owner.0);
        let Some(owned) = self.nodes[shard].connections.remove(&connection) else { return };
        self.forget_belief(connection, owned.address);
        if !owned.lingers {
            self.confirm(shard, &owned);
        }
    }

    fn confirm(&mut self, shard: usize, owned: &Owned) {
        let Login { user, connection, .. } = owned.login;
        self.nodes[shard].control.context.send(owned.home, ControlMessage::Gone { user, connection });
        self.flush(shard);
    }

    /// The users of the next snapshot. No shard has entered it yet.
    pub fn announce(&mut self, users: Vec<User>) {
        let next = self.snapshots.last().unwrap().succeed(users).unwrap();
        self.snapshots.push(Arc::new(next));
    }

    /// A shard enters its next snapshot, if there is one.
    pub fn apply_next(&mut self, shard: usize) {
        let next = self.nodes[shard].version + 1;
        let Some(users) = self.snapshots.get(next).cloned() else { return };
        let node = &mut self.nodes[shard];
        node.version = next;
        (node.control.context.version, node.control.context.users) = (next as u64, users.clone());
        for owned in self.nodes[shard].connections.values().copied().collect::<Vec<_>>() {
            let Login { user, connection, credential, .. } = owned.login;
            let allowed = owned.address.is_none_or(|address| users.allows(user, address));
            if users.find(&credential) != Some(user) || !allowed {
                self.disconnect(connection);
            }
        }
        self.with_control(shard, ControlPlane::apply);
    }

    /// A shard dies and is started anew. Of what was under way, the last part from it and the first part to it may be lost.
    pub fn restart(&mut self, shard: usize) {
        let shards = self.nodes.len();
        for owned in self.nodes[shard].connections.values().copied().collect::<Vec<_>>() {
            self.forget_belief(owned.login.connection, owned.address);
        }
        for other in 0..shards {
            let from = &mut self.channels[shard * shards + other];
            let left = self.random.random_range(0..from.len() + 1);
            from.truncate(left);
            let to = &mut self.channels[other * shards + shard];
            let lost = if self.random.random_ratio(50, 100) { self.random.random_range(0..to.len() + 1) } else { 0 };
            to.drain(..lost);
        }
        let Node { version, incarnation, .. } = self.nodes[shard];
        let version = if self.random.random_ratio(50, 100) { version } else { self.snapshots.len() - 1 };
        let users = &self.snapshots[version];
        self.nodes[shard] =
            Node::new(shard as u16, shards as u16, self.tunnel, users, version, incarnation + 1, self.now);
        self.flush(shard);
    }

    /// Delivers the oldest message of some channel. Says whether there was one.
    pub fn deliver(&mut self) -> bool {
        let weight =
            |(channel, weight): (&VecDeque<ControlMessage>, &usize)| if channel.is_empty() { 0 } else { *weight };
        let total: usize = self.channels.iter().zip(&self.weights).map(weight).sum();
        if total == 0 {
            return false;
        }
        let mut pick = self.random.random_range(0..total);
        let picked = self.channels.iter().zip(&self.weights).position(|pair| match weight(pair) {
            weight if pick < weight => true,
            weight => {
                pick -= weight;
                false
            }
        });
        let picked = picked.expect("the pick is below the sum");
        let message = self.channels[picked].pop_front().expect("an empty channel has no weight");
        self.receive(picked % self.nodes.len(), message);
        self.flush(picked % self.nodes.len());
        true
    }

    /// Delivers all that is under way.
    pub fn deliver_all(&mut self) {
        while self.deliver() {}
        for connection in self.lingering() {
            self.disconnect(connection);
        }
    }

    pub fn allocator(&self) -> &AddressAllocator {
        self.nodes[ALLOCATOR.place()].control.addresses.as_ref().expect("it is there")
    }

    /// Connections that live on though their end was confirmed.
    pub fn lingering(&self) -> Vec<ConnectionKey> {
        self.live().filter(|owned| owned.lingers).map(|owned| owned.login.connection).collect()
    }

    /// Every connection that its owner has not closed.
    pub fn live(&self) -> impl Iterator<Item = &Owned> {
        self.nodes.iter().flat_map(|node| node.connections.values())
    }

    /// A packet for `address` arrives at every shard, which follows its route, be it stale. It must reach the holder, or nobody.
    pub fn send_packet(&mut self, address: IpAddr) {
        for shard in 0..self.nodes.len() {
            let Some(connection) = self.nodes[shard].routes.find(address) else { continue };
            let owned = self.nodes[usize::from(connection.owner.0)].connections.get(&connection);
            let reached = owned.and_then(|owned| owned.address);
            if reached.is_some_and(|reached| reached != address) {
                self.fail(format!("a packet for {address} reached {owned:?}"));
            }
        }
    }

    /// Whether every limit to connections is kept at every home that can know.
    pub fn check_limits(&mut self) {
        let mut over = None;
        for node in &self.nodes {
            let users = &self.snapshots[node.version];
            for (user, session) in node.control.sessions.sessions().filter(|_| !node.control.sessions.is_recovering()) {
                let limit = users.user(user).and_then(|user| user.connection_limit);
                let judged = session.members().iter().filter(|member| member.version <= node.version as u64);
                let live = judged.filter(|member| !member.closing).count();
                if limit.is_some_and(|limit| live > limit.connections_max.get() as usize) {
                    over = Some(format!("{live} connections of {user:?}"));
                }
            }
        }
        over.into_iter().for_each(|what| self.fail(what));
    }

    /// With nothing under way, everybody agrees on who holds what, and nobody waits.
    pub fn check_at_rest(&mut self) {
        let live: BTreeMap<_, _> = self.live().map(|owned| (owned.login.connection, owned.address)).collect();
        let mut members = BTreeMap::new();
        let mut counted = (0, 0);
        for node in &self.nodes {
            counted.0 += node.control.sessions.connections();
            counted.1 += node.control.sessions.users();
            for (_, session) in node.control.sessions.sessions() {
                members.extend(session.members().iter().map(|member| (member.login.connection, member.address())));
            }
        }
        let users = self.live().map(|owned| owned.login.user).collect::<std::collections::BTreeSet<_>>().len();
        let allocator = self.allocator();
        let held: BTreeMap<_, _> =
            allocator.holdings().map(|(address, held)| (address, held.login.connection)).collect();
        let unconfirmed = allocator.holdings().filter(|(_, held)| !held.confirmed).count();
        let mut wrong = Vec::new();
        if live.values().any(Option::is_none) {
            wrong.push(format!("somebody waits for ever: {live:?}"));
        }
        if members != live || counted != (live.len(), users) {
            wrong.push(format!("homes have {members:?}, and count {counted:?}; owners have {live:?} of {users}"));
        }
        if held != self.beliefs || unconfirmed > 0 {
            wrong
                .push(format!("the allocator has {held:?}, {unconfirmed} unconfirmed; owners have {:?}", self.beliefs));
        }
        for (shard, node) in self.nodes.iter().enumerate() {
            let agrees = |(&address, &connection)| node.routes.find(address) == Some(connection);
            if node.routes.all().len() != held.len() || !held.iter().all(agrees) {
                wrong.push(format!("shard {shard} has other routes than {held:?}: {:?}", node.routes));
            }
        }
        wrong.into_iter().for_each(|what| self.fail(what));
    }

    /// With everybody gone, nothing is left anywhere.
    pub fn check_empty(&mut self) {
        for connection in self.live().map(|owned| owned.login.connection).collect::<Vec<_>>() {
            self.disconnect(connection);
        }
        self.deliver_all();
        self.check_at_rest();
        let sessions: usize = self.nodes.iter().map(|node| node.control.sessions.sessions().count()).sum();
        let held = self.allocator().held();
        if sessions > 0 || held > 0 {
            self.fail(format!("{sessions} sessions and {held} addresses are left"));
        }
    }

    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn flush(&mut self, shard: usize) {
        let shards = self.nodes.len();
        self.nodes[shard].control.context.steers.clear();
        while let Some((to, message)) = self.nodes[shard].control.context.outbox.pop_front() {
            match usize::from(to.0) {
                to if to == shard => self.receive(shard, message),
                to => self.channels[shard * shards + to].push_back(message),
            }
        }
    }

    fn receive(&mut self, shard: usize, message: ControlMessage) {
        match message {
            ControlMessage::Admit { connection, address, .. } => self.attached(connection, address),
            ControlMessage::Close { connection, reason, .. } => self.close(connection, reason),
            ControlMessage::Restarted { shard: sibling, incarnation } => {
                self.sibling_restarted(shard, sibling, incarnation)
            }
            ControlMessage::Route { address, connection } => self.nodes[shard].routes.insert(address, connection),
            ControlMessage::Unroute { address, connection } => self.nodes[shard].routes.remove(address, connection),
            ControlMessage::RoutesTold => self.nodes[shard].routes.told(),
            message => {
                if let ControlMessage::Login { login, .. } = message {
                    self.arrivals.push(login.connection);
                }
                self.with_control(shard, |control| control.handle_message(message));
            }
        }
    }

    fn attached(&mut self, connection: ConnectionKey, address: IpAddr) {
        let node = &mut self.nodes[usize::from(connection.owner.0)];
        let users = &self.snapshots[node.version];
        let Some(owned) = node.connections.get_mut(&connection) else { return };
        match owned.address {
            None if !users.allows(owned.login.user, address) => self.disconnect(connection),
            None => {
                owned.address = Some(address);
                if let Some(other) = self.beliefs.insert(address, connection) {
                    self.fail(format!("{connection:?} and {other:?} hold {address} both"));
                }
            }
            Some(has) if has == address => {}
            Some(has) => self.fail(format!("{connection:?} has {has}, and is told {address}")),
        }
    }

    fn close(&mut self, connection: ConnectionKey, reason: CloseReason) {
        let shard = usize::from(connection.owner.0);
        let Some(owned) = self.nodes[shard].connections.get_mut(&connection) else { return };
        self.closed.push((connection, reason));
        if self.confirms_early && !owned.lingers {
            owned.lingers = true;
            let owned = *owned;
            self.confirm(shard, &owned);
        } else {
            self.disconnect(connection);
        }
    }

    fn sibling_restarted(&mut self, shard: usize, sibling: ShardIndex, incarnation: u32) {
        let node = &mut self.nodes[shard];
        for owned in node.connections.values().filter(|owned| owned.home == sibling) {
            let Owned { login, address, .. } = *owned;
            let version = node.version as u64;
            node.control.context.send(sibling, ControlMessage::Login { login, version, address, age_ms: 0 });
        }
        if sibling == ALLOCATOR {
            node.routes.doubt();
        }
        self.with_control(shard, |control| control.sibling_restarted(sibling, incarnation));
    }

    fn with_control(&mut self, shard: usize, act: impl FnOnce(&mut ControlPlane)) {
        self.now += Duration::from_nanos(1);
        let control = &mut self.nodes[shard].control;
        control.context.now = self.now;
        act(control);
        self.flush(shard);
    }

    fn forget_belief(&mut self, connection: ConnectionKey, address: Option<IpAddr>) {
        if let Some(address) = address.filter(|address| self.beliefs.get(address) == Some(&connection)) {
            self.beliefs.remove(&address);
        }
    }
}

impl Node {
    fn new(
        index: u16,
        shards: u16,
        tunnel: IpNet,
        users: &Arc<Users>,
        version: usize,
        incarnation: u32,
        now: Instant,
    ) -> Self {
        let context = Context::new(Topology::alone(Shards::alone(shards)), version as u64, users.clone(), now);
        Node {
            control: ControlPlane::new(ShardIndex(index), incarnation, tunnel, 64, context),
            routes: Routes::default(),
            connections: BTreeMap::new(),
            version,
            incarnation,
            opened: 0,
        }
    }
}
