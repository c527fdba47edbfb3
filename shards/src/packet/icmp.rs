//! The ICMP errors that the gateway answers with.
//!
//! This module limits no rate: whoever calls it does.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Sum;
use super::headers::{DONT_FRAGMENT, FRAGMENT_OFFSET, IcmpHeader, Ipv4Header, Ipv6Header};
use super::inner::{DestinationClass, addresses, protocol, upper_layer_v6};

/// Longest ICMPv4 error, IP header included, in bytes (RFC 1812 4.3.2.3).
pub const ERROR_V4_BYTES_MAX: usize = 576;
/// Longest ICMPv6 error, IP header included, in bytes (RFC 4443 2.4 (c)).
pub const ERROR_V6_BYTES_MAX: usize = 1280;

/// ICMPv4 "fragmentation needed": destination unreachable, with its code.
const UNREACHABLE_V4: u8 = 3;
const FRAGMENTATION_NEEDED_V4: u8 = 4;
/// ICMPv6 "packet too big".
const PACKET_TOO_BIG_V6: u8 = 2;
/// ICMP echo replies (RFC 792, RFC 4443 4.2).
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
/// What must be quoted behind the offending IPv4 header at least (RFC 792), in bytes.
const QUOTED_PAYLOAD_BYTES_MIN: usize = 8;
/// TTL and hop limit of what the gateway itself sends.
const TTL: u8 = 64;
/// Precedence "internetwork control" (RFC 1812 4.3.2.5).
const TRAFFIC_CLASS_V4: u8 = 0xc0;

/// Builds the answer to a packet that is too large for the path behind the gateway: ICMPv4 "fragmentation needed" with the next hop's
/// MTU (RFC 1191) or ICMPv6 "packet too big" (RFC 4443 3.2).
///
/// `offending` is the packet from its IP header on, or as much of its start as there is, for instance the head of a super-packet.
/// `mtu` is what would fit, in bytes, and is told as it is. `from` is who answers. What may be fragmented is not to be answered but to be
/// fragmented.
///
/// `None` where no answer may be sent (RFC 1122 3.2.2, RFC 4443 2.4 (e)): to ICMP errors, to fragments but the first, to packets from
/// or to a group or broadcast, to packets whose source is no single host's address. The exception that RFC 4443 makes for groups is
/// not used, since the gateway routes none. Also `None` where `from` is of the other version, or `offending` is too short to tell.
pub fn packet_too_big(offending: &[u8], mtu: u16, from: IpAddr) -> Option<Bytes> {
    let (source, destination) = addresses(offending).filter(|&(source, to)| may_be_answered(source, to))?;
    let (kind, code, bytes_max) = match (destination, from) {
        (IpAddr::V4(_), IpAddr::V4(_)) if is_answered_v4(offending)? => {
            (UNREACHABLE_V4, FRAGMENTATION_NEEDED_V4, ERROR_V4_BYTES_MAX - size_of::<Ipv4Header>())
        }
        (IpAddr::V6(_), IpAddr::V6(_)) if is_answered_v6(offending)? => {
            (PACKET_TOO_BIG_V6, 0, ERROR_V6_BYTES_MAX - size_of::<Ipv6Header>())
        }
        _ => return None,
    };
    let quote = &offending[..offending.len().min(bytes_max - size_of::<IcmpHeader>())];
    message(from, source, IcmpHeader { kind, code, rest: u32::from(mtu).into(), ..IcmpHeader::default() }, quote, 0)
}

/// Whether a packet is the first of its fragments, and no ICMP error; `None` where it is too short to tell.
fn is_answered_v4(offending: &[u8]) -> Option<bool> {
    let (header, _) = Ipv4Header::ref_from_prefix(offending).ok()?;
    let payload = offending.get(header.header_bytes()..).filter(|payload| payload.len() >= QUOTED_PAYLOAD_BYTES_MIN)?;
    let is_error = header.protocol == protocol::ICMP && is_error_v4(payload[0]);
    let is_later_fragment = header.fragment.get() & FRAGMENT_OFFSET != 0;
    Some(header.header_bytes() >= size_of::<Ipv4Header>() && !is_later_fragment && !is_error)
}

