//! Packet and header protection: ChaCha20-Poly1305 under Noise's nonces, and the masks of RFC 9001, section 5.4.4.

use aws_lc_rs::aead::quic::{CHACHA20, HeaderProtectionKey};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use bytes::BytesMut;
use quinn_proto::crypto::{self, CryptoError};

/// Of either key, as many as a hash has.
pub const KEY_BYTES: usize = 32;
pub const TAG_BYTES: usize = 16;
pub const SAMPLE_BYTES: usize = 16;
/// Where a sample begins, from the packet number's first byte (RFC 9001, section 5.4.2).
const SAMPLE_OFFSET: usize = 4;
/// Packets that may fail under one key (RFC 9001, section 6.6).
const FORGERIES_MAX: u64 = 1 << 36;

pub struct PacketKey(LessSafeKey);

impl PacketKey {
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        PacketKey(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key")))
    }
}

/// Four zero bytes and the packet number, little endian.
pub fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl crypto::PacketKey for PacketKey {
    /// Leaves alone what has no room for a tag.
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let Some((header, payload)) = buf.split_at_mut_checked(header_len) else { return };
        let Some((payload, tag)) = payload.split_last_chunk_mut::<TAG_BYTES>() else { return };
        let sealed = self.0.seal_in_place_separate_tag(nonce(packet), Aad::from(&*header), payload);
        tag.copy_from_slice(sealed.expect("a packet is shorter than the cipher's limit").as_ref());
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let plain = self.0.open_in_place(nonce(packet), Aad::from(header), payload).map_err(|_| CryptoError)?;
        let plain_bytes = plain.len();
        payload.truncate(plain_bytes);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_BYTES
    }

    /// ChaCha20-Poly1305 bears more packets than there are numbers (RFC 9001, section 6.6).
    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        FORGERIES_MAX
    }
}

pub struct HeaderKey(HeaderProtectionKey);

