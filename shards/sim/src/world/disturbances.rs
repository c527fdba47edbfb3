//! What happens to the gateway: its users change, users are kicked, shards die.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::{CommandId, ConnectionKey, SessionLimits, ShardIndex};

use super::{Event, World};
use crate::client::Act;
use crate::gateway::Order;
use crate::oracle::Violation;
use crate::plan::Feature;
use crate::trace::Who;

impl World {
    /// Schedules the first of everything that disturbs.
    pub(crate) fn schedule_disturbances(&mut self) {
        self.schedule_breaks();
        self.schedule_drain();
        self.schedule_upgrade();
        let every = self.plan.disturbances;
        let surroundings = self.plan.surroundings.clone();
        let planned = [
            (Feature::Reload, every.reload_every, Event::Reload),
            (Feature::Kick, every.kick_every, Event::Kick),
            (Feature::Restart, every.restart_every, Event::Restart),
            (Feature::Strangers, every.strangers_every, Event::Strangers),
            (Feature::Nats, surroundings.nat_every, Event::Nat),
            (Feature::Pauses, surroundings.pause_every, Event::Pause),
            (Feature::Clocks, surroundings.stand_every, Event::Stand),
        ];
        for (feature, every, event) in planned {
            if self.plan.features.has(feature) {
                let after = self.disturbance.around(every);
                self.schedule.at(self.now + after, event);
            }
        }
        if let Some(flood) = self.plan.flood {
            self.schedule.at(self.now + flood.from, Event::Flood);
        }
        if let Some(failures) = self.plan.failures {
            self.schedule.at(self.now + failures.from, Event::Fail);
        }
        if let Some(large) = self.plan.large {
            self.schedule.at(self.now + large.every, Event::Large);
        }
        for (index, device) in (0..).zip(&self.plan.devices) {
            if let Some(cheats) = device.cheats.filter(|_| !device.is_left_out) {
                self.schedule.at(self.now + cheats.from, Event::Cheat(index));
            }
        }
    }

    pub(super) fn disturb_again(&mut self, every: Duration, event: Event) {
        let after = self.disturbance.around(every) + Duration::from_millis(1);
        self.schedule.at(self.now + after, event);
    }

    pub(super) fn reload(&mut self) -> Result<(), Violation> {
        if self.is_calm {
            return Ok(());
        }
        let (snapshot, what) = self.gateway.succeed(&self.plan, &mut self.disturbance)?;
        self.trace.tell(self.now, Who::World, format_args!("reload: {what}"));
        if let Some(snapshot) = snapshot {
            self.give(Order::Apply(snapshot));
        }
        self.disturb_again(self.plan.disturbances.reload_every, Event::Reload);
        Ok(())
    }

    /// An operator says how long sessions may last.
    pub fn limit_sessions(&mut self, limits: SessionLimits) {
        if self.gateway.population.session_limits != limits {
            self.gateway.population.session_limits = limits;
            let snapshot = self.gateway.next_snapshot();
            self.give(Order::Apply(snapshot));
        }
    }

    /// Now and then the users are to change while a device logs in.
    pub(super) fn begin_race(&mut self, index: u32) {
        let device = &self.plan.devices[index as usize];
        let is_off = self.is_calm || !self.plan.features.has(Feature::Races) || device.cheats.is_some();
        if is_off || !self.races.permille(300) {
            return;
        }
        let login = 3 * (device.up.delay + device.down.delay) + 4 * self.plan.disturbances.mesh_delay;
        let after = self.races.duration(Duration::ZERO, login + Duration::from_millis(1));
        self.schedule.at(self.now + after, Event::Race(index));
    }

    pub(super) fn race(&mut self, index: u32) {
        if self.is_calm {
            return;
        }
        let (what, is_renewed) = self.gateway.population.race(index as usize, &self.plan, &mut self.races);
        let snapshot = self.gateway.next_snapshot();
        self.trace.tell(self.now, Who::Device(index), format_args!("logs in while the users change: {what}"));
        self.give(Order::Apply(snapshot));
        if is_renewed {
            // It comes back with the new certificate before every shard knows of it.
            self.devices[index as usize].session = None;
            self.schedule.at(self.now, Event::Device(index, Act::Connect));
        }
    }

    pub(super) fn kick(&mut self) {
        if self.is_calm {
            return;
        }
        let index = self.disturbance.index(self.plan.users.len());
        if let Some(user) = self.gateway.snapshot.users.find_name(&self.plan.users[index].name) {
            self.give(Order::Kick(user));
        }
        self.disturb_again(self.plan.disturbances.kick_every, Event::Kick);
    }

    pub(crate) fn give(&mut self, order: Order) {
        self.oracle.given(self.now, &order);
        if let Order::Apply(snapshot) = &order {
            self.packets.permission.given(snapshot);
            let sessions = self.devices.iter_mut().filter_map(|device| device.session.as_mut());
            sessions.for_each(|session| session.judge(&snapshot.users));
        }
        for (at, index) in self.gateway.give(self.now, order) {
            self.schedule.at(at, Event::Order(index));
        }
    }

    /// Somebody with one of `connections` is sent away by the order `id`: what that client has sent so far must not pass once the order is
    /// acknowledged.
    pub(super) fn note_sent_away(&mut self, id: u64, connections: Vec<(ConnectionKey, IpAddr)>) {
        for (connection, address) in connections {
            let session = self.devices.iter().enumerate().find_map(|(index, device)| {
                let session = device.session.as_ref().filter(|session| session.address == Some(address))?;
                Some((connection, index as u32, session.number))
            });
            self.sent_away.entry(CommandId(id)).or_default().extend(session);
        }
    }

    pub(super) fn forbid_sent_away(&mut self, id: CommandId) {
        for (_, device, session) in self.sent_away.remove(&id).unwrap_or_default() {
            self.packets.forbid(device, session, self.on_links_max.map(|on_links_max| self.now + on_links_max));
        }
    }

    /// A shard dies and is started anew; among floods, sometimes all of them, as where the gateway is: their tokens go on.
    pub(super) fn restart(&mut self) {
        if self.is_calm {
            return;
        }
        let dead = self.disturbance.between(0, u64::from(self.plan.shards)) as u16;
        if self.shell.is_some() {
            self.doom(dead);
        } else if self.plan.flood.is_some() && self.restarts.permille(300) {
            (0..self.plan.shards).for_each(|index| self.begin_anew(index));
        } else {
            self.begin_anew(dead);
        }
        self.disturb_again(self.plan.disturbances.restart_every, Event::Restart);
    }

    /// A shard dies, and there is another one in its place.
    pub(super) fn begin_anew(&mut self, dead: u16) {
        self.trace.note(self.now, Who::Shard(dead), "dies", 0);
        self.mesh.die(ShardIndex(dead));
        self.oracle.died(self.now, ShardIndex(dead));
        // What the dead shard had said of them may be lost.
        self.sent_away.values_mut().for_each(|all| all.retain(|(connection, ..)| connection.owner != ShardIndex(dead)));
        self.hits.counters(&self.gateway.cores[usize::from(dead)].shard().counters());
        if self.gateway.cores[usize::from(dead)].pause.is_some() {
            // What came meanwhile reaches the next life.
            for from in (0..self.plan.shards).map(ShardIndex) {
                self.schedule.at(self.now, Event::Mesh(from, ShardIndex(dead)));
            }
        }
        self.gateway.restart(dead, self.now);
        self.dirty_shards.retain(|&dirty| dirty != dead);
        self.touch_shard(dead);
        self.schedule.at(self.now, Event::Order(dead));
        self.drain_anew(dead);
    }
}
