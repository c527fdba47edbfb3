//! The Internet checksum (RFC 1071), its pseudo headers and its incremental update (RFC 1624).

/// A ones' complement sum of 16-bit words, not yet complemented.
///
/// Words are kept in the byte order of the host, which RFC 1071 (2)(B) allows: only [`Sum::folded`] puts the result right.
/// Adding up to 2^31 sums cannot overflow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Sum of `bytes`, which must start at an even offset of what is summed as a whole (else see [`Sum::at_odd_offset`]). A last odd
    /// byte counts as if a zero byte followed.
    pub fn of(bytes: &[u8]) -> Sum {
        // An addition to 128 bits is an addition with carry, and four in turn do not wait for each other. Without AVX2, which a generic
        // build may not assume, this is faster than lanes for SIMD.
        let mut lanes = [0u128; 4];
        let (chunks, rest) = bytes.as_chunks::<32>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u128::from(u64::from_ne_bytes(*word));
            }
        }
        let mut sum: u128 = lanes.iter().sum();
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            sum += u128::from(u64::from_ne_bytes(*word));
        }
        // Step by step, because a copy of unknown length would be a call.
        let mut tail = tail;
        if let Some((word, rest)) = tail.split_first_chunk() {
            sum += u128::from(u32::from_ne_bytes(*word));
            tail = rest;
        }
        if let Some((word, rest)) = tail.split_first_chunk() {
            sum += u128::from(u16::from_ne_bytes(*word));
            tail = rest;
        }
        if let Some(last) = tail.first() {
            sum += u128::from(u16::from_ne_bytes([*last, 0]));
        }
        // Below 2^61 words the upper half cannot overflow when its carry comes back in.
        let (sum, carry) = ((sum >> 64) as u64).overflowing_add(sum as u64);
        let sum = sum + u64::from(carry);
        Sum((sum >> 32) + (sum & 0xffff_ffff))
    }

    pub fn word(word: u16) -> Sum {
        Sum(u64::from(word.to_be()))
    }

    /// Sum of the two words of a 32-bit field.
    pub fn double_word(words: u32) -> Sum {
        Sum(u64::from(words.to_be()))
    }

    /// The same sum for bytes that start at an odd offset of the whole (RFC 1071 (2)(B)).
    pub fn at_odd_offset(self) -> Sum {
        Sum(u64::from(self.folded_native().swap_bytes()))
    }

    /// The sum in 16 bits, not complemented: what a transport checksum holds that is yet to be completed.
    pub fn folded(self) -> u16 {
        u16::from_be(self.folded_native())
    }

    /// The checksum: the complement of the sum.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether the sum is that of bytes with a right checksum among them.
    pub fn is_valid(self) -> bool {
        self.folded_native() == 0xffff
    }

    fn folded_native(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }
}

impl std::ops::Add for Sum {
    type Output = Sum;

    fn add(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }
}

/// The checksum after one of the words that it covers changed from `old` to `new` (RFC 1624, equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    (Sum::word(!checksum) + Sum::word(!old) + Sum::word(new)).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::naive_sum;

    #[test]
    fn the_example_of_rfc_1071_is_reproduced() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn a_known_ipv4_header_is_valid() {
        let mut header = *b"\x45\x00\x00\x73\x00\x00\x40\x00\x40\x11\xb8\x61\xc0\xa8\x00\x01\xc0\xa8\x00\xc7";
        assert!(Sum::of(&header).is_valid());
        header[8] -= 1;
        assert!(!Sum::of(&header).is_valid());
    }

    #[test]
    fn every_carry_is_kept_and_the_one_out_of_64_bits_comes_back_in() {
        let words: Vec<u8> = [u64::MAX, u64::MAX, u64::MAX, 2].into_iter().flat_map(u64::to_ne_bytes).collect();
        for bytes in [&[0xff; 65535][..], &words] {
            assert_eq!(Sum::of(bytes).folded(), naive_sum(bytes));
        }
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..3000), skipped in 0usize..16) {
            let unaligned = &bytes[skipped.min(bytes.len())..];
            prop_assert_eq!(Sum::of(unaligned).folded(), naive_sum(unaligned));
        }

        #[test]
        fn a_split_at_any_byte_changes_nothing(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(bytes.len() + 1);
            let (front, back) = bytes.split_at(at);
            let back = if at % 2 == 0 { Sum::of(back) } else { Sum::of(back).at_odd_offset() };
            prop_assert_eq!((Sum::of(front) + back).folded(), naive_sum(&bytes));
        }

        #[test]
        fn single_words_add_up_like_bytes(words in prop::collection::vec(any::<u32>(), 0..50)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let halves = words.iter().flat_map(|word| [(word >> 16) as u16, *word as u16]);
            let by_words = halves.map(Sum::word).fold(Sum::default(), |sum, word| sum + word);
            let by_double_words = words.iter().copied().map(Sum::double_word).fold(Sum::default(), |sum, word| sum + word);
            prop_assert_eq!(by_words.folded(), naive_sum(&bytes));
            prop_assert_eq!(by_double_words.folded(), naive_sum(&bytes));
        }

        #[test]
        fn an_updated_checksum_is_still_valid(
            mut words in prop::collection::vec(any::<u16>(), 2..40),
            new in any::<u16>(),
            at in any::<prop::sample::Index>(),
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
            let checksum = Sum::of(&bytes(&words)).checksum();
            let at = at.index(words.len());
            let updated = update(checksum, words[at], new);
            words[at] = new;
            words.push(updated);
            // The sum of all zero words has two representations; any other must come out as ones.
            prop_assert!(Sum::of(&bytes(&words)).is_valid() || words.iter().all(|word| *word == 0));
        }
    }
}
