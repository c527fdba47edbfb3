//! What the two ends of a flow send each other: inner packets of IPv4 and UDP around a numbered message, every byte of which is checked.
//!
//! ```text
//!  0       2      4          8             16            24
//!  | magic | kind | flow     | sequence    | stamp_ns    | body ...
//! ```
//!
//! All numbers are big-endian. A body is a window onto one block of pseudo-random bytes, at a place that follows from every field of the
//! header: making it is a copy, checking it a comparison, and its share of the UDP checksum a difference of two prefix sums. Headers are
//! written and summed by `etherparse`, not by the engine that is measured.

use std::net::SocketAddrV4;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use etherparse::IpNumber;
use tollgate_testkit::chance::{Chance, mixed};
use tollgate_testkit::packet::{self, Sum};

pub const HEADER_BYTES: usize = 24;
/// IPv4 and UDP header: what an inner packet is longer than the UDP payload in it.
pub const OVERHEAD_BYTES: usize = IPV4_BYTES + UDP_BYTES;
/// The shortest inner packet that carries a message.
pub const INNER_BYTES_MIN: u16 = (OVERHEAD_BYTES + HEADER_BYTES) as u16;
/// One allocation for some 45 long packets. What is larger `BytesMut` does not allocate again by itself.
pub const ARENA_BYTES: usize = 64 * 1024;

const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const MAGIC: u16 = 0x544c;
/// Places that bodies start at, two bytes apart.
const STARTS: usize = 32 * 1024;
const PATTERN_BYTES: usize = 2 * STARTS + 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Unique in a run.
    pub flow: u32,
    /// Counts the messages of one sender in this flow from 0. Of [`Kind::Credit`]: the number before which all was received or is lost.
    pub sequence: u64,
    /// When it was due, in nanoseconds since an origin of the sender's own. Of answers: the request's.
    pub stamp_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    Data = 1,
    /// It is to be answered.
    Request = 2,
    Answer = 3,
    /// From the receiver of a window's data to its sender. It has no number.
    Credit = 4,
}

impl Header {
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2..4].copy_from_slice(&(self.kind as u16).to_be_bytes());
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..].copy_from_slice(&self.stamp_ns.to_be_bytes());
        bytes
    }

    /// Reads a UDP payload: the header, and the body behind it. `None` for what is not one of these messages.
    #[inline]
    pub fn parse(payload: &[u8]) -> Option<(Header, &[u8])> {
        let (header, body) = payload.split_first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| header[at..at + 8].iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let first = word(0);
        let kinds = [Kind::Data, Kind::Request, Kind::Answer, Kind::Credit];
        let kind = kinds.into_iter().find(|kind| (first >> 32) as u32 == u32::from(MAGIC) << 16 | *kind as u32)?;
        Some((Header { kind, flow: first as u32, sequence: word(8), stamp_ns: word(16) }, body))
    }
}

/// `at` as a stamp of a clock that began at `origin`: 0 for what was before.
#[inline]
pub fn stamp_ns(origin: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(origin).as_nanos() as u64
}

/// What all bodies are windows onto.
struct Pattern {
    bytes: Box<[u8]>,
    /// The ones' complement sum of the first n 16-bit words at n.
    sums: Box<[Sum]>,
}

static PATTERN: LazyLock<Pattern> = LazyLock::new(|| {
    let mut chance = Chance::new(1);
    let bytes: Box<[u8]> = (0..PATTERN_BYTES / 8).flat_map(|_| chance.number().to_be_bytes()).collect();
    let mut sums = vec![Sum::default()];
    for word in bytes.as_chunks::<2>().0 {
        sums.push(sums[sums.len() - 1] + Sum::of(word));
    }
    Pattern { bytes, sums: sums.into() }
});

/// Where the body of `header` starts. Of headers that agree in all but `sequence`, or in all but `flow`, only those have the same body whose
/// numbers are a multiple of 32,768 apart; of headers that differ otherwise, one in 32,768 has.
#[inline]
fn start(header: &Header) -> usize {
    // Odd multipliers: 32,768 numbers in a row have as many places.
    let numbers = header.sequence.wrapping_mul(40_503).wrapping_add(u64::from(header.flow).wrapping_mul(25_717));
    let rest = mixed(header.stamp_ns ^ (header.kind as u64) << 48);
    (numbers.wrapping_add(rest) % STARTS as u64) as usize * 2
}