/// RFC 4443 2.4 (e.1), (e.2): errors are the types below 128; a redirect, though above, is not answered either.
fn is_answered_v6(offending: &[u8]) -> Option<bool> {
    let upper = upper_layer_v6(offending)?;
    let is_error = upper.protocol == protocol::ICMPV6 && matches!(*offending.get(upper.offset)?, 0..=127 | 137);
    Some(!upper.is_later_fragment && !is_error)
}

/// An echo reply of `bytes` bytes that nobody has asked for, from `from` to `to`: hosts ignore it. `None` where the addresses are of different
/// versions, or `bytes` too few.
pub fn unasked_reply(from: IpAddr, to: IpAddr, bytes: usize) -> Option<Bytes> {
    let (kind, ip_bytes) = match from {
        IpAddr::V4(_) => (ECHO_REPLY_V4, size_of::<Ipv4Header>()),
        IpAddr::V6(_) => (ECHO_REPLY_V6, size_of::<Ipv6Header>()),
    };
    let padding_bytes = bytes.checked_sub(ip_bytes + size_of::<IcmpHeader>())?;
    message(from, to, IcmpHeader { kind, ..IcmpHeader::default() }, &[], padding_bytes)
}

/// An ICMP message with `quote` and so many zeros behind its header. `None` where the addresses are of different versions, or it is too long.
fn message(from: IpAddr, to: IpAddr, icmp: IcmpHeader, quote: &[u8], padding_bytes: usize) -> Option<Bytes> {
    let icmp_bytes = size_of::<IcmpHeader>() + quote.len() + padding_bytes;
    let mut packet = BytesMut::with_capacity(size_of::<Ipv6Header>() + icmp_bytes);
    let pseudo = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header {
                version_and_length: 0x45,
                traffic_class: TRAFFIC_CLASS_V4,
                total_bytes: u16::try_from(size_of::<Ipv4Header>() + icmp_bytes).ok()?.into(),
                // An atomic datagram, so that the identification is free (RFC 6864 4.1).
                fragment: DONT_FRAGMENT.into(),
                ttl: TTL,
                protocol: protocol::ICMP,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv4Header::default()
            };
            header.checksum = Sum::of(header.as_bytes()).checksum().into();
            packet.put_slice(header.as_bytes());
            Sum::default()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                version_class_and_label: (6 << 28).into(),
                payload_bytes: u16::try_from(icmp_bytes).ok()?.into(),
                next_header: protocol::ICMPV6,
                hop_limit: TTL,
                source: from.octets(),
                destination: to.octets(),
            };
            packet.put_slice(header.as_bytes());
            let addresses = Sum::of(&header.source) + Sum::of(&header.destination);
            addresses + Sum::word(u16::from(protocol::ICMPV6)) + Sum::word(icmp_bytes as u16)
        }
        _ => return None,
    };
    let checksum = (pseudo + Sum::of(icmp.as_bytes()) + Sum::of(quote)).checksum();
    packet.put_slice(IcmpHeader { checksum: checksum.into(), ..icmp }.as_bytes());
    packet.put_slice(quote);
    packet.put_bytes(0, padding_bytes);
    Some(packet.freeze())
}

