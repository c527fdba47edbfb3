//! Explicit congestion notification of an inner packet (RFC 3168): reading its codepoint, and saying that it met congestion.
//!
//! This module never clears a codepoint, never makes a transport ECN-capable that is not, and never decides what is congestion.

use zerocopy::FromBytes;

use super::checksum;
use super::headers::Ipv4Header;
use super::inner::InnerPacket;

/// An ECN codepoint (RFC 3168).
pub use quinn_proto::EcnCodepoint as Ecn;

/// The ECN field of the IPv4 type of service.
const ECN_V4: u8 = 0b11;
/// The ECN field in the second byte of an IPv6 header, which holds the lower half of the traffic class.
const ECN_V6: u8 = ECN_V4 << 4;

/// The codepoint of an inner packet; `None` for Not-ECT, and for what is no IP packet.
#[inline]
pub fn codepoint(packet: &[u8]) -> Option<Ecn> {
    Ecn::from_bits(InnerPacket::parse(packet).ok()?.traffic_class)
}

/// Says "congestion experienced" on a packet whose transport is ECN-capable (RFC 3168, section 5). Returns whether the packet says so
/// now, which it may have before; if not, nothing was changed.
///
/// The IPv4 header checksum follows incrementally (RFC 1624), so that one that was wrong stays wrong.
pub fn mark_ce(packet: &mut [u8]) -> bool {
    if codepoint(packet).is_none() {
        return false;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= ECN_V6;
        return true;
    }
    let Ok((header, _)) = Ipv4Header::mut_from_prefix(packet) else { return false };
    let word = |header: &Ipv4Header| u16::from_be_bytes([header.version_and_length, header.traffic_class]);
    let old = word(header);
    header.traffic_class |= ECN_V4;
    header.checksum = checksum::update(header.checksum.get(), old, word(header)).into();
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::{self, Packet};

    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;

    fn packets(traffic_class: u8) -> [Vec<u8>; 4] {
        [
            Packet { traffic_class, ..Packet::tcp_v4() }.build(),
            Packet { traffic_class, flow_label: 0xabcde, ..Packet::tcp_v6() }.build(),
            test_packets::with_ipv4_options(&Packet { traffic_class, ..Packet::udp_v4() }.build(), &[1; 4]),
            Packet { traffic_class, ..Packet::udp_v6() }.build(),
        ]
    }

    #[test]
    fn codepoints_are_read_beside_any_dscp() {
        for dscp in [0x00, 0xb8, 0xfc] {
            let expected = [(NOT_ECT, None), (ECT_1, Some(Ecn::Ect1)), (ECT_0, Some(Ecn::Ect0)), (CE, Some(Ecn::Ce))];
            for (bits, expected) in expected {
                packets(dscp | bits).iter().for_each(|packet| assert_eq!(codepoint(packet), expected));
            }
        }
    }

    #[test]
    fn a_marked_packet_is_the_one_that_its_sender_would_have_built_with_ce() {
        for dscp in [0x00, 0xb8, 0xfc] {
            for bits in [ECT_1, ECT_0, CE] {
                for (mut marked, expected) in packets(dscp | bits).into_iter().zip(packets(dscp | CE)) {
                    assert!(mark_ce(&mut marked));
                    assert_eq!(marked, expected);
                }
            }
        }
    }

    #[test]
    fn a_packet_that_is_not_ecn_capable_is_left_alone() {
        for packet in packets(0xb8 | NOT_ECT) {
            let mut marked = packet.clone();
            assert!(!mark_ce(&mut marked));
            assert_eq!(marked, packet);
        }
    }

    #[test]
    fn a_wrong_header_checksum_is_not_made_right() {
        let mut packet = Packet { traffic_class: ECT_0, ..Packet::tcp_v4() }.build();
        packet[11] ^= 0x10;
        assert!(mark_ce(&mut packet));
        assert_ne!(test_packets::naive_sum(&packet[..20]), 0xffff);
    }

    proptest! {
        #[test]
        fn nothing_but_the_field_and_its_checksum_ever_changes(packet in test_packets::almost_a_packet()) {
            let mut marked = packet.clone();
            let is_marked = mark_ce(&mut marked);
            prop_assert_eq!(is_marked, codepoint(&packet).is_some());
            prop_assert_eq!(is_marked, codepoint(&marked) == Some(Ecn::Ce));
            let mut expected = packet.clone();
            if is_marked && packet[0] >> 4 == 4 {
                expected[1] |= 0x03;
                expected[10..12].copy_from_slice(&marked[10..12]);
                // As right, or as wrong, as it was.
                let header_bytes = usize::from(packet[0] & 15) * 4;
                prop_assert_eq!(test_packets::naive_sum(&marked[..header_bytes]), test_packets::naive_sum(&packet[..header_bytes]));
            } else if is_marked {
                expected[1] |= 0x30;
            }
            prop_assert_eq!(marked, expected);
        }
    }
}