/// The body of `header` in a packet of this length.
#[inline]
pub fn body(header: &Header, inner_bytes: u16) -> &'static [u8] {
    let bytes = usize::from(inner_bytes).saturating_sub(OVERHEAD_BYTES + HEADER_BYTES);
    &PATTERN.bytes[start(header)..][..bytes]
}

/// The sum of a body of so many bytes. It begins at an even offset of what is summed.
#[inline]
fn body_sum(header: &Header, bytes: usize) -> Sum {
    let (pattern, start) = (&*PATTERN, start(header));
    let sum = pattern.sums[(start + bytes) / 2] - pattern.sums[start / 2];
    if bytes.is_multiple_of(2) { sum } else { sum + Sum::of(&[pattern.bytes[start + bytes - 1]]) }
}

/// Whether `body` came as it was sent with `header`.
#[inline]
pub fn is_intact(header: &Header, body: &[u8]) -> bool {
    body.len() <= usize::from(u16::MAX) && PATTERN.bytes[start(header)..][..body.len()] == *body
}

/// From one socket address to another: the headers that all packets of a flow have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// IPv4 and UDP header of a packet without payload, and zeros for the checksums.
    headers: [u8; OVERHEAD_BYTES],
    ip_sum: Sum,
    /// Of the pseudo header and the UDP header, both without their lengths.
    udp_sum: Sum,
}

/// A packet from the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    pub destination_port: u16,
    pub header: Header,
    /// Whether both checksums are right, and the body is the one that belongs to the header.
    pub is_intact: bool,
}

impl Path {
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4) -> Path {
        let mut headers = [0; OVERHEAD_BYTES];
        headers.copy_from_slice(&packet::udp(source.into(), destination.into(), &[]));
        for field in [2..4, 10..12, 24..28] {
            headers[field].fill(0);
        }
        let udp_sum =
            Sum::of(&headers[12..IPV4_BYTES]) + Sum::of(&[0, IpNumber::UDP.0]) + Sum::of(&headers[IPV4_BYTES..]);
        Path { headers, ip_sum: Sum::of(&headers[..IPV4_BYTES]), udp_sum }
    }

    /// The packet of `header`: `inner_bytes` long, at least [`INNER_BYTES_MIN`].
    #[inline]
    pub fn packet(&self, arena: &mut BytesMut, header: &Header, inner_bytes: u16) -> Bytes {
        let (message, body) = (header.to_bytes(), body(header, inner_bytes));
        let inner_bytes = OVERHEAD_BYTES + HEADER_BYTES + body.len();
        let ip_length = (inner_bytes as u16).to_be_bytes();
        let udp_length = ((inner_bytes - IPV4_BYTES) as u16).to_be_bytes();
        // The length is in the pseudo header and in the header.
        let lengths = Sum::of(&udp_length) + Sum::of(&udp_length);
        let udp_sum = self.udp_sum + lengths + Sum::of(&message) + body_sum(header, body.len());
        let mut headers = self.headers;
        headers[2..4].copy_from_slice(&ip_length);
        headers[10..12].copy_from_slice(&(self.ip_sum + Sum::of(&ip_length)).checksum());
        headers[24..26].copy_from_slice(&udp_length);
        headers[26..].copy_from_slice(&udp_sum.udp_checksum());
        arena.reserve(inner_bytes);
        arena.extend_from_slice(&headers);
        arena.extend_from_slice(&message);
        arena.extend_from_slice(body);
        arena.split().freeze()
    }
}

