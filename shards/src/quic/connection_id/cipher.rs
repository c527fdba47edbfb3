//! What hides a server ID: the encryption of draft-ietf-quic-load-balancers, of all bytes of a connection ID but the first.
//!
//! Sixteen bytes are one block of AES-128. Any other number goes through a Feistel network of four rounds, whose round function is that block cipher.

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};

use crate::quic::initial::ID_BYTES_MAX;

const BLOCK_BYTES: usize = 16;

pub(super) struct Cipher {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

impl Cipher {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        let key = || UnboundCipherKey::new(&AES_128, key).expect("16 bytes are a key");
        Cipher {
            encrypting: EncryptingKey::ecb(key()).expect("AES has this mode"),
            decrypting: DecryptingKey::ecb(key()).expect("AES has this mode"),
        }
    }

    /// Texts of one length, from 5 to 19 bytes. The processor works at several blocks at once where they do not depend on each other: of eight
    /// texts, one costs half of what it costs alone.
    pub(super) fn encrypt<const TEXTS: usize>(&self, mut texts: [&mut [u8]; TEXTS]) {
        let bytes = texts[0].len();
        if bytes == BLOCK_BYTES {
            texts.iter_mut().for_each(|block| self.encrypt_blocks(block));
            return;
        }
        let split = Split::of(bytes);
        let mut halves = texts.each_ref().map(|text| split.halves(text));
        for pass in 1..=4 {
            self.round(&split, pass, &mut halves);
        }
        texts.into_iter().zip(halves).for_each(|(text, halves)| split.join(halves, text));
    }

    pub(super) fn decrypt(&self, text: &mut [u8]) {
        if text.len() == BLOCK_BYTES {
            self.decrypting.decrypt(text, DecryptionContext::None).expect("a whole block");
            return;
        }
        let split = Split::of(text.len());
        let mut halves = [split.halves(text)];
        for pass in (1..=4).rev() {
            self.round(&split, pass, &mut halves);
        }
        split.join(halves[0], text);
    }

    fn encrypt_blocks(&self, blocks: &mut [u8]) {
        self.encrypting.encrypt(blocks).expect("whole blocks");
    }

    /// Odd passes change the right half by the left one, even ones the left half by the right one.
    fn round<const TEXTS: usize>(&self, split: &Split, pass: u8, texts: &mut [[u128; 2]; TEXTS]) {
        let changed = usize::from(pass % 2);
        let end = (split.bytes as u128) << 8 | u128::from(pass);
        let mut blocks = texts.map(|halves| (halves[1 - changed] | end).to_be_bytes());
        self.encrypt_blocks(blocks.as_flattened_mut());
        for (block, halves) in blocks.into_iter().zip(texts) {
            halves[changed] ^= u128::from_be_bytes(block) & split.masks[changed];
        }
    }
}

/// How a text becomes two halves, each the first bits of a block, and a text again. Of an odd number of bytes, each has a half of the middle one.
struct Split {
    bytes: usize,
    /// Where a half begins.
    starts: [usize; 2],
    /// Which bits are a half's.
    masks: [u128; 2],
}

impl Split {
    fn of(bytes: usize) -> Self {
        let half_bytes = bytes.div_ceil(2);
        let whole = u128::MAX << (128 - 8 * half_bytes);
        // The middle byte is shared.
        let shared = 4 * (bytes % 2);
        let masks = [whole << shared, whole & u128::MAX >> shared];
        Split { bytes, starts: [0, bytes - half_bytes], masks }
    }

    fn halves(&self, text: &[u8]) -> [u128; 2] {
        let mut room = [0; ID_BYTES_MAX + BLOCK_BYTES];
        room[..self.bytes].copy_from_slice(text);
        let half = |which: usize| {
            let block = room[self.starts[which]..].first_chunk().expect("there is room for a block behind each byte");
            u128::from_be_bytes(*block) & self.masks[which]
        };
        [half(0), half(1)]
    }

    fn join(&self, [left, right]: [u128; 2], text: &mut [u8]) {
        let mut room = [0; ID_BYTES_MAX + BLOCK_BYTES];
        room[self.starts[1]..][..BLOCK_BYTES].copy_from_slice(&right.to_be_bytes());
        // The right half holds nothing of the left one's but for the middle byte.
        let start = left.to_be_bytes();
        room.iter_mut().zip(start).for_each(|(byte, of_left)| *byte |= of_left);
        text.copy_from_slice(&room[..self.bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn assert_encrypts(key: &str, [server_id, nonce, encrypted]: [&str; 3]) {
        let cipher = Cipher::new(&bytes(key).try_into().unwrap());
        let plain = bytes(&[server_id, nonce].concat());
        let mut both = plain.clone();
        cipher.encrypt([&mut both]);
        assert_eq!(both, bytes(encrypted));
        cipher.decrypt(&mut both);
        assert_eq!(both, plain);
    }

    #[test]
    fn the_drafts_vectors_are_met() {
        let key = "8f95f09245765f80256934e50c66207f";
        for vector in [
            ["ed793a", "ee080dbf", "20b1d07b359d3c"],
            ["ed793a51d49b8f5fab65", "ee080dbf48", "cc381bc74cb4fbad2823a3d1f8fed2"],
            ["ed793a51d49b8f5f", "ee080dbf48c0d1e5", "4dd2d05a7b0de9b2b9907afb5ecf8cc3"],
            ["ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "5779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"],
        ] {
            assert_encrypts(key, vector);
        }
        assert_encrypts("fdf726a9893ec05c0632d3956680baf0", ["31441a", "9c69c275", "67947d29be054a"]);
    }

    #[test]
    fn what_is_encrypted_is_decrypted_whatever_its_length() {
        let cipher = Cipher::new(&[3; 16]);
        for length in 5..=19 {
            let plain: Vec<u8> = (0..length).map(|byte: u8| byte.wrapping_mul(37)).collect();
            let mut changed = plain.clone();
            cipher.encrypt([&mut changed]);
            assert_ne!(changed, plain);
            let mut together = [[0; 19], [255; 19], [7; 19]];
            together[1][..plain.len()].copy_from_slice(&plain);
            cipher.encrypt(together.each_mut().map(|text| &mut text[..plain.len()]));
            assert_eq!(together[1][..plain.len()], changed, "{length} bytes, with others");
            cipher.decrypt(&mut changed);
            assert_eq!(changed, plain, "{length} bytes");
        }
    }

    #[test]
    fn nothing_is_allocated() {
        let cipher = Cipher::new(&[3; 16]);
        for length in [11, 16, 19] {
            let mut id = [7; 19];
            let allocations = allocation_counter::measure(|| {
                cipher.encrypt([&mut id[..length]]);
                cipher.decrypt(&mut id[..length]);
            });
            assert_eq!(allocations.count_total, 0);
        }
    }
}
