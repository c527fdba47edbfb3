//! Chance: who is lost, closed or moved. All of it follows from the scenario's seed.

/// SplitMix64: small, and good enough for what no adversary sees.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub fn new(seed: u64, thread: u16) -> Chance {
        let mut chance = Chance(seed);
        // Neighbouring seeds and threads shall have nothing in common.
        chance.0 = chance.number() ^ u64::from(thread) << 32;
        chance.0 = chance.number();
        chance
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.number()) * end as u128) >> 64) as usize
    }

    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        seed.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = self.number().to_le_bytes());
        seed
    }
}

/// Loses datagrams with a given probability, out of runs as well.
#[derive(Debug)]
pub(super) struct Loss {
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
        if self.threshold == 0 {
            return (run.len(), 0);
        }
        let (mut from, mut to, mut lost) = (0, 0, 0);
        while from < run.len() {
            let end = run.len().min(from + segment_bytes.max(1));
            if self.chance.number() < self.threshold {
                lost += 1;
            } else {
                if from != to {
                    run.copy_within(from..end, to);
                }
                to += end - from;
            }
            from = end;
        }
        (to, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_has_the_same_luck_and_another_thread_another() {
        let numbers = |seed, thread| {
            let mut chance = Chance::new(seed, thread);
            std::array::from_fn::<u64, 4, _>(|_| chance.number())
        };
        assert_eq!(numbers(1, 0), numbers(1, 0));
        assert_ne!(numbers(1, 0), numbers(1, 1));
        assert_ne!(numbers(1, 0), numbers(2, 0));
        let mut chance = Chance::new(1, 0);
        assert!((0..1000).all(|_| chance.below(7) < 7));
        assert_ne!(chance.seed(), chance.seed());
    }

    #[test]
    fn lost_datagrams_are_cut_out_of_a_run_whole() {
        let mut loss = Loss::new(Chance::new(3, 0), 0.3);
        let (mut lost_in_all, mut datagrams) = (0, 0);
        for _ in 0..500 {
            // Each datagram says which one it is; the last is shorter.
            let mut run: Vec<u8> =
                (0..10).flat_map(|number: u8| vec![number; if number == 9 { 3 } else { 10 }]).collect();
            let (left, lost) = loss.thin(&mut run, 10);
            let kept: Vec<&[u8]> = run[..left].chunks(10).collect();
            assert_eq!(kept.len() as u64 + lost, 10);
            assert!(kept.is_sorted_by(|one, next| one[0] < next[0]), "in order");
            for datagram in kept {
                assert!(datagram.iter().all(|byte| *byte == datagram[0]), "whole");
                assert_eq!(datagram.len(), if datagram[0] == 9 { 3 } else { 10 });
            }
            (lost_in_all, datagrams) = (lost_in_all + lost, datagrams + 10);
        }
        let share = lost_in_all as f64 / f64::from(datagrams);
        assert!((0.25..0.35).contains(&share), "{share}");
    }

    #[test]
    fn without_loss_nothing_is_lost_and_with_all_of_it_everything() {
        let mut run = vec![1; 95];
        assert_eq!(Loss::new(Chance::new(1, 0), 0.0).thin(&mut run, 10), (95, 0));
        assert_eq!(Loss::new(Chance::new(1, 0), 1.0).thin(&mut run, 10), (0, 10));
    }
}
