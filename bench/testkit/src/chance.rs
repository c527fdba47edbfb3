//! Numbers that look like chance and follow from a seed (SplitMix64): nothing here is secret, or hard to guess.

#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Neighbouring seeds have nothing in common.
    pub fn new(seed: u64) -> Chance {
        Chance(mixed(seed.wrapping_add(GAMMA)))
    }

    #[inline]
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mixed(self.0)
    }

    /// A number below `end`, which is not 0.
    #[inline]
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.number()) * end as u128) >> 64) as usize
    }

    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        seed.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = self.number().to_le_bytes());
        seed
    }
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Another number for each, of which every bit depends on every bit of `state`: the output function of SplitMix64.
#[inline]
pub fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_its_numbers_and_another_one_others() {
        let numbers = |seed| {
            let mut chance = Chance::new(seed);
            std::array::from_fn::<u64, 4, _>(|_| chance.number())
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        let mut chance = Chance::new(1);
        assert!((0..1000).all(|_| chance.below(7) < 7));
        assert_ne!(chance.seed(), chance.seed());
    }
}
