//! Splitting a frame of the TUN queue into the packets that it stands for.
//!
//! The frame is copied once, into the caller's pool, and checksums are completed there. The virtio header says what to do, but
//! every offset that it names is checked against the packet's own headers.

use std::mem::offset_of;

use bytes::Bytes;
use zerocopy::FromBytes;

use super::checksum::Sum;
use super::headers::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use super::inner::{InnerPacket, Malformed, protocol, upper_layer_v6};
use super::pool::PacketPool;
use super::vnet::{self, VnetHeader};

/// Most segments of a TCP super-packet. Linux never goes below 8 bytes of payload a segment (`TCP_MIN_GSO_SIZE`).
pub const TCP_SEGMENTS_MAX: usize = 65536 / 8;
/// Most datagrams of a UDP super-packet: Linux's `UDP_MAX_SEGMENTS`.
pub const UDP_SEGMENTS_MAX: usize = 128;

/// Where the checksum is in a TCP header, in bytes.
pub(super) const TCP_CHECKSUM_OFFSET: usize = offset_of!(TcpHeader, checksum);
/// Where the checksum is in a UDP header, in bytes.
pub(super) const UDP_CHECKSUM_OFFSET: usize = offset_of!(UdpHeader, checksum);

const FIN_AND_PSH: u16 = 0x01 | 0x08;
const CWR: u16 = 0x80;

/// Splits `frame`, the inner packet behind the virtio header `header`, calls `emit` for each packet in order and returns their number.
///
/// Room for all packets is taken of `pool` at once, or piece by piece where they are to wait; each packet is then a reference into it. Every packet has all of its lengths and
/// checksums right, but a checksum that `header` does not say to be incomplete is passed on as it is. Segments get what Linux's
/// own segmentation gives them: IPv4 identifications count up, FIN and PSH are on the last, CWR is on the first.
///
/// # Errors
/// [`Malformed`] where the packet cannot be read, the virtio header contradicts it or asks for something never offered to the
/// kernel, or there would be more than [`TCP_SEGMENTS_MAX`] or [`UDP_SEGMENTS_MAX`] packets. Then nothing was emitted.
pub fn split(
    header: &VnetHeader,
    frame: &[u8],
    pool: &mut PacketPool,
    emit: &mut impl FnMut(Bytes),
) -> Result<usize, Malformed> {
    split_first(header, frame, pool, usize::MAX, emit)
}

/// Like [`split`], but makes only the first `packets_max` packets, where there is no room for more.
///
/// # Errors
/// As [`split`].
pub fn split_first(
    header: &VnetHeader,
    frame: &[u8],
    pool: &mut PacketPool,
    packets_max: usize,
    emit: &mut impl FnMut(Bytes),
) -> Result<usize, Malformed> {
    let inner = InnerPacket::parse(frame)?;
    if header.gso_type == vnet::GSO_NONE {
        emit(copy_whole(header, frame, &inner, pool)?);
        return Ok(1);
    }
    let protocol = match (header.gso_type & !vnet::GSO_ECN, inner.is_v6()) {
        (vnet::GSO_TCPV4, false) | (vnet::GSO_TCPV6, true) => protocol::TCP,
        (vnet::GSO_UDP_L4, _) => protocol::UDP,
        _ => return Err(Malformed),
    };
    SuperPacket::read(header, frame, &inner, protocol)?.segment(pool, packets_max, emit)
}

/// Copies a frame that is one packet, and completes its checksum where that is wanted.
fn copy_whole(
    header: &VnetHeader,
    frame: &[u8],
    inner: &InnerPacket,
    pool: &mut PacketPool,
) -> Result<Bytes, Malformed> {
    let completed = if header.needs_csum() {
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        let ip_header_bytes = if inner.is_v6() { 40 } else { usize::from(frame[0] & 0x0f) * 4 };
        if start < ip_header_bytes || at + 2 > frame.len() {
            return Err(Malformed);
        }
        // The checksum's place holds the sum of the pseudo header, so that summing up the rest completes it.
        Some((at, never_zero(Sum::of(&frame[start..]).checksum())))
    } else {
        None
    };
    let room = pool.room(frame.len());
    room.extend_from_slice(frame);
    let mut packet = room.split();
    if let Some((at, checksum)) = completed {
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    Ok(packet.freeze())
}

/// A checksum as UDP wants it, for which zero says that there is none (RFC 768). For other protocols both forms are the same number.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// A super-packet whose headers were found consistent.
struct SuperPacket<'a> {
    frame: &'a [u8],
    is_v6: bool,
    /// TCP or UDP.
    protocol: u8,
    /// Where its header starts.
    offset: usize,
    /// Where the payload starts.
    header_bytes: usize,
    /// Payload of each packet but the last. Not 0.
    segment_bytes: usize,
}

