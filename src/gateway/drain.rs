//! Sending all clients away, and taking that back.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::core::CoreCommand;
use super::{Gateway, Status};

/// The pace at which clients are sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainPlan {
    /// After this time whoever is left goes at once.
    pub within: Duration,
    /// Clients in a second; so that the last goes at the end where there is none.
    pub rate_per_s: Option<u32>,
}

impl DrainPlan {
    /// How long it takes until so many clients are gone, if nobody is left to the end.
    fn over(self, clients: u64) -> Duration {
        let by_rate = self.rate_per_s.map(|rate| Duration::from_secs_f64(clients as f64 / f64::from(rate.max(1))));
        by_rate.unwrap_or(self.within)
    }
}

/// What a gateway is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It serves its clients, and takes new ones.
    Serving,
    /// It sends its clients away, or has done so, and takes no new ones.
    Draining,
}

impl Gateway {
    /// Takes no new clients from now on, and sends those that are here away, in place of a drain before. `status` tells how many there are. Where another
    /// process has taken over, those who do not come back by themselves stay to the end.
    pub fn begin_drain(&mut self, pace: DrainPlan, status: &Status, now: Instant) {
        let (over, to_successor) = (pace.over(status.clients()), self.successor().is_some());
        for core in &self.cores {
            core.send(CoreCommand::Drain { over, within: pace.within, to_successor });
        }
        self.drained_by = Some(now + if to_successor { pace.within } else { over.min(pace.within) });
    }

    /// Takes clients again. Returns whether it did not.
    pub fn resume(&mut self) -> bool {
        for core in &self.cores {
            core.send(CoreCommand::Resume);
        }
        self.drained_by.take().is_some()
    }

    /// What it is about.
    pub fn state(&self) -> State {
        if self.drained_by.is_some() { State::Draining } else { State::Serving }
    }

    /// How long it takes until all clients have been sent away.
    pub fn drains_for(&self, now: Instant) -> Option<Duration> {
        Some(self.drained_by?.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_all_its_time_or_what_its_rate_makes_of_it() {
        let within = Duration::from_secs(600);
        assert_eq!(DrainPlan { within, rate_per_s: None }.over(50), within);
        assert_eq!(DrainPlan { within, rate_per_s: Some(200) }.over(50), Duration::from_millis(250));
        assert_eq!(DrainPlan { within, rate_per_s: Some(1) }.over(0), Duration::ZERO);
    }
}
