//! The gateway: its shards, the kernel that steers to them, the snapshots and orders that an operator sends, deaths and restarts.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tollgate_shards::{Command, CommandId, Params, Shard, ShardIndex, ShardKeys, Snapshot, Users};

use crate::identity::{Identity, shard_keys};
use crate::plan::Plan;
use crate::population::Population;
use crate::random::Stream;
use crate::schedule::Time;

pub const GATEWAY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, 1), 55555));

pub struct Core {
    pub shard: Shard,
    /// When the driver is to look at it next.
    pub wake: Option<Time>,
    /// Whether something has been given to it since.
    pub dirty: bool,
    incarnation: u32,
    /// The last order that every shard had carried out when this one's last pass was over.
    completed: CommandId,
    orders: VecDeque<(Time, Command)>,
    /// The snapshots that it goes by now, and went by when its last pass was over.
    applied: [Arc<Snapshot>; 2],
}

impl Core {
    fn new(shard: Shard, incarnation: u32, orders: VecDeque<(Time, Command)>, snapshot: &Arc<Snapshot>) -> Self {
        let applied = [snapshot.clone(), snapshot.clone()];
        Core { shard, wake: None, dirty: false, incarnation, completed: CommandId::default(), orders, applied }
    }

    /// The snapshots that what it does in this pass may follow from.
    pub fn applied(&self) -> impl Iterator<Item = &Snapshot> {
        self.applied.iter().map(|snapshot| &**snapshot)
    }

    /// A pass is over: everything that the shard had for the outside is out.
    pub fn pass_ends(&mut self) {
        self.completed = self.shard.completed();
        self.applied[1] = self.applied[0].clone();
    }
}

pub struct Pending {
    pub id: CommandId,
    pub given: Time,
    pub order: Order,
}

pub enum Order {
    Apply(Arc<Snapshot>),
    /// A user's connections closed.
    Kick(tollgate_shards::UserIndex),
}

impl Order {
    fn command(&self, id: CommandId) -> Command {
        match self {
            Order::Apply(snapshot) => Command::Apply { id, snapshot: snapshot.clone() },
            Order::Kick(user) => Command::Kick { id, user: *user },
        }
    }
}

pub struct Gateway {
    pub cores: Vec<Core>,
    /// The users as the operator has them.
    pub population: Population,
    pub snapshot: Arc<Snapshot>,
    /// The last snapshot that was acknowledged.
    in_force: Arc<Snapshot>,
    pub pending: Vec<Pending>,
    pub restarts: u64,
    pub commands: u64,
    /// For tests of the simulator: an order is acknowledged when it has reached every shard, whatever is still under way between them.
    pub acknowledges_early: bool,
    /// Whether the kernel steers at all; without it everything goes to shard 0.
    pub steers: bool,
    steered: BTreeMap<IpAddr, ShardIndex>,
    keys: ShardKeys,
    params: Params,
    random: Stream,
    steering: Stream,
    misrouted_permille: u32,
    order_spread: Duration,
    /// When an order reaches each shard, instead of drawn.
    fixed_order_delays: Option<Vec<Duration>>,
    origin: Instant,
}

impl Gateway {
    pub fn new(plan: &Plan, origin: Instant) -> Self {
        let population = Population::new(plan);
        let snapshot = Arc::new(Snapshot {
            version: 0,
            users: Arc::new(population.users(&Users::default())),
            isolate_clients: plan.isolate_clients,
            tls: Identity::gateway(),
        });
        let params = Params {
            shards: plan.shards,
            index: ShardIndex(0),
            tunnel: plan.tunnel,
            outer_addresses: vec![GATEWAY.ip()],
            handshake_timeout: Duration::from_secs(10),
            transport: plan.transport.clone(),
            limits: plan.limits.clone(),
            incarnation: 0,
            wall_clock: SystemTime::UNIX_EPOCH,
            seed: [0; 32],
        };
        let mut gateway = Gateway {
            cores: Vec::new(),
            population,
            in_force: snapshot.clone(),
            snapshot,
            pending: Vec::new(),
            restarts: 0,
            commands: 0,
            acknowledges_early: false,
            steers: true,
            steered: BTreeMap::new(),
            keys: shard_keys(),
            params,
            random: Stream::new(plan.seed, "gateway"),
            steering: Stream::new(plan.seed, "steering"),
            misrouted_permille: plan.disturbances.misrouted_permille,
            order_spread: plan.disturbances.order_spread,
            fixed_order_delays: None,
            origin,
        };
        gateway.start_all(Time::default());
        gateway
    }

    /// All shards are new, as after a crash of the whole gateway: the keys stay, everything else is gone.
    pub fn start_all(&mut self, now: Time) {
        let indexes = 0..self.params.shards;
        self.cores =
            indexes.map(|index| Core::new(self.start(index, 0, now), 0, VecDeque::new(), &self.snapshot)).collect();
        self.steered.clear();
    }

    fn start(&mut self, index: u16, incarnation: u32, now: Time) -> Shard {
        let wall_clock = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + now.since_start();
        let seed = self.random.seed();
        let params = Params { index: ShardIndex(index), incarnation, wall_clock, seed, ..self.params.clone() };
        Shard::new(params, &self.keys, self.snapshot.clone(), self.origin + now.since_start())
    }

