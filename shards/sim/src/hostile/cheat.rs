//! A client that cheats its own QUIC: before a packet is encrypted, its frames are changed.
//!
//! What the client sends as a datagram that begins with [`CARRIER`] becomes frames: the head of the datagram becomes padding, and what follows is
//! read as frames of its own.

use std::any::Any;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};

const CARRIER: [u8; 12] = *b"now frames: ";
/// A DATAGRAM frame with its length (RFC 9221), which is of two bytes.
const DATAGRAM: u8 = 0x31;
const LENGTH_BYTES: usize = 2;
/// So that the length has two bytes.
const CARRIER_BYTES_MIN: usize = 64;
const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const ACK_ECN: u8 = 0x03;
const IMMEDIATE_ACK: u8 = 0x1f;

/// What to send as a datagram so that these frames are sent.
pub fn carry(frames: &[u8]) -> Vec<u8> {
    let mut datagram = [&CARRIER[..], frames].concat();
    let bytes = datagram.len().max(CARRIER_BYTES_MIN);
    datagram.resize(bytes, 0);
    datagram
}

/// The handshake of a client that cheats.
pub struct CheatingHandshake {
    pub handshake: Arc<dyn ClientConfig>,
    /// Whether what the gateway sends is never acknowledged.
    pub swallows_acks: bool,
}

impl ClientConfig for CheatingHandshake {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let session = self.handshake.clone().start_session(version, server_name, params)?;
        Ok(Box::new(Cheating { session, swallows_acks: self.swallows_acks, keys: 0 }))
    }
}

struct Cheating {
    session: Box<dyn Session>,
    swallows_acks: bool,
    /// Sets of keys handed out: those of the handshake come first.
    keys: u32,
}

impl Cheating {
    fn change(&self, key: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        Box::new(Changed { key, swallows_acks: self.swallows_acks })
    }
}

impl Session for Cheating {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.session.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.session.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.session.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.session.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.session.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.session.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.session.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let mut keys = self.session.write_handshake(buf)?;
        self.keys += 1;
        if self.keys > 1 {
            keys.packet.local = self.change(keys.packet.local);
        }
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let KeyPair { local, remote } = self.session.next_1rtt_keys()?;
        Some(KeyPair { local: self.change(local), remote })
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.session.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.session.export_keying_material(output, label, context)
    }
}

struct Changed {
    key: Box<dyn PacketKey>,
    swallows_acks: bool,
}

impl PacketKey for Changed {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.tag_len();
        let payload = &mut buf[header_len..end];
        unpack(payload);
        if self.swallows_acks {
            swallow_ack(payload);
        }
        self.key.encrypt(packet, buf, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.key.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.key.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}

/// Turns the heads of carriers into padding.
fn unpack(payload: &mut [u8]) {
    let head_bytes = 1 + LENGTH_BYTES + CARRIER.len();
    let mut from = 0;
    while let Some(place) =
        payload.get(from..).and_then(|rest| rest.windows(CARRIER.len()).position(|it| it == CARRIER))
        && let Some(start) = (from + place).checked_sub(1 + LENGTH_BYTES)
        && payload[start] == DATAGRAM
    {
        payload[start..start + head_bytes].fill(0);
        from = start + head_bytes;
    }
}

/// Turns an ACK frame, which comes first, into padding.
fn swallow_ack(payload: &mut [u8]) {
    let start = payload.iter().position(|&kind| !matches!(kind, 0 | PING | IMMEDIATE_ACK));
    let Some(start) = start.filter(|&start| matches!(payload[start], ACK | ACK_ECN)) else { return };
    let has_ecn = payload[start] == ACK_ECN;
    let mut rest = &payload[start + 1..];
    let mut varint = || {
        let length = 1usize << (rest.first()? >> 6);
        let (number, behind) = rest.split_at_checked(length)?;
        rest = behind;
        Some(number.iter().skip(1).fold(u64::from(number[0] & 0x3f), |value, &byte| value << 8 | u64::from(byte)))
    };
    // Largest, delay, ranges, first range; gap and length of each (RFC 9000, section 19.3).
    let numbers = (|| {
        varint()?;
        varint()?;
        let ranges = varint()?;
        (0..1 + 2 * ranges + if has_ecn { 3 } else { 0 }).try_for_each(|_| varint().map(drop))
    })();
    if numbers.is_some() {
        let end = payload.len() - rest.len();
        payload[start..end].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram as quinn-proto writes it.
    fn datagram(data: &[u8]) -> Vec<u8> {
        [&[DATAGRAM][..], &(data.len() as u16 | 0x4000).to_be_bytes(), data].concat()
    }

    #[test]
    fn carriers_become_their_frames_and_other_datagrams_stay() {
        let (honest, frames) = (datagram(&[7; 70]), [0x1a, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut payload = [&[PING][..], &datagram(&carry(&frames)), &honest, &datagram(&carry(&frames))].concat();
        unpack(&mut payload);
        let head = [0; 15];
        assert!(payload[1..].starts_with(&[&head[..], &frames].concat()));
        let behind = 1 + 3 + CARRIER_BYTES_MIN;
        assert!(payload[behind..].starts_with(&honest));
        assert!(payload[behind + honest.len()..].starts_with(&[&head[..], &frames].concat()));
    }

    #[test]
    fn an_acknowledgement_is_swallowed_and_nothing_else() {
        // Largest 0x1234 in two bytes, delay 5, one more range, first range 1, gap 2, length 3, three ECN counts.
        let ack = [ACK_ECN, 0x52, 0x34, 5, 1, 1, 2, 3, 9, 9, 9];
        let mut payload = [&[PING][..], &ack, &datagram(&[ACK; 10])].concat();
        swallow_ack(&mut payload);
        assert_eq!(payload, [&[PING][..], &[0; 11], &datagram(&[ACK; 10])].concat());
        let mut without = datagram(&[ACK; 10]);
        swallow_ack(&mut without);
        assert_eq!(without, datagram(&[ACK; 10]));
    }
}
