//! Inner packets as the generator makes and reads them: IPv4 and UDP around a message, with right checksums.
//!
//! The headers are written and summed by `etherparse`, not by the engine that is measured.

use std::net::SocketAddrV4;

use bytes::{Bytes, BytesMut};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};
use tollgate_testkit::packet::Sum;

use super::pattern::Pattern;
use super::wire::{HEADER_BYTES, Header};

/// IPv4 and UDP header, in bytes: what an inner packet is longer than the UDP payload in it.
pub const OVERHEAD_BYTES: usize = IPV4_BYTES + UDP_BYTES;

/// A good size for an arena: one allocation for some 45 long packets. What is larger `BytesMut` does not allocate again by itself.
pub const ARENA_BYTES: usize = 64 * 1024;

const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// From one socket address to another: the headers that all packets of a flow have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// IPv4 and UDP header of a packet without payload, and zeros for the checksums.
    headers: [u8; OVERHEAD_BYTES],
    ip_sum: Sum,
    /// Of the pseudo header and the UDP header, both without their lengths.
    udp_sum: Sum,
}

/// What a packet from the tunnel is, when it is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<'a> {
    pub destination_port: u16,
    pub header: Header,
    pub body: &'a [u8],
    /// Whether both checksums are right, and the body is the one that belongs to the header (of data, requests and answers).
    pub is_intact: bool,
}

impl Path {
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4) -> Path {
        let mut ip = Ipv4Header {
            time_to_live: 64,
            protocol: IpNumber::UDP,
            source: source.ip().octets(),
            destination: destination.ip().octets(),
            // Such packets need no identification, and may be merged whatever theirs is (RFC 6864).
            dont_fragment: true,
            fragment_offset: IpFragOffset::ZERO,
            ..Ipv4Header::default()
        };
        (ip.total_len, ip.header_checksum) = (0, 0);
        let udp =
            UdpHeader { source_port: source.port(), destination_port: destination.port(), length: 0, checksum: 0 };
        let mut headers = [0; OVERHEAD_BYTES];
        headers[..IPV4_BYTES].copy_from_slice(&ip.to_bytes());
        headers[IPV4_BYTES..].copy_from_slice(&udp.to_bytes());
        let udp_sum =
            Sum::of(&headers[12..IPV4_BYTES]) + Sum::of(&[0, IpNumber::UDP.0]) + Sum::of(&headers[IPV4_BYTES..]);
        Path { headers, ip_sum: Sum::of(&headers[..IPV4_BYTES]), udp_sum }
    }

    /// A packet of data, a request or an answer: `inner_bytes` long, at least [`INNER_BYTES_MIN`](super::sizes::INNER_BYTES_MIN).
    #[inline]
    pub fn payload(&self, arena: &mut BytesMut, header: &Header, inner_bytes: u16, pattern: &Pattern) -> Bytes {
        let body_bytes = usize::from(inner_bytes).saturating_sub(OVERHEAD_BYTES + HEADER_BYTES);
        self.packet(arena, header, pattern.window(header, body_bytes), pattern.sum(header, body_bytes))
    }

    /// A packet of any other message.
    pub fn control(&self, arena: &mut BytesMut, header: &Header, body: &[u8]) -> Bytes {
        self.packet(arena, header, body, Sum::of(body))
    }

    #[inline]
    fn packet(&self, arena: &mut BytesMut, header: &Header, body: &[u8], body_sum: Sum) -> Bytes {
        let message = header.to_bytes();
        let udp_bytes = ((UDP_BYTES + HEADER_BYTES + body.len()) as u16).to_be_bytes();
        let inner_bytes = (OVERHEAD_BYTES + HEADER_BYTES + body.len()) as u16;
        let ip_sum = self.ip_sum + Sum::of(&inner_bytes.to_be_bytes());
        // The length is in the pseudo header and in the header.
        let lengths = Sum::of(&udp_bytes) + Sum::of(&udp_bytes);
        let udp_sum = self.udp_sum + lengths + Sum::of(&message) + body_sum;
        let mut headers = self.headers;
        headers[2..4].copy_from_slice(&inner_bytes.to_be_bytes());
        headers[10..12].copy_from_slice(&ip_sum.checksum());
        headers[24..26].copy_from_slice(&udp_bytes);
        headers[26..].copy_from_slice(&udp_sum.udp_checksum());
        arena.reserve(usize::from(inner_bytes));
        arena.extend_from_slice(&headers);
        arena.extend_from_slice(&message);
        arena.extend_from_slice(body);
        arena.split().freeze()
    }
}

