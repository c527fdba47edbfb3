//! What happens to the gateway: its users change, users are kicked, shards die.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::{CommandId, ConnectionKey, ShardIndex};

use super::{Event, World};
use crate::gateway::Order;
use crate::oracle::Violation;
use crate::plan::Feature;
use crate::trace::Who;

impl World {
    /// Schedules the first of everything that disturbs.
    pub(crate) fn schedule_disturbances(&mut self) {
        let every = self.plan.disturbances;
        let planned = [
            (Feature::Reload, every.reload_every, Event::Reload),
            (Feature::Kick, every.kick_every, Event::Kick),
            (Feature::Restart, every.restart_every, Event::Restart),
            (Feature::Strangers, every.strangers_every, Event::Strangers),
        ];
        for (feature, every, event) in planned {
            if self.plan.features.has(feature) {
                let after = self.disturbance.around(every);
                self.schedule.at(self.now + after, event);
            }
        }
    }

    pub(super) fn disturb_again(&mut self, every: Duration, event: Event) {
        let after = self.disturbance.around(every) + Duration::from_millis(1);
        self.schedule.at(self.now + after, event);
    }

    pub(super) fn reload(&mut self) {
        if self.is_calm {
            return;
        }
        let (snapshot, what) = self.gateway.succeed(&self.plan, &mut self.disturbance);
        self.trace.tell(self.now, Who::World, format_args!("reload: {what}"));
        self.give(Order::Apply(snapshot));
        self.disturb_again(self.plan.disturbances.reload_every, Event::Reload);
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

    pub(super) fn restart(&mut self) -> Result<(), Violation> {
        if self.is_calm {
            return Ok(());
        }
        let dead = self.disturbance.between(0, u64::from(self.plan.shards)) as u16;
        self.trace.note(self.now, Who::Shard(dead), "dies", 0);
        self.mesh.die(ShardIndex(dead));
        self.oracle.died(ShardIndex(dead));
        // What the dead shard had said of them may be lost.
        self.sent_away.values_mut().for_each(|all| all.retain(|(connection, ..)| connection.owner != ShardIndex(dead)));
        self.gateway.restart(dead, self.now);
        self.dirty_shards.retain(|&dirty| dirty != dead);
        self.touch_shard(dead);
        self.schedule.at(self.now, Event::Order(dead));
        self.disturb_again(self.plan.disturbances.restart_every, Event::Restart);
        Ok(())
    }
}