impl<'a> SuperPacket<'a> {
    fn read(
        header: &VnetHeader,
        frame: &'a [u8],
        inner: &InnerPacket,
        protocol: u8,
    ) -> Result<SuperPacket<'a>, Malformed> {
        let offset = transport_offset(frame, inner, protocol).ok_or(Malformed)?;
        let (header_bytes, checksum_offset, segments_max) = match protocol {
            protocol::TCP => {
                let tcp = frame.get(offset..).and_then(|tcp| TcpHeader::ref_from_prefix(tcp).ok());
                let tcp_header_bytes = tcp.and_then(|(tcp, _)| tcp.header_bytes()).ok_or(Malformed)?;
                (offset + tcp_header_bytes, TCP_CHECKSUM_OFFSET, TCP_SEGMENTS_MAX)
            }
            _ => (offset + size_of::<UdpHeader>(), UDP_CHECKSUM_OFFSET, UDP_SEGMENTS_MAX),
        };
        let segment_bytes = usize::from(header.gso_size);
        let checksum_is_elsewhere = header.needs_csum()
            && (usize::from(header.csum_start) != offset || usize::from(header.csum_offset) != checksum_offset);
        if checksum_is_elsewhere || header_bytes >= frame.len() || segment_bytes == 0 {
            return Err(Malformed);
        }
        if (frame.len() - header_bytes).div_ceil(segment_bytes) > segments_max {
            return Err(Malformed);
        }
        Ok(SuperPacket { frame, is_v6: inner.is_v6(), protocol, offset, header_bytes, segment_bytes })
    }

    fn segment(
        &self,
        pool: &mut PacketPool,
        packets_max: usize,
        emit: &mut impl FnMut(Bytes),
    ) -> Result<usize, Malformed> {
        let (headers, payload) = self.frame.split_at(self.header_bytes);
        let segments = payload.len().div_ceil(self.segment_bytes);
        let emitted = segments.min(packets_max);
        let wanted = &payload[..payload.len().min(emitted.saturating_mul(self.segment_bytes))];
        let piece = pool.packets_in_piece(headers.len() + self.segment_bytes).min(segments);
        let ip_sum = if self.is_v6 { Sum::default() } else { self.ip_sum() };
        let transport_sum = self.transport_sum();
        let mut index = 0;
        for payloads in wanted.chunks(piece * self.segment_bytes) {
            let packets = payloads.len().div_ceil(self.segment_bytes);
            let room = pool.room(packets * headers.len() + payloads.len());
            for segment in payloads.chunks(self.segment_bytes) {
                room.extend_from_slice(headers);
                room.extend_from_slice(segment);
                let mut packet = room.split();
                self.rewrite_ip(&mut packet, index, ip_sum);
                match self.protocol {
                    protocol::TCP => self.rewrite_tcp(&mut packet, index, index + 1 == segments, transport_sum),
                    _ => self.rewrite_udp(&mut packet, transport_sum),
                }
                emit(packet.freeze());
                index += 1;
            }
        }
        Ok(emitted)
    }

    /// Sum of what the IPv4 headers of all segments have in common: all but total length, identification and checksum.
    fn ip_sum(&self) -> Sum {
        Sum::of(&self.frame[..2]) + Sum::of(&self.frame[6..10]) + Sum::of(&self.frame[12..self.offset])
    }

    /// Sum of what the pseudo headers and transport headers of all segments have in common: all but lengths, checksum, and the
    /// sequence number and flags of TCP.
    fn transport_sum(&self) -> Sum {
        let addresses = if self.is_v6 { 8..40 } else { 12..20 };
        let pseudo = Sum::of(&self.frame[addresses]) + Sum::word(u16::from(self.protocol));
        let header = &self.frame[self.offset..self.header_bytes];
        match self.protocol {
            protocol::TCP => {
                pseudo
                    + Sum::of(&header[..4])
                    + Sum::of(&header[8..12])
                    + Sum::of(&header[14..16])
                    + Sum::of(&header[18..])
            }
            _ => pseudo + Sum::of(&header[..4]),
        }
    }

    fn rewrite_ip(&self, packet: &mut [u8], index: usize, ip_sum: Sum) {
        let packet_bytes = packet.len();
        if self.is_v6 {
            if let Ok((header, payload)) = Ipv6Header::mut_from_prefix(packet) {
                header.payload_bytes = (payload.len() as u16).into();
            }
        } else if let Ok((header, _)) = Ipv4Header::mut_from_prefix(packet) {
            let identification = header.identification.get().wrapping_add(index as u16);
            header.total_bytes = (packet_bytes as u16).into();
            header.identification = identification.into();
            let sum = ip_sum + Sum::word(packet_bytes as u16) + Sum::word(identification);
            header.checksum = sum.checksum().into();
        }
    }

    fn rewrite_tcp(&self, packet: &mut [u8], index: usize, is_last: bool, transport_sum: Sum) {
        let payload_sum = Sum::of(&packet[self.header_bytes..]);
        let transport = &mut packet[self.offset..];
        let transport_bytes = transport.len() as u16;
        let Ok((tcp, _)) = TcpHeader::mut_from_prefix(transport) else { return };
        let seq = tcp.seq.get().wrapping_add((index * self.segment_bytes) as u32);
        let mut length_and_flags = tcp.length_and_flags.get();
        if !is_last {
            length_and_flags &= !FIN_AND_PSH;
        }
        if index > 0 {
            length_and_flags &= !CWR;
        }
        let sum = Sum::word(transport_bytes) + Sum::double_word(seq) + Sum::word(length_and_flags);
        tcp.seq = seq.into();
        tcp.length_and_flags = length_and_flags.into();
        tcp.checksum = (transport_sum + sum + payload_sum).checksum().into();
    }

    fn rewrite_udp(&self, packet: &mut [u8], transport_sum: Sum) {
        let payload_sum = Sum::of(&packet[self.header_bytes..]);
        let transport = &mut packet[self.offset..];
        let transport_bytes = transport.len() as u16;
        let Ok((udp, _)) = UdpHeader::mut_from_prefix(transport) else { return };
        // The length counts twice: in the pseudo header and in the header.
        let length = Sum::word(transport_bytes);
        udp.bytes = transport_bytes.into();
        udp.checksum = never_zero((transport_sum + length + length + payload_sum).checksum()).into();
    }
}

