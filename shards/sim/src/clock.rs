//! A shard's clock. It is behind the true time or right, and never goes back; it may stand still for a while, and then either leap to where it
//! would be, or go on from where it stood.

use std::time::Duration;

use crate::schedule::Time;

#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    behind: Duration,
    stands: Option<Stand>,
}

#[derive(Debug, Clone, Copy)]
struct Stand {
    since: Time,
    until: Time,
    leaps: bool,
}

impl Clock {
    pub fn new(behind: Duration) -> Self {
        Clock { behind, stands: None }
    }

    /// What it shows at `now`.
    pub fn reads(&self, now: Time) -> Time {
        let at = self.stands.map_or(now, |stand| stand.since);
        Time { ns: at.ns.saturating_sub(self.behind.as_nanos() as u64) }
    }

    /// By how much it is behind at `now`.
    pub fn behind(&self, now: Time) -> Duration {
        now - self.reads(now)
    }

    /// Whether it does not move.
    pub fn stands(&self) -> bool {
        self.stands.is_some()
    }

    /// When it will show `at`.
    pub fn when(&self, at: Time) -> Time {
        let true_time = at + self.behind;
        match self.stands {
            Some(Stand { since, until, .. }) if true_time > since => true_time.max(until),
            _ => true_time,
        }
    }

    /// It stands still, and somebody has to say [`Clock::go_on`] at `until`. Where it stands already, nothing changes.
    pub fn stand(&mut self, now: Time, until: Time, leaps: bool) -> bool {
        let goes = self.stands.is_none();
        if goes {
            self.stands = Some(Stand { since: now, until, leaps });
        }
        goes
    }

    /// It goes on, if it is to by `now`. Returns by how much it leaps.
    pub fn go_on(&mut self, now: Time) -> Duration {
        let Some(Stand { since, leaps, .. }) = self.stands.take_if(|stand| stand.until <= now) else {
            return Duration::ZERO;
        };
        let stood = now - since;
        if leaps {
            return stood;
        }
        self.behind += stood;
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    #[test]
    fn a_clock_that_has_stood_leaps_or_stays_behind_and_never_goes_back() {
        for (leaps, after) in [(true, 98), (false, 68)] {
            let mut clock = Clock::new(Duration::from_millis(2));
            assert!(clock.stand(at(50), at(80), leaps) && !clock.stand(at(55), at(99), leaps));
            assert_eq!([at(50), at(79)].map(|now| clock.reads(now)), [at(48); 2]);
            assert_eq!((clock.when(at(48)), clock.when(at(49))), (at(50), at(80)));
            assert_eq!((clock.go_on(at(79)), clock.behind(at(79))), (Duration::ZERO, Duration::from_millis(31)));
            assert_eq!(clock.go_on(at(80)), Duration::from_millis(if leaps { 30 } else { 0 }));
            assert_eq!((clock.reads(at(100)), clock.when(at(after))), (at(after), at(100)));
        }
    }
}
