//! Initials made by hand: whoever knows the ID that an Initial goes to has its keys (RFC 9001, section 5.2).

use quinn_proto::ConnectionId;
use quinn_proto::crypto::{Keys, ServerConfig};
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::Version;
use tollgate_noise::Kind;
use tollgate_shards::TLS_VERSION;

use crate::noise;

/// What every Initial fills at least (RFC 9000, section 14.1).
pub const DATAGRAM_BYTES: usize = 1200;

const NUMBER_BYTES: usize = 4;
const LENGTH_BYTES: usize = 2;
const TAG_BYTES: usize = 16;
const INTEGRITY_TAG_BYTES: usize = 16;
const SAMPLE_BYTES: usize = 16;

/// What stands in the header of an Initial.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    pub version: u32,
    pub destination: &'a [u8],
    pub source: &'a [u8],
    pub token: &'a [u8],
}

impl Header<'_> {
    /// Everything in front of the packet number, which has four bytes, of an Initial that fills a datagram.
    fn write(&self) -> Vec<u8> {
        let mut header = vec![0xc0 | (NUMBER_BYTES as u8 - 1)];
        header.extend(self.version.to_be_bytes());
        for id in [self.destination, self.source] {
            header.push(id.len() as u8);
            header.extend(id);
        }
        header.extend((self.token.len() as u16 | 0x4000).to_be_bytes());
        header.extend(self.token);
        let length = DATAGRAM_BYTES - header.len() - LENGTH_BYTES;
        header.extend((length as u16 | 0x4000).to_be_bytes());
        header
    }

    /// An Initial that nobody can open.
    pub fn unreadable(&self, filler: u8) -> Vec<u8> {
        let mut datagram = self.write();
        datagram.resize(DATAGRAM_BYTES, filler);
        datagram
    }

    /// An Initial with these frames, under the keys of its destination. `None` if they do not fit.
    pub fn seal(&self, number: u32, frames: &[u8]) -> Option<Vec<u8>> {
        let mut datagram = self.write();
        let number_at = datagram.len();
        datagram.extend(number.to_be_bytes());
        let payload_at = datagram.len();
        datagram.extend(frames);
        if datagram.len() + TAG_BYTES > DATAGRAM_BYTES {
            return None;
        }
        datagram.resize(DATAGRAM_BYTES - TAG_BYTES, 0);
        if self.version != TLS_VERSION {
            return Some(self.seal_as_noise(datagram, (number, number_at, payload_at)));
        }
        let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite()).expect("a suite of QUIC");
        let keys = suite.keys(self.destination, Side::Client, Version::V1).local;
        let (header, payload) = datagram.split_at_mut(payload_at);
        let tag = keys.packet.encrypt_in_place(number.into(), header, payload).expect("a packet is short");
        datagram.extend_from_slice(tag.as_ref());
        let (header, payload) = datagram.split_at_mut(payload_at);
        let (first, rest) = header.split_first_mut().expect("a header");
        let protected = &mut rest[number_at - 1..];
        keys.header.encrypt_in_place(&payload[..SAMPLE_BYTES], first, protected).expect("a whole sample");
        Some(datagram)
    }

    /// The same with Noise's keys, where packet number and payload begin at these places.
    fn seal_as_noise(&self, mut datagram: Vec<u8>, (number, number_at, payload_at): (u32, usize, usize)) -> Vec<u8> {
        datagram.resize(DATAGRAM_BYTES, 0);
        // What the gateway reads with.
        let Keys { header, packet } = noise::server()
            .initial_keys(self.version, &ConnectionId::new(self.destination))
            .expect("a version of Noise");
        packet.remote.encrypt(number.into(), &mut datagram, payload_at);
        header.remote.encrypt(number_at, &mut datagram);
        datagram
    }
}

/// A CRYPTO frame (RFC 9000, section 19.6).
pub fn crypto_frame(offset: usize, data: &[u8]) -> Vec<u8> {
    let varint = |value: usize| (value as u16 | 0x4000).to_be_bytes();
    [&[0x06], &varint(offset)[..], &varint(data.len()), data].concat()
}

/// Version, ID and token of a Retry, if `datagram` is one (RFC 9000, section 17.2.5).
pub fn read_retry(datagram: &[u8]) -> Option<(u32, Vec<u8>, Vec<u8>)> {
    let version = u32::from_be_bytes(*datagram.get(1..)?.first_chunk()?);
    let is_known = version == TLS_VERSION || Kind::of_quic_version(version).is_some();
    if datagram[0] & 0xf0 != 0xf0 || !is_known {
        return None;
    }
    let mut rest = &datagram[5..];
    let mut id = || {
        let (&length, behind) = rest.split_first()?;
        let (id, behind) = behind.split_at_checked(usize::from(length))?;
        rest = behind;
        Some(id.to_vec())
    };
    let (_, source) = (id()?, id()?);
    let token = rest.get(..rest.len().checked_sub(INTEGRITY_TAG_BYTES)?)?;
    Some((version, source, token.to_vec()))
}
