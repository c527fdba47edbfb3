//! The most that a user moves in a second.

use std::time::Instant;

use rustc_hash::FxHashMap;

/// What each user moves one way in each whole second, to be held against a limit. The first second of each does not count, as a full bucket
/// may empty in it.
#[derive(Debug, Default)]
pub struct Meters {
    users: FxHashMap<u32, Meter>,
    pub peak_bytes: u64,
}

#[derive(Debug)]
struct Meter {
    begun: Instant,
    second: u64,
    bytes: u64,
}

impl Meters {
    pub fn add(&mut self, now: Instant, user: u32, bytes: u64) {
        let meter = self.users.entry(user).or_insert(Meter { begun: now, second: 0, bytes: 0 });
        let second = now.saturating_duration_since(meter.begun).as_secs();
        if second != meter.second {
            if meter.second > 0 {
                self.peak_bytes = self.peak_bytes.max(meter.bytes);
            }
            (meter.second, meter.bytes) = (second, 0);
        }
        meter.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_fullest_whole_second_counts_but_for_the_first_and_the_unfinished_one() {
        let (now, mut meters) = (Instant::now(), Meters::default());
        for (ms, bytes) in [(0, 900), (1000, 10), (1999, 20), (2000, 29), (5500, 31), (5999, 1), (6000, 9999)] {
            meters.add(now + Duration::from_millis(ms), 1, bytes);
            meters.add(now + Duration::from_millis(ms), 2, 1);
        }
        assert_eq!(meters.peak_bytes, 32);
    }
}