impl HeaderKey {
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        HeaderKey(HeaderProtectionKey::new(&CHACHA20, key).expect("32 bytes are a key"))
    }

    /// Applies the mask of `packet`, whose packet number is at `offset`; to nothing if the packet is too short for a sample. `bits` tells, of the first
    /// byte before and after, how long the packet number is.
    fn apply(&self, offset: usize, packet: &mut [u8], bits: impl FnOnce(u8, u8) -> u8) {
        let sample = offset.checked_add(SAMPLE_OFFSET).and_then(|start| packet.get(start..)?.get(..SAMPLE_BYTES));
        let Some(Ok([first_mask, mask @ ..])) = sample.map(|sample| self.0.new_mask(sample)) else { return };
        let masked = if packet[0] & 0x80 != 0 { 0x0f } else { 0x1f };
        let before = packet[0];
        packet[0] ^= first_mask & masked;
        let number_bytes = usize::from(bits(before, packet[0]) & 0x03) + 1;
        for (byte, mask) in packet[offset..][..number_bytes].iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

impl crypto::HeaderKey for HeaderKey {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.apply(pn_offset, packet, |_, plain| plain);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.apply(pn_offset, packet, |plain, _| plain);
    }

    fn sample_size(&self) -> usize {
        SAMPLE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quinn_proto::crypto::{HeaderKey as _, PacketKey as _};
    use reishi_quinn::keys::{NoiseHeaderKey, NoisePacketKey};

    use super::*;
    use crate::vectors::{Vector, vectors};

    const KEY: [u8; KEY_BYTES] = *b"a key of thirty-two bytes length";

    fn bytes(length: usize, salt: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 7 + length + salt * 31) as u8).collect()
    }

    #[test]
    fn packets_are_the_references_byte_for_byte_at_every_length() {
        let (ours, theirs) = (PacketKey::new(&KEY), NoisePacketKey::new(KEY));
        for length in 0..=1500 {
            let number = (length as u64) << (length % 48);
            let header = bytes(length % 40, 1);
            let plain = [&header[..], &bytes(length, 2), &[0; TAG_BYTES]].concat();
            let (mut sealed, mut expected) = (plain.clone(), plain.clone());
            ours.encrypt(number, &mut sealed, header.len());
            theirs.encrypt(number, &mut expected, header.len());
            assert_eq!(sealed, expected, "{length} bytes");
            let mut payload = BytesMut::from(&sealed[header.len()..]);
            ours.decrypt(number, &header, &mut payload).unwrap();
            assert_eq!(payload, plain[header.len()..][..length]);
            let mut forged = BytesMut::from(&sealed[header.len()..]);
            let place = number as usize % forged.len();
            forged[place] ^= 1;
            assert!(ours.decrypt(number, &header, &mut forged).is_err(), "{length} bytes, byte {place} changed");
        }
    }

    #[test]
    fn masks_are_the_references_byte_for_byte_at_every_length() {
        let (ours, theirs) = (HeaderKey::new(&KEY), NoiseHeaderKey::new(KEY));
        for length in 24..=1500 {
            for first in [0x40 | length as u8 & 0x3f, 0xc0 | length as u8 & 0x3f] {
                let mut packet = bytes(length, 3);
                packet[0] = first;
                let offset = 1 + length % (length - 20).min(30);
                let offset = offset.min(length - 20);
                let mut expected = packet.clone();
                let plain = packet.clone();
                ours.encrypt(offset, &mut packet);
                theirs.encrypt(offset, &mut expected);
                assert_eq!(packet, expected, "{length} bytes");
                ours.decrypt(offset, &mut packet);
                assert_eq!(packet, plain);
            }
        }
    }

    #[test]
    fn masks_and_packets_are_those_of_the_vectors() {
        let (mut masks, mut packets) = (0, 0);
        for vector in vectors() {
            if vector.has("mask") {
                let mask = HeaderKey::new(&vector.array("header_key")).0.new_mask(&vector.bytes("sample")).unwrap();
                assert_eq!(mask[..], vector.bytes("mask"));
                masks += 1;
            }
            if vector.has("sealed") {
                protects_as(&vector);
                packets += 1;
            }
        }
        assert_eq!((masks, packets), (3, 1));
    }

    fn protects_as(vector: &Vector) {
        let header = vector.bytes("header");
        let mut packet = [&header[..], vector.text("plain").as_bytes(), &[0; TAG_BYTES]].concat();
        let number = u64::from_str_radix(vector.text("number").trim_start_matches("0x"), 16).unwrap();
        PacketKey::new(&vector.array("packet_key")).encrypt(number, &mut packet, header.len());
        assert_eq!(packet, vector.bytes("sealed"));
        HeaderKey::new(&vector.array("header_key")).encrypt(header.len() - 3, &mut packet);
        assert_eq!(packet, vector.bytes("protected"));
    }

    #[test]
    fn nothing_is_allocated_for_a_packet() {
        let (header, packet) = (HeaderKey::new(&KEY), PacketKey::new(&KEY));
        let mut buf = bytes(1400, 4);
        let mut payload = BytesMut::zeroed(1300);
        let allocations = allocation_counter::measure(|| {
            packet.encrypt(7, &mut buf, 20);
            header.encrypt(10, &mut buf);
            header.decrypt(10, &mut buf);
            payload.copy_from_slice(&buf[20..1320]);
            let _ = packet.decrypt(7, &buf[..20], &mut payload);
        });
        assert_eq!(allocations.count_total, 0);
    }

    proptest! {
        #[test]
        fn any_input_is_borne(mut packet: Vec<u8>, number: u64, offset: usize, near in 0..40usize) {
            for offset in [offset, near] {
                HeaderKey::new(&KEY).encrypt(offset, &mut packet);
                HeaderKey::new(&KEY).decrypt(offset, &mut packet);
                PacketKey::new(&KEY).encrypt(number, &mut packet, offset);
            }
            // Where the offset is 0, this is what was sealed.
            let _ = PacketKey::new(&KEY).decrypt(number, &[], &mut BytesMut::from(&packet[..]));
        }

        /// The first byte of a sample is the counter's: all of it may be ones.
        #[test]
        fn any_sample_has_a_mask(counter in prop_oneof![Just(u32::MAX), any::<u32>()], nonce: [u8; 12]) {
            let mut packet = [&[0x43, 1, 2, 3, 4][..], &counter.to_le_bytes(), &nonce].concat();
            let plain = packet.clone();
            HeaderKey::new(&KEY).encrypt(1, &mut packet);
            HeaderKey::new(&KEY).decrypt(1, &mut packet);
            prop_assert_eq!(packet, plain);
        }
    }
}
