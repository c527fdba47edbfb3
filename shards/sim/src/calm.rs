//! The calm at the end of a run: who must get through, how long that may take, and the leave that all take.

use std::collections::BTreeMap;
use std::time::Duration;

use tollgate_shards::{SessionLimits, User};

use crate::client::Act;
use crate::gateway::Core;
use crate::shell::Machine;
use crate::world::{Event, World};

impl World {
    /// No fault happens from now on, and no traffic but what [`World::exchange`] sends. Of each user, as many devices as may be connected at
    /// once are wanted; the others leave.
    pub(crate) fn calm_down(&mut self) {
        self.is_calm = true;
        self.mesh.calm();
        self.gateway.calm();
        self.resume_all();
        self.gateway.cores.iter().filter_map(Core::machine).for_each(Machine::spare);
        self.end_drains();
        self.limit_sessions(SessionLimits::default());
        let wanted = self.wanted();
        for index in 0..self.devices.len() as u32 {
            let device = &mut self.devices[index as usize];
            device.up.calm();
            device.down.calm();
            device.exchanged = (0, 0);
            device.wanted = wanted.contains(&index);
            let act = if device.wanted { Act::Connect } else { Act::Close };
            self.schedule.at(self.now, Event::Device(index, act));
        }
    }

    /// The devices that must get through: all that may log in, as far as there is room for them. A user's first comes before others' second, and
    /// the last tenth is for nobody's second while some user has no device.
    fn wanted(&self) -> Vec<u32> {
        let population = &self.gateway.population;
        let users = || (0..self.plan.users.len()).filter_map(|index| Some((index, population.user(index)?)));
        let own: u64 = users().map(|(_, user)| own_addresses(user)).sum();
        let total = self.plan.tunnel_hosts().saturating_sub(own);
        let mut shared = total;
        let mut left: BTreeMap<usize, u64> = BTreeMap::new();
        let mut wanted = Vec::new();
        for is_first in [true, false] {
            let lacks = |&(index, user): &(usize, &User)| user.pool.is_empty() && !left.contains_key(&index);
            let kept = if !is_first && users().any(|user| lacks(&user)) { (total / 10).max(1) } else { 0 };
            for (index, device) in self.plan.devices.iter().enumerate() {
                let Some(user) = population.user(device.user).filter(|_| population.may_log_in(index)) else {
                    continue;
                };
                if device.is_left_out
                    || device.cheats.is_some()
                    || wanted.contains(&(index as u32))
                    || is_first && left.contains_key(&device.user)
                {
                    continue;
                }
                let allowed = user.connection_limit.map_or(u64::MAX, |limit| u64::from(limit.connections_max.get()));
                let (addresses, own) = if user.pool.is_empty() {
                    (shared - kept.min(shared), u64::MAX)
                } else {
                    (u64::MAX, own_addresses(user))
                };
                if addresses == 0 {
                    continue;
                }
                let left = left.entry(device.user).or_insert(allowed.min(own));
                if *left == 0 {
                    continue;
                }
                *left -= 1;
                shared -= u64::from(user.pool.is_empty());
                wanted.push(index as u32);
            }
        }
        wanted.sort_unstable();
        wanted
    }

    /// How long it may take until everybody has got through: old connections must time out, queues must drain.
    pub(crate) fn patience(&self) -> Duration {
        let waiting = self.plan.limits.waiting.wait_max * 10;
        self.plan.transport.idle_timeout * 4 + Duration::from_secs(150) + waiting
    }

    /// The wanted devices that have not exchanged packets both ways since it is calm.
    pub(crate) fn missing(&self) -> Vec<u32> {
        let missing = self.devices.iter().enumerate().filter_map(|(index, device)| {
            let done = !device.wanted || device.address().is_some() && device.exchanged.0 > 0 && device.exchanged.1 > 0;
            (!done).then_some(index as u32)
        });
        missing.collect()
    }

    /// What keeps the calm from its end.
    pub(crate) fn describe_missing(&self, missing: &[u32]) -> String {
        let mut words: Vec<String> = missing
            .iter()
            .map(|&index| {
                let user = self.plan.devices[index as usize].user;
                let device = &self.devices[index as usize];
                let (up, down) = device.exchanged;
                let address = device.address();
                format!(
                    "device {index} of user{user}: address {address:?}, {up} packets up, {down} down since it is calm"
                )
            })
            .collect();
        for pending in &self.gateway.pending {
            let completed: Vec<_> = self.gateway.cores.iter().map(|core| core.shard().completed().0).collect();
            words.push(format!("order {} of {} is not completed: {completed:?}", pending.id.0, pending.given));
        }
        words.join("; ")
    }

    /// Whether no connection and no message is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages_under_way() == 0 && self.gateway.cores.iter().all(|core| core.shard().owned_connections() == 0)
    }

    /// Everybody leaves.
    pub(crate) fn close_all(&mut self) {
        for index in 0..self.devices.len() as u32 {
            self.devices[index as usize].wanted = false;
            self.schedule.at(self.now, Event::Device(index, Act::Close));
        }
    }
}

fn own_addresses(user: &tollgate_shards::User) -> u64 {
    let size = |range: &tollgate_shards::AddressRange| match (range.first(), range.last()) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => u64::from(u32::from(last) - u32::from(first)) + 1,
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => (u128::from(last) - u128::from(first)) as u64 + 1,
        _ => 0,
    };
    user.pool.iter().map(size).sum()
}
