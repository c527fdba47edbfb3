//! What the bodies of payload messages are made of: one block of pseudo-random bytes, of which each message has its own window.
//!
//! So making a body is a copy and checking it a comparison, and its share of the UDP checksum is a difference of two prefix sums. The
//! window follows from every field of the header: a header that was changed on the way asks for another body than it has.

use std::sync::LazyLock;

use tollgate_testkit::chance::{Chance, mixed};

use super::wire::Header;
use tollgate_testkit::packet::Sum;

/// The longest body, in bytes: more than any UDP payload has.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// How many places windows start at, two bytes apart.
const STARTS: usize = 32 * 1024;
const PATTERN_BYTES: usize = 2 * STARTS + BODY_BYTES_MAX;

/// The pattern: 128 KiB of bytes and as much of sums.
pub struct Pattern {
    bytes: Box<[u8]>,
    /// The ones' complement sum of the first n 16-bit words at n.
    sums: Box<[Sum]>,
}

impl Pattern {
    /// The one pattern of all flows and both ends.
    pub fn shared() -> &'static Pattern {
        static SHARED: LazyLock<Pattern> = LazyLock::new(Pattern::new);
        &SHARED
    }

    fn new() -> Pattern {
        let mut chance = Chance::new(1);
        let bytes: Box<[u8]> = (0..PATTERN_BYTES / 8).flat_map(|_| chance.number().to_be_bytes()).collect();
        let mut sums = vec![Sum::default()];
        for word in bytes.as_chunks::<2>().0 {
            sums.push(sums[sums.len() - 1] + Sum::of(word));
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
        let sum = self.sums[(start + bytes) / 2] - self.sums[start / 2];
        if bytes.is_multiple_of(2) { sum } else { sum + Sum::of(&[self.bytes[start + bytes - 1]]) }
    }

    /// Whether `body` came as it was sent with `header`.
    #[inline]
    pub fn is_intact(&self, header: &Header, body: &[u8]) -> bool {
        body.len() <= BODY_BYTES_MAX && self.window(header, body.len()) == body
    }
}

#[inline]
fn start(header: &Header) -> usize {
    // Odd multipliers: 32,768 numbers in a row have as many places.
    let numbers = header.sequence.wrapping_mul(40_503).wrapping_add(u64::from(header.flow).wrapping_mul(25_717));
    let rest = mixed(header.stamp_ns ^ u64::from(header.group) << 48 ^ (header.kind as u64) << 56);
    (numbers.wrapping_add(rest) % STARTS as u64) as usize * 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::Kind;
    use super::*;

    fn data(flow: u32, sequence: u64, stamp_ns: u64) -> Header {
        Header { kind: Kind::Data, group: 0, flow, sequence, stamp_ns }
    }

    proptest! {
        #[test]
        fn the_sum_of_a_window_is_that_of_its_bytes(
            (flow, sequence, stamp_ns) in (any::<u32>(), any::<u64>(), any::<u64>()),
            bytes in prop_oneof![0usize..1500, 0..=BODY_BYTES_MAX],
            before in any::<u16>(),
        ) {
            let (pattern, header) = (Pattern::shared(), data(flow, sequence, stamp_ns));
            let window = pattern.window(&header, bytes);
            let before = Sum::of(&before.to_be_bytes());
            prop_assert_eq!((before + pattern.sum(&header, bytes)).udp_checksum(), (before + Sum::of(window)).udp_checksum());
        }

        #[test]
        fn neighbours_have_different_bodies(flow: u32, sequence in 0..u64::MAX - 40_000, apart in 1u32..32_768) {
            let (pattern, header) = (Pattern::shared(), data(flow, sequence, 7));
            let window = pattern.window(&header, 16);
            prop_assert_ne!(window, pattern.window(&data(flow, sequence + u64::from(apart), 7), 16));
            prop_assert_ne!(window, pattern.window(&data(flow.wrapping_add(apart), sequence, 7), 16));
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
}
