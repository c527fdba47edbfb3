//! Reading the IP header of an inner packet.

use std::net::{IpAddr, Ipv6Addr};

use zerocopy::FromBytes;

use super::headers::{FRAGMENT_OFFSET, Ipv4Header, Ipv6Extension, Ipv6Header, MORE_FRAGMENTS};

/// Protocol numbers (IANA) that mean something here.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// What every link of IPv6 carries, in bytes (RFC 8200, section 5): no sender goes below.
pub const MTU_BYTES_MIN_V6: usize = 1280;

/// IPv6 extension headers that [`upper_layer_v6`] passes before it gives up. RFC 8200 4.1 has each occur once, destination options twice.
const EXTENSION_HEADERS_MAX: usize = 8;

/// An inner packet, or a frame of the TUN queue, that cannot be read or contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed IP packet, or at odds with its virtio header")]
pub struct Malformed;

/// What the gateway wants to know of an inner packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerPacket {
    /// Source address. Of the same version as `destination`.
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The protocol field of IPv4, the next header field of IPv6, which may name an extension header.
    pub protocol: u8,
    /// The type of service of IPv4, the traffic class of IPv6: DSCP and ECN.
    pub traffic_class: u8,
    /// Whether this is a fragment, the first one included. For IPv6 seen only where the fragment header comes first.
    pub is_fragment: bool,
    /// Where the TCP or UDP header starts, in bytes; `None` for other protocols, for fragments and behind IPv6 extension headers.
    /// The transport header itself is not checked.
    pub transport_offset: Option<usize>,
}

impl InnerPacket {
    /// Reads the header of `packet`, which must be exactly one IP packet.
    ///
    /// # Errors
    /// [`Malformed`] where the version is unknown, the header incomplete, or its length fields differ from the length of `packet`. A
    /// wrong IPv4 header checksum is not an error here: the next router or host finds it.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<InnerPacket, Malformed> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => parse_v4(packet),
            Some(6) => parse_v6(packet),
            _ => Err(Malformed),
        }
    }

    #[inline]
    pub fn is_v6(&self) -> bool {
        self.destination.is_ipv6()
    }
}

#[inline]
fn parse_v4(packet: &[u8]) -> Result<InnerPacket, Malformed> {
    let (header, _) = Ipv4Header::ref_from_prefix(packet).map_err(|_| Malformed)?;
    let (header_bytes, total_bytes) = (header.header_bytes(), usize::from(header.total_bytes.get()));
    if header_bytes < size_of::<Ipv4Header>() || header_bytes > total_bytes || total_bytes != packet.len() {
        return Err(Malformed);
    }
    let is_fragment = header.fragment.get() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0;
    Ok(InnerPacket {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: header.protocol,
        traffic_class: header.traffic_class,
        is_fragment,
        transport_offset: (is_tcp_or_udp(header.protocol) && !is_fragment).then_some(header_bytes),
    })
}

#[inline]
fn parse_v6(packet: &[u8]) -> Result<InnerPacket, Malformed> {
    let (header, payload) = Ipv6Header::ref_from_prefix(packet).map_err(|_| Malformed)?;
    if usize::from(header.payload_bytes.get()) != payload.len() {
        return Err(Malformed);
    }
    let protocol = header.next_header;
    Ok(InnerPacket {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol,
        traffic_class: (header.version_class_and_label.get() >> 20) as u8,
        is_fragment: protocol == protocol::FRAGMENT,
        transport_offset: is_tcp_or_udp(protocol).then_some(size_of::<Ipv6Header>()),
    })
}

/// Source and destination of a packet of which there may be only the head.
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => Ipv4Header::ref_from_prefix(packet).ok().map(|(ip, _)| (ip.source.into(), ip.destination.into())),
        6 => Ipv6Header::ref_from_prefix(packet).ok().map(|(ip, _)| (ip.source.into(), ip.destination.into())),
        _ => None,
    }
}

#[inline]
fn is_tcp_or_udp(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

/// What kind of address a packet is sent to, as far as the address alone tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationClass {
    /// None of the others: may be routed.
    Unicast,
    /// A group: 224.0.0.0/4, ff00::/8.
    Multicast,
    /// The limited broadcast 255.255.255.255. A network's own broadcast address cannot be told from a host's here.
    Broadcast,
    /// No address: ::, and all of 0.0.0.0/8 (RFC 1122 3.2.1.3).
    Unspecified,
    /// The host itself: 127.0.0.0/8, ::1.
    Loopback,
    /// Valid on one link only: 169.254.0.0/16, fe80::/10.
    LinkLocal,
}