/// ICMPv4 errors: unreachable, source quench, redirect, time exceeded, parameter problem (RFC 1122 3.2.2).
fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Whether the source is a single host's address and the destination no group's.
fn may_be_answered(source: IpAddr, destination: IpAddr) -> bool {
    let is_class_e = matches!(source, IpAddr::V4(source) if source.octets()[0] >= 240);
    let source_is_a_host =
        matches!(DestinationClass::of(source), DestinationClass::Unicast | DestinationClass::LinkLocal) && !is_class_e;
    let destination_is_a_group =
        matches!(DestinationClass::of(destination), DestinationClass::Multicast | DestinationClass::Broadcast);
    source_is_a_host && !destination_is_a_group
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::{self, Packet, naive_sum};

    const FROM_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 254));
    const FROM_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xfe));

    #[test]
    fn the_answers_to_both_versions_are_exact() {
        let answer = |offending, from| {
            let offending = Packet { payload: vec![], ..offending }.build();
            packet_too_big(&offending, 1372, from).unwrap()
        };
        let expected = b"\
            \x45\xc0\x00\x44\x00\x00\x40\x00\x40\x01\xac\xd5\xc6\x12\x00\xfe\xc6\x12\x00\x01\
            \x03\x04\x83\xe2\x00\x00\x05\x5c\x45\x00\x00\x28\x00\x64\x40\x00\x3f\x06\xaf\x44\
            \xc6\x12\x00\x01\xc6\x12\x00\x02\x9c\x40\x01\xbb\x00\x00\x03\xe8\x00\x00\x00\x4d\
            \x50\x10\x01\xf4\x7f\x88\x00\x00\
        ";
        assert_eq!(answer(Packet::tcp_v4(), FROM_V4), &expected[..]);
        let expected = b"\
            \x60\x00\x00\x00\x00\x44\x3a\x40\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
            \x00\x00\x00\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
            \x02\x00\x96\xeb\x00\x00\x05\x5c\x60\x00\x00\x00\x00\x14\x06\x3f\xfd\x00\x00\x00\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xfd\x00\x00\x00\x00\x00\x00\x00\
            \x00\x00\x00\x00\x00\x00\x00\x02\x9c\x40\x01\xbb\x00\x00\x03\xe8\x00\x00\x00\x4d\
            \x50\x10\x01\xf4\x11\xac\x00\x00\
        ";
        assert_eq!(answer(Packet::tcp_v6(), FROM_V6), &expected[..]);
    }

    #[test]
    fn the_quote_is_as_long_as_allowed_and_no_longer() {
        for (offending, from, longest) in [
            (Packet { payload: vec![7; 1400], ..Packet::tcp_v4() }.build(), FROM_V4, ERROR_V4_BYTES_MAX),
            (Packet { payload: vec![7; 1400], ..Packet::tcp_v6() }.build(), FROM_V6, ERROR_V6_BYTES_MAX),
        ] {
            let answer = packet_too_big(&offending, 1300, from).unwrap();
            assert_eq!(answer.len(), longest);
            let header_bytes = if from.is_ipv4() { 28 } else { 48 };
            assert_eq!(answer[header_bytes..], offending[..longest - header_bytes]);
            assert_valid(&answer);
        }
    }

    #[test]
    fn the_head_of_a_super_packet_suffices() {
        let v4 = Packet { payload: vec![7; 60000], ..Packet::tcp_v4() }.build();
        assert_valid(&packet_too_big(&v4[..28], 1300, FROM_V4).unwrap());
        assert_eq!(packet_too_big(&v4[..27], 1300, FROM_V4), None);
        let v6 = Packet { payload: vec![7; 60000], ..Packet::tcp_v6() }.build();
        assert_valid(&packet_too_big(&v6[..90], 1300, FROM_V6).unwrap());
        assert_eq!(packet_too_big(&v6[..39], 1300, FROM_V6), None);
    }

    #[test]
    fn an_address_of_the_other_version_gives_no_answer() {
        assert_eq!(packet_too_big(&Packet::tcp_v4().build(), 1300, FROM_V6), None);
        assert_eq!(packet_too_big(&Packet::tcp_v6().build(), 1300, FROM_V4), None);
    }

    #[test]
    fn a_reply_that_nobody_asked_for_is_as_long_as_wanted_and_right() {
        for (from, bytes, shortest) in [(FROM_V4, 1412, 28), (FROM_V6, 1412, 48)] {
            let reply = unasked_reply(from, from, bytes).unwrap();
            assert_eq!(reply.len(), bytes);
            assert_valid(&reply);
            assert!(unasked_reply(from, from, shortest).is_some());
            assert_eq!(unasked_reply(from, from, shortest - 1), None);
        }
        assert_eq!(unasked_reply(FROM_V4, FROM_V6, 1412), None);
    }

    #[test]
    fn icmp_errors_are_not_answered_but_echoes_are() {
        for (kind, answered) in
            [(0, true), (8, true), (13, true), (3, false), (4, false), (5, false), (11, false), (12, false)]
        {
            let mut packet = Packet::udp_v4().build();
            packet[9] = protocol::ICMP;
            packet[20] = kind;
            assert_eq!(packet_too_big(&packet, 1300, FROM_V4).is_some(), answered, "ICMPv4 type {kind}");
        }
        for (kind, answered) in
            [(128, true), (129, true), (1, false), (2, false), (3, false), (127, false), (137, false)]
        {
            let mut packet = Packet::udp_v6().build();
            packet[6] = protocol::ICMPV6;
            packet[40] = kind;
            assert_eq!(packet_too_big(&packet, 1300, FROM_V6).is_some(), answered, "ICMPv6 type {kind}");
            let hidden =
                test_packets::with_extension(&packet, protocol::HOP_BY_HOP, &[protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
            assert_eq!(packet_too_big(&hidden, 1300, FROM_V6).is_some(), answered, "hidden ICMPv6 type {kind}");
        }
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        for (fragment, is_answered) in [(0x2000, true), (0x2001, false)] {
            let packet = Packet { fragment, ..Packet::udp_v4() }.build();
            assert_eq!(packet_too_big(&packet, 1300, FROM_V4).is_some(), is_answered);
        }
        for (offset, is_answered) in [(1, true), (9, false)] {
            let extension = [17, 0, 0, offset, 0, 0, 0, 7];
            let packet = test_packets::with_extension(&Packet::udp_v6().build(), protocol::FRAGMENT, &extension);
            assert_eq!(packet_too_big(&packet, 1300, FROM_V6).is_some(), is_answered);
        }
    }

    #[test]
    fn groups_and_impossible_sources_are_not_answered() {
        let sources = [[0, 0, 0, 0], [255, 255, 255, 255], [224, 0, 0, 1], [127, 0, 0, 1], [240, 0, 0, 1]];
        let destinations = [[255, 255, 255, 255], [239, 1, 1, 1]];
        for (at, addresses) in [(12, &sources[..]), (16, &destinations[..])] {
            for address in addresses {
                let mut packet = Packet::tcp_v4().build();
                packet[at..at + 4].copy_from_slice(address);
                assert_eq!(packet_too_big(&packet, 1300, FROM_V4), None, "{address:?}");
            }
        }
        let groups = ["ff02::1", "ff0e::1"];
        for (at, addresses) in [(8, &["::", "::1", "ff02::1"][..]), (24, &groups[..])] {
            for address in addresses {
                let mut packet = Packet::tcp_v6().build();
                packet[at..at + 16].copy_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
                assert_eq!(packet_too_big(&packet, 1300, FROM_V6), None, "{address}");
            }
        }
    }

    fn assert_valid(answer: &[u8]) {
        if answer[0] >> 4 == 4 {
            assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])), answer.len());
            assert_eq!(naive_sum(&answer[..20]), 0xffff);
            assert_eq!(naive_sum(&answer[20..]), 0xffff);
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([answer[4], answer[5]])) + 40, answer.len());
            let mut covered = answer[8..40].to_vec();
            covered.extend(((answer.len() - 40) as u32).to_be_bytes());
            covered.extend([0, 0, 0, protocol::ICMPV6]);
            covered.extend(&answer[40..]);
            assert_eq!(naive_sum(&covered), 0xffff);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_answered_rightly_or_not_at_all(bytes in test_packets::almost_a_packet(), mtu in any::<u16>()) {
            for from in [FROM_V4, FROM_V6] {
                if let Some(answer) = packet_too_big(&bytes, mtu, from) {
                    prop_assert!(answer.len() <= ERROR_V6_BYTES_MAX);
                    assert_valid(&answer);
                    prop_assert!(answer.len() < 56 || packet_too_big(&answer, mtu, from).is_none(), "an error is not answered");
                }
            }
        }
    }
}
