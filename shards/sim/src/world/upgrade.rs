//! The gateway is upgraded: another process starts, takes over the homes and then new clients, and the one before it drains and ends. Either may be killed
//! on the way; then the other one serves.

use std::sync::Arc;
use std::time::Duration;

use tollgate_shards::{Shards, Snapshot, User, Users};

use super::drain::DrainTimes;
use super::{Event, World};
use crate::gateway::Order;
use crate::plan::Feature;
use crate::schedule::Time;
use crate::trace::Who;

/// How soon somebody looks again whether the next step may be taken.
const AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// A process of so many shards starts.
    Start(u16),
    HandOver,
    /// The kernel steers new clients to the new process, and the old one drains.
    TakeClients(DrainTimes),
    /// The old process ends.
    End,
    /// One of the two is killed: the new one, or the old one.
    Kill {
        is_new: bool,
    },
}

/// How far an upgrade has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Started,
    HandedOver,
    Steered,
    Over,
}

/// Two processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upgrade {
    old: Shards,
    new: Shards,
    stage: Stage,
}

impl World {
    pub(super) fn schedule_upgrade(&mut self) {
        if !self.plan.features.has(Feature::Upgrade) {
            return;
        }
        let mut random = self.plan.draws.stream("upgrade");
        let start = self.now + random.duration(Duration::ZERO, self.plan.safety);
        self.schedule.at(start, Event::Upgrade(Step::Start(random.pick(&[1, 2, 3, 4, 5, 8]))));
        let fate = random.between(0, 4);
        // Somewhere on the way.
        let after = random.log_duration(Duration::from_micros(10), Duration::from_secs(10));
        if fate < 2 {
            self.schedule.at(start + after, Event::Upgrade(Step::Kill { is_new: fate == 0 }));
        }
        let ready = start + random.log_duration(Duration::from_micros(10), Duration::from_secs(1));
        let steered = ready + random.log_duration(Duration::from_micros(10), Duration::from_secs(1));
        self.schedule.at(ready, Event::Upgrade(Step::HandOver));
        self.schedule.at(steered, Event::Upgrade(Step::TakeClients(DrainTimes::draw(&mut random).to_successor())));
        self.schedule.at(steered, Event::Upgrade(Step::End));
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Whether nothing is on the way from one process to the other.
    pub(crate) fn is_settled(&self) -> bool {
        self.upgrade.is_none() || self.gateway.is_settled()
    }

    /// Takes a step, if that may be by now, or looks again later.
    pub(super) fn upgrade(&mut self, step: Step) {
        let stage = self.upgrade.map(|upgrade| upgrade.stage);
        let may_be = match (step, stage) {
            (_, None) if self.is_calm => return,
            (Step::Kill { .. }, _) if self.is_calm => return,
            (_, Some(Stage::Over)) => return,
            (Step::Start(_), None) => self.gateway.has_no_order() && self.gateway.is_settled(),
            (Step::HandOver, Some(Stage::Started)) => self.gateway.has_no_order(),
            (Step::TakeClients(_), Some(Stage::HandedOver)) => self.has_taken_over(),
            (Step::End, Some(Stage::Steered)) => self.is_drained(),
            (Step::Kill { .. }, Some(_)) => true,
            _ => false,
        };
        match step {
            _ if !may_be => self.schedule.at(self.now + AGAIN, Event::Upgrade(step)),
            Step::Start(count) => self.start_successor(count),
            Step::HandOver => self.hand_over(),
            Step::TakeClients(times) => {
                self.steer_to_successor();
                let old = self.upgrade.expect("it is under way").old;
                old.iter().for_each(|shard| self.schedule.at(self.now, Event::Drain(shard.0, Some(times))));
            }
            Step::End => self.end_predecessor(),
            Step::Kill { is_new: true } => self.kill_successor(),
            Step::Kill { is_new: false } => self.kill_predecessor(),
        }
    }

    /// The process that new clients come to, and that takes orders.
    pub(super) fn serving(&self) -> Shards {
        match self.upgrade {
            Some(Upgrade { old, stage: Stage::Started | Stage::HandedOver, .. }) => old,
            Some(Upgrade { new, stage: Stage::Steered, .. }) => new,
            _ => self.gateway.processes.homes,
        }
    }

    /// A process of `count` shards starts beside the gateway's. It has nothing to do yet.
    pub fn start_successor(&mut self, count: u16) {
        let old = self.gateway.processes.homes;
        let new = self.gateway.start_successor(count, self.now);
        self.trace.note(self.now, Who::World, "another process starts", count.into());
        self.upgrade = Some(Upgrade { old, new, stage: Stage::Started });
        new.iter().for_each(|shard| self.touch_shard(shard.0));
    }

    /// Whichever process starts next has the users in another order, and each as `change` makes it.
    pub fn change_users(&mut self, change: impl Fn(&mut User)) {
        let Snapshot { version, users, isolate_clients, session_limits, handshakes } = &*self.gateway.snapshot;
        let mut users: Vec<User> = users.users().map(|(_, user)| user.clone()).collect();
        users.reverse();
        users.iter_mut().for_each(change);
        let users = Arc::new(Users::new(users).expect("they were users before"));
        let (version, isolate_clients, session_limits) = (version + 1, *isolate_clients, *session_limits);
        let handshakes = handshakes.clone();
        self.gateway.snapshot = Arc::new(Snapshot { version, users, isolate_clients, session_limits, handshakes });
        self.oracle.given(self.now, &Order::Apply(self.gateway.snapshot.clone()));
    }

    /// The new process is ready: the homes go over to it.
    pub fn hand_over(&mut self) {
        self.trace.note(self.now, Who::World, "the homes go over", 0);
        self.enter(Stage::HandedOver);
        self.oracle.upgraded(self.now, self.upgrade.expect("it is under way").new);
        let arrivals = self.gateway.hand_over(self.now);
        self.schedule_arrivals(arrivals);
    }

    /// Whether every shard of the new process has what the old one has told.
    pub fn has_taken_over(&self) -> bool {
        let new = self.upgrade.expect("it is under way").new;
        new.iter().all(|shard| !self.gateway.cores[usize::from(shard.0)].shard().is_taking_over())
    }

    /// New clients come to the new process from now on.
    pub fn steer_to_successor(&mut self) {
        self.trace.note(self.now, Who::World, "new clients come to the new process", 0);
        self.enter(Stage::Steered);
        self.gateway.steer_apart();
    }

    /// Whether nobody is left at the old process, and all that it has said has arrived.
    pub fn is_drained(&self) -> bool {
        let Upgrade { old, .. } = self.upgrade.expect("it is under way");
        let has_left = old.iter().all(|shard| self.shard(shard.0).owned_connections() == 0);
        has_left && !self.mesh.carries_from(old) && self.gateway.is_settled()
    }

    /// The old process ends, and leaves nobody behind.
    pub fn end_predecessor(&mut self) {
        let old = self.upgrade.expect("it is under way").old;
        for shard in old.iter() {
            self.gateway.former.push(self.shard(shard.0).counters());
            self.oracle.ended(shard);
        }
        self.process_gone(old);
    }

    pub fn kill_predecessor(&mut self) {
        let old = self.upgrade.expect("it is under way").old;
        self.kill_process(old);
    }

    pub fn kill_successor(&mut self) {
        let Upgrade { old, new, stage } = self.upgrade.expect("it is under way");
        self.kill_process(new);
        if stage == Stage::Steered {
            // Whom it was about to send away may stay.
            old.iter().for_each(|shard| self.schedule.at(self.now, Event::Drain(shard.0, None)));
        }
    }

    fn kill_process(&mut self, dead: Shards) {
        for shard in dead.iter() {
            self.trace.note(self.now, Who::Shard(shard.0), "dies", 0);
            self.oracle.died(self.now, shard);
            self.sent_away.values_mut().for_each(|all| all.retain(|(connection, ..)| connection.owner != shard));
            self.hits.counters(&self.shard(shard.0).counters());
            self.gateway.restarts += 1;
        }
        self.process_gone(dead);
    }

    fn process_gone(&mut self, gone: Shards) {
        self.enter(Stage::Over);
        self.mesh.cut(gone);
        self.dirty_shards.retain(|&dirty| !gone.iter().any(|shard| shard.0 == dirty));
        gone.iter().for_each(|shard| _ = self.draining.remove(shard));
        let arrivals = self.gateway.process_gone(gone, self.now);
        self.oracle.upgraded(self.now, self.gateway.processes.homes);
        self.schedule_arrivals(arrivals);
    }

    fn enter(&mut self, stage: Stage) {
        self.upgrade.as_mut().expect("it is under way").stage = stage;
    }

    pub(super) fn schedule_arrivals(&mut self, arrivals: Vec<(Time, u16)>) {
        for (at, index) in arrivals {
            self.schedule.at(at, Event::Order(index));
        }
    }
}
