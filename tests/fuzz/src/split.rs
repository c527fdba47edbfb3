//! Super-packets taken apart and put together again, and what is made of a single packet: fragments, ICMP messages, marks.

use bytes::Bytes;
use etherparse::{Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv4Slice, Ipv6Slice};
use tollgate_shards::packet::split::{TCP_SEGMENTS_MAX, UDP_SEGMENTS_MAX, split_first};
use tollgate_shards::packet::{
    self, Coalescer, InnerPacket, MergeLimits, PacketPool, VnetHeader, ecn, fragment, packet_too_big, vnet,
};

use crate::input::Input;
use crate::packets::{Parts, Transport, addresses, draw, kept, sum};

/// Segments that most inputs have at most: more than a UDP super-packet may have.
const SEGMENTS: usize = 2 * UDP_SEGMENTS_MAX;
/// Most payload of a super-packet that is made here: with all headers and options it still fits into an IP packet.
const PAYLOAD_BYTES_MAX: usize = 65_535 - 120;

/// A super-packet, right in all of its fields or of any bytes whatever, is split into what the definitions say, and merged into itself again.
pub fn split(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.u8();
    if switches & 1 == 0 {
        right_frame(&mut input, switches & 0x80 != 0);
    } else {
        let header = input.array::<{ vnet::HEADER_BYTES }>();
        let (header, _) = VnetHeader::parse(&header).expect("as long as a header");
        any_frame(&header, input.rest());
    }
}

/// Anything that claims to be a packet is fragmented, answered and marked by the RFCs, or not at all.
pub fn answers(data: &[u8]) {
    let mut input = Input::new(data);
    let (mtu, is_right) = (input.u16(), input.u8() & 1 == 0);
    let packet = if is_right {
        let bytes = usize::from(input.u16()) % 3000;
        draw(&mut input, bytes).build()
    } else {
        input.rest().to_vec()
    };
    fragments(&packet, mtu.into());
    message(&packet, mtu);
    mark(&packet);
}

/// Few inputs are of thousands of segments: only those of `any_number` take the time for it.
fn right_frame(input: &mut Input<'_>, any_number: bool) {
    let (payload_bytes, segment_bytes) = (1 + usize::from(input.u16()) % PAYLOAD_BYTES_MAX, input.u16());
    let bytes_max = if any_number { PAYLOAD_BYTES_MAX } else { 1 + usize::from(segment_bytes) * SEGMENTS };
    let payload_bytes = payload_bytes.min(bytes_max);
    let parts = draw(input, payload_bytes);
    let (header, frame) = parts.clone().super_packet(segment_bytes);
    let is_udp = matches!(parts.transport, Transport::Udp(_));
    let segments_max = if is_udp { UDP_SEGMENTS_MAX } else { TCP_SEGMENTS_MAX };
    let is_right = segment_bytes > 0 && payload_bytes.div_ceil(segment_bytes.into()) <= segments_max;
    let packets = split_all(&header, &frame);
    assert_eq!(packets.is_some(), is_right, "{header:?}");
    let Some(packets) = packets else { return };
    assert_eq!(packets, parts.segments(segment_bytes.into()));
    assert_eq!(header.packets(&frame), packets.len() as u64);
    assert_eq!(header.segment_bytes(&frame), packets[0].len());
    let frames = merged_again(&packets);
    // The coalescer merges 64 packets at most, and of TCP only what nothing but ACK and PSH is said of.
    let is_plain = match &parts.transport {
        Transport::Udp(_) => true,
        Transport::Tcp(tcp) => tcp.ack && !(tcp.fin || tcp.syn || tcp.rst || tcp.urg || tcp.ece || tcp.cwr || tcp.ns),
    };
    if (2..=64).contains(&packets.len()) && is_plain {
        assert_eq!(frames.len(), 1, "one run becomes one frame");
        assert_eq!(frames[0], (VnetHeader { hdr_len: frames[0].0.hdr_len, ..header }, frame));
    }
}

