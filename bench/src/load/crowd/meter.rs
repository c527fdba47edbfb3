//! What each user receives in each whole second, for who has a limit to hold against it.

use std::time::Instant;

use rustc_hash::FxHashMap;

use super::ClientPlan;

/// Both directions of every user; nothing where no user is limited.
#[derive(Debug, Default)]
pub(super) struct Meters(Vec<UserMeter>);

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
    pub fn add_up(&mut self, now: Instant, meter: u32, bytes: u64) {
        if let Some(user) = self.0.get_mut(meter as usize) {
            user.up.add(now, bytes);
        }
    }

    #[inline]
    pub fn add_down(&mut self, now: Instant, meter: u32, bytes: u64) {
        if let Some(user) = self.0.get_mut(meter as usize) {
            user.down.add(now, bytes);
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
}
