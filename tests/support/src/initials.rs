//! Handshakes made by hand (RFC 9000, RFC 9001): a stranger's Initials, with whatever frames in them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, Version};

/// The smallest datagram that may open a handshake (RFC 9000, section 14.1).
pub const FIRST_BYTES_MIN: usize = 1200;
/// Bytes of an AES-GCM tag, and of a sample for header protection.
const TAG_BYTES: usize = 16;
const PACKET_NUMBER_BYTES: usize = 4;
/// How long the answer to an Initial may take.
const ANSWER: Duration = Duration::from_millis(500);
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const SOURCE_ID: [u8; 8] = *b"stranger";

/// A stranger whose address the gateway has seen proved, and who goes on with the handshake as it likes.
pub struct Stranger {
    socket: UdpSocket,
    keys: Keys,
    destination: Vec<u8>,
    token: Vec<u8>,
    packet_number: u32,
}

impl Stranger {
    /// Sends an Initial from `source` to `gateway` and takes the Retry that comes (RFC 9000, section 8.1.2). `nonce` tells strangers
    /// apart.
    ///
    /// # Errors
    ///
    /// When no Retry comes.
    pub fn prove_address(source: IpAddr, gateway: SocketAddr, nonce: u64) -> io::Result<Self> {
        let socket = UdpSocket::bind((source, 0))?;
        socket.connect(gateway)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let destination = nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec();
        let keys = initial_keys(&destination);
        let mut stranger = Stranger { socket, keys, destination, token: Vec::new(), packet_number: 0 };
        stranger.send(&crypto_frame(1, b"x"), FIRST_BYTES_MIN)?;
        let mut answer = [0; 2048];
        let bytes = stranger.socket.recv(&mut answer)?;
        let (id, token) = retry(&answer[..bytes]).ok_or(io::ErrorKind::InvalidData)?;
        stranger.keys = initial_keys(&id);
        (stranger.destination, stranger.token) = (id, token);
        Ok(stranger)
    }

    /// Forgets the token that proves its address, for one that proves nothing.
    pub fn spoil_token(&mut self) {
        self.token.iter_mut().for_each(|byte| *byte = !*byte);
    }

    /// Sends an Initial that holds `frames`, in a datagram of at least `bytes_min` bytes.
    pub fn send(&mut self, frames: &[u8], bytes_min: usize) -> io::Result<()> {
        let mut header = vec![0xc0 | (PACKET_NUMBER_BYTES as u8 - 1)];
        header.extend(VERSION_1);
        for id in [&self.destination[..], &SOURCE_ID] {
            header.push(id.len() as u8);
            header.extend(id);
        }
        header.extend(varint(self.token.len()));
        header.extend(&self.token);
        let fixed_bytes = header.len() + 2 + PACKET_NUMBER_BYTES + TAG_BYTES;
        let mut payload = frames.to_vec();
        // PADDING frames; header protection samples 4 bytes behind the start of the packet number.
        payload.resize(payload.len().max(bytes_min.saturating_sub(fixed_bytes)).max(4), 0);
        header.extend(varint(PACKET_NUMBER_BYTES + payload.len() + TAG_BYTES));
        let number_at = header.len();
        header.extend(self.packet_number.to_be_bytes());
        let keys = &self.keys.local;
        let tag =
            keys.packet.encrypt_in_place(self.packet_number.into(), &header, &mut payload).expect("a sealed packet");
        let mut packet = header;
        packet.extend(payload);
        packet.extend(tag.as_ref());
        let (head, sample) = packet.split_at_mut(number_at + PACKET_NUMBER_BYTES);
        let (first, rest) = head.split_first_mut().expect("a header");
        let number = &mut rest[number_at - 1..];
        keys.header.encrypt_in_place(&sample[..TAG_BYTES], first, number).expect("a protected header");
        self.packet_number += 1;
        self.socket.send(&packet).map(|_| ())
    }
}

/// A CRYPTO frame (RFC 9000, section 19.6).
pub fn crypto_frame(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[0x06][..], &varint(offset), &varint(data.len()), data].concat()
}

/// A variable-length integer of two or four bytes (RFC 9000, section 16).
pub fn varint(value: usize) -> Vec<u8> {
    if value < 1 << 14 {
        (value as u16 | 0x4000).to_be_bytes().to_vec()
    } else {
        (value as u32 | 0x8000_0000).to_be_bytes().to_vec()
    }
}

fn initial_keys(destination: &[u8]) -> Keys {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite()).expect("a suite for QUIC");
    suite.keys(destination, Side::Client, Version::V1)
}

/// The source connection ID and the token of a Retry packet.
fn retry(packet: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (&first, rest) = packet.split_first()?;
    let rest = rest.strip_prefix(&VERSION_1)?;
    let (_, rest) = take_id(rest)?;
    let (source, rest) = take_id(rest)?;
    let token = rest.get(..rest.len().checked_sub(TAG_BYTES)?)?;
    (first & 0xf0 == 0xf0).then(|| (source.to_vec(), token.to_vec()))
}

fn take_id(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = packet.split_first()?;
    rest.split_at_checked(length.into())
}