fn any_frame(header: &VnetHeader, frame: &[u8]) {
    let Some(packets) = split_all(header, frame) else { return };
    if header.gso_type == vnet::GSO_NONE {
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].len(), frame.len());
        return;
    }
    for packet in &packets {
        assert!(InnerPacket::parse(packet).is_ok(), "a segment is a packet");
        if Parts::of(packet).is_some() {
            assert!(checksums_are_right(packet), "{header:?}");
        }
    }
    // What the model has no field for (reserved bits), it cannot say anything about.
    let modelled = Parts::of(frame).filter(|parts| {
        let headers_bytes = frame.len() - parts.payload.len();
        let built = parts.clone().build();
        built.len() == frame.len() && same_but_checksums(&built[..headers_bytes], &frame[..headers_bytes], parts)
    });
    if let Some(parts) = modelled {
        assert_eq!(packets, parts.segments(header.gso_size.into()));
    }
    merged_again(&packets);
}

/// All packets of a frame; the same come out piece by piece.
fn split_all(header: &VnetHeader, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut packets = Vec::new();
    let count = packet::split(header, frame, &mut PacketPool::default(), &mut |packet| packets.push(packet.to_vec()));
    assert_eq!(count.unwrap_or(0), packets.len());
    let mut first = Vec::new();
    let half = packets.len().div_ceil(2);
    let emit = &mut |packet: Bytes| first.push(packet.to_vec());
    assert_eq!(split_first(header, frame, &mut PacketPool::for_one_frame(), half, emit).is_ok(), count.is_ok());
    assert_eq!(first, packets[..half.min(packets.len())]);
    count.is_ok().then_some(packets)
}

/// Merges packets of one run. Taken apart again, the frames are the packets.
fn merged_again(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let limits = MergeLimits { thins_acks: false, frames_max: packets.len(), ..MergeLimits::default() };
    let mut coalescer = Coalescer::new(limits);
    for packet in packets {
        let inner = InnerPacket::parse(packet).expect("split made it");
        coalescer.push(Bytes::copy_from_slice(packet), &inner).expect("there is room for all");
    }
    let mut frames = Vec::new();
    while let Some(frame) = coalescer.poll_frame() {
        let (header, headers) = VnetHeader::parse(frame.header).expect("a virtio header");
        frames.push((header, [headers, &frame.payloads.concat()].concat()));
    }
    let again = frames.iter().flat_map(|(header, frame)| split_all(header, frame).expect("the coalescer made it"));
    let again: Vec<_> = again.map(|packet| kept(&packet)).collect();
    assert_eq!(again, packets.iter().map(|packet| kept(packet)).collect::<Vec<_>>());
    frames
}

