//! Bytes as a plan, so that a fuzzer steers the same world. Any bytes make one, and it is small: thousands of runs a minute are to fit a core.

use std::time::Duration;

use super::draw::Scale;
use super::{Features, Plan};
use crate::random::Draws;

const SMALL: Scale = Scale { shards: &[1, 2, 3, 4], users_max: 3, packets: (50, 500) };
const SAFETY: Duration = Duration::from_secs(2);
/// Devices and flows beyond those are left out.
const DEVICES_MAX: usize = 6;
const FLOWS_MAX: usize = 12;
const HASTE: u32 = 10;

impl Plan {
    /// The plan that `bytes` stand for: 8 bytes of seed, and after them what is drawn, in lanes. Where those end, the seed goes on.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut plan = Plan::draw(Draws::of_bytes(bytes), (Features::ALL, Features::of(&[])), SAFETY, SMALL);
        plan.devices.iter_mut().skip(DEVICES_MAX).for_each(|device| device.is_left_out = true);
        plan.flows.truncate(FLOWS_MAX);
        // What happens once in some seconds happens some times in two.
        let disturbances = &mut plan.disturbances;
        for every in [&mut disturbances.reload_every, &mut disturbances.kick_every, &mut disturbances.restart_every] {
            *every /= HASTE;
        }
        plan.devices.iter_mut().for_each(|device| device.pause /= HASTE);
        plan
    }
}
