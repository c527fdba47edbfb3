//! Inner packets as the near end makes and reads them: IPv4 and UDP around a message, with right checksums.
//!
//! Nothing here is counted or sent. Reading takes IPv6 as well; making it would take a second kind of [`Path`].

use std::net::{SocketAddr, SocketAddrV4};

use bytes::{Bytes, BytesMut};
use tollgate_shards::packet::checksum::Sum;
use tollgate_shards::packet::{InnerPacket, protocol};

use super::pattern::Pattern;
use super::wire::{HEADER_BYTES, Header};

/// IPv4 and UDP header, in bytes: what an inner packet is longer than the UDP payload in it.
pub const V4_OVERHEAD_BYTES: usize = IPV4_BYTES + UDP_BYTES;

/// IPv6 and UDP header, in bytes.
pub const V6_OVERHEAD_BYTES: usize = IPV6_BYTES + UDP_BYTES;

/// A good size for an arena: one allocation for some 45 long packets. What is larger `BytesMut` does not allocate again by itself.
pub const ARENA_BYTES: usize = 64 * 1024;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const HOPS: u8 = 64;

/// From one socket address to another: the headers that all packets of a flow have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// IPv4 and UDP header with zeros for lengths and checksums.
    headers: [u8; V4_OVERHEAD_BYTES],
    /// Sum of the IPv4 header, without its length.
    ip_sum: u16,
    /// Sum of the pseudo header and the UDP header, without their lengths.
    udp_sum: u16,
}

/// What a packet from the tunnel is, when it is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The message's header.
    pub header: Header,
    /// What follows it.
    pub body: &'a [u8],
    /// Whether both checksums are right, and the body is the one that belongs to the header (of data, requests and answers).
    pub is_intact: bool,
}

impl Path {
    /// The path from `source` to `destination`.
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4) -> Path {
        let mut headers = [0; V4_OVERHEAD_BYTES];
        headers[0] = 0x45;
        // Don't fragment: such packets need no identification, and may be merged whatever theirs is (RFC 6864).
        headers[6] = 0x40;
        headers[8] = HOPS;
        headers[9] = protocol::UDP;
        headers[12..16].copy_from_slice(&source.ip().octets());
        headers[16..20].copy_from_slice(&destination.ip().octets());
        headers[20..22].copy_from_slice(&source.port().to_be_bytes());
        headers[22..24].copy_from_slice(&destination.port().to_be_bytes());
        let (ip, udp) = headers.split_at(IPV4_BYTES);
        let addresses = Sum::of(&ip[12..]);
        let udp_sum = addresses + Sum::word(u16::from(protocol::UDP)) + Sum::of(udp);
        Path { headers, ip_sum: Sum::of(ip).folded(), udp_sum: udp_sum.folded() }
    }

    /// A packet of data, a request or an answer: `inner_bytes` long, at least
    /// [`INNER_BYTES_MIN`](super::sizes::INNER_BYTES_MIN), carved from `arena`.
    #[inline]
    pub fn payload(&self, arena: &mut BytesMut, header: &Header, inner_bytes: u16, pattern: &Pattern) -> Bytes {
        let body_bytes = usize::from(inner_bytes).saturating_sub(V4_OVERHEAD_BYTES + HEADER_BYTES);
        self.packet(arena, header, pattern.window(header, body_bytes), pattern.sum(header, body_bytes))
    }

    /// A packet of any other message, carved from `arena`. `body` is at most [`BODY_BYTES_MAX`](super::wire::BODY_BYTES_MAX) long.
    pub fn control(&self, arena: &mut BytesMut, header: &Header, body: &[u8]) -> Bytes {
        self.packet(arena, header, body, Sum::of(body))
    }

    #[inline]
    fn packet(&self, arena: &mut BytesMut, header: &Header, body: &[u8], body_sum: Sum) -> Bytes {
        let message = header.to_bytes();
        let udp_bytes = (UDP_BYTES + HEADER_BYTES + body.len()) as u16;
        let inner_bytes = IPV4_BYTES as u16 + udp_bytes;
        let ip_checksum = (Sum::word(self.ip_sum) + Sum::word(inner_bytes)).checksum();
        // The length is in the pseudo header and in the header.
        let lengths = Sum::word(udp_bytes) + Sum::word(udp_bytes);
        let udp_checksum = (Sum::word(self.udp_sum) + lengths + Sum::of(&message) + body_sum).checksum();
        // Zero would say that there is none; ones are as good.
        let udp_checksum = if udp_checksum == 0 { 0xffff } else { udp_checksum };
        let mut headers = self.headers;
        headers[2..4].copy_from_slice(&inner_bytes.to_be_bytes());
        headers[10..12].copy_from_slice(&ip_checksum.to_be_bytes());
        headers[24..26].copy_from_slice(&udp_bytes.to_be_bytes());
        headers[26..].copy_from_slice(&udp_checksum.to_be_bytes());
        arena.reserve(usize::from(inner_bytes));
        arena.extend_from_slice(&headers);
        arena.extend_from_slice(&message);
        arena.extend_from_slice(body);
        arena.split().freeze()
    }
}

