//! What decides whether a TCP segment or UDP datagram may be merged with those before it, or takes their place.

use zerocopy::FromBytes;

use super::checksum::Sum;
use super::headers::{DONT_FRAGMENT, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use super::inner::{InnerPacket, protocol};

/// Longest headers of a packet that can be merged, in bytes: IPv6 without extension headers, TCP with all options.
pub(super) const MERGEABLE_HEADERS_BYTES_MAX: usize = size_of::<Ipv6Header>() + 60;

const ACK: u16 = 0x10;
pub(super) const PSH: u16 = 0x08;

/// Source and destination address as they lie in the header; an IPv4 pair fills the first word and leaves the others zero.
pub(super) type AddressPair = [u64; 4];

/// The addresses of a packet that [`InnerPacket::parse`] accepted; zeros for other bytes.
#[inline]
pub(super) fn address_pair(packet: &[u8], is_v6: bool) -> AddressPair {
    let mut pair = [0; 4];
    let addresses = if is_v6 { packet.get(8..40) } else { packet.get(12..20) };
    let (words, _) = addresses.unwrap_or_default().as_chunks::<8>();
    for (word, bytes) in pair.iter_mut().zip(words) {
        *word = u64::from_ne_bytes(*bytes);
    }
    pair
}

/// The 5-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub addresses: AddressPair,
    pub is_v6: bool,
    pub protocol: u8,
    ports: u32,
}

impl Flow {
    /// A number to tell most flows apart by. Flows that share it are still told apart, only slower.
    #[inline]
    pub fn tag(&self) -> u32 {
        // The multiplier is 2^64 divided by the golden ratio: it carries every input bit into the upper half.
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let ends = u64::from(self.ports) << 8 | u64::from(self.protocol);
        let mut mixed = ends.wrapping_mul(MULTIPLIER);
        for word in self.addresses {
            mixed = (mixed.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER);
        }
        (mixed >> 32) as u32
    }
}

/// The fixed header fields that all packets of a run have in common, besides the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Likeness {
    /// IPv4: type of service, flags, TTL. IPv6: the first word with traffic class and flow label, hop limit.
    ip: u64,
    /// TCP: header length, flags but PSH, window, urgent pointer. UDP: zero.
    tcp: u64,
    /// TCP: acknowledgement number.
    ack: u32,
}

/// A TCP segment or UDP datagram as the coalescer sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub flow: Flow,
    likeness: Likeness,
    /// TCP sequence number. UDP: zero.
    pub seq: u32,
    /// IPv4 identification, where it has to count up.
    counted_identification: Option<u16>,
    /// Where the TCP or UDP header starts, in bytes.
    pub transport_offset: usize,
    /// Where the payload starts, in bytes.
    pub header_bytes: usize,
    pub payload_bytes: usize,
    /// Whether PSH is set, so that nothing may be appended to this segment.
    pub push: bool,
    /// Whether this packet, as far as its header tells, may be part of a run at all.
    pub is_mergeable: bool,
}

impl Segment {
    /// Reads the transport header of `packet`. `None` where it is not TCP or UDP, or the header does not fit in the packet.
    #[inline]
    pub fn read(packet: &[u8], inner: &InnerPacket) -> Option<Segment> {
        let transport_offset = inner.transport_offset?;
        let transport = packet.get(transport_offset..)?;
        let is_v6 = inner.is_v6();
        // The kernel merges no IPv4 packets with options either.
        let ip_is_plain = transport_offset == plain_header_bytes(is_v6);
        let (ip, counted_identification) = if is_v6 { ip_v6(packet)? } else { ip_v4(packet)? };
        let ports = u32::from_ne_bytes(*transport.first_chunk::<4>()?);
        let flow = Flow { addresses: address_pair(packet, is_v6), is_v6, protocol: inner.protocol, ports };
        let segment = Segment {
            flow,
            likeness: Likeness { ip, tcp: 0, ack: 0 },
            seq: 0,
            counted_identification,
            transport_offset,
            header_bytes: 0,
            payload_bytes: 0,
            push: false,
            is_mergeable: ip_is_plain,
        };
        if inner.protocol == protocol::TCP { segment.with_tcp(transport) } else { segment.with_udp(transport) }
    }