/// Whether all checksums of a TCP segment or UDP datagram without extension headers are right.
fn checksums_are_right(packet: &[u8]) -> bool {
    let is_v6 = packet[0] >> 4 == 6;
    let (start, addresses, protocol) =
        if is_v6 { (40, 8..40, packet[6]) } else { (usize::from(packet[0] & 15) * 4, 12..20, packet[9]) };
    let pseudo = [&packet[addresses], &((packet.len() - start) as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
    (is_v6 || sum(&packet[..start]) == 0xffff) && sum(&[&pseudo, &packet[start..]].concat()) == 0xffff
}

fn same_but_checksums(one: &[u8], other: &[u8], parts: &Parts) -> bool {
    let without = |headers: &[u8]| {
        let mut headers = headers.to_vec();
        let start = parts.ip.header_len();
        if headers[0] >> 4 == 4 {
            headers[10..12].fill(0);
        }
        let at = start + if matches!(parts.transport, Transport::Tcp(_)) { 16 } else { 4 };
        // Of UDP the length too, which the frame's own need not be.
        let bytes = if matches!(parts.transport, Transport::Tcp(_)) { 2 } else { 4 };
        headers[at..at + bytes].fill(0);
        headers
    };
    without(one) == without(other)
}

/// Fragments are right by themselves, and together they are the packet.
fn fragments(packet: &[u8], mtu_bytes: usize) {
    let mut fragments = Vec::new();
    if !fragment::fragment(packet, mtu_bytes, &mut |fragment| fragments.push(fragment)) {
        assert!(fragments.is_empty());
        return;
    }
    let header_bytes = usize::from(packet[0] & 15) * 4;
    let first_offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
    let had_more = packet[6] & 0x20 != 0;
    let mut payload: Vec<u8> = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let bytes = usize::from(fragment[0] & 15) * 4;
        assert!(fragment.len() <= mtu_bytes);
        assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
        assert_eq!(sum(&fragment[..bytes]), 0xffff, "the header's checksum is right");
        assert_eq!(
            (&fragment[4..6], &fragment[8..10], &fragment[12..20]),
            (&packet[4..6], &packet[8..10], &packet[12..20])
        );
        let flags = u16::from_be_bytes([fragment[6], fragment[7]]);
        let offset = first_offset.wrapping_add((payload.len() / 8) as u16) & 0x1fff;
        // An offset beyond the end is the sender's own fault.
        if usize::from(first_offset) * 8 + packet.len() <= 65_535 {
            assert_eq!(flags & 0x1fff, offset);
        }
        let is_last = index + 1 == fragments.len();
        assert_eq!(flags & 0x2000 != 0, !is_last || had_more);
        payload.extend(&fragment[bytes..]);
    }
    assert_eq!(payload, packet[header_bytes..]);
}

/// ICMP "packet too big" goes to the sender, quotes the packet, and is right by itself.
fn message(packet: &[u8], mtu: u16) {
    let Some((source, _)) = addresses(packet) else { return };
    let from = if source.is_ipv4() { "198.18.0.77".parse() } else { "fd00::77".parse() }.expect("an address");
    let Some(answer) = packet_too_big(packet, mtu, from) else { return };
    assert_eq!(addresses(&answer), Some((from, source)));
    let icmp = if source.is_ipv4() {
        let ip = Ipv4Slice::from_slice(&answer).expect("an IPv4 packet");
        assert_eq!(ip.payload_ip_number(), IpNumber::ICMP);
        assert_eq!(sum(&answer[..20]), 0xffff);
        let icmp = &answer[20..];
        assert_eq!(sum(icmp), 0xffff);
        assert_eq!(Icmpv4Slice::from_slice(icmp).map(|icmp| (icmp.type_u8(), icmp.code_u8())), Ok((3, 4)));
        icmp
    } else {
        let ip = Ipv6Slice::from_slice(&answer).expect("an IPv6 packet");
        assert_eq!(ip.payload().ip_number, IpNumber::IPV6_ICMP);
        assert!(checksums_are_right(&answer));
        let icmp = &answer[40..];
        assert_eq!(Icmpv6Slice::from_slice(icmp).map(|icmp| (icmp.type_u8(), icmp.code_u8())), Ok((2, 0)));
        icmp
    };
    assert!(packet.starts_with(&icmp[8..]), "it quotes the packet");
}

/// Marking changes the ECN field and the checksum over it, and keeps the checksum as right as it was.
fn mark(packet: &[u8]) {
    let mut marked = packet.to_vec();
    let before = ecn::codepoint(packet);
    if !ecn::mark_ce(&mut marked) {
        assert!(marked == packet && before.is_none());
        return;
    }
    assert!(before.is_some());
    assert_eq!(ecn::codepoint(&marked), Some(tollgate_shards::Ecn::Ce));
    let is_v6 = packet[0] >> 4 == 6;
    let changed: Vec<_> = (0..packet.len()).filter(|&at| packet[at] != marked[at]).collect();
    let may_change: &[usize] = if is_v6 { &[1] } else { &[1, 10, 11] };
    assert!(changed.iter().all(|at| may_change.contains(at)), "{changed:?}");
    if !is_v6 {
        let header_bytes = usize::from(packet[0] & 15) * 4;
        let is_right = |packet: &[u8]| sum(&packet[..header_bytes]) == 0xffff;
        assert_eq!(is_right(packet), is_right(&marked));
    }
}
