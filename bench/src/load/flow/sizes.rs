//! In which order packets of several lengths are sent: always the same, each length as often as it weighs, and well mixed.

use anyhow::{Result, ensure};

/// The shortest inner packet that can carry a message: IPv4 header, UDP header, [`Header`](super::wire::Header), in bytes.
pub const INNER_BYTES_MIN: u16 = 20 + 8 + super::wire::HEADER_BYTES as u16;

/// The most lengths of a flow.
pub const LENGTHS_MAX: usize = 16;

/// The most packets until the order begins anew: weights, divided by what they have in common, may add up to this.
pub const CYCLE_PACKETS_MAX: u32 = 1024;

/// A fixed order of packet lengths, repeated without end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeCycle {
    lengths: Box<[u16]>,
    /// What all packets before it in the cycle have together; one more entry than lengths.
    bytes_before: Box<[u32]>,
    longest: u16,
}

impl SizeCycle {
    /// Makes the order of (length of the inner packet in bytes, weight).
    pub fn new(weighted: &[(u16, u32)]) -> Result<SizeCycle> {
        ensure!(
            (1..=LENGTHS_MAX).contains(&weighted.len()),
            "{} packet sizes are given: 1 to {LENGTHS_MAX} are right",
            weighted.len()
        );
        for (length, weight) in weighted {
            ensure!(
                *length >= INNER_BYTES_MIN,
                "packet size {length} is too short: a packet has headers of {INNER_BYTES_MIN} bytes (IPv4 20, UDP 8, harness 24)"
            );
            ensure!(*weight > 0, "packet size {length} has weight 0");
        }
        let common = weighted.iter().fold(0, |common, (_, weight)| common_divisor(*weight, common));
        let weights: Vec<i64> = weighted.iter().map(|(_, weight)| i64::from(weight / common)).collect();
        let total: i64 = weights.iter().sum();
        ensure!(
            total <= i64::from(CYCLE_PACKETS_MAX),
            "the weights of packet sizes add up to {total}, divided by what they have in common: at most {CYCLE_PACKETS_MAX} is right"
        );
        // Smooth weighted round robin: each length gains its weight, and the one that is owed most pays the total.
        let mut owed = vec![0; weights.len()];
        let lengths: Box<[u16]> = (0..total)
            .map(|_| {
                owed.iter_mut().zip(&weights).for_each(|(owed, weight)| *owed += weight);
                let most = (0..owed.len()).rev().max_by_key(|index| owed[*index]).unwrap_or(0);
                owed[most] -= total;
                weighted[most].0
            })
            .collect();
        let mut bytes_before = vec![0u32];
        for length in &lengths {
            bytes_before.push(bytes_before[bytes_before.len() - 1] + u32::from(*length));
        }
        let longest = weighted.iter().map(|(length, _)| *length).max().unwrap_or(0);
        Ok(SizeCycle { lengths, bytes_before: bytes_before.into(), longest })
    }

    /// Length of packet `sequence` (from 0), in bytes.
    #[inline]
    pub fn length(&self, sequence: u64) -> u16 {
        match &*self.lengths {
            [length] => *length,
            lengths => lengths[(sequence % lengths.len() as u64) as usize],
        }
    }

    /// What the first `packets` packets have together, in bytes.
    #[inline]
    pub fn bytes_before(&self, packets: u64) -> u64 {
        let cycle_packets = self.lengths.len() as u64;
        let cycle_bytes = u64::from(self.bytes_before[self.lengths.len()]);
        packets / cycle_packets * cycle_bytes + u64::from(self.bytes_before[(packets % cycle_packets) as usize])
    }

    /// The longest packet, in bytes.
    pub fn longest(&self) -> u16 {
        self.longest
    }

    /// The mean length, in bytes.
    pub fn mean(&self) -> f64 {
        f64::from(self.bytes_before[self.lengths.len()]) / self.lengths.len() as f64
    }
}

fn common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_simple_imix_is_mixed() {
        let cycle = SizeCycle::new(&[(64, 700), (576, 400), (1400, 100)]).unwrap();
        let lengths: Vec<u16> = (0..24).map(|sequence| cycle.length(sequence)).collect();
        assert_eq!(lengths[..12], [64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 576, 64]);
        assert_eq!(lengths[..12], lengths[12..]);
        assert_eq!((cycle.longest(), cycle.mean()), (1400, (7.0 * 64.0 + 4.0 * 576.0 + 1400.0) / 12.0));
    }

    proptest! {
        #[test]
        fn each_length_comes_as_often_as_it_weighs(weighted in prop::collection::vec((52u16.., 1u32..60), 1..=16)) {
            let weighted: std::collections::BTreeMap<u16, u32> = weighted.into_iter().collect();
            let weighted: Vec<(u16, u32)> = weighted.into_iter().collect();
            let cycle = SizeCycle::new(&weighted).unwrap();
            let total: u32 = weighted.iter().map(|(_, weight)| weight).sum();
            let (mut counts, mut bytes) = (vec![0u64; weighted.len()], 0);
            for sequence in 0..u64::from(3 * total) {
                prop_assert_eq!(cycle.bytes_before(sequence), bytes);
                let length = cycle.length(sequence);
                bytes += u64::from(length);
                counts[weighted.iter().position(|(candidate, _)| *candidate == length).unwrap()] += 1;
                for (count, (_, weight)) in counts.iter().zip(&weighted) {
                    let fair = (sequence + 1) as f64 * f64::from(*weight) / f64::from(total);
                    prop_assert!((*count as f64 - fair).abs() < weighted.len() as f64, "{} instead of {}", count, fair);
                }
            }
            for (count, (_, weight)) in counts.iter().zip(&weighted) {
                prop_assert_eq!(*count, 3 * u64::from(*weight));
            }
        }
    }
}