    #[inline]
    fn with_tcp(mut self, transport: &[u8]) -> Option<Segment> {
        let (tcp, _) = TcpHeader::ref_from_prefix(transport).ok()?;
        let length_and_flags = tcp.length_and_flags.get();
        let tcp_header_bytes = tcp.header_bytes().filter(|&bytes| bytes <= transport.len())?;
        self.seq = tcp.seq.get();
        let (window, urgent) = (u64::from(tcp.window.get()), u64::from(tcp.urgent.get()));
        self.likeness.tcp = u64::from(length_and_flags & !PSH) << 32 | window << 16 | urgent;
        self.likeness.ack = tcp.ack.get();
        self.header_bytes = self.transport_offset + tcp_header_bytes;
        self.payload_bytes = transport.len() - tcp_header_bytes;
        self.push = length_and_flags & PSH != 0;
        // Of flags and reserved bits, nothing but ACK and PSH.
        self.is_mergeable &= length_and_flags & 0x0fff & !PSH == ACK && self.payload_bytes > 0;
        Some(self)
    }

    #[inline]
    fn with_udp(mut self, transport: &[u8]) -> Option<Segment> {
        let (udp, payload) = UdpHeader::ref_from_prefix(transport).ok()?;
        self.header_bytes = self.transport_offset + size_of::<UdpHeader>();
        self.payload_bytes = payload.len();
        let length_agrees = usize::from(udp.bytes.get()) == transport.len();
        let has_checksum = udp.checksum.get() != 0;
        self.is_mergeable &= length_agrees && has_checksum && self.payload_bytes > 0;
        Some(self)
    }

    /// Whether `next` may come behind a run whose first packet is `self` and that has `packets` packets with `payload_bytes` of payload
    /// already, as far as fixed header fields tell. Options, checksums and total length are still to be looked at.
    #[inline]
    pub fn is_continued_by(&self, next: &Segment, packets: usize, payload_bytes: usize) -> bool {
        let seq_is_next =
            self.flow.protocol != protocol::TCP || self.seq.wrapping_add(payload_bytes as u32) == next.seq;
        let identification_is_next = self.counted_identification.map(|first| first.wrapping_add(packets as u16));
        next.is_mergeable
            && self.likeness == next.likeness
            && seq_is_next
            && identification_is_next == next.counted_identification
            && next.payload_bytes <= self.payload_bytes
    }

    /// Whether this is TCP that acknowledges and does nothing else. Not asked of every packet, so it is not kept.
    #[inline(never)]
    pub fn is_pure_ack(&self) -> bool {
        let ip_is_plain = self.transport_offset == plain_header_bytes(self.flow.is_v6);
        let flags = (self.likeness.tcp >> 32) as u16 & 0x0fff;
        self.payload_bytes == 0 && !self.push && flags == ACK && self.flow.protocol == protocol::TCP && ip_is_plain
    }

    /// The bytes that `next`, a later pure acknowledgement of the same flow, acknowledges beyond this one, if it says everything that this one
    /// says: then nothing is lost when it goes in this one's place (RFC 3449, section 5.2.1). `None` for a repetition, which tells of a loss; if
    /// either has options other than timestamps, like SACK; and if `next` is damaged.
    pub fn superseded_by(&self, packet: &[u8], next: &Segment, next_packet: &[u8]) -> Option<usize> {
        // All but the window: that of the later one holds.
        let but_window = |likeness: &Likeness| (likeness.ip, likeness.tcp & !0xffff_0000);
        let acked_bytes = next.likeness.ack.wrapping_sub(self.likeness.ack);
        let is_superseded = self.is_pure_ack()
            && next.is_pure_ack()
            && but_window(&self.likeness) == but_window(&next.likeness)
            && self.seq == next.seq
            && (1..1 << 31).contains(&acked_bytes)
            && are_timestamps_at_most(self.options(packet))
            && are_timestamps_at_most(next.options(next_packet))
            && next.checksums_are_valid(next_packet);
        is_superseded.then_some(acked_bytes as usize)
    }

