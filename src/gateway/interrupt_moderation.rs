//! Interrupt moderation of a core: how long a busy core lets work gather before it looks again, as a network card does. Larger batches cost less
//! for each packet; the delay is bounded, and an idle core has none.
//!
//! Waiting pays while packets come anyway. Senders that wait for acknowledgements themselves, like TCP with a small window on a short path, only
//! send less. So the core regularly tries some milliseconds without waiting; if more passes in several trials in a row, it stops waiting for some
//! seconds.
//!
//! The caller sleeps and reads the clock, so that tests choose the times.

use std::ops::Add;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Inner packets a second, both ways together, from which a core counts as busy. With fewer, too little gathers to be worth a wait; and an
/// exchange in which one side waits for the other never reaches this rate, and so is never delayed.
const BUSY_PACKETS_PER_S: u64 = 20_000;
/// Packets that are enough for a batch: two full sends. Beyond that a longer wait saves little.
const BATCH_PACKETS: u32 = 128;
/// Window over which the packet rate is averaged.
const WINDOW: Duration = Duration::from_millis(1);
/// Time with waiting between two trials without it, and the length of a trial.
const WAITING: Duration = Duration::from_millis(90);
const TRIAL: Duration = Duration::from_millis(10);
/// Consecutive trials that must favour no waiting, by a fifth more packets a second.
const TRIALS_MIN: u32 = 3;
/// How long a core then goes without waiting.
const SUSPENSION: Duration = Duration::from_secs(4);

/// How often and for how long work was let gather.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moderated {
    /// Waits after a pass.
    pub waits: u64,
    /// What they were to take, from the beginning of the pass on, in microseconds.
    pub wait_us: u64,
    /// Times that waiting was given up for a while because more passed without.
    pub suspensions: u64,
}

impl Add for Moderated {
    type Output = Moderated;

    fn add(self, other: Moderated) -> Moderated {
        Moderated {
            waits: self.waits + other.waits,
            wait_us: self.wait_us + other.wait_us,
            suspensions: self.suspensions + other.suspensions,
        }
    }
}

/// Decides after each pass whether, and until when, to let work gather.
#[derive(Debug)]
pub struct InterruptModeration {
    wait_max: Duration,
    window: Span,
    /// How long a batch takes to gather, as the last window went; nothing if the core was not busy.
    gathering: Duration,
    mode: Mode,
    /// Consecutive trials so far that favoured no waiting.
    trials_against: u32,
    moderated: Moderated,
}

/// What the core does while it is busy.
#[derive(Debug)]
enum Mode {
    Waiting(Span),
    Trial {
        without: Span,
        packets_per_s_with: u64,
    },
    /// No waiting until then.
    Suspended(Instant),
}

/// Some time that goes on, and the packets that had passed when it began.
#[derive(Debug, Clone, Copy)]
struct Span {
    began: Instant,
    passed: u64,
}

impl Span {
    fn packets_per_s(&self, now: Instant, passed: u64) -> u64 {
        let ns = now.saturating_duration_since(self.began).as_nanos().max(1);
        (u128::from(passed - self.passed) * 1_000_000_000 / ns) as u64
    }
}

impl InterruptModeration {
    /// Lets a look follow another after `wait_max` at the latest. If that is zero, nothing ever waits.
    pub fn new(wait_max: Duration, now: Instant) -> Self {
        let start = Span { began: now, passed: 0 };
        InterruptModeration {
            wait_max,
            window: start,
            gathering: Duration::ZERO,
            mode: Mode::Waiting(start),
            trials_against: 0,
            moderated: Moderated::default(),
        }
    }

    /// What it has come to so far.
    pub fn moderated(&self) -> Moderated {
        self.moderated
    }

    /// A pass that began at `began` is over; `passed` inner packets have passed in all since the start. Returns when to look again, or `None` for
    /// as soon as there is something. A pass that took longer than the wait is followed by the next one at once, so that a core at its limit
    /// does not wait.
    pub fn look_again(&mut self, began: Instant, passed: u64) -> Option<Instant> {
        let here = Span { began, passed };
        if began.saturating_duration_since(self.window.began) >= WINDOW {
            let packets_per_s = self.window.packets_per_s(began, passed);
            let is_busy = packets_per_s >= BUSY_PACKETS_PER_S;
            let batch =
                Duration::from_secs(BATCH_PACKETS.into()) / u32::try_from(packets_per_s.max(1)).unwrap_or(u32::MAX);
            self.gathering = if is_busy { batch.min(self.wait_max) } else { Duration::ZERO };
            self.window = here;
        }
        if self.gathering.is_zero() {
            // A trial compares what goes on without a break.
            if !matches!(self.mode, Mode::Suspended(_)) {
                self.mode = Mode::Waiting(here);
            }
            return None;
        }
        self.judge(here);
        if !matches!(self.mode, Mode::Waiting(_)) {
            return None;
        }
        self.moderated.waits += 1;
        self.moderated.wait_us += self.gathering.as_micros() as u64;
        Some(began + self.gathering)
    }

