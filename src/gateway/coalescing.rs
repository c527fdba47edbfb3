//! How long a busy core lets work gather before it looks again, as a network card coalesces interrupts: larger batches cost less for each packet,
//! for a delay that is bounded and that an idle core does not have.
//!
//! This module neither sleeps nor reads the clock.

use std::time::{Duration, Instant};

/// A core is busy from so many inner packets a second on, both ways together. With fewer, too little gathers to be worth a wait; and what one
/// side sends only when the other has answered never gets there, and so is never held up.
const BUSY_PACKETS_PER_S: u64 = 20_000;
/// So long a core must have been busy, and so soon it is not any more.
const WINDOW: Duration = Duration::from_millis(1);

/// Decides after each pass whether, and until when, to let work gather.
#[derive(Debug)]
pub struct Coalescing {
    interval: Duration,
    window_began: Instant,
    /// Packets that had passed when the window began.
    passed_before: u64,
    is_busy: bool,
}

impl Coalescing {
    /// Lets a look follow another after `interval` at the earliest while the core is busy. Never, if that is zero.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Coalescing { interval, window_began: now, passed_before: 0, is_busy: false }
    }

    /// A pass that began at `began` is over; `passed` inner packets have passed in all since the start. Returns when to look again, or `None` for as soon
    /// as there is something. A pass that took longer than the interval is followed by the next one at once, so that a core at its limit does
    /// not wait.
    pub fn look_again(&mut self, began: Instant, passed: u64) -> Option<Instant> {
        let window = began.saturating_duration_since(self.window_began);
        if window >= WINDOW {
            let busy_packets = u128::from(BUSY_PACKETS_PER_S) * window.as_nanos() / 1_000_000_000;
            self.is_busy = u128::from(passed - self.passed_before) >= busy_packets;
            (self.window_began, self.passed_before) = (began, passed);
        }
        (self.is_busy && !self.interval.is_zero()).then(|| began + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_micros(200);

    /// Passes every 100 us in each of which `packets` pass; returns which of them are followed by a wait.
    fn waits(coalescing: &mut Coalescing, start: Instant, passes: u32, packets: u64, passed: &mut u64) -> Vec<bool> {
        (0..passes)
            .map(|pass| {
                *passed += packets;
                let began = start + pass * Duration::from_micros(100);
                let again = coalescing.look_again(began, *passed);
                assert!(again.is_none_or(|again| again == began + INTERVAL));
                again.is_some()
            })
            .collect()
    }

    #[test]
    fn a_core_waits_while_it_is_busy_and_only_then() {
        let start = Instant::now();
        let mut coalescing = Coalescing::new(INTERVAL, start);
        let mut passed = 0;
        let busy = waits(&mut coalescing, start, 50, 10, &mut passed);
        assert!(!busy[..10].contains(&true), "not before a window is over");
        assert!(!busy[12..].contains(&false), "100,000 packets a second");
        let idle = waits(&mut coalescing, start + Duration::from_millis(5), 50, 1, &mut passed);
        assert!(!idle[22..].contains(&true), "10,000 packets a second");
    }

    #[test]
    fn a_burst_after_a_silence_is_not_load() {
        let start = Instant::now();
        let mut coalescing = Coalescing::new(INTERVAL, start);
        for second in 1..10 {
            assert_eq!(coalescing.look_again(start + Duration::from_secs(second), second * 500), None);
        }
    }

    #[test]
    fn a_core_never_waits_if_it_is_told_so() {
        let start = Instant::now();
        let mut coalescing = Coalescing::new(Duration::ZERO, start);
        assert!(!waits(&mut coalescing, start, 100, 1000, &mut 0).contains(&true));
    }
}