/// Reads a packet from the tunnel. `None` for what is not one IPv4 packet without options and fragmentation, not UDP with a length that
/// agrees, or no message: others' traffic, or ours with damage in the wrong place.
#[inline]
pub fn parse<'a>(packet: &'a [u8], pattern: &Pattern) -> Option<Arrival<'a>> {
    let (headers, payload) = packet.split_first_chunk::<OVERHEAD_BYTES>()?;
    let (ip, udp) = headers.split_at(IPV4_BYTES);
    let field = |at: usize| usize::from(u16::from_be_bytes([headers[at], headers[at + 1]]));
    let is_udp = ip[0] == 0x45 && ip[9] == IpNumber::UDP.0 && field(6) & 0x3fff == 0;
    if !is_udp || field(2) != packet.len() || field(24) != packet.len() - IPV4_BYTES {
        return None;
    }
    let (header, body) = Header::parse(payload)?;
    let body_sum = match header.kind.is_payload() {
        false => Some(Sum::of(body)),
        true => pattern.is_intact(&header, body).then(|| pattern.sum(&header, body.len())),
    };
    let sums_are_right = body_sum.is_some_and(|body_sum| {
        let pseudo_header = Sum::of(&ip[12..]) + Sum::of(&[0, IpNumber::UDP.0]) + Sum::of(&udp[4..6]);
        let sum = pseudo_header + Sum::of(udp) + Sum::of(&payload[..HEADER_BYTES]) + body_sum;
        // A sum of 0 is written as 0xffff (RFC 768). Who writes it as 0 says in IPv4 that there is none, but damages nothing.
        sum.is_valid() && Sum::of(ip).is_valid()
    });
    Some(Arrival { destination_port: field(22) as u16, header, body, is_intact: sums_are_right })
}

#[cfg(test)]
mod tests {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    use super::super::wire::{self, Kind};
    use super::*;

    const NEAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 18, 0, 7), 40_001);
    const FAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 19, 255, 254), 5001);

    fn data(flow: u32, sequence: u64, stamp_ns: u64) -> Header {
        Header { kind: Kind::Data, group: 3, flow, sequence, stamp_ns }
    }

    fn packet(header: &Header, inner_bytes: u16) -> Vec<u8> {
        Path::new(NEAR, FAR).payload(&mut BytesMut::new(), header, inner_bytes, Pattern::shared()).to_vec()
    }

    fn is_intact(packet: &[u8]) -> Option<bool> {
        parse(packet, Pattern::shared()).map(|arrival| arrival.is_intact)
    }

    proptest! {
        #[test]
        fn a_packet_has_right_checksums_and_comes_back_out(
            (flow, sequence, stamp_ns) in (any::<u32>(), any::<u64>(), any::<u64>()),
            inner_bytes in 52u16..,
        ) {
            let (header, pattern) = (data(flow, sequence, stamp_ns), Pattern::shared());
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
            let arrival = parse(&packet, pattern).unwrap();
            prop_assert_eq!((arrival.destination_port, arrival.header, arrival.is_intact), (FAR.port(), header, true));
            prop_assert_eq!(arrival.body, pattern.window(&header, usize::from(inner_bytes) - 52));
        }

        #[test]
        fn a_changed_bit_anywhere_is_found(
            (flow, sequence) in (any::<u32>(), any::<u64>()),
            inner_bytes in 52u16..1500,
            at: prop::sample::Index,
        ) {
            let mut packet = packet(&data(flow, sequence, 99), inner_bytes);
            let bit = at.index(8 * packet.len());
            packet[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(is_intact(&packet), Some(true));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            parse(&bytes, Pattern::shared());
        }
    }

    #[test]
    fn damage_with_a_checksum_made_right_again_is_found() {
        let header = data(1, 2, 3);
        let mut packet = packet(&header, 200);
        // Two words change places: the sum stays.
        packet.swap(150, 152);
        packet.swap(151, 153);
        let arrival = parse(&packet, Pattern::shared()).unwrap();
        assert_eq!((arrival.header, arrival.is_intact), (header, false), "it is known whose packet was damaged");
    }

    #[test]
    fn packets_of_others_are_refused() {
        let good = packet(&data(1, 2, 3), 200);
        for (at, value) in [(9, 1), (6, 0x20), (0, 0x46), (0, 0x75), (25, 0), (28, 0)] {
            let mut foreign = good.clone();
            foreign[at] = value;
            assert_eq!(is_intact(&foreign), None, "byte {at}");
        }
        assert_eq!((is_intact(&good[..199]), is_intact(&good[..27]), is_intact(&[])), (None, None, None));
    }

    #[test]
    fn control_messages_carry_their_body_and_damage_to_it_is_found() {
        let header = Header::control(Kind::Open, 1, 77);
        for body in [&b""[..], b"{}", b"odd", &[0xff; wire::BODY_BYTES_MAX]] {
            let packet = Path::new(FAR, NEAR).control(&mut BytesMut::new(), &header, body);
            let arrival = parse(&packet, Pattern::shared()).unwrap();
            assert_eq!((arrival.header, arrival.body, arrival.is_intact), (header, body, true));
            let mut damaged = packet.to_vec();
            damaged[51] ^= 1;
            assert_eq!(is_intact(&damaged), Some(false));
        }
    }
}
