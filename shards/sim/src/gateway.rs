//! The gateway: its shards, the kernel that steers to them, the snapshots and orders that an operator sends, deaths and restarts.

mod generations;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tollgate::gateway::seat::Birth;
use tollgate_shards::{Command, CommandId, Counters, Params, Shard, ShardIndex, ShardKeys, Shards, Snapshot, Users};

use crate::by_shard::ByShard;
use crate::clock::Clock;
use crate::files::Files;
use crate::identity::{WALL_CLOCK_AT_START, shard_keys};
use crate::noise;
use crate::oracle::Violation;
use crate::plan::{Feature, LayoutPlan, Plan, ShellPlan};
use crate::population::Population;
use crate::random::Stream;
use crate::schedule::Time;
use crate::shell::steering::Map;
use crate::shell::{Machine, Shell};
use crate::world::Pause;

use generations::Processes;

pub const GATEWAY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, 1), 55555));

/// All addresses under which the gateway is reached.
pub const GATEWAYS: [SocketAddr; 4] = [GATEWAY, v4(2), v6(1), v6(2)];

const fn v4(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 0, host)), GATEWAY.port())
}

const fn v6(host: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, host)), GATEWAY.port())
}

/// The address from which the kernel sends to `remote` what names none.
pub fn default_for(remote: SocketAddr) -> SocketAddr {
    if remote.is_ipv4() { GATEWAYS[0] } else { GATEWAYS[2] }
}

pub struct Core {
    driver: Driver,
    pub(crate) pause: Option<Pause>,
    /// When the driver is to look at it next.
    pub wake: Option<Time>,
    /// Whether something has been given to it since.
    pub dirty: bool,
    /// Whether its socket takes no datagram.
    pub is_blocked: bool,
    incarnation: u32,
    /// The last order that every shard had carried out when this one's last pass was over.
    completed: CommandId,
    orders: VecDeque<(Time, Command)>,
    /// The snapshots that it goes by now, and went by when its last pass was over.
    applied: [Arc<Snapshot>; 2],
}

/// What drives a shard.
enum Driver {
    /// The simulator.
    Bare(Box<Shard>),
    /// The shell's core.
    Shell(Box<Machine>),
}

impl Core {
    pub fn shard(&self) -> &Shard {
        match &self.driver {
            Driver::Bare(shard) => shard,
            Driver::Shell(machine) => &machine.core.life.shard,
        }
    }

    pub fn shard_mut(&mut self) -> &mut Shard {
        match &mut self.driver {
            Driver::Bare(shard) => shard,
            Driver::Shell(machine) => &mut machine.core.life.shard,
        }
    }

    pub fn machine(&self) -> Option<&Machine> {
        match &self.driver {
            Driver::Bare(_) => None,
            Driver::Shell(machine) => Some(machine),
        }
    }

    pub fn machine_mut(&mut self) -> Option<&mut Machine> {
        match &mut self.driver {
            Driver::Bare(_) => None,
            Driver::Shell(machine) => Some(machine),
        }
    }

    /// The shell's core says so.
    pub fn completed(&mut self, command: CommandId) {
        self.completed = command;
    }

    fn new(shard: Shard, incarnation: u32, orders: VecDeque<(Time, Command)>, snapshot: &Arc<Snapshot>) -> Self {
        Core { incarnation, orders, ..Core::driven(Driver::Bare(Box::new(shard)), snapshot) }
    }

    fn driven(driver: Driver, snapshot: &Arc<Snapshot>) -> Self {
        Core {
            driver,
            pause: None,
            wake: None,
            dirty: false,
            is_blocked: false,
            incarnation: 0,
            completed: CommandId::default(),
            orders: VecDeque::new(),
            applied: [snapshot.clone(), snapshot.clone()],
        }
    }

    /// Those that it goes by.
    pub fn users(&self) -> &Users {
        &self.applied[0].users
    }

    fn has_order(&self, id: CommandId) -> bool {
        self.orders.iter().any(|(_, command)| id_of(command) == Some(id))
    }

    /// The snapshots that what it does in this pass may follow from.
    pub fn applied(&self) -> impl Iterator<Item = &Snapshot> {
        self.applied.iter().map(|snapshot| &**snapshot)
    }

