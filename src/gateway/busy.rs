//! The share of the time in which a core has work: what is left of a second when it has neither slept nor only looked.
//!
//! The caller reads the clock, so that tests choose the times.

use std::time::{Duration, Instant};

/// The share is measured over so long.
const WINDOW: Duration = Duration::from_secs(1);
/// A share is told in steps, so that small changes are none.
const STEP_PERCENT: u8 = 5;

/// How busy a core is.
#[derive(Debug)]
pub struct BusyShare {
    began: Instant,
    idle: Duration,
    /// Since when it has nothing to do.
    rests_since: Option<Instant>,
    percent: u8,
    /// That of the windows before.
    busy: Duration,
}

impl BusyShare {
    /// That of a core which has had nothing to do until `now`.
    pub fn new(now: Instant) -> Self {
        BusyShare { began: now, idle: Duration::ZERO, rests_since: None, percent: 0, busy: Duration::ZERO }
    }

    /// The core has nothing to do from `now` on.
    pub fn rests(&mut self, now: Instant) {
        self.rests_since = Some(now);
    }

    /// It goes on. Returns the share in percent, if it is another one now.
    pub fn goes_on(&mut self, now: Instant) -> Option<u8> {
        if let Some(since) = self.rests_since.take() {
            self.idle += now.saturating_duration_since(since);
        }
        let window = now.saturating_duration_since(self.began);
        if window < WINDOW {
            return None;
        }
        let busy = window.saturating_sub(self.idle);
        let percent = (busy.as_nanos() * 100 / window.as_nanos()) as u8 / STEP_PERCENT * STEP_PERCENT;
        self.busy += busy;
        (self.began, self.idle) = (now, Duration::ZERO);
        (std::mem::replace(&mut self.percent, percent) != percent).then_some(percent)
    }

    /// The time in which the core had work until `now`, in which it has.
    pub fn total(&self, now: Instant) -> Duration {
        self.busy + now.saturating_duration_since(self.began).saturating_sub(self.idle)
    }

    /// When to look again, so that a core that was busy does not count as such for as long as it sleeps.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.percent > 0).then(|| self.began + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_slept_nor_looked_is_work() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut share = BusyShare::new(start);
        for round in 0..9 {
            share.rests(at(round * 100 + 30));
            assert_eq!(share.goes_on(at(round * 100 + 100)), None);
        }
        share.rests(at(930));
        assert_eq!(share.goes_on(at(1000)), Some(30));
        assert_eq!(share.total(at(1010)), Duration::from_millis(310));
        assert_eq!(share.poll_timeout(), Some(at(2000)));
        share.rests(at(1000));
        assert_eq!(share.goes_on(at(2000)), Some(0), "it has slept for a second");
        assert_eq!(share.poll_timeout(), None);
        share.rests(at(2010));
        assert_eq!(share.goes_on(at(60_000)), None, "next to nothing is nothing");
        assert_eq!(share.goes_on(at(61_000)), Some(100));
        assert_eq!(share.total(at(61_000)), Duration::from_millis(1310));
    }
}
