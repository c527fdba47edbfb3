//! How long to wait before the next attempt to connect.

use std::fmt;
use std::time::Duration;

/// The wait after the first attempt that failed.
const DELAY_MIN: Duration = Duration::from_millis(200);
/// The wait, before it is jittered, beyond which it does not grow.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A tunnel that lasted this long is lost for a new reason.
const LASTING: Duration = Duration::from_secs(10);

/// The waits between attempts: exponential, so that a gateway that comes back is not overrun, and jittered, so that its clients do not come
/// all at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    short_lived: u32,
}

impl Backoff {
    /// The wait after an attempt that brought no tunnel. `random` is a number of which every bit is as likely set as not.
    pub fn after_failure(&mut self, random: u64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        delay(self.failures, random)
    }

    /// The wait after the loss of a tunnel that was up for `lived`: none, unless tunnels keep being lost soon after they came up.
    pub fn after_loss(&mut self, lived: Duration, random: u64) -> Duration {
        if lived >= LASTING {
            self.short_lived = 0;
        }
        self.failures = self.short_lived;
        self.short_lived = self.short_lived.saturating_add(1);
        delay(self.failures, random)
    }
}

/// A wait, for the log.
pub struct Patience(pub Duration);

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str(" at once") } else { write!(f, " in {:.1} s", self.0.as_secs_f64()) }
    }
}

/// [`DELAY_MIN`] doubled with every failure after the first, up to [`DELAY_MAX`], and then half of that to one and a half.
fn delay(failures: u32, random: u64) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let full = DELAY_MIN.saturating_mul(2u32.saturating_pow(doublings)).min(DELAY_MAX);
    full.mul_f64(0.5 + random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The random number that leaves a pause as it is.
    const EVEN: u64 = u64::MAX / 2;

    fn rounded_ms(delay: Duration) -> u64 {
        (delay.as_secs_f64() * 1000.0).round() as u64
    }

    #[test]
    fn waits_double_from_a_fifth_of_a_second_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..9).map(|_| rounded_ms(backoff.after_failure(EVEN))).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        backoff.failures = u32::MAX;
        assert_eq!(rounded_ms(backoff.after_failure(EVEN)), 10_000);
    }

    #[test]
    fn jitter_is_half_of_the_wait_either_way() {
        assert_eq!(rounded_ms(Backoff::default().after_failure(0)), 100);
        assert_eq!(rounded_ms(Backoff::default().after_failure(u64::MAX)), 300);
    }

    #[test]
    fn the_loss_of_a_lasting_tunnel_costs_no_wait_whatever_came_before() {
        let mut backoff = Backoff::default();
        for _ in 0..9 {
            backoff.after_failure(EVEN);
        }
        assert_eq!(backoff.after_loss(LASTING, EVEN), Duration::ZERO);
        assert_eq!(rounded_ms(backoff.after_failure(EVEN)), 200);
        assert_eq!(backoff.after_loss(LASTING, EVEN), Duration::ZERO);
    }

    #[test]
    fn tunnels_that_are_lost_at_once_again_and_again_are_waited_for_longer() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..4).map(|_| rounded_ms(backoff.after_loss(Duration::ZERO, EVEN))).collect();
        assert_eq!(waits, [0, 200, 400, 800]);
    }
}