/// Reads a packet from the tunnel. `None` for what is not one IP packet without options, extension headers or fragmentation, not UDP with a
/// length that agrees, or no message: others' traffic, or ours with damage in the wrong place.
#[inline]
pub fn parse<'a>(packet: &'a [u8], pattern: &Pattern) -> Option<Arrival<'a>> {
    let inner = InnerPacket::parse(packet).ok()?;
    let ip_bytes = if inner.is_v6() { IPV6_BYTES } else { IPV4_BYTES };
    if inner.protocol != protocol::UDP || inner.transport_offset != Some(ip_bytes) {
        return None;
    }
    let (ip, udp) = packet.split_at(ip_bytes);
    let (udp_header, payload) = udp.split_first_chunk::<UDP_BYTES>()?;
    let [source_port, destination_port, udp_bytes, udp_checksum] =
        std::array::from_fn(|field| u16::from_be_bytes([udp_header[2 * field], udp_header[2 * field + 1]]));
    if usize::from(udp_bytes) != udp.len() {
        return None;
    }
    let (header, body) = Header::parse(payload)?;
    let body_sum = match header.kind.is_payload() {
        false => Some(Sum::of(body)),
        true => pattern.is_intact(&header, body).then(|| pattern.sum(&header, body.len())),
    };
    let sums_are_right = body_sum.is_some_and(|body_sum| {
        let addresses = if inner.is_v6() { &ip[8..] } else { &ip[12..] };
        let pseudo_header = Sum::of(addresses) + Sum::word(u16::from(protocol::UDP)) + Sum::word(udp_bytes);
        let sum = pseudo_header + Sum::of(udp_header) + Sum::of(&payload[..HEADER_BYTES]) + body_sum;
        // A sum of 0 is written as 0xffff (RFC 768). Who writes it as 0 says in IPv4 that there is none, but damages nothing.
        sum.is_valid() && if inner.is_v6() { udp_checksum != 0 } else { Sum::of(ip).is_valid() }
    });
    Some(Arrival {
        source: SocketAddr::new(inner.source, source_port),
        destination: SocketAddr::new(inner.destination, destination_port),
        header,
        body,
        is_intact: sums_are_right,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{self, Kind};
    use super::*;

    const NEAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 18, 0, 7), 40_001);
    const FAR: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 19, 255, 254), 5001);

    fn naive_sum(parts: &[&[u8]]) -> u16 {
        let bytes = parts.concat();
        let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let sum: u32 = words.sum();
        let sum = (sum >> 16) + (sum & 0xffff);
        ((sum >> 16) + (sum & 0xffff)) as u16
    }

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
            (source, destination) in (any::<[u8; 4]>(), any::<[u8; 4]>()),
            (source_port, destination_port) in (any::<u16>(), any::<u16>()),
        ) {
            let source = SocketAddrV4::new(source.into(), source_port);
            let destination = SocketAddrV4::new(destination.into(), destination_port);
            let (header, pattern) = (data(flow, sequence, stamp_ns), Pattern::shared());
            let packet = Path::new(source, destination).payload(&mut BytesMut::new(), &header, inner_bytes, pattern);
            prop_assert_eq!(packet.len(), usize::from(inner_bytes));
            prop_assert_eq!(naive_sum(&[&packet[..20]]), 0xffff);
            let udp_bytes = (inner_bytes - 20).to_be_bytes();
            prop_assert_eq!(naive_sum(&[&packet[12..20], &[0, 17], &udp_bytes, &packet[20..]]), 0xffff);
            prop_assert_ne!(&packet[26..28], &[0, 0], "zero would mean no checksum");
            prop_assert_eq!(packet[6] & 0x40, 0x40, "don't fragment");
            let arrival = parse(&packet, pattern).unwrap();
            prop_assert_eq!((arrival.source, arrival.destination), (source.into(), destination.into()));
            prop_assert_eq!((arrival.header, arrival.is_intact), (header, true));
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
        packet[150] ^= 0x10;
        packet[26..28].fill(0);
        let udp_bytes = 180u16.to_be_bytes();
        let checksum = !naive_sum(&[&packet[12..20], &[0, 17], &udp_bytes, &packet[20..]]);
        packet[26..28].copy_from_slice(&checksum.to_be_bytes());
        let arrival = parse(&packet, Pattern::shared()).unwrap();
        assert_eq!((arrival.header, arrival.is_intact), (header, false), "it is known whose packet was damaged");
    }

    #[test]
    fn a_router_on_the_way_is_no_damage() {
        let mut packet = packet(&data(1, 2, 3), 200);
        packet[8] -= 1;
        packet[10..12].fill(0);
        let checksum = !naive_sum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(is_intact(&packet), Some(true));
    }

    #[test]
    fn a_packet_without_checksum_is_not_intact() {
        let mut packet = packet(&data(1, 2, 3), 200);
        packet[26..28].fill(0);
        assert_eq!(is_intact(&packet), Some(false));
    }

    #[test]
    fn a_checksum_of_zero_may_be_written_either_way_in_ipv4() {
        let header = (0..).map(|stamp_ns| data(1, 2, stamp_ns)).find(|header| packet(header, 100)[26..28] == [0xff; 2]);
        let mut packet = packet(&header.expect("one of 65,536"), 100);
        assert_eq!(is_intact(&packet), Some(true));
        packet[26..28].fill(0);
        assert_eq!(is_intact(&packet), Some(true));
    }

    #[test]
    fn packets_of_others_are_refused() {
        let good = packet(&data(1, 2, 3), 200);
        assert_eq!(is_intact(&good), Some(true));
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            packet
        };
        for (what, foreign) in [
            ("ICMP", changed(|packet| packet[9] = 1)),
            ("a fragment", changed(|packet| packet[6] = 0x20)),
            ("options", changed(|packet| packet[0] = 0x46)),
            ("another version", changed(|packet| packet[0] = 0x75)),
            ("cut off", changed(|packet| packet.truncate(199))),
            ("longer than its UDP length", changed(|packet| packet[25] -= 1)),
            ("another magic", changed(|packet| packet[28] ^= 1)),
            ("no header", good[..27].to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert_eq!(is_intact(&foreign), None, "{what}");
        }
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

    #[test]
    fn ipv6_is_read_too() {
        let (header, pattern) = (data(5, 6, 7), Pattern::shared());
        let payload = [&header.to_bytes(), pattern.window(&header, 100)].concat();
        let udp_bytes = (8 + payload.len()) as u16;
        let mut packet = vec![0x60, 0, 0, 0, 0, udp_bytes as u8, 17, 64];
        for last in [1, 2] {
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend([0x10, 0, 0x20, 0, 0, udp_bytes as u8, 0, 0]);
        packet.extend(&payload);
        assert_eq!(is_intact(&packet), Some(false), "IPv6 has no packets without checksum");
        let checksum = !naive_sum(&[&packet[8..40], &[0, 17], &udp_bytes.to_be_bytes(), &packet[40..]]);
        packet[46..48].copy_from_slice(&checksum.to_be_bytes());
        let arrival = parse(&packet, pattern).unwrap();
        assert!(arrival.is_intact && arrival.source == "[fd00::1]:4096".parse().unwrap());
    }

    #[test]
    fn packets_are_carved_from_one_allocation() {
        let (path, mut arena) = (Path::new(NEAR, FAR), BytesMut::with_capacity(ARENA_BYTES));
        let packets: Vec<Bytes> =
            (0..46).map(|number| path.payload(&mut arena, &data(1, number, 0), 1400, Pattern::shared())).collect();
        for pair in packets.windows(2) {
            assert_eq!(pair[0].as_ptr() as usize + 1400, pair[1].as_ptr() as usize);
        }
    }
}