    /// The TCP options of a packet or header that was read as this segment.
    #[inline]
    pub fn options<'a>(&self, headers: &'a [u8]) -> &'a [u8] {
        match self.flow.protocol {
            protocol::TCP => {
                headers.get(self.transport_offset + size_of::<TcpHeader>()..self.header_bytes).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// Whether the IPv4 header checksum and the transport checksum of the packet that was read as this segment are right.
    #[inline]
    pub fn checksums_are_valid(&self, packet: &[u8]) -> bool {
        let Some((ip_header, transport)) = packet.split_at_checked(self.transport_offset) else { return false };
        if !self.flow.is_v6 && !Sum::of(ip_header).is_valid() {
            return false;
        }
        (self.pseudo_header(transport.len()) + Sum::of(transport)).is_valid()
    }

    /// Sum of the pseudo header for a transport header and payload of `transport_bytes`, at most 65535.
    #[inline]
    pub fn pseudo_header(&self, transport_bytes: usize) -> Sum {
        let addresses = self.flow.addresses.map(u64::to_ne_bytes);
        Sum::of(addresses.as_flattened()) + Sum::word(u16::from(self.flow.protocol)) + Sum::word(transport_bytes as u16)
    }
}

/// Whether TCP options are none, or timestamps in the usual layout (RFC 7323, appendix A).
fn are_timestamps_at_most(options: &[u8]) -> bool {
    const NOP_NOP_TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];
    options.is_empty() || (options.len() == 12 && options.starts_with(&NOP_NOP_TIMESTAMPS))
}

/// Length of an IP header without options and extension headers, in bytes.
#[inline]
fn plain_header_bytes(is_v6: bool) -> usize {
    if is_v6 { size_of::<Ipv6Header>() } else { size_of::<Ipv4Header>() }
}

/// What an IPv4 header must have in common with others of its run, and its identification. An atomic datagram's identification means
/// nothing (RFC 6864 4.1), so that any may follow any.
#[inline]
fn ip_v4(packet: &[u8]) -> Option<(u64, Option<u16>)> {
    let (header, _) = Ipv4Header::ref_from_prefix(packet).ok()?;
    let fragment = header.fragment.get();
    let common = u64::from(header.traffic_class) << 24 | u64::from(fragment) << 8 | u64::from(header.ttl);
    Some((common, (fragment & DONT_FRAGMENT == 0).then_some(header.identification.get())))
}

#[inline]
fn ip_v6(packet: &[u8]) -> Option<(u64, Option<u16>)> {
    let (header, _) = Ipv6Header::ref_from_prefix(packet).ok()?;
    Some((u64::from(header.version_class_and_label.get()) << 8 | u64::from(header.hop_limit), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::test_packets::Packet;

    fn read(packet: &[u8]) -> Option<Segment> {
        Segment::read(packet, &InnerPacket::parse(packet).unwrap())
    }

    #[test]
    fn flows_differ_in_each_part_of_the_tuple() {
        let base = Packet::tcp_v4();
        let others = [
            Packet { source_host: 9, ..base.clone() }.build(),
            Packet { destination_host: 9, ..base.clone() }.build(),
            Packet { source_port: 9, ..base.clone() }.build(),
            Packet { destination_port: 9, ..base.clone() }.build(),
            Packet { v6: true, ..base.clone() }.build(),
            Packet::udp_v4().build(),
        ];
        let flow = read(&base.build()).unwrap().flow;
        for other in others {
            let other = read(&other).unwrap().flow;
            assert_ne!(flow, other);
            assert_ne!(flow.tag(), other.tag());
        }
        let later = Packet { seq: 9, ack: 9, ttl: 9, payload: vec![1], ..base };
        assert_eq!(flow, read(&later.build()).unwrap().flow);
    }

    #[test]
    fn a_tcp_header_that_does_not_fit_is_not_read() {
        let mut packet = Packet { payload: vec![1; 8], ..Packet::tcp_v4() }.build();
        for (length, is_read) in [(0x40, false), (0x50, true), (0x70, true), (0x80, false)] {
            packet[32] = length;
            assert_eq!(read(&packet).is_some(), is_read, "{length:#x}");
        }
    }

    #[test]
    fn a_packet_that_its_description_does_not_fit_is_survived() {
        let long = Packet::tcp_v6().build();
        let inner = InnerPacket::parse(&long).unwrap();
        for length in 0..long.len() {
            if let Some(segment) = Segment::read(&long[..length], &inner) {
                assert!(!segment.checksums_are_valid(&long[..length]));
            }
        }
    }

    #[test]
    fn a_damaged_byte_makes_a_checksum_invalid() {
        for good in [Packet::tcp_v4().build(), Packet::tcp_v6().build(), Packet::udp_v4().build()] {
            let segment = read(&good).unwrap();
            assert!(segment.checksums_are_valid(&good));
            // The IPv6 header but its addresses is covered by no checksum.
            for at in if segment.flow.is_v6 { 40 } else { 0 }..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert!(!segment.checksums_are_valid(&bad), "byte {at}");
            }
        }
    }
}