impl DestinationClass {
    /// Classifies an address. An IPv4-mapped IPv6 address, which has no business on a wire, is unicast: no route will lead there.
    pub fn of(destination: IpAddr) -> DestinationClass {
        match destination {
            IpAddr::V4(address) => match address.octets() {
                [255, 255, 255, 255] => DestinationClass::Broadcast,
                [0, ..] => DestinationClass::Unspecified,
                [127, ..] => DestinationClass::Loopback,
                [169, 254, ..] => DestinationClass::LinkLocal,
                [224..=239, ..] => DestinationClass::Multicast,
                _ => DestinationClass::Unicast,
            },
            IpAddr::V6(address) if address.is_multicast() => DestinationClass::Multicast,
            IpAddr::V6(address) if address.is_unicast_link_local() => DestinationClass::LinkLocal,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => DestinationClass::Unspecified,
            IpAddr::V6(Ipv6Addr::LOCALHOST) => DestinationClass::Loopback,
            IpAddr::V6(_) => DestinationClass::Unicast,
        }
    }
}

/// What follows the extension headers of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UpperLayer {
    /// The protocol behind the last extension header.
    pub protocol: u8,
    /// Where it starts, in bytes.
    pub offset: usize,
    /// Whether a fragment header says that the bytes at `offset` are not the protocol's first.
    pub is_later_fragment: bool,
    /// Whether there was a fragment header.
    pub is_fragment: bool,
    /// Whether a routing header says that the destination is not the final one.
    pub is_source_routed: bool,
}

