//! What the bodies of payload messages are made of: one block of pseudo-random bytes, of which each message has its own window.
//!
//! So making a body is a copy and checking it a comparison, and its share of the UDP checksum is a difference of two prefix sums. The
//! window follows from every field of the header: a header that was changed on the way asks for another body than it has. Nothing here
//! is secret, or hard to guess.

use std::sync::LazyLock;

use tollgate_shards::packet::checksum::Sum;

use super::wire::Header;

/// The longest body, in bytes: more than any UDP payload has.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How many places windows start at, two bytes apart.
const STARTS: usize = 32 * 1024;
const PATTERN_BYTES: usize = 2 * STARTS + BODY_BYTES_MAX;

/// The pattern: 128 KiB of bytes and as much of sums.
pub struct Pattern {
    bytes: Box<[u8]>,
    /// The ones' complement sum of the first n 16-bit words, folded, at n.
    sums: Box<[u16]>,
}

impl Pattern {
    /// The one pattern of all flows and both ends.
    pub fn shared() -> &'static Pattern {
        static SHARED: LazyLock<Pattern> = LazyLock::new(Pattern::new);
        &SHARED
    }

    fn new() -> Pattern {
        let words = (1..=PATTERN_BYTES as u64 / 8).map(|number| mixed(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let bytes: Box<[u8]> = words.flat_map(u64::to_be_bytes).collect();
        let mut sum = Sum::default();
        let mut sums = vec![sum.folded()];
        for word in bytes.as_chunks::<2>().0 {
            sum = sum + Sum::of(word);
            sums.push(sum.folded());
        }
        Pattern { bytes, sums: sums.into() }
    }

    /// The first `bytes` bytes, at most [`BODY_BYTES_MAX`], of the body that belongs to `header`.
    ///
    /// Of headers that agree in all but `sequence`, or in all but `flow`, only those have the same body whose numbers are a multiple of
    /// 32,768 apart. Of headers that differ otherwise, one in 32,768 has.
    #[inline]
    pub fn window(&self, header: &Header, bytes: usize) -> &[u8] {
        let start = start(header);
        &self.bytes[start..start + bytes]
    }

    /// The sum of that window, for a checksum. It begins at an even offset of what is summed.
    #[inline]
    pub fn sum(&self, header: &Header, bytes: usize) -> Sum {
        let start = start(header);
        let sum = Sum::word(self.sums[(start + bytes) / 2]) + Sum::word(!self.sums[start / 2]);
        match bytes % 2 {
            0 => sum,
            _ => sum + Sum::word(u16::from(self.bytes[start + bytes - 1]) << 8),
        }
    }

    /// Whether `body` came as it was sent with `header`.
    #[inline]
    pub fn is_intact(&self, header: &Header, body: &[u8]) -> bool {
        body.len() <= BODY_BYTES_MAX && self.window(header, body.len()) == body
    }
}

/// Where the window of `header` starts.
#[inline]
fn start(header: &Header) -> usize {
    // Odd multipliers: 32,768 numbers in a row have as many places.
    let numbers = header.sequence.wrapping_mul(40_503).wrapping_add(u64::from(header.flow).wrapping_mul(25_717));
    let rest = mixed(header.stamp_ns ^ u64::from(header.group) << 48 ^ (header.kind as u64) << 56);
    (numbers.wrapping_add(rest) % STARTS as u64) as usize * 2
}

/// The output function of SplitMix64.
#[inline]
fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::Kind;
    use super::*;

    fn data(flow: u32, sequence: u64, stamp_ns: u64) -> Header {
        Header { kind: Kind::Data, group: 0, flow, sequence, stamp_ns }
    }

    fn naive_sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
        let mut sum: u64 = words.sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn the_sum_of_a_window_is_that_of_its_bytes(
            (flow, sequence, stamp_ns) in (any::<u32>(), any::<u64>(), any::<u64>()),
            bytes in prop_oneof![0usize..1500, 0..=BODY_BYTES_MAX],
            (before, more) in (1u16.., any::<u16>()),
        ) {
            let (pattern, header) = (Pattern::shared(), data(flow, sequence, stamp_ns));
            let window = pattern.window(&header, bytes);
            prop_assert_eq!(window.len(), bytes);
            // A sum of nothing has two forms; with anything before it there is but one.
            let sum = Sum::word(before) + Sum::word(more) + pattern.sum(&header, bytes);
            let whole = [&before.to_be_bytes(), &more.to_be_bytes(), window].concat();
            prop_assert_eq!(sum.folded(), naive_sum(&whole));
        }

        #[test]
        fn neighbours_have_different_bodies(flow: u32, sequence in 0..u64::MAX - 40_000, apart in 1u32..32_768) {
            let (pattern, header) = (Pattern::shared(), data(flow, sequence, 7));
            let window = pattern.window(&header, 16);
            prop_assert_ne!(window, pattern.window(&data(flow, sequence + u64::from(apart), 7), 16));
            prop_assert_ne!(window, pattern.window(&data(flow.wrapping_add(apart), sequence, 7), 16));
        }

        #[test]
        fn a_changed_bit_of_a_body_is_found(flow: u32, sequence: u64, bytes in 1usize..2000, at: prop::sample::Index) {
            let (pattern, header) = (Pattern::shared(), data(flow, sequence, 1));
            let mut body = pattern.window(&header, bytes).to_vec();
            prop_assert!(pattern.is_intact(&header, &body));
            let bit = at.index(8 * bytes);
            body[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!pattern.is_intact(&header, &body));
        }
    }

    #[test]
    fn a_changed_header_has_another_body() {
        let pattern = Pattern::shared();
        let mut same = 0;
        for number in 0..1000u32 {
            let header = data(number * 7, u64::from(number) * 11, u64::from(number) * 1_000_003);
            let body = pattern.window(&header, 64);
            let changed = [
                Header { kind: Kind::Request, ..header },
                Header { group: 1 << (number % 8), ..header },
                Header { flow: header.flow ^ 1 << (number % 15), ..header },
                Header { sequence: header.sequence ^ 1 << (number % 15), ..header },
                Header { stamp_ns: header.stamp_ns ^ 1 << (number % 64), ..header },
            ];
            same += changed.iter().filter(|changed| pattern.is_intact(changed, body)).count();
        }
        assert!(same <= 2, "{same} of 5000, where 1 in 32768 is to be expected");
    }

    #[test]
    fn a_body_that_is_longer_than_any_is_not_intact() {
        assert!(!Pattern::shared().is_intact(&data(1, 1, 1), &vec![0; BODY_BYTES_MAX + 1]));
    }
}
