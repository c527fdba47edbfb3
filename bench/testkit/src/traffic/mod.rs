//! Traffic whose arrival is checked: echoes and bulk transfers.

pub mod bulk;
pub mod ping;

/// Words in network byte order.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|index| bytes[index * 8..][..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}
