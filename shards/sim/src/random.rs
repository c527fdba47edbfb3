//! Seeded streams, one for each subsystem, so that a further choice in one shifts none of the others.
//!
//! This module draws nothing from the system.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, RngExt as _};
use rand_pcg::Pcg64Mcg;
use siphasher::sip::SipHasher13;

/// Streams that bytes can steer, one lane each. Nobody's lane moves, so that what was found stays found.
const LANES: [&str; 16] = [
    "plan.features",
    "plan.world",
    "plan.users",
    "plan.devices",
    "plan.flows",
    "plan.disturbances",
    "plan.forgery",
    "plan.bounds",
    "disturbance",
    "traffic",
    "mesh",
    "steering",
    "strangers",
    "frames",
    "tcp",
    "floods",
];
const LANES_MAX: usize = 16;

/// Where the streams of a run come from: its seed, and before that bytes, if somebody has written some. Each lane has every 16th of them, so that
/// a byte changes the draws of one stream.
#[derive(Debug, Clone)]
pub struct Draws {
    pub seed: u64,
    script: Arc<[u8]>,
}

impl Draws {
    pub fn seeded(seed: u64) -> Self {
        Draws { seed, script: Arc::default() }
    }

    /// The first 8 bytes are the seed; the others are draws.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let (first, script) = bytes.split_at(bytes.len().min(8));
        let mut seed = [0; 8];
        seed[..first.len()].copy_from_slice(first);
        Draws { seed: u64::from_le_bytes(seed), script: script.into() }
    }

    /// The stream called `name`.
    pub fn stream(&self, name: &str) -> Stream {
        let lane = LANES.iter().position(|lane| *lane == name).filter(|_| !self.script.is_empty());
        let script: Vec<u8> =
            lane.map_or_else(Vec::new, |lane| self.script.iter().skip(lane).step_by(LANES_MAX).copied().collect());
        Stream { script: script.into_iter(), ..Stream::new(self.seed, name) }
    }
}

/// Draws: those that somebody has written, and then those of a generator.
#[derive(Debug, Clone)]
pub struct Stream {
    script: std::vec::IntoIter<u8>,
    generator: Pcg64Mcg,
}

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
        Stream { script: Vec::new().into_iter(), generator: Pcg64Mcg::new(half(1) << 64 | half(2)) }
    }

    /// A number below `span`, which is not 0, where one is written.
    fn written(&mut self, span: u64) -> Option<u64> {
        let first = self.script.next()?;
        let bytes = (64 - (span - 1).leading_zeros()).div_ceil(8) as usize;
        let further = self.script.by_ref().take(bytes.saturating_sub(1));
        Some(further.fold(u64::from(first), |number, byte| number << 8 | u64::from(byte)) % span)
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, permille: u32) -> bool {
        self.written(1000).map_or_else(|| self.generator.random_range(0..1000), |drawn| drawn as u32) < permille
    }

    /// True in so many of a million cases.
    pub fn ppm(&mut self, ppm: u32) -> bool {
        self.written(1_000_000).map_or_else(|| self.generator.random_range(0..1_000_000), |drawn| drawn as u32) < ppm
    }

    /// At least `low`, less than `high`; `low` if there is nothing between.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        if low >= high {
            return low;
        }
        self.written(high - low).map_or_else(|| self.generator.random_range(low..high), |drawn| low + drawn)
    }

    /// An index below `count`, which is not 0.
    pub fn index(&mut self, count: usize) -> usize {
        self.written(count as u64).map_or_else(|| self.generator.random_range(0..count), |drawn| drawn as usize)
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

    /// From the generator alone: nobody writes entropy.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.generator.fill_bytes(bytes);
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

    #[test]
    fn what_is_written_is_drawn_first_and_only_by_its_own_stream() {
        let mut bytes = vec![0; 8 + 3 * LANES_MAX];
        let lane = LANES.iter().position(|lane| *lane == "plan.users").unwrap();
        (0..3).for_each(|row| bytes[8 + row * LANES_MAX + lane] = [7, 1, 2][row]);
        let mut stream = Draws::of_bytes(&bytes).stream("plan.users");
        assert_eq!((stream.between(10, 20), stream.between(0, 1000)), (17, 258));
        assert_eq!(stream.between(0, 1 << 40), Stream::new(0, "plan.users").between(0, 1 << 40), "no more is written");
        assert_eq!(Draws::of_bytes(&bytes).stream("plan.flows").between(0, 1 << 16), 0);
        assert_eq!(Draws::of_bytes(&bytes).stream("gateway").seed(), Stream::new(0, "gateway").seed());
    }
}
