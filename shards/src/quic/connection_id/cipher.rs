//! What hides a server ID: the encryption of draft-ietf-quic-load-balancers, of all bytes of a connection ID but the first.
//!
//! Sixteen bytes are one block of AES-128. Any other number goes through a Feistel network of four rounds, whose round function is that block cipher.

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};

const BLOCK_BYTES: usize = 16;
/// Half of 19 bytes.
const HALF_BYTES_MAX: usize = 10;

pub(super) struct Cipher {
    encrypting: EncryptingKey,
    decrypting: DecryptingKey,
}

/// The two halves of what is encrypted. Of an odd number of bytes, each has a half of the middle one.
struct Halves {
    bytes: usize,
    left: [u8; HALF_BYTES_MAX],
    right: [u8; HALF_BYTES_MAX],
}

impl Cipher {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        let key = || UnboundCipherKey::new(&AES_128, key).expect("16 bytes are a key");
        Cipher {
            encrypting: EncryptingKey::ecb(key()).expect("AES has this mode"),
            decrypting: DecryptingKey::ecb(key()).expect("AES has this mode"),
        }
    }

    /// From 5 to 19 bytes.
    pub(super) fn encrypt(&self, bytes: &mut [u8]) {
        if bytes.len() == BLOCK_BYTES {
            return self.encrypt_block(bytes);
        }
        let mut halves = Halves::split(bytes);
        for pass in 1..=4 {
            self.round(&mut halves, pass);
        }
        halves.join(bytes);
    }

    pub(super) fn decrypt(&self, bytes: &mut [u8]) {
        if bytes.len() == BLOCK_BYTES {
            self.decrypting.decrypt(bytes, DecryptionContext::None).expect("a whole block");
            return;
        }
        let mut halves = Halves::split(bytes);
        for pass in (1..=4).rev() {
            self.round(&mut halves, pass);
        }
        halves.join(bytes);
    }

    fn encrypt_block(&self, block: &mut [u8]) {
        self.encrypting.encrypt(block).expect("a whole block");
    }

    /// Odd passes change the right half by the left one, even ones the left half by the right one.
    fn round(&self, halves: &mut Halves, pass: u8) {
        let half_bytes = halves.half_bytes();
        let mut block = [0; BLOCK_BYTES];
        let (by, changed) =
            if pass % 2 == 1 { (&halves.left, &mut halves.right) } else { (&halves.right, &mut halves.left) };
        block[..half_bytes].copy_from_slice(&by[..half_bytes]);
        block[BLOCK_BYTES - 2..].copy_from_slice(&[halves.bytes as u8, pass]);
        self.encrypt_block(&mut block);
        changed[..half_bytes].iter_mut().zip(block).for_each(|(byte, mask)| *byte ^= mask);
        halves.clear();
    }
}

impl Halves {
    fn split(bytes: &[u8]) -> Self {
        let mut halves = Halves { bytes: bytes.len(), left: [0; HALF_BYTES_MAX], right: [0; HALF_BYTES_MAX] };
        let half_bytes = halves.half_bytes();
        halves.left[..half_bytes].copy_from_slice(&bytes[..half_bytes]);
        halves.right[..half_bytes].copy_from_slice(&bytes[bytes.len() - half_bytes..]);
        halves.clear();
        halves
    }

    fn half_bytes(&self) -> usize {
        self.bytes.div_ceil(2)
    }

    /// Of the middle byte, clears the other half's bits.
    fn clear(&mut self) {
        if self.bytes % 2 == 1 {
            self.left[self.bytes / 2] &= 0xf0;
            self.right[0] &= 0x0f;
        }
    }

    fn join(&self, bytes: &mut [u8]) {
        let half_bytes = self.half_bytes();
        bytes.fill(0);
        bytes[..half_bytes].copy_from_slice(&self.left[..half_bytes]);
        let right = bytes.len() - half_bytes;
        bytes[right..].iter_mut().zip(self.right).for_each(|(byte, half)| *byte |= half);
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
        cipher.encrypt(&mut both);
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
            cipher.encrypt(&mut changed);
            assert_ne!(changed, plain);
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
                cipher.encrypt(&mut id[..length]);
                cipher.decrypt(&mut id[..length]);
            });
            assert_eq!(allocations.count_total, 0);
        }
    }
}
