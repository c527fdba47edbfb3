//! Seeded streams, one for each subsystem, so that a further choice in one shifts none of the others.
//!
//! This module draws nothing from the system.

use std::hash::Hasher;
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use rand_pcg::Pcg64Mcg;
use siphasher::sip::SipHasher13;

#[derive(Debug, Clone)]
pub struct Stream(Pcg64Mcg);

impl Stream {
    /// The stream called `name` of a run.
    pub fn new(seed: u64, name: &str) -> Self {
        Stream::numbered(seed, name, 0)
    }

    /// One of many of the same name.
    pub fn numbered(seed: u64, name: &str, number: u64) -> Self {
        let half = |salt: u64| {
            let mut hasher = SipHasher13::new_with_keys(seed, salt);
            hasher.write_u64(number);
            hasher.write(name.as_bytes());
            u128::from(hasher.finish())
        };
        Stream(Pcg64Mcg::new(half(1) << 64 | half(2)))
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, permille: u32) -> bool {
        self.0.random_range(0..1000) < permille
    }

    /// True in so many of a million cases.
    pub fn ppm(&mut self, ppm: u32) -> bool {
        self.0.random_range(0..1_000_000) < ppm
    }

    /// At least `low`, less than `high`; `low` if there is nothing between.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        if low >= high { low } else { self.0.random_range(low..high) }
    }

    /// An index below `count`, which is not 0.
    pub fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    /// One of `choices`, which are not none.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// From `low` to `high`, each order of magnitude as likely as another. In whole numbers, so that it is the same on every machine.
    pub fn log_uniform(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(1));
        let exponent = self.between(u64::from(low.ilog2()), u64::from(high.ilog2()) + 1);
        let floor = 1u64 << exponent;
        self.between(floor, floor.saturating_mul(2)).clamp(low, high)
    }

    /// From `low` to `high`, each order of magnitude as likely as another.
    pub fn log_duration(&mut self, low: Duration, high: Duration) -> Duration {
        Duration::from_nanos(self.log_uniform(low.as_nanos() as u64, high.as_nanos() as u64))
    }

    /// At least `low`, less than `high`.
    pub fn duration(&mut self, low: Duration, high: Duration) -> Duration {
        Duration::from_nanos(self.between(low.as_nanos() as u64, high.as_nanos() as u64))
    }

    /// Something around `mean`, from nothing to twice that.
    pub fn around(&mut self, mean: Duration) -> Duration {
        self.duration(Duration::ZERO, mean * 2)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    /// Entropy for a machine.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.fill(&mut seed);
        seed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_differ_by_seed_name_and_number() {
        let first = |mut stream: Stream| stream.seed();
        let base = first(Stream::new(1, "a"));
        assert_eq!(base, first(Stream::new(1, "a")));
        let others = [Stream::new(2, "a"), Stream::new(1, "b"), Stream::numbered(1, "a", 1)];
        assert!(others.into_iter().all(|stream| first(stream) != base));
    }

    #[test]
    fn what_is_drawn_is_within_its_bounds() {
        let mut stream = Stream::new(3, "bounds");
        for _ in 0..10_000 {
            assert!((5..1000).contains(&stream.log_uniform(5, 999)));
            assert!((7..9).contains(&stream.between(7, 9)));
        }
        assert_eq!(stream.between(4, 4), 4);
    }
}