/// Where the transport header of a super-packet starts, or `None` where it does not have that transport or may not be segmented.
fn transport_offset(frame: &[u8], inner: &InnerPacket, wanted: u8) -> Option<usize> {
    match inner.transport_offset {
        Some(offset) => (inner.protocol == wanted).then_some(offset),
        None if inner.is_v6() => {
            // With a routing header the checksum covers another destination than the one in the header (RFC 8200 8.1).
            let upper = upper_layer_v6(frame)?;
            (upper.protocol == wanted && !upper.is_fragment && !upper.is_source_routed).then_some(upper.offset)
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::{self, Packet, into_super_packet, naive_sum};

    fn packets(header: &VnetHeader, frame: &[u8]) -> Result<Vec<Bytes>, Malformed> {
        let mut packets = Vec::new();
        let count = split(header, frame, &mut PacketPool::default(), &mut |packet| packets.push(packet));
        assert_eq!(count.unwrap_or(0), packets.len());
        count.map(|_| packets)
    }

    #[test]
    fn a_single_packet_gets_its_checksum_completed() {
        for original in [
            Packet::tcp_v4().build(),
            Packet { payload: vec![3; 33], ..Packet::tcp_v6() }.build(),
            Packet::udp_v4().build(),
            Packet { payload: vec![9; 1], ..Packet::udp_v6() }.build(),
        ] {
            let mut frame = original.clone();
            let header = VnetHeader { gso_type: vnet::GSO_NONE, ..into_super_packet(&mut frame, 0) };
            assert_ne!(frame, original);
            assert_eq!(packets(&header, &frame).unwrap(), [original]);
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        // The payload's only word is chosen so that the sum comes out as ones.
        let mut datagram = Packet { payload: vec![0, 0], ..Packet::udp_v4() };
        let built = datagram.build();
        datagram.payload = u16::from_be_bytes([built[26], built[27]]).to_be_bytes().to_vec();
        let original = datagram.build();
        assert_eq!(&original[26..28], &[0xff, 0xff]);
        let mut frame = original.clone();
        let header = VnetHeader { gso_type: vnet::GSO_NONE, ..into_super_packet(&mut frame, 0) };
        assert_eq!(packets(&header, &frame).unwrap()[0], original);
        let as_super_packet = VnetHeader { gso_type: vnet::GSO_UDP_L4, gso_size: 2, ..header };
        assert_eq!(packets(&as_super_packet, &frame).unwrap(), [original]);
    }

    #[test]
    fn a_checksum_outside_of_the_transport_is_malformed() {
        let frame = Packet::tcp_v4().build();
        let end = frame.len() as u16;
        for (csum_start, csum_offset) in [(0, 10), (19, 16), (20, end - 21), (end, 0), (u16::MAX, u16::MAX)] {
            let header = VnetHeader { flags: vnet::NEEDS_CSUM, csum_start, csum_offset, ..VnetHeader::default() };
            assert_eq!(packets(&header, &frame), Err(Malformed), "{csum_start} + {csum_offset}");
        }
        let header =
            VnetHeader { flags: vnet::NEEDS_CSUM, csum_start: 20, csum_offset: end - 22, ..VnetHeader::default() };
        assert!(packets(&header, &frame).is_ok());
    }

    #[test]
    fn tcp_behind_ipv6_extension_headers_is_segmented() {
        let spec = Packet { payload: vec![5; 250], ..Packet::tcp_v6() };
        let optioned =
            |packet: &[u8]| test_packets::with_extension(packet, protocol::HOP_BY_HOP, &[6, 0, 1, 4, 0, 0, 0, 0]);
        let mut frame = spec.build();
        let header = into_super_packet(&mut frame, 100);
        let frame = optioned(&frame);
        let header_behind = VnetHeader { csum_start: 48, ..header };
        let expected: Vec<_> = spec.segments(100).iter().map(|packet| optioned(packet)).collect();
        assert_eq!(packets(&header_behind, &frame).unwrap(), expected);
        assert_eq!(packets(&header, &frame), Err(Malformed), "the checksum is said to start in the extension");
        let routed = test_packets::with_extension(&spec.build(), protocol::ROUTING, &[6, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(packets(&header_behind, &routed), Err(Malformed), "the final destination is unknown");
    }

    #[test]
    fn a_virtio_header_at_odds_with_the_packet_is_malformed() {
        let mut frame = Packet { payload: vec![5; 250], ..Packet::tcp_v4() }.build();
        let good = into_super_packet(&mut frame, 100);
        assert_eq!(packets(&good, &frame).unwrap().len(), 3);
        for bad in [
            VnetHeader { gso_size: 0, ..good },
            VnetHeader { gso_type: vnet::GSO_TCPV6, ..good },
            VnetHeader { gso_type: vnet::GSO_UDP, ..good },
            VnetHeader { gso_type: vnet::GSO_UDP_L4, ..good },
            VnetHeader { gso_type: 2, ..good },
            VnetHeader { gso_type: vnet::GSO_NONE | vnet::GSO_ECN, ..good },
            VnetHeader { csum_start: 24, ..good },
            VnetHeader { csum_offset: 6, ..good },
        ] {
            assert_eq!(packets(&bad, &frame), Err(Malformed), "{bad:?}");
        }
        let mut offset_too_small = frame.clone();
        offset_too_small[32] = 0x40;
        assert_eq!(packets(&good, &offset_too_small), Err(Malformed));
        let mut fragment = frame.clone();
        fragment[6] = 0x20;
        assert_eq!(packets(&good, &fragment), Err(Malformed));
        let mut bare = Packet { payload: vec![], ..Packet::tcp_v4() }.build();
        let header = into_super_packet(&mut bare, 100);
        assert_eq!(packets(&header, &bare), Err(Malformed), "nothing to segment");
    }

    #[test]
    fn the_number_of_packets_of_a_frame_is_bounded() {
        let mut frame = Packet { payload: vec![5; 10 * UDP_SEGMENTS_MAX], ..Packet::udp_v4() }.build();
        let header = into_super_packet(&mut frame, 10);
        assert_eq!(packets(&header, &frame).unwrap().len(), UDP_SEGMENTS_MAX);
        assert_eq!(packets(&VnetHeader { gso_size: 9, ..header }, &frame), Err(Malformed));
        let mut frame = Packet { payload: vec![5; 60000], ..Packet::tcp_v6() }.build();
        let header = into_super_packet(&mut frame, 8);
        assert_eq!(packets(&header, &frame).unwrap().len(), 7500);
        assert_eq!(packets(&VnetHeader { gso_size: 7, ..header }, &frame), Err(Malformed));
    }

    proptest! {
        #[test]
        fn random_frames_are_split_or_refused(
            bytes in test_packets::almost_a_packet(),
            flags in 0..4u8,
            gso_type in prop_oneof![0..6u8, any::<u8>()],
            gso_size in prop_oneof![0..300u16, any::<u16>()],
            csum_start in prop_oneof![Just(20u16), Just(40), Just(48), any::<u16>()],
            csum_offset in prop_oneof![Just(6u16), Just(16), any::<u16>()],
        ) {
            let header = VnetHeader { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset };
            if let Ok(packets) = packets(&header, &bytes) {
                for packet in packets {
                    prop_assert!(InnerPacket::parse(&packet).is_ok());
                    if gso_type != vnet::GSO_NONE && packet[0] >> 4 == 4 {
                        prop_assert_eq!(naive_sum(&packet[..usize::from(packet[0] & 15) * 4]), 0xffff);
                    }
                }
            }
        }
    }
}