    /// Changes the mode when this one's time is over.
    fn judge(&mut self, here: Span) {
        let lasted = |span: &Span| here.began.saturating_duration_since(span.began);
        match &self.mode {
            Mode::Waiting(with) if lasted(with) >= WAITING => {
                let packets_per_s_with = with.packets_per_s(here.began, here.passed);
                self.mode = Mode::Trial { without: here, packets_per_s_with };
            }
            Mode::Trial { without, packets_per_s_with } if lasted(without) >= TRIAL => {
                let hurts = without.packets_per_s(here.began, here.passed) > packets_per_s_with / 5 * 6;
                self.trials_against = if hurts { self.trials_against + 1 } else { 0 };
                self.mode = Mode::Waiting(here);
                if self.trials_against == TRIALS_MIN {
                    self.trials_against = 0;
                    self.mode = Mode::Suspended(here.began + SUSPENSION);
                    self.moderated.suspensions += 1;
                }
            }
            Mode::Suspended(until) if here.began >= *until => self.mode = Mode::Waiting(here),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT_MAX: Duration = Duration::from_micros(400);
    const PASS: Duration = Duration::from_micros(100);

    /// A core whose passes take 100 us each.
    struct Core {
        moderation: InterruptModeration,
        now: Instant,
        passed: u64,
    }

    impl Core {
        fn new(wait_max: Duration) -> Self {
            let now = Instant::now();
            Core { moderation: InterruptModeration::new(wait_max, now), now, passed: 0 }
        }

        /// Goes on for some time. Each pass has so many packets as `packets` says of the time since the one before. Returns the longest wait, and
        /// the share of passes with one.
        fn run(&mut self, time: Duration, packets: impl Fn(Duration) -> u64) -> (Duration, f64) {
            let (end, mut since) = (self.now + time, PASS);
            let (mut longest, mut passes, mut waits) = (Duration::ZERO, 0, 0);
            while self.now < end {
                self.passed += packets(since);
                let again = self.moderation.look_again(self.now, self.passed);
                let wait = again.map_or(Duration::ZERO, |again| again - self.now);
                longest = longest.max(wait);
                passes += 1;
                waits += u32::from(!wait.is_zero());
                since = wait.max(PASS);
                self.now += since;
            }
            (longest, f64::from(waits) / f64::from(passes))
        }
    }

    /// Packets that come at an even rate, whatever becomes of them.
    fn at(packets_per_ms: u64) -> impl Fn(Duration) -> u64 {
        move |since| packets_per_ms * since.as_micros() as u64 / 1000
    }

    #[test]
    fn a_core_waits_while_it_is_busy_and_only_then() {
        let mut core = Core::new(WAIT_MAX);
        let (longest, share) = core.run(Duration::from_millis(100), at(100));
        assert!(longest == WAIT_MAX && share > 0.5, "{longest:?}, {share}");
        core.run(Duration::from_millis(3), at(10));
        assert_eq!(core.run(Duration::from_millis(100), at(10)).0, Duration::ZERO);
    }

    #[test]
    fn a_core_waits_for_a_batch_and_no_longer() {
        let mut core = Core::new(WAIT_MAX);
        core.run(Duration::from_millis(3), at(640));
        let (longest, _) = core.run(Duration::from_millis(100), at(640));
        assert!((180..250).contains(&longest.as_micros()), "200 us gather 128 packets: {longest:?}");
    }

    #[test]
    fn a_core_leaves_off_when_waiting_makes_senders_send_less_and_tries_again() {
        let mut core = Core::new(WAIT_MAX);
        // What is acknowledged in one pass is all that is there in the next.
        let window = |_| 30;
        core.run(Duration::from_millis(400), window);
        let (longest, _) = core.run(Duration::from_secs(3), window);
        assert_eq!(longest, Duration::ZERO, "300 packets in a ms without, 75 with");
        let (_, share) = core.run(Duration::from_secs(4), at(100));
        assert!(share > 0.3, "{share}");
    }

    #[test]
    fn a_core_goes_on_waiting_while_as_much_passes() {
        let mut core = Core::new(WAIT_MAX);
        for _ in 0..20 {
            let (longest, _) = core.run(Duration::from_millis(500), at(100));
            assert_eq!(longest, WAIT_MAX);
        }
    }

    #[test]
    fn a_burst_after_a_silence_is_not_load() {
        let start = Instant::now();
        let mut moderation = InterruptModeration::new(WAIT_MAX, start);
        for second in 1..10 {
            assert_eq!(moderation.look_again(start + Duration::from_secs(second), second * 500), None);
        }
    }

    #[test]
    fn a_core_never_waits_if_it_is_told_so() {
        let mut core = Core::new(Duration::ZERO);
        assert_eq!(core.run(Duration::from_millis(100), at(1000)).0, Duration::ZERO);
    }
}