/// Reads a packet from the tunnel. `None` for what is not one IPv4 packet without options and fragmentation, not UDP with a length that
/// agrees, or no message: others' traffic, or ours with damage in the wrong place.
#[inline]
pub fn parse(packet: &[u8]) -> Option<Arrival> {
    let (headers, payload) = packet.split_first_chunk::<OVERHEAD_BYTES>()?;
    let (ip, udp) = headers.split_at(IPV4_BYTES);
    let field = |at: usize| usize::from(u16::from_be_bytes([headers[at], headers[at + 1]]));
    let is_udp = ip[0] == 0x45 && ip[9] == IpNumber::UDP.0 && field(6) & 0x3fff == 0;
    if !is_udp || field(2) != packet.len() || field(24) != packet.len() - IPV4_BYTES {
        return None;
    }
    let (header, body) = Header::parse(payload)?;
    let is_intact = is_intact(&header, body) && {
        let pseudo_header = Sum::of(&ip[12..]) + Sum::of(&[0, IpNumber::UDP.0]) + Sum::of(&udp[4..6]);
        let sum = pseudo_header + Sum::of(udp) + Sum::of(&payload[..HEADER_BYTES]) + body_sum(&header, body.len());
        // A sum of 0 is written as 0xffff (RFC 768). Who writes it as 0 says in IPv4 that there is none, but damages nothing.
        sum.is_valid() && Sum::of(ip).is_valid()
    };
    Some(Arrival { destination_port: field(22) as u16, header, is_intact })
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    use super::*;

    const NEAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 18, 0, 7), 40_001);
    const FAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 19, 255, 254), 5001);

    fn data(flow: u32, sequence: u64, stamp_ns: u64) -> Header {
        Header { kind: Kind::Data, flow, sequence, stamp_ns }
    }

    fn packet(header: &Header, inner_bytes: u16) -> Vec<u8> {
        Path::new(NEAR, FAR).packet(&mut BytesMut::new(), header, inner_bytes).to_vec()
    }

    fn found_intact(packet: &[u8]) -> Option<bool> {
        parse(packet).map(|arrival| arrival.is_intact)
    }

    proptest! {
        #[test]
        fn a_packet_has_right_checksums_and_comes_back_out(
            (flow, sequence, stamp_ns) in (any::<u32>(), any::<u64>(), any::<u64>()),
            inner_bytes in 52u16..,
        ) {
            let header = data(flow, sequence, stamp_ns);
            let packet = packet(&header, inner_bytes);
            prop_assert_eq!(packet.len(), usize::from(inner_bytes));
            let read = PacketHeaders::from_ip_slice(&packet).unwrap();
            let (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) = (read.net, read.transport) else {
                panic!("no UDP over IPv4");
            };
            prop_assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            prop_assert!(ip.dont_fragment);
            let checksum = udp.calc_checksum_ipv4(&ip, read.payload.slice()).unwrap();
            prop_assert!(udp.checksum == checksum && checksum != 0, "{checksum}");
            prop_assert_eq!(parse(&packet), Some(Arrival { destination_port: FAR.port(), header, is_intact: true }));
        }

        #[test]
        fn a_changed_bit_anywhere_is_found(flow: u32, sequence: u64, bytes in 52u16..1500, at: prop::sample::Index) {
            let mut packet = packet(&data(flow, sequence, 99), bytes);
            let bit = at.index(8 * packet.len());
            packet[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(found_intact(&packet), Some(true));
        }

        #[test]
        fn neighbours_have_different_bodies(flow: u32, sequence in 0..u64::MAX - 40_000, apart in 1u32..32_768) {
            let of = |flow, sequence| body(&data(flow, sequence, 7), 68);
            prop_assert_ne!(of(flow, sequence), of(flow, sequence + u64::from(apart)));
            prop_assert_ne!(of(flow, sequence), of(flow.wrapping_add(apart), sequence));
        }
    }

    #[test]
    fn damage_with_a_checksum_made_right_again_is_found() {
        let header = data(1, 2, 3);
        let mut packet = packet(&header, 200);
        // Two words change places: the sum stays.
        packet.swap(150, 152);
        packet.swap(151, 153);
        let arrival = parse(&packet).unwrap();
        assert_eq!((arrival.header, arrival.is_intact), (header, false), "it is known whose packet was damaged");
    }

    #[test]
    fn packets_of_others_are_refused() {
        let good = packet(&data(1, 2, 3), 200);
        for (at, value) in [(9, 1), (6, 0x20), (0, 0x46), (0, 0x75), (25, 0), (28, 0), (31, 5)] {
            let mut foreign = good.clone();
            foreign[at] = value;
            assert_eq!(found_intact(&foreign), None, "byte {at}");
        }
        assert_eq!((found_intact(&good[..199]), found_intact(&good[..27]), found_intact(&[])), (None, None, None));
    }
}
