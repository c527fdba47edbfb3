//! What a path does to datagrams, and what users may be held to.

use std::time::Instant;

use rustc_hash::FxHashMap;
use tollgate_testkit::chance::Chance;

use super::ClientPlan;

/// Loses datagrams with a given probability, out of runs as well.
#[derive(Debug)]
pub struct Loss {
    chance: Chance,
    /// A datagram is lost when a number is below this.
    threshold: u64,
}

impl Loss {
    /// Loses a `share` of all, from 0 to 1.
    pub fn new(chance: Chance, share: f64) -> Loss {
        Loss { chance, threshold: (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64 }
    }

    /// Takes lost datagrams out of a run of datagrams of `segment_bytes` each, but for a shorter last one. Returns how many bytes are
    /// left, at the front of `run`, and how many datagrams were lost.
    #[inline]
    pub fn thin(&mut self, run: &mut [u8], segment_bytes: usize) -> (usize, u64) {
        let (mut from, mut to, mut lost) = (0, 0, 0);
        while from < run.len() {
            let end = run.len().min(from + segment_bytes.max(1));
            if self.chance.number() < self.threshold {
                lost += 1;
            } else {
                run.copy_within(from..end, to);
                to += end - from;
            }
            from = end;
        }
        (to, lost)
    }
}

/// What each user receives in each whole second, for who has a limit to hold against it. Nothing where no user is limited.
#[derive(Debug, Default)]
pub struct Meters(Vec<UserMeter>);

#[derive(Debug, Default)]
struct UserMeter {
    up: Meter,
    down: Meter,
    /// A bit for each group of traffic that one of the user's connections belongs to.
    groups: u64,
}

/// Bytes in each second since the first one.
#[derive(Debug, Default)]
struct Meter {
    begun: Option<Instant>,
    second: u64,
    bytes: u64,
    peak_bytes: u64,
}

impl Meters {
    /// Of the users of `clients`. Also says which meter is whose, by client.
    pub fn new(clients: &[ClientPlan]) -> (Meters, Vec<u32>) {
        let mut numbers: FxHashMap<u32, u32> = FxHashMap::default();
        let mut meters: Vec<UserMeter> = Vec::new();
        let of_clients = clients.iter().map(|client| {
            let meter = *numbers.entry(client.user).or_insert(meters.len() as u32);
            if meter as usize == meters.len() {
                meters.push(UserMeter::default());
            }
            meters[meter as usize].groups |= client.group.map_or(0, |group| 1 << group.min(63));
            meter
        });
        let of_clients = of_clients.collect();
        (Meters(meters), of_clients)
    }

    #[inline]
    pub fn add(&mut self, now: Instant, meter: u32, up_bytes: u64, down_bytes: u64) {
        if let Some(user) = self.0.get_mut(meter as usize) {
            user.up.add(now, up_bytes);
            user.down.add(now, down_bytes);
        }
    }

    /// The most of any user with a connection of `group`, up and down, in bytes of a whole second.
    pub fn peaks(&self, group: u8) -> (u64, u64) {
        let users = self.0.iter().filter(|user| user.groups & 1 << group.min(63) != 0);
        users.fold((0, 0), |(up, down), user| (up.max(user.up.peak_bytes), down.max(user.down.peak_bytes)))
    }
}

impl Meter {
    fn add(&mut self, now: Instant, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let begun = *self.begun.get_or_insert(now);
        let second = now.saturating_duration_since(begun).as_secs();
        if second != self.second {
            if self.second > 0 {
                self.peak_bytes = self.peak_bytes.max(self.bytes);
            }
            (self.second, self.bytes) = (second, 0);
        }
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_fullest_whole_second_counts_but_for_the_first_and_the_unfinished_one() {
        let now = Instant::now();
        let mut meter = Meter::default();
        for (ms, bytes) in [(0, 900), (1000, 10), (1999, 20), (2000, 29), (5500, 31), (5999, 1), (6000, 9999)] {
            meter.add(now + Duration::from_millis(ms), bytes);
        }
        assert_eq!(meter.peak_bytes, 32);
    }

    #[test]
    fn lost_datagrams_are_cut_out_of_a_run_whole() {
        let mut loss = Loss::new(Chance::new(3), 0.3);
        let mut lost_in_all = 0;
        for _ in 0..500 {
            // Each datagram says which one it is; the last is shorter.
            let mut run: Vec<u8> =
                (0..10).flat_map(|number: u8| vec![number; if number == 9 { 3 } else { 10 }]).collect();
            let (left, lost) = loss.thin(&mut run, 10);
            let kept: Vec<&[u8]> = run[..left].chunks(10).collect();
            assert_eq!(kept.len() as u64 + lost, 10);
            assert!(kept.is_sorted_by(|one, next| one[0] < next[0]), "in order");
            assert!(kept.iter().all(|datagram| datagram.iter().all(|byte| *byte == datagram[0])), "whole");
            lost_in_all += lost;
        }
        assert!((1250..1750).contains(&lost_in_all), "{lost_in_all} of 5000");
    }
}
