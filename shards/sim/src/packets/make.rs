//! What inner packets look like.

use std::net::IpAddr;

/// The mark in front of the payload.
pub const MARK_BYTES: usize = 8;

const UDP: u8 = 17;
const UDP_HEADER_BYTES: usize = 8;
const ECT_0: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowSpec {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    /// The number of the client's connection: a new connection is a new way, on which it may overtake what is left on the old one. Not in the
    /// packet.
    pub session: u64,
}

/// A packet of `flow` that bears `mark`.
pub fn marked(flow: &FlowSpec, mark: u64, payload_bytes: usize) -> Vec<u8> {
    let mut payload = mark.to_be_bytes().to_vec();
    payload.resize(payload_bytes, mark as u8);
    udp((flow.source, flow.source_port), (flow.destination, flow.destination_port), &payload)
}

/// A UDP packet with a right checksum, so that the gateway may merge it with others. Odd source ports are ECN-capable.
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_bytes = UDP_HEADER_BYTES + payload.len();
    let ecn = if source.1 % 2 == 1 { ECT_0 } else { 0 };
    let mut packet = Vec::with_capacity(40 + udp_bytes);
    let mut pseudo_header = u64::from(UDP) + udp_bytes as u64;
    match (source.0, destination.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, ecn]);
            packet.extend(((20 + udp_bytes) as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            pseudo_header += sum(&packet[12..20]);
            let checksum = !fold(sum(&packet));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, ecn << 4, 0, 0]);
            packet.extend((udp_bytes as u16).to_be_bytes());
            packet.extend([UDP, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            pseudo_header += sum(&packet[8..40]);
        }
        _ => unreachable!("both of one family"),
    }
    let udp = packet.len();
    packet.extend(source.1.to_be_bytes());
    packet.extend(destination.1.to_be_bytes());
    packet.extend((udp_bytes as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    // A sum of 0 is sent as its other form (RFC 768).
    let checksum = match !fold(pseudo_header + sum(&packet[udp..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[udp + 6..][..2].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The mark of a packet, or of the first of several merged; `None` if it is not UDP.
pub fn mark_of(packet: &[u8]) -> Option<u64> {
    let (protocol, header_bytes) = match packet.first()? >> 4 {
        4 => (9, 20),
        6 => (6, 40),
        _ => return None,
    };
    let mark = packet.get(header_bytes + UDP_HEADER_BYTES..)?.get(..MARK_BYTES)?;
    (packet[protocol] == UDP).then(|| u64::from_be_bytes(mark.try_into().expect("eight bytes")))
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

/// Whether an IPv4 header's checksum is right.
pub fn header_checksum_is_right(packet: &[u8]) -> bool {
    fold(sum(&packet[..20])) == 0xffff
}

/// RFC 1071, one word at a time: slow, and nobody else's code.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