    /// A shard dies and is started anew, with the newest snapshot. What it had not said by then is lost. Orders that are not acknowledged are given to
    /// it again.
    pub fn restart(&mut self, index: u16, now: Time) {
        let incarnation = self.cores[usize::from(index)].incarnation + 1;
        let shard = self.start(index, incarnation, now);
        self.restarts += 1;
        let orders = self.pending.iter().map(|pending| (now, pending.order.command(pending.id))).collect();
        self.cores[usize::from(index)] = Core::new(shard, incarnation, orders, &self.snapshot);
    }

    /// The shard that the kernel gives a run of datagrams to: that of the first one's connection ID, but for mistakes.
    pub fn steer_udp(&mut self, datagram: &[u8]) -> u16 {
        let long = datagram.first().is_some_and(|first| first & 0x80 != 0);
        let byte = datagram.get(if long { 6 } else { 1 }).copied().unwrap_or(0);
        self.mistaken(u16::from(byte) % self.params.shards)
    }

    /// The shard whose TUN queue gets a packet to `destination`, but for mistakes.
    pub fn steer_tun(&mut self, destination: IpAddr) -> u16 {
        let shard = self.steered.get(&destination).map_or(0, |owner| owner.0);
        self.mistaken(shard)
    }

    fn mistaken(&mut self, shard: u16) -> u16 {
        if !self.steers {
            return 0;
        }
        if self.misrouted_permille > 0 && self.steering.permille(self.misrouted_permille) {
            self.steering.between(0, u64::from(self.params.shards)) as u16
        } else {
            shard
        }
    }

    /// The kernel makes no mistakes any more.
    pub fn calm(&mut self) {
        self.misrouted_permille = 0;
    }

    /// The kernel is told where an inner address belongs.
    pub fn steer(&mut self, address: IpAddr, owner: Option<ShardIndex>) {
        match owner {
            Some(owner) => self.steered.insert(address, owner),
            None => self.steered.remove(&address),
        };
    }

    pub fn steered(&self) -> usize {
        self.steered.len()
    }

    /// From now on an order reaches each shard after the time that `delays` says.
    pub fn fix_order_delays(&mut self, delays: Vec<Duration>) {
        assert_eq!(delays.len(), self.cores.len());
        self.fixed_order_delays = Some(delays);
    }

    /// Gives an order to every shard. Returns when it reaches each.
    pub fn give(&mut self, now: Time, order: Order) -> Vec<(Time, u16)> {
        self.commands += 1;
        let id = CommandId(self.commands);
        let mut arrivals = Vec::new();
        for index in 0..self.params.shards {
            let after = match &self.fixed_order_delays {
                Some(delays) => delays[usize::from(index)],
                None => self.random.duration(Duration::ZERO, self.order_spread),
            };
            let core = &mut self.cores[usize::from(index)];
            let at = (now + after).max(core.orders.back().map_or(now, |&(at, _)| at));
            core.orders.push_back((at, order.command(id)));
            arrivals.push((at, index));
        }
        self.pending.push(Pending { id, given: now, order });
        arrivals
    }

    /// The next order that has reached a shard.
    pub fn next_order(&mut self, index: u16, now: Time) -> Option<Command> {
        let orders = &mut self.cores[usize::from(index)].orders;
        orders.front().filter(|(at, _)| *at <= now)?;
        let (_, command) = orders.pop_front()?;
        if let Command::Apply { snapshot, .. } = &command {
            self.cores[usize::from(index)].applied[0] = snapshot.clone();
        }
        Some(command)
    }

    /// Whether every shard has carried out every order.
    pub fn has_no_order(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next order that all shards have carried out.
    pub fn acknowledge(&mut self) -> Option<Pending> {
        let id = self.pending.first()?.id;
        let waits_for = |core: &Core| match self.acknowledges_early {
            true => core.dirty || core.orders.iter().any(|(_, command)| id_of(command) == Some(id)),
            false => core.completed < id,
        };
        if self.cores.iter().any(waits_for) {
            return None;
        }
        let pending = self.pending.remove(0);
        if let Order::Apply(snapshot) = &pending.order {
            self.in_force = snapshot.clone();
        }
        Some(pending)
    }

    /// The snapshots that some shard may go by: the last one acknowledged, and those given since.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        let given = self.pending.iter().filter_map(|pending| match &pending.order {
            Order::Apply(snapshot) => Some(&**snapshot),
            Order::Kick(_) => None,
        });
        given.chain([&*self.in_force])
    }

    /// The next snapshot, after some change.
    pub fn succeed(&mut self, plan: &Plan, random: &mut Stream) -> (Arc<Snapshot>, String) {
        let what = self.population.change(plan, random);
        (self.next_snapshot(), what)
    }

    /// The snapshot of the population as it stands.
    pub fn next_snapshot(&mut self) -> Arc<Snapshot> {
        let snapshot = Arc::new(Snapshot {
            version: self.snapshot.version + 1,
            users: Arc::new(self.population.users(&self.snapshot.users)),
            isolate_clients: self.population.isolate_clients,
            tls: self.snapshot.tls.clone(),
        });
        self.snapshot = snapshot.clone();
        snapshot
    }
}

fn id_of(command: &Command) -> Option<CommandId> {
    match *command {
        Command::Apply { id, .. } | Command::Kick { id, .. } => Some(id),
        Command::Stop => None,
    }
}
