//! What surrounds clients and shards: outer addresses, NATs, cores and clocks that stop.

use std::time::Duration;

use super::{Feature, Plan};
use crate::gateway::GATEWAYS;

/// Most clients are behind one of so many NATs, where there are any.
const NATS_MAX: u64 = 3;
/// By how much clocks of shards differ.
const BEHIND_MAX: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Time between changes of a NAT's mind, about.
    pub nat_every: Duration,
    /// Time between pauses of cores, about.
    pub pause_every: Duration,
    /// Time between stands of clocks, about.
    pub stand_every: Duration,
    /// By how much each shard's clock is behind; nothing for those that have none here.
    pub clocks_behind: Vec<Duration>,
}

impl Plan {
    /// Where clients are, and by which address of the gateway's they reach it.
    pub(super) fn draw_outside(&mut self) {
        if self.features.has(Feature::OuterAddresses) {
            let mut random = self.draws.stream("plan.outer-addresses");
            self.devices.iter_mut().for_each(|device| device.gateway = random.index(GATEWAYS.len()));
        }
        if self.features.has(Feature::Nats) {
            let mut random = self.draws.stream("plan.nats");
            self.surroundings.nat_every = random.log_duration(Duration::from_millis(300), Duration::from_secs(20));
            let nats = random.between(1, NATS_MAX + 1) as usize;
            for device in &mut self.devices {
                let nat = random.permille(800).then(|| random.index(nats));
                device.nat = nat.filter(|_| GATEWAYS[device.gateway].is_ipv4());
            }
        }
    }

    /// How cores and their clocks stop.
    pub(super) fn draw_halts(&mut self) {
        let mut random = self.draws.stream("plan.halts");
        self.surroundings.pause_every = random.log_duration(Duration::from_secs(1), Duration::from_secs(30));
        self.surroundings.stand_every = random.log_duration(Duration::from_secs(1), Duration::from_secs(30));
        if self.features.has(Feature::Clocks) {
            self.surroundings.clocks_behind =
                (0..self.shards).map(|_| random.duration(Duration::ZERO, BEHIND_MAX)).collect();
        }
    }
}
