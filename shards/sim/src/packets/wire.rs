//! IP packets as they lie on a wire, made and read by nobody else's code.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// The next header of IPv6 that says that a packet is a fragment.
pub const FRAGMENT: u8 = 44;

pub const DONT_FRAGMENT: u16 = 0x4000;
pub const MORE_FRAGMENTS: u16 = 0x2000;

const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
const TTL: u8 = 64;

/// What an IP header says.
#[derive(Debug, Clone, Copy)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Of IPv4 only.
    pub identification: u16,
    /// Flags and offset of IPv4.
    pub fragment: u16,
}

impl Ip {
    /// The header, with a right checksum, and `transport` behind it as it is.
    pub fn packet(&self, transport: &[u8]) -> Vec<u8> {
        let mut packet = Vec::with_capacity(V6_BYTES + transport.len());
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend([0x45, self.traffic_class]);
                packet.extend(((V4_BYTES + transport.len()) as u16).to_be_bytes());
                packet.extend(self.identification.to_be_bytes());
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([TTL, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                renew_header_checksum(&mut packet);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend([0x60 | self.traffic_class >> 4, self.traffic_class << 4, 0, 0]);
                packet.extend((transport.len() as u16).to_be_bytes());
                packet.extend([self.protocol, TTL]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
            }
            _ => unreachable!("both of one family"),
        }
        packet.extend(transport);
        packet
    }
}

/// Length of the IP header, in bytes; `None` of what is no whole IP packet.
pub fn header_bytes(packet: &[u8]) -> Option<usize> {
    let (bytes, said_bytes) = match packet.first()? >> 4 {
        4 => (usize::from(packet[0] & 0xf) * 4, usize::from(u16_at(packet, 2)?)),
        6 => (V6_BYTES, V6_BYTES + usize::from(u16_at(packet, 4)?)),
        _ => return None,
    };
    (bytes >= V4_BYTES && bytes <= packet.len() && said_bytes == packet.len()).then_some(bytes)
}

/// The protocol of IPv4, the next header of IPv6, of a whole packet.
pub fn protocol_of(packet: &[u8]) -> u8 {
    packet[if is_v6(packet) { 6 } else { 9 }]
}

/// Whether it is a whole packet of TCP without extension headers.
pub fn is_tcp(packet: &[u8]) -> bool {
    header_bytes(packet).is_some() && protocol_of(packet) == TCP
}

pub fn is_v6(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6
}

/// The ECN bits of a whole packet.
pub fn ecn_of(packet: &[u8]) -> u8 {
    if is_v6(packet) { packet[1] >> 4 & 3 } else { packet[1] & 3 }
}

pub fn addresses_of(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().expect("two bytes")))
}

pub fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where the checksum is in a header of TCP or UDP.
pub fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// Sum of the pseudo header of a whole packet that has no extension headers.
pub fn pseudo_header(packet: &[u8]) -> u64 {
    let addresses = if is_v6(packet) { &packet[8..40] } else { &packet[12..20] };
    let header_bytes = if is_v6(packet) { V6_BYTES } else { usize::from(packet[0] & 0xf) * 4 };
    sum(addresses) + u64::from(protocol_of(packet)) + (packet.len() - header_bytes) as u64
}

/// Writes the right checksum into the TCP or UDP header of a packet without extension headers.
pub fn renew_transport_checksum(packet: &mut [u8]) {
    let Some(header_bytes) = header_bytes(packet) else { return };
    let protocol = protocol_of(packet);
    let at = header_bytes + checksum_offset(protocol);
    set_u16(packet, at, 0);
    let checksum = !fold(pseudo_header(packet) + sum(&packet[header_bytes..]));
    // UDP sends a sum of 0 in its other form (RFC 768).
    set_u16(packet, at, if checksum == 0 && protocol == UDP { 0xffff } else { checksum });
}

/// Whether the checksum of TCP or UDP is right in a packet without extension headers.
pub fn transport_checksum_is_right(packet: &[u8]) -> bool {
    header_bytes(packet).is_some_and(|at| fold(pseudo_header(packet) + sum(&packet[at..])) == 0xffff)
}

/// Writes the right checksum into an IPv4 header.
pub fn renew_header_checksum(packet: &mut [u8]) {
    let header_bytes = usize::from(packet[0] & 0xf) * 4;
    set_u16(packet, 10, 0);
    let checksum = !fold(sum(&packet[..header_bytes]));
    set_u16(packet, 10, checksum);
}

/// Whether an IPv4 header's checksum is right.
pub fn header_checksum_is_right(packet: &[u8]) -> bool {
    fold(sum(&packet[..usize::from(packet[0] & 0xf) * 4])) == 0xffff
}

/// RFC 1071, section 2: two words at once, whose carries are kept.
pub fn sum(bytes: &[u8]) -> u64 {
    let (quads, rest) = bytes.as_chunks::<4>();
    let mut sum = 0;
    for quad in quads {
        sum += u64::from(u32::from_be_bytes(*quad));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
