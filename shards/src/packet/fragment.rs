//! Fragmenting IPv4 packets (RFC 791, section 3.2), for clients whose path carries less than the packet is long.
//!
//! This module reassembles nothing, and never fragments what forbids it. IPv6 packets are fragmented by their sources only (RFC 8200,
//! section 4.5).

use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Sum;
use super::headers::{DONT_FRAGMENT, FRAGMENT_OFFSET, Ipv4Header, MORE_FRAGMENTS};
use super::inner::InnerPacket;

const UNIT_BYTES: usize = 8;
/// The bit of an option's type that says that every fragment carries it.
const COPIED: u8 = 0x80;
/// Options of one byte.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Whether a router may fragment `packet`.
pub fn may_be_fragmented(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4)
        && Ipv4Header::ref_from_prefix(packet).is_ok_and(|(header, _)| header.fragment.get() & DONT_FRAGMENT == 0)
}

/// Calls `emit` with the fragments of `packet`, none of them longer than `mtu_bytes`, in order, and returns whether that was possible: the
/// packet must be a whole IPv4 packet that may be fragmented, and the MTU leave room for 8 bytes behind its header.
pub fn fragment(packet: &[u8], mtu_bytes: usize, emit: &mut impl FnMut(Bytes)) -> bool {
    let is_whole = InnerPacket::parse(packet).is_ok();
    let Ok((header, _)) = Ipv4Header::ref_from_prefix(packet) else { return false };
    if !is_whole || !may_be_fragmented(packet) {
        return false;
    }
    let (first_header, payload) = packet.split_at(header.header_bytes());
    let later_header = with_copied_options(first_header);
    if first_header.len() + UNIT_BYTES > mtu_bytes {
        return false;
    }
    let field = header.fragment.get();
    let (mut offset, mut rest, mut header) = (field & FRAGMENT_OFFSET, payload, first_header);
    loop {
        let room_bytes = mtu_bytes - header.len();
        let is_last = rest.len() <= room_bytes;
        let taken_bytes = if is_last { rest.len() } else { room_bytes / UNIT_BYTES * UNIT_BYTES };
        let (taken, left) = rest.split_at(taken_bytes);
        // What is a fragment already may have others behind its own last one.
        let more = if is_last { field & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        emit(built(header, taken, more | (field & !(DONT_FRAGMENT | MORE_FRAGMENTS | FRAGMENT_OFFSET)) | offset));
        if is_last {
            return true;
        }
        offset += (taken_bytes / UNIT_BYTES) as u16;
        (rest, header) = (left, &later_header);
    }
}

fn built(header: &[u8], payload: &[u8], field: u16) -> Bytes {
    let total_bytes = header.len() + payload.len();
    let mut packet = BytesMut::with_capacity(total_bytes);
    packet.put_slice(header);
    if let Ok((header, options)) = Ipv4Header::mut_from_prefix(&mut packet) {
        header.total_bytes = (total_bytes as u16).into();
        header.fragment = field.into();
        header.checksum = 0.into();
        header.checksum = (Sum::of(header.as_bytes()) + Sum::of(options)).checksum().into();
    }
    packet.put_slice(payload);
    packet.freeze()
}

/// The header of fragments but the first: of the options, it has those that are copied (RFC 791, section 3.1).
fn with_copied_options(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(size_of::<Ipv4Header>());
    let mut copy = fixed.to_vec();
    while let Some(&kind) = options.first() {
        let option_bytes = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => options.get(1).map_or(0, |&bytes| usize::from(bytes)),
        };
        // What cannot be read ends the options.
        let Some((option, rest)) = options.split_at_checked(option_bytes).filter(|(option, _)| !option.is_empty())
        else {
            break;
        };
        if kind & COPIED != 0 {
            copy.extend_from_slice(option);
        }
        options = rest;
    }
    copy.resize(copy.len().next_multiple_of(4), END_OF_OPTIONS);
    copy[0] = 0x40 | (copy.len() / 4) as u8;
    copy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::{self, Packet, naive_sum};

    fn fragments(packet: &[u8], mtu_bytes: usize) -> Option<Vec<Bytes>> {
        let mut fragments = Vec::new();
        fragment(packet, mtu_bytes, &mut |fragment| fragments.push(fragment)).then_some(fragments)
    }

    fn fragmentable(payload_bytes: usize) -> Vec<u8> {
        let payload = (0..payload_bytes).map(|at| (at * 7) as u8).collect();
        let mut packet = Packet { payload, ..Packet::udp_v4() }.build();
        packet[6] &= !0x40;
        packet
    }

    /// Puts fragments of one packet together, in any order.
    fn reassembled(fragments: &[Bytes]) -> Vec<u8> {
        let mut payload = vec![0; 70_000];
        let mut end = 0;
        for fragment in fragments {
            let header = usize::from(fragment[0] & 0xf) * 4;
            let field = u16::from_be_bytes([fragment[6], fragment[7]]);
            let offset = usize::from(field & FRAGMENT_OFFSET) * 8;
            payload[offset..][..fragment.len() - header].copy_from_slice(&fragment[header..]);
            if field & MORE_FRAGMENTS == 0 {
                end = offset + fragment.len() - header;
            }
        }
        payload.truncate(end);
        payload
    }

    #[test]
    fn fragments_fit_have_right_headers_and_make_up_the_packet() {
        for (payload_bytes, mtu_bytes) in [(1372, 1292), (1372, 68), (8000, 1280), (1372, 1400), (1, 28)] {
            let packet = fragmentable(payload_bytes);
            let fragments = fragments(&packet, mtu_bytes).unwrap();
            assert!(
                fragments.iter().all(|fragment| fragment.len() <= mtu_bytes && naive_sum(&fragment[..20]) == 0xffff)
            );
            let (last, others) = fragments.split_last().unwrap();
            assert!(others.iter().all(|fragment| fragment[6] & 0x20 != 0 && (fragment.len() - 20) % 8 == 0));
            assert_eq!(last[6] & 0x20, 0);
            assert!(
                fragments.iter().all(|fragment| fragment[4..6] == packet[4..6] && fragment[8..10] == packet[8..10])
            );
            assert_eq!(reassembled(&fragments), packet[20..]);
        }
    }

    #[test]
    fn a_fragment_is_fragmented_further_and_stays_in_its_place() {
        let packet = fragmentable(4000);
        let first = fragments(&packet, 1500).unwrap();
        let second: Vec<Bytes> = first.iter().flat_map(|fragment| fragments(fragment, 700).unwrap()).collect();
        assert!(second.len() > first.len());
        assert_eq!(second.iter().filter(|fragment| fragment[6] & 0x20 == 0).count(), 1);
        assert_eq!(reassembled(&second), packet[20..]);
    }

    #[test]
    fn only_copied_options_are_in_later_fragments() {
        let plain = fragmentable(200);
        // Record route (not copied) with padding, then router alert (copied).
        let options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0];
        let mut packet = [&plain[..20], &options, &plain[20..]].concat();
        packet[0] = 0x48;
        packet[2..4].copy_from_slice(&(plain.len() as u16 + 12).to_be_bytes());
        let fragments = fragments(&packet, 100).unwrap();
        assert_eq!(fragments[0][20..32], options);
        assert!(fragments.len() > 1);
        for later in &fragments[1..] {
            assert_eq!((later[0], &later[20..24]), (0x46, &[0x94, 4, 0, 0][..]));
        }
        assert_eq!(reassembled(&fragments), plain[20..]);
    }

    #[test]
    fn what_must_not_be_or_cannot_be_is_not_fragmented() {
        let mut forbidden = fragmentable(1400);
        forbidden[6] |= 0x40;
        assert_eq!(fragments(&forbidden, 1280), None);
        assert_eq!(fragments(&Packet { payload: vec![0; 1400], ..Packet::udp_v6() }.build(), 1280), None);
        let packet = fragmentable(1400);
        assert_eq!(fragments(&packet, 27), None);
        assert_eq!(fragments(&packet[..1000], 500), None);
        assert_eq!(fragments(&[], 500), None);
    }

    proptest! {
        #[test]
        fn random_bytes_are_fragmented_rightly_or_not_at_all(bytes in test_packets::almost_a_packet(), mtu in 0usize..1500) {
            if let Some(fragments) = fragments(&bytes, mtu) {
                prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
            }
        }
    }
}
