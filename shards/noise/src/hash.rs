//! The hash of all kinds, BLAKE2s, and what is made of it: HMAC (RFC 2104) and HKDF (RFC 5869, which Noise's is without `info`).

use blake2::{Blake2s256, Digest};
use hkdf::{SimpleHkdf, SimpleHkdfExtract};
use zeroize::Zeroizing;

pub const HASH_BYTES: usize = 32;

pub type Hash = [u8; HASH_BYTES];

/// The hash of `parts`, one after the other.
pub fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Blake2s256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// The HMAC of `parts`, one after the other.
pub fn hmac(key: &Hash, parts: &[&[u8]]) -> Zeroizing<Hash> {
    let mut extract = SimpleHkdfExtract::<Blake2s256>::new(Some(key));
    parts.iter().for_each(|part| extract.input_ikm(part));
    Zeroizing::new(extract.finalize().0.into())
}

/// As many outputs as are asked for (The Noise Protocol Framework, section 4.3).
pub fn hkdf<const OUTPUTS: usize>(salt: &Hash, material: &[u8]) -> Zeroizing<[Hash; OUTPUTS]> {
    let mut outputs = Zeroizing::new([[0; HASH_BYTES]; OUTPUTS]);
    let expanded = SimpleHkdf::<Blake2s256>::new(Some(salt), material).expand(&[], outputs.as_flattened_mut());
    expanded.expect("nobody asks for more than 255 outputs");
    outputs
}

/// Fills `output` (RFC 5869, section 2.3), unless it is longer than 255 hashes.
pub fn expand(key: &Hash, info: &[u8], output: &mut [u8]) -> Option<()> {
    SimpleHkdf::<Blake2s256>::from_prk(key).expect("a hash is a key").expand(info, output).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use reishi_handshake::crypto::hash as reference;

    use super::*;

    proptest! {
        #[test]
        fn all_is_as_the_reference_has_it(
            key: Hash, one in vec(any::<u8>(), 0..300), other in vec(any::<u8>(), 0..300), mut output in vec(any::<u8>(), 0..8200)
        ) {
            let both = [&one[..], &other].concat();
            prop_assert_eq!(hash(&[&one, &other]), reference::hash(&both));
            prop_assert_eq!(hmac(&key, &[&one, &other]), reference::hmac(&key, &both));
            prop_assert_eq!(hkdf::<1>(&key, &one)[0], *reference::hkdf3(&key, &one).0);
            let (first, second, third) = reference::hkdf3(&key, &one);
            prop_assert_eq!(*hkdf::<3>(&key, &one), [*first, *second, *third]);
            let mut expected = output.clone();
            let fits = reference::hkdf_expand(&key, &one, &mut expected);
            prop_assert_eq!(expand(&key, &one, &mut output).is_some(), fits);
            prop_assert_eq!(output, expected);
        }
    }
}
