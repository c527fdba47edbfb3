//! Faults of the host that follow each other: pauses that grow, and a bound on what the log says of them.

use std::time::{Duration, Instant};

use tracing::{info, warn};

/// From the first notification to a look at the host: changes come in groups.
const QUIET: Duration = Duration::from_millis(50);
/// The longest pause between two looks. It bounds how long the end of a fault goes unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Time without a fault after which the next one is the first of a new series.
const SERIES_GAP: Duration = Duration::from_secs(10);
/// Lines of a series that are logged at once; further ones are counted, and told in one line every [`SUMMARY_INTERVAL`].
pub const LINES_MAX: u32 = 5;
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// The series of faults under way.
#[derive(Debug)]
pub struct Recurrence {
    last: Option<Instant>,
    /// How long to wait before the next look of this series.
    pause: Duration,
    lines: u32,
    withheld: u32,
    /// When the number of withheld lines is logged.
    summary_due: Option<Instant>,
    /// Whether the log has named the fault that lasts.
    is_told: bool,
}

impl Default for Recurrence {
    fn default() -> Self {
        Recurrence { last: None, pause: QUIET, lines: 0, withheld: 0, summary_due: None, is_told: false }
    }
}

impl Recurrence {
    fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) > SERIES_GAP)
    }

    /// How long to wait before the next look.
    pub fn pause(&self, now: Instant) -> Duration {
        if self.is_over(now) { QUIET } else { self.pause }
    }

    /// A fault was found, mended or not.
    pub fn happened(&mut self, now: Instant) {
        self.pause = (2 * self.pause(now)).min(PAUSE_MAX);
        self.last = Some(now);
    }

    /// Logs what was mended.
    pub fn line(&mut self, now: Instant, line: &str) {
        self.is_told = false;
        if self.is_over(now) {
            self.lines = 0;
        }
        if self.lines >= LINES_MAX {
            self.withheld += 1;
            self.summary_due.get_or_insert(now + SUMMARY_INTERVAL);
            return;
        }
        self.lines += 1;
        warn!("{line}");
    }

    /// Logs what cannot be mended, once until something was.
    pub fn failure(&mut self, now: Instant, line: &str) {
        if !self.is_told {
            self.line(now, line);
            self.is_told = true;
        }
    }

    /// When to call [`Recurrence::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.summary_due
    }

    /// Logs how many lines were withheld, when that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.summary_due.take_if(|due| *due <= now).is_some() {
            let withheld = std::mem::take(&mut self.withheld);
            info!("the host was put right {withheld} more times: somebody keeps changing it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_begin_anew_after_a_quiet_time() {
        let (mut series, mut now) = (Recurrence::default(), Instant::now());
        let pauses = [(); 9].map(|()| {
            let pause = series.pause(now);
            series.happened(now);
            now += pause;
            pause.as_millis()
        });
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000, 2000]);
        assert_eq!(series.pause(now + SERIES_GAP + PAUSE_MAX), QUIET);
    }

    #[test]
    fn of_lines_that_follow_each_other_few_are_logged_and_the_others_are_counted() {
        let (mut series, now) = (Recurrence::default(), Instant::now());
        let say = |series: &mut Recurrence, now| {
            series.line(now, "an address was gone: put back");
            series.happened(now);
        };
        (0..LINES_MAX).for_each(|_| say(&mut series, now));
        assert_eq!((series.withheld, series.poll_timeout()), (0, None));
        (0..3).for_each(|_| say(&mut series, now));
        let due = now + SUMMARY_INTERVAL;
        assert_eq!((series.withheld, series.poll_timeout()), (3, Some(due)));
        series.handle_timeout(due);
        assert_eq!((series.withheld, series.poll_timeout()), (0, None));
        // The first of a new series is logged again.
        say(&mut series, due);
        assert_eq!(series.withheld, 0);
    }
}
