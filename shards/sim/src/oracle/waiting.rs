//! Nothing that arrives is old: a packet waits for tokens no longer than it may, its sender's and its receiver's, and where nothing else holds it up,
//! the rest of its way takes a moment.

use std::time::Duration;

use tollgate_shards::Congestion;

use super::Violation;
use crate::packets::{Arrival, Place};
use crate::plan::{Feature, Plan};
use crate::schedule::Time;

/// Four packets of full size may wait at any rate: at the lowest of a run, for so long.
const WAIT_MIN: Duration = Duration::from_millis(750);
/// What links, ticks and messages between shards take at most.
const WAY: Duration = Duration::from_secs(1);

/// A shard has two passes a tick, and a pass writes a bounded number of frames: ticks as long hold packets up themselves.
const TICK_MAX: Duration = Duration::from_millis(1);

/// What may hold packets up elsewhere.
const DELAYS: [Feature; 14] = [
    // What was lost may come once more from a stranger.
    Feature::Strangers,
    Feature::Cheats,
    Feature::Rebinding,
    Feature::Queues,
    Feature::PathChanges,
    Feature::Blackouts,
    Feature::Partitions,
    Feature::Nats,
    Feature::Pauses,
    Feature::Clocks,
    Feature::Memory,
    Feature::Shell,
    Feature::Floods,
    Feature::Stalls,
];

#[derive(Debug)]
pub struct Waiting {
    /// How long a packet may wait for tokens, if all that can be told apart.
    wait_max: Option<Duration>,
}

impl Waiting {
    pub(super) fn new(plan: &Plan) -> Self {
        let is_told_apart = plan.transport.congestion == Congestion::Uncontrolled
            && plan.tick < TICK_MAX
            && !DELAYS.iter().any(|&feature| plan.features.has(feature));
        Waiting { wait_max: is_told_apart.then(|| plan.limits.waiting.wait_max.max(WAIT_MIN)) }
    }

    pub(super) fn arrived(&self, now: Time, at: Place, arrival: &Arrival) -> Result<(), Violation> {
        let Some(wait_max) = self.wait_max else { return Ok(()) };
        let ends = [arrival.from, at].iter().filter(|place| matches!(place, Place::Client(_))).count();
        let (took, took_max) = (now - arrival.made, wait_max * ends as u32 + WAY);
        if took <= took_max {
            return Ok(());
        }
        let what = format!("a packet of {} s arrives at {at:?} after {took:?}, {took_max:?} are allowed", arrival.made);
        Err(Violation::new("waiting", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Features;

    #[test]
    fn a_packet_that_arrives_too_late_is_found_where_nothing_but_a_limit_holds_it_up() {
        let mut plan = Plan::new(0, Features::of(&[Feature::Limits]), Duration::ZERO);
        plan.transport.congestion = Congestion::Uncontrolled;
        plan.limits.waiting.wait_max = Duration::from_millis(800);
        let waiting = Waiting::new(&plan);
        let arrives = |waiting: &Waiting, ms, from, at| {
            let arrival = Arrival { from, made: Time::default(), bytes: 100 };
            waiting.arrived(Time::default() + Duration::from_millis(ms), at, &arrival).is_ok()
        };
        let (tun, client, other) = (Place::Tun, Place::Client(0), Place::Client(1));
        assert!(arrives(&waiting, 1800, client, tun) && !arrives(&waiting, 1801, tun, client));
        assert!(arrives(&waiting, 2600, client, other) && !arrives(&waiting, 2601, client, other));
        plan.transport.congestion = Congestion::Cubic;
        assert!(arrives(&Waiting::new(&plan), 60_000, client, tun));
    }
}