    /// A pass is over: everything that the shard had for the outside is out.
    pub fn pass_ends(&mut self) {
        if let Driver::Bare(shard) = &self.driver {
            self.completed = shard.completed();
        }
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

pub struct Gateway {
    pub cores: ByShard<Core>,
    pub clocks: ByShard<Clock>,
    pub(crate) processes: Processes,
    /// What shards have counted whose process has ended.
    pub former: Vec<Counters>,
    /// Orders that the shards beside the homes have yet to get, in their order.
    deferred: Vec<CommandId>,
    /// The users as the operator has them.
    pub population: Population,
    /// Where reloads come from them, the operator's files.
    files: Option<Files>,
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
    /// The kernel's map, where the shell writes to it.
    map: Option<Map>,
    pub keys: ShardKeys,
    layout: LayoutPlan,
    pub params: Params,
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
        let users = Arc::new(population.users(&Users::default()));
        let handshakes = noise::handshakes(plan.features.has(Feature::Noise), &users);
        let snapshot = Arc::new(Snapshot {
            version: 0,
            users,
            isolate_clients: plan.isolate_clients,
            session_limits: population.session_limits,
            handshakes,
        });
        let has_files = plan.features.has(Feature::Files);
        let files = has_files.then(|| Files::new(&plan.draws, plan.tunnel, &population));
        let params = Params {
            shards: Shards::alone(plan.shards),
            predecessor: None,
            index: ShardIndex(0),
            tunnel: plan.tunnel,
            outer_addresses: GATEWAYS.map(|gateway| gateway.ip()).into(),
            handshake_timeout: Duration::from_secs(10),
            transport: plan.transport.clone(),
            limits: plan.limits.clone(),
            incarnation: 0,
            wall_clock: SystemTime::UNIX_EPOCH,
            seed: [0; 32],
        };
        let behind = |index| plan.surroundings.clocks_behind.get(index).copied().unwrap_or_default();
        let clocks = (0..usize::from(plan.shards)).map(|index| Clock::new(behind(index))).collect();
        let mut gateway = Gateway {
            cores: ByShard::default(),
            clocks,
            processes: Processes::alone(Shards::alone(plan.shards)),
            former: Vec::new(),
            deferred: Vec::new(),
            population,
            files,
            in_force: snapshot.clone(),
            snapshot,
            pending: Vec::new(),
            restarts: 0,
            commands: 0,
            acknowledges_early: false,
            steers: true,
            steered: BTreeMap::new(),
            map: None,
            keys: shard_keys(plan.layout.layout()),
            layout: plan.layout.clone(),
            params,
            random: Stream::new(plan.seed, "gateway"),
            steering: plan.draws.stream("steering"),
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
        for shard in self.params.shards.iter() {
            let made = self.start(shard, 0, now);
            self.cores.insert(shard, Core::new(made, 0, VecDeque::new(), &self.snapshot));
        }
        self.steered.clear();
    }

    fn start(&mut self, index: ShardIndex, incarnation: u32, now: Time) -> Shard {
        let (birth, now) = self.birth(index.0, now);
        self.born(index, incarnation, birth, now)
    }

    fn birth(&mut self, index: u16, now: Time) -> (Birth, Instant) {
        let now = self.clocks[usize::from(index)].reads(now);
        let wall_clock = SystemTime::UNIX_EPOCH + WALL_CLOCK_AT_START + now.since_start();
        (Birth { wall_clock, seed: self.random.seed() }, self.origin + now.since_start())
    }

    fn born(&self, index: ShardIndex, incarnation: u32, Birth { wall_clock, seed }: Birth, now: Instant) -> Shard {
        let params = Params { index, incarnation, wall_clock, seed, ..self.params.clone() };
        Shard::new(params, &self.keys, self.snapshot.clone(), now)
    }

    /// A shard dies and is started anew, with the newest snapshot. What it had not said by then is lost. Orders that are not acknowledged are given to
    /// it again. Where there is a core of the shell, it does all that.
    pub fn restart(&mut self, index: u16, now: Time) {
        let (birth, clock) = self.birth(index, now);
        self.restarts += 1;
        let core = &mut self.cores[usize::from(index)];
        if let Driver::Shell(machine) = &mut core.driver {
            return machine.core.begin_anew(birth, clock);
        }
        let incarnation = core.incarnation + 1;
        let shard = self.born(ShardIndex(index), incarnation, birth, clock);
        let orders = self.pending.iter().map(|pending| (now, pending.order.command(pending.id))).collect();
        self.cores[usize::from(index)] = Core::new(shard, incarnation, orders, &self.snapshot);
    }

    /// The shard that the kernel gives a run of datagrams to: that of the first one's connection ID, but for mistakes.
    pub fn steer_udp(&mut self, datagram: &[u8]) -> u16 {
        let long = datagram.first().is_some_and(|first| first & 0x80 != 0);
        let id = datagram.get(if long { 6 } else { 1 }..).unwrap_or_default();
        let process = self.processes.of(self.layout.generation_of(id));
        let place = self.layout.shard_of(id, process.count);
        self.mistaken(process.at(place.unwrap_or(0)).0)
    }

    /// The shard whose TUN queue gets a packet to `destination`, but for mistakes.
    pub fn steer_tun(&mut self, destination: IpAddr) -> u16 {
        let shard = match &self.map {
            Some(map) => map.queue_of(destination, self.params.shards.count),
            None => self.steered.get(&destination).map_or(0, |owner| owner.0),
        };
        // Where its queue is no more, another one gets it.
        let is_there = self.cores.has(ShardIndex(shard));
        self.mistaken(if is_there { shard } else { self.processes.of(None).at(0).0 })
    }

    pub fn mistaken(&mut self, shard: u16) -> u16 {
        if !self.steers {
            return 0;
        }
        if self.misrouted_permille > 0 && self.steering.permille(self.misrouted_permille) {
            let all = self.cores.indices();
            all[self.steering.between(0, all.len() as u64) as usize]
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
        self.map.as_ref().map_or(self.steered.len(), Map::set)
    }

    /// Puts the shell's cores around the shards.
    pub fn enter_shell(&mut self, plan: ShellPlan, random: [Stream; 3]) -> Shell {
        let shards = std::mem::take(&mut self.cores).into_values().filter_map(|core| match core.driver {
            Driver::Bare(shard) => Some(*shard),
            Driver::Shell(_) => None,
        });
        let shards: Vec<_> = shards.collect();
        let (shell, machines) =
            Shell::assemble(plan, random, shards, (&self.params, &self.keys), &self.snapshot, self.origin);
        self.map = Some(shell.map.clone());
        self.cores = machines
            .into_iter()
            .map(|machine| Core::driven(Driver::Shell(Box::new(machine)), &self.snapshot))
            .collect();
        shell
    }

    /// From now on an order reaches each shard after the time that `delays` says.
    pub fn fix_order_delays(&mut self, delays: Vec<Duration>) {
        assert_eq!(delays.len(), self.cores.len());
        self.fixed_order_delays = Some(delays);
    }

    /// Gives an order to every shard: to the homes' process first. Returns when it reaches each of that.
    pub fn give(&mut self, now: Time, order: Order) -> Vec<(Time, u16)> {
        self.commands += 1;
        let id = CommandId(self.commands);
        let homes = self.processes.homes;
        let arrivals = homes.iter().map(|shard| self.queue(shard, now, order.command(id))).collect();
        if self.processes.beside.is_some() {
            self.deferred.push(id);
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
            true => core.dirty || core.has_order(id),
            // Who is about to take over has nothing that could pass.
            false if core.shard().is_taking_over() => core.has_order(id),
            false => core.completed < id,
        };
        if self.deferred.contains(&id) || self.cores.iter().any(waits_for) {
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

    /// The last snapshot that was acknowledged.
    pub fn version_in_force(&self) -> u64 {
        self.in_force.version
    }

    /// The next snapshot, after some change, and what that is. `None` where the operator's files are refused: then nothing changes.
    pub fn succeed(&mut self, plan: &Plan, random: &mut Stream) -> Result<(Option<Arc<Snapshot>>, String), Violation> {
        let before = self.population.clone();
        let what = self.population.change(plan, random);
        let Some(files) = &mut self.files else { return Ok((Some(self.next_snapshot()), what)) };
        let Some(snapshot) = files.reload(&self.snapshot, &self.population)?.map(Arc::new) else {
            self.population = before;
            return Ok((None, format!("{what}, refused")));
        };
        self.snapshot = snapshot.clone();
        Ok((Some(snapshot), what))
    }

    /// The snapshot of the population as it stands.
    pub fn next_snapshot(&mut self) -> Arc<Snapshot> {
        let users = Arc::new(self.population.users(&self.snapshot.users));
        let handshakes = self.snapshot.handshakes.listing(users.clone());
        let snapshot = Arc::new(Snapshot {
            version: self.snapshot.version + 1,
            users,
            isolate_clients: self.population.isolate_clients,
            session_limits: self.population.session_limits,
            handshakes,
        });
        self.snapshot = snapshot.clone();
        snapshot
    }
}

fn id_of(command: &Command) -> Option<CommandId> {
    match *command {
        Command::Apply { id, .. } | Command::Kick { id, .. } => Some(id),
        Command::Stop | Command::Drain { .. } | Command::Resume => None,
        Command::HandOver { .. } | Command::TakeBack { .. } | Command::PredecessorGone => None,
    }
}