/// Walks the extension headers of an IPv6 packet, which may be cut off behind them. `None` where they are incomplete or more than any
/// honest packet has. Not for the fast path.
pub(super) fn upper_layer_v6(packet: &[u8]) -> Option<UpperLayer> {
    let (header, mut rest) = Ipv6Header::ref_from_prefix(packet).ok()?;
    let mut upper = UpperLayer {
        protocol: header.next_header,
        offset: size_of::<Ipv6Header>(),
        is_later_fragment: false,
        is_fragment: false,
        is_source_routed: false,
    };
    for _ in 0..EXTENSION_HEADERS_MAX {
        let extension = Ipv6Extension::ref_from_prefix(rest).ok().map(|(extension, _)| extension);
        let length_bytes = match upper.protocol {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => (usize::from(extension?.length) + 1) * 8,
            protocol::ROUTING => {
                upper.is_source_routed |= extension?.fragment.get() & 0xff != 0;
                (usize::from(extension?.length) + 1) * 8
            }
            protocol::AUTHENTICATION => (usize::from(extension?.length) + 2) * 4,
            protocol::FRAGMENT => {
                upper.is_fragment = true;
                upper.is_later_fragment |= extension?.fragment.get() & 0xfff8 != 0;
                size_of::<Ipv6Extension>()
            }
            _ => return Some(upper),
        };
        upper.protocol = extension?.next_header;
        upper.offset += length_bytes;
        if upper.is_later_fragment {
            return Some(upper);
        }
        rest = packet.get(upper.offset..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_packets::{self, Packet};

    #[test]
    fn headers_of_both_versions_are_read() {
        let address = |address: &str| address.parse::<IpAddr>().unwrap();
        let (traffic_class, payload) = (0x2e, vec![1; 7]);
        let v4 = InnerPacket {
            source: address("198.18.0.1"),
            destination: address("198.18.0.2"),
            protocol: protocol::TCP,
            traffic_class,
            is_fragment: false,
            transport_offset: Some(20),
        };
        let (source, destination) = (address("fd00::1"), address("fd00::2"));
        let v6 = InnerPacket { source, destination, protocol: protocol::UDP, transport_offset: Some(40), ..v4 };
        for (packet, expected) in [(Packet::tcp_v4(), v4), (Packet::udp_v6(), v6)] {
            let packet = Packet { traffic_class, payload: payload.clone(), ..packet };
            assert_eq!(InnerPacket::parse(&packet.build()), Ok(expected));
            assert_eq!(expected.is_v6(), packet.v6);
        }
    }

    #[test]
    fn a_packet_longer_or_shorter_than_it_says_is_malformed() {
        for mut packet in [Packet::tcp_v4().build(), Packet::tcp_v6().build()] {
            assert!(InnerPacket::parse(&packet).is_ok());
            assert_eq!(InnerPacket::parse(&packet[..packet.len() - 1]), Err(Malformed));
            packet.push(0);
            assert_eq!(InnerPacket::parse(&packet), Err(Malformed));
        }
    }

    #[test]
    fn an_impossible_header_length_is_malformed() {
        let good = Packet::tcp_v4().build();
        for version_and_length in [0x40, 0x44, 0x35, 0x05, 0x55, 0x75] {
            let mut packet = good.clone();
            packet[0] = version_and_length;
            assert_eq!(InnerPacket::parse(&packet), Err(Malformed), "{version_and_length:#x}");
        }
        let mut header_only = good[..20].to_vec();
        header_only[2..4].copy_from_slice(&20u16.to_be_bytes());
        assert!(InnerPacket::parse(&header_only).is_ok());
        header_only[0] = 0x46;
        assert_eq!(InnerPacket::parse(&header_only), Err(Malformed));
    }

    #[test]
    fn ipv4_options_move_the_transport_header() {
        let packet = test_packets::with_ipv4_options(&Packet::tcp_v4().build(), &[1, 1, 1, 0]);
        assert_eq!(InnerPacket::parse(&packet).unwrap().transport_offset, Some(24));
    }

    #[test]
    fn fragments_show_no_transport_header() {
        for fragment in [0x2000, 0x0001, 0x2010] {
            let packet = Packet { fragment, ..Packet::udp_v4() }.build();
            let inner = InnerPacket::parse(&packet).unwrap();
            assert_eq!((inner.is_fragment, inner.transport_offset), (true, None), "{fragment:#x}");
        }
        let packet =
            test_packets::with_extension(&Packet::udp_v6().build(), protocol::FRAGMENT, &[17, 0, 0, 1, 0, 0, 0, 7]);
        let inner = InnerPacket::parse(&packet).unwrap();
        assert_eq!((inner.is_fragment, inner.transport_offset), (true, None));
    }

    #[test]
    fn extension_headers_are_walked_up_to_the_transport() {
        let tcp = Packet::tcp_v6().build();
        let packet = test_packets::with_extension(&tcp, protocol::HOP_BY_HOP, &[6, 0, 1, 4, 0, 0, 0, 0]);
        let inner = InnerPacket::parse(&packet).unwrap();
        assert_eq!((inner.protocol, inner.transport_offset), (protocol::HOP_BY_HOP, None));
        let upper = upper_layer_v6(&packet).unwrap();
        assert_eq!((upper.protocol, upper.offset, upper.is_fragment), (protocol::TCP, 48, false));

        let routed = test_packets::with_extension(&tcp, protocol::ROUTING, &[6, 0, 0, 1, 0, 0, 0, 0]);
        assert!(upper_layer_v6(&routed).unwrap().is_source_routed);

        let later = test_packets::with_extension(&tcp, protocol::FRAGMENT, &[6, 0, 0, 8, 0, 0, 0, 0]);
        assert!(upper_layer_v6(&later).unwrap().is_later_fragment);
    }

    #[test]
    fn an_endless_or_cut_chain_of_extension_headers_is_given_up() {
        let mut packet = Packet::tcp_v6().build();
        for _ in 0..EXTENSION_HEADERS_MAX {
            let next = packet[6];
            packet = test_packets::with_extension(&packet, protocol::DESTINATION_OPTIONS, &[next, 0, 1, 4, 0, 0, 0, 0]);
        }
        assert_eq!(upper_layer_v6(&packet), None);
        let cut =
            test_packets::with_extension(&Packet::tcp_v6().build(), protocol::HOP_BY_HOP, &[6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(upper_layer_v6(&cut[..47]), None);
    }

    #[test]
    fn destinations_are_told_apart() {
        use DestinationClass::*;
        for (class, addresses) in [
            (Unicast, "198.18.0.1 240.0.0.1 169.253.0.1 fd00::1 fec0::1"),
            (Multicast, "224.0.0.0 239.255.255.255 ff02::1"),
            (Broadcast, "255.255.255.255"),
            (Unspecified, "0.0.0.0 0.1.2.3 ::"),
            (Loopback, "127.3.2.1 ::1"),
            (LinkLocal, "169.254.169.254 fe80::1 febf::1"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(DestinationClass::of(address.parse().unwrap()), class, "{address}");
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_or_refused(bytes in test_packets::almost_a_packet()) {
            if let Ok(inner) = InnerPacket::parse(&bytes) {
                prop_assert!(inner.transport_offset.is_none_or(|offset| offset <= bytes.len()));
                prop_assert_eq!(inner.source.is_ipv6(), inner.is_v6());
            }
            upper_layer_v6(&bytes);
        }
    }
}
