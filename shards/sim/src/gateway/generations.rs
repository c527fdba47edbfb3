//! The gateway's processes: one, or for a while two, where one takes over from the other.

use std::time::Duration;

use tollgate_shards::{Command, CommandId, Generation, ShardIndex, Shards};

use super::{Core, Gateway, Order, Pending};
use crate::clock::Clock;
use crate::schedule::Time;

/// The processes, and to which of them the kernel steers.
#[derive(Debug, Clone, Copy)]
pub struct Processes {
    /// The one whose shards are homes, as orders have been given.
    pub homes: Shards,
    /// The one beside: before it or after it.
    pub beside: Option<Shards>,
    /// The one that gets whatever no ID leads elsewhere.
    steered_to: Shards,
    /// The other one, where the kernel looks at the generation in IDs.
    steered_apart: Option<Shards>,
    /// How many incarnations there were of any shard.
    incarnations: u32,
}

impl Processes {
    pub fn alone(shards: Shards) -> Self {
        Processes { homes: shards, beside: None, steered_to: shards, steered_apart: None, incarnations: 0 }
    }

    /// The process that an ID of `generation` is steered to.
    pub fn of(&self, generation: Option<Generation>) -> Shards {
        match self.steered_apart {
            Some(apart) if Some(apart.generation) == generation => apart,
            _ => self.steered_to,
        }
    }
}

impl Gateway {
    /// Another process starts beside this one, with so many shards and the newest snapshot.
    pub fn start_successor(&mut self, count: u16, now: Time) -> Shards {
        let before = self.processes.homes;
        let generation = match before.generation {
            Generation::Even => Generation::Odd,
            Generation::Odd => Generation::Even,
        };
        let shards = Shards { generation, count };
        self.processes.incarnations += 1;
        (self.params.shards, self.params.predecessor) = (shards, Some(before));
        for shard in shards.iter() {
            self.clocks.insert(shard, Clock::new(Duration::ZERO));
            let incarnation = self.processes.incarnations;
            let made = self.start(shard, incarnation, now);
            self.cores.insert(shard, Core::new(made, incarnation, Default::default(), &self.snapshot));
        }
        self.processes.beside = Some(shards);
        shards
    }

    /// The homes are those of the process beside from now on. Returns when each shard hears of it.
    pub fn hand_over(&mut self, now: Time) -> Vec<(Time, u16)> {
        let before = self.processes.homes;
        let Some(to) = self.processes.beside.replace(before) else { return Vec::new() };
        self.processes.homes = to;
        let (id, incarnation) = (self.next_id(), self.processes.incarnations);
        self.tell(before, now, &Command::HandOver { id, to, incarnation })
    }

    /// Datagrams of new clients, and of those that the other process has, are steered to the homes' process.
    pub fn steer_apart(&mut self) {
        (self.processes.steered_to, self.processes.steered_apart) = (self.processes.homes, self.processes.beside);
    }

    /// A process is gone, with all that it had. The other one hears of it at some time, and has the rest of the orders.
    pub fn process_gone(&mut self, gone: Shards, now: Time) -> Vec<(Time, u16)> {
        for shard in gone.iter() {
            self.cores.remove(shard);
        }
        let Processes { homes, beside, incarnations, .. } = self.processes;
        let (had_homes, is_newest) = (homes == gone, self.params.shards == gone);
        let left = if had_homes { beside.expect("the other one lives") } else { homes };
        self.processes = Processes { incarnations, ..Processes::alone(left) };
        (self.params.shards, self.params.predecessor) = (left, None);
        // They are for the one beside the homes.
        let mut arrivals = if had_homes { self.give_deferred(now, left) } else { Vec::new() };
        self.deferred.clear();
        if !is_newest {
            arrivals.extend(self.tell(left, now, &Command::PredecessorGone));
        } else if had_homes {
            self.processes.incarnations += 1;
            let (id, incarnation) = (self.next_id(), self.processes.incarnations);
            arrivals.extend(self.tell(left, now, &Command::TakeBack { id, incarnation }));
        }
        arrivals
    }

    fn next_id(&mut self) -> CommandId {
        self.commands += 1;
        CommandId(self.commands)
    }

    fn tell(&mut self, shards: Shards, now: Time, command: &Command) -> Vec<(Time, u16)> {
        shards.iter().map(|shard| self.queue(shard, now, command.clone())).collect()
    }

    /// An order reaches a shard some time later, after those before. Returns when.
    pub(super) fn queue(&mut self, shard: ShardIndex, now: Time, command: Command) -> (Time, u16) {
        let index = shard.0;
        let after = match &self.fixed_order_delays {
            Some(delays) => delays[usize::from(index)],
            None => self.random.duration(Duration::ZERO, self.order_spread),
        };
        let core = &mut self.cores[usize::from(index)];
        let at = (now + after).max(core.orders.back().map_or(now, |&(at, _)| at));
        core.orders.push_back((at, command));
        (at, index)
    }

    /// What the homes' process has carried out goes to the other one, order by order. Returns when.
    pub fn poll_deferred(&mut self, now: Time) -> Vec<(Time, u16)> {
        let Some(beside) = self.processes.beside else { return Vec::new() };
        let waits = |core: &Core| core.orders.iter().any(|(_, command)| super::id_of(command).is_some());
        let homes = self.processes.homes;
        if self.deferred.is_empty() || homes.iter().any(|shard| waits(&self.cores[usize::from(shard.0)])) {
            return Vec::new();
        }
        self.give_deferred(now, beside)
    }

    fn give_deferred(&mut self, now: Time, to: Shards) -> Vec<(Time, u16)> {
        let mut arrivals = Vec::new();
        for id in std::mem::take(&mut self.deferred) {
            let Some(command) = self.pending.iter().find(|pending| pending.id == id).map(Pending::command) else {
                continue;
            };
            arrivals.extend(self.tell(to, now, &command));
        }
        arrivals
    }

    /// Whether every home has its memory, every owner is attached and every order has arrived.
    pub fn is_settled(&self) -> bool {
        let is_settled = |core: &Core| core.orders.is_empty() && core.shard().inspect().is_settled();
        self.deferred.is_empty() && self.cores.iter().all(is_settled)
    }
}

impl Pending {
    fn command(&self) -> Command {
        self.order.command(self.id)
    }
}

impl Order {
    pub(super) fn command(&self, id: CommandId) -> Command {
        match self {
            Order::Apply(snapshot) => Command::Apply { id, snapshot: snapshot.clone() },
            Order::Kick(user) => Command::Kick { id, user: *user },
        }
    }
}
