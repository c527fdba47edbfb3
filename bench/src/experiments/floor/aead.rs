//! Ciphers: packets sealed and opened in place, as in QUIC (RFC 9001, section 5.3). Header protection is left out.

use anyhow::{Result, anyhow};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};

use super::{Crossing, PACKET_BYTES, PAYLOAD_BYTES};

/// Packets of a batch: as many as in the UDP runs of one.
const PACKETS: usize = 256;
/// Length of the tag of all three ciphers, in bytes.
const TAG_BYTES: usize = 16;
/// QUIC's short header: what is authenticated but not encrypted.
const HEADER: [u8; 12] = [0x43, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 9];

/// Packets through one cipher.
pub struct AeadCrossing {
    names: [&'static str; 2],
    key: LessSafeKey,
    /// Packets back to back, each with room for its tag.
    buffer: Vec<u8>,
    /// The number of the batch's first packet, never used again.
    first: u64,
}

impl AeadCrossing {
    /// The cipher that gateway and clients agree on by default.
    pub fn aes_256() -> Result<Self> {
        AeadCrossing::new(&AES_256_GCM, ["AES-256-GCM seal, 1400 B", "AES-256-GCM open, 1400 B"])
    }

    /// The shorter key, with fewer rounds.
    pub fn aes_128() -> Result<Self> {
        AeadCrossing::new(&AES_128_GCM, ["AES-128-GCM seal, 1400 B", "AES-128-GCM open, 1400 B"])
    }

    /// The cipher for processors without AES instructions, and WireGuard's.
    pub fn chacha20() -> Result<Self> {
        AeadCrossing::new(&CHACHA20_POLY1305, ["ChaCha20-Poly1305 seal, 1400 B", "ChaCha20-Poly1305 open, 1400 B"])
    }

    fn new(algorithm: &'static Algorithm, names: [&'static str; 2]) -> Result<Self> {
        // No secret: it protects nothing.
        let key = vec![0x42; algorithm.key_len()];
        let key = UnboundKey::new(algorithm, &key).map_err(|_| anyhow!("{}: no such cipher", names[0]))?;
        let buffer = vec![0x17; PACKETS * (PACKET_BYTES + TAG_BYTES)];
        Ok(AeadCrossing { names, key: LessSafeKey::new(key), buffer, first: 0 })
    }
}

/// The nonce of packet `number`.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Crossing for AeadCrossing {
    fn names(&self) -> [&'static str; 2] {
        self.names
    }

    fn prepare(&mut self) -> Result<()> {
        self.first += PACKETS as u64;
        Ok(())
    }

    fn put(&mut self) -> Result<u64> {
        for (number, packet) in (self.first..).zip(self.buffer.chunks_exact_mut(PACKET_BYTES + TAG_BYTES)) {
            let (plain, room) = packet.split_at_mut(PACKET_BYTES);
            let tag = self.key.seal_in_place_separate_tag(nonce(number), Aad::from(HEADER), plain);
            room.copy_from_slice(tag.map_err(|_| anyhow!("{}: refused", self.names[0]))?.as_ref());
        }
        Ok((PACKETS * PAYLOAD_BYTES) as u64)
    }

    fn take(&mut self) -> Result<u64> {
        for (number, packet) in (self.first..).zip(self.buffer.chunks_exact_mut(PACKET_BYTES + TAG_BYTES)) {
            let opened = self.key.open_in_place(nonce(number), Aad::from(HEADER), packet);
            opened.map_err(|_| anyhow!("{}: not authentic", self.names[1]))?;
        }
        Ok((PACKETS * PAYLOAD_BYTES) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_and_a_changed_byte_is_not() {
        for mut crossing in
            [AeadCrossing::aes_256().unwrap(), AeadCrossing::aes_128().unwrap(), AeadCrossing::chacha20().unwrap()]
        {
            let plain = crossing.buffer[..PACKET_BYTES].to_vec();
            for _ in 0..2 {
                crossing.prepare().unwrap();
                let sealed_bytes = crossing.put().unwrap();
                assert_ne!(crossing.buffer[..PACKET_BYTES], plain);
                assert_eq!(crossing.take().unwrap(), sealed_bytes);
                assert_eq!(crossing.buffer[..PACKET_BYTES], plain);
            }
            crossing.put().unwrap();
            crossing.buffer[PACKET_BYTES - 1] ^= 1;
            assert!(crossing.take().unwrap_err().to_string().ends_with("not authentic"));
        }
    }
}
