//! What inner packets look like.

use std::net::IpAddr;

use super::wire::{self, DONT_FRAGMENT, FRAGMENT, Ip, MORE_FRAGMENTS, UDP};

/// The mark in front of the payload.
pub const MARK_BYTES: usize = 8;

const UDP_HEADER_BYTES: usize = 8;
/// The fragment header of IPv6 (RFC 8200, section 4.5).
const FRAGMENT_HEADER_BYTES: usize = 8;
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

/// How a packet is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    Whole,
    /// Its UDP checksum is wrong.
    Damaged,
    /// One of two fragments: the first has the UDP header.
    Fragment {
        is_first: bool,
    },
    /// It may be fragmented, and has this identification, of IPv4.
    Fragmentable {
        identification: u16,
    },
    /// The segment of a super-packet that has this identification, of IPv4.
    Segment {
        identification: u16,
    },
}

impl Form {
    pub fn is_fragment(self) -> bool {
        matches!(self, Form::Fragment { .. })
    }
}

/// A packet of `flow` that bears `mark`.
pub fn packet(flow: &FlowSpec, mark: u64, payload_bytes: usize, form: Form) -> Vec<u8> {
    let mut payload = payload(mark, payload_bytes);
    let source = (flow.source, flow.source_port);
    let destination = (flow.destination, flow.destination_port);
    let mut packet = match form {
        Form::Fragment { is_first } => {
            if is_first {
                // Fragments but the last have a multiple of 8 bytes.
                payload.truncate(payload_bytes / 8 * 8);
            }
            return fragment(flow, is_first, &payload);
        }
        Form::Segment { identification } => {
            numbered_udp(source, destination, &payload, (identification, DONT_FRAGMENT))
        }
        Form::Fragmentable { identification } => numbered_udp(source, destination, &payload, (identification, 0)),
        Form::Whole | Form::Damaged => udp(source, destination, &payload),
    };
    if form == Form::Damaged {
        let checksum = packet.len() - payload.len() - 2;
        packet[checksum] ^= 0x55;
        // 0 would mean none.
        packet[checksum + 1] |= u8::from(packet[checksum..checksum + 2] == [0, 0]);
    }
    packet
}

/// The payload of a packet that bears `mark`.
pub fn payload(mark: u64, payload_bytes: usize) -> Vec<u8> {
    let mut payload = mark.to_be_bytes().to_vec();
    payload.resize(payload_bytes, mark as u8);
    payload
}

fn fragment(flow: &FlowSpec, is_first: bool, payload: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    if is_first {
        data.extend(udp_header(flow.source_port, flow.destination_port, 2 * payload.len()));
    }
    data.extend(payload);
    // Behind the longest first one.
    let offset = if is_first { 0 } else { 200 };
    let ip =
        Ip { protocol: UDP, identification: flow.source_port, ..ip(flow.source, flow.destination, flow.source_port) };
    if flow.source.is_ipv4() {
        let more = if is_first { MORE_FRAGMENTS } else { 0 };
        return Ip { fragment: more | offset, ..ip }.packet(&data);
    }
    let [high, low] = (offset << 3 | u16::from(is_first)).to_be_bytes();
    let header = [UDP, 0, high, low, 0, 0, 0, 7];
    Ip { protocol: FRAGMENT, ..ip }.packet(&[&header, &data[..]].concat())
}

/// A UDP packet with a right checksum, so that the gateway may merge it with others. Odd source ports are ECN-capable.
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    numbered_udp(source, destination, payload, (0, DONT_FRAGMENT))
}

fn numbered_udp(
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    payload: &[u8],
    (identification, fragment): (u16, u16),
) -> Vec<u8> {
    let datagram = [&udp_header(source.1, destination.1, payload.len()), payload].concat();
    let mut packet = Ip { identification, fragment, ..ip(source.0, destination.0, source.1) }.packet(&datagram);
    wire::renew_transport_checksum(&mut packet);
    packet
}

/// The super-packet whose datagrams have `payloads` in a row.
pub fn super_packet(flow: &FlowSpec, payloads: &[u8]) -> Vec<u8> {
    udp((flow.source, flow.source_port), (flow.destination, flow.destination_port), payloads)
}

fn ip(source: IpAddr, destination: IpAddr, source_port: u16) -> Ip {
    let traffic_class = if source_port % 2 == 1 { ECT_0 } else { 0 };
    Ip { source, destination, protocol: UDP, traffic_class, identification: 0, fragment: DONT_FRAGMENT }
}

/// Without a checksum.
fn udp_header(source_port: u16, destination_port: u16, payload_bytes: usize) -> [u8; UDP_HEADER_BYTES] {
    let [[s0, s1], [d0, d1]] = [source_port, destination_port].map(u16::to_be_bytes);
    let [l0, l1] = ((UDP_HEADER_BYTES + payload_bytes) as u16).to_be_bytes();
    [s0, s1, d0, d1, l0, l1, 0, 0]
}

/// The mark of a packet, or of the first of several merged; `None` if it is not UDP.
pub fn mark_of(packet: &[u8]) -> Option<u64> {
    let mut at = match packet.first()? >> 4 {
        4 => 20,
        6 => 40,
        _ => return None,
    };
    let mut protocol = *packet.get(if at == 40 { 6 } else { 9 })?;
    let mut is_first = at == 40 || wire::u16_at(packet, 6)? & 0x1fff == 0;
    if at == 40 && protocol == FRAGMENT {
        protocol = *packet.get(at)?;
        is_first = wire::u16_at(packet, at + 2)? & 0xfff8 == 0;
        at += FRAGMENT_HEADER_BYTES;
    }
    at += if is_first { UDP_HEADER_BYTES } else { 0 };
    let mark = packet.get(at..)?.get(..MARK_BYTES)?;
    (protocol == UDP).then(|| u64::from_be_bytes(mark.try_into().expect("eight bytes")))
}
