//! When sessions end.

use std::time::Duration;

use tollgate_shards::SessionLimits;

use super::Plan;
use crate::identity;
use crate::random::Stream;

/// How long sessions may last, in whole seconds as the files have it.
pub fn draw_session_limits(random: &mut Stream) -> SessionLimits {
    let mut seconds = |max: u64| {
        let time = Duration::from_secs(random.log_uniform(1, max));
        random.permille(600).then_some(time)
    };
    let (idle_max, length_max) = (seconds(10), seconds(40));
    SessionLimits { idle_max, length_max, ends_with_certificate: random.permille(500) }
}

impl Plan {
    /// Sessions end at deadlines, and with certificates some of which end during the run.
    pub(super) fn draw_deadlines(&mut self) {
        let mut random = self.draws.stream("plan.deadlines");
        self.session_limits = draw_session_limits(&mut random);
        let safety_s = self.safety.as_secs().max(2);
        for device in &mut self.devices {
            let after_s = random.between(1, 2 * safety_s);
            if random.permille(300) {
                device.identity = identity::ending(device.identity, after_s);
            }
        }
        self.users.iter_mut().for_each(|user| user.credentials.clear());
        self.certify();
    }
}
