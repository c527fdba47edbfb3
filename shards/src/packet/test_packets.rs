//! For tests: builds packets, plainly and slowly, sharing no code with what is tested.

use proptest::prelude::*;

use super::vnet::{self, VnetHeader};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The ones' complement sum by its definition, in network byte order.
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// What the headers of a TCP segment or UDP datagram say, as far as they have such fields; the addresses end in the numbers given.
#[derive(Debug, Clone)]
pub struct Packet {
    pub v6: bool,
    pub protocol: u8,
    pub source_host: u8,
    pub destination_host: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub ttl: u8,
    pub identification: u16,
    /// Flags and offset.
    pub fragment: u16,
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn tcp_v4() -> Packet {
        Packet {
            v6: false,
            protocol: TCP,
            source_host: 1,
            destination_host: 2,
            traffic_class: 0,
            flow_label: 0,
            ttl: 63,
            identification: 100,
            fragment: 0x4000,
            source_port: 40000,
            destination_port: 443,
            seq: 1000,
            ack: 77,
            flags: ACK,
            window: 500,
            urgent: 0,
            options: Vec::new(),
            payload: vec![0xab; 100],
        }
    }

    pub fn tcp_v6() -> Packet {
        Packet { v6: true, ..Packet::tcp_v4() }
    }

    pub fn udp_v4() -> Packet {
        Packet { protocol: UDP, ..Packet::tcp_v4() }
    }

    pub fn udp_v6() -> Packet {
        Packet { protocol: UDP, ..Packet::tcp_v6() }
    }

    /// The packet, with every length and checksum right.
    pub fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut packet = Vec::new();
        if self.v6 {
            packet.extend((6u32 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label).to_be_bytes());
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([self.protocol, self.ttl]);
            for host in [self.source_host, self.destination_host] {
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        } else {
            packet.extend([0x45, self.traffic_class]);
            packet.extend((20 + transport.len() as u16).to_be_bytes());
            packet.extend(self.identification.to_be_bytes());
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([self.ttl, self.protocol, 0, 0]);
            packet.extend([198, 18, 0, self.source_host, 198, 18, 0, self.destination_host]);
        }
        packet.extend(transport);
        complete(&mut packet);
        packet
    }

    /// The packets that a super-packet like this is to be split into, with so much payload each.
    pub fn segments(&self, segment_bytes: usize) -> Vec<Vec<u8>> {
        let payloads = self.payload.chunks(segment_bytes);
        let last = payloads.len() - 1;
        let segment = |(index, payload): (usize, &[u8])| {
            let only_last = if index == last { PSH | FIN } else { 0 };
            let only_first = if index == 0 { CWR } else { 0 };
            let flags = self.flags & (ACK | only_last | only_first);
            let seq = self.seq.wrapping_add((index * segment_bytes) as u32);
            let identification = self.identification.wrapping_add(index as u16);
            Packet { flags, seq, identification, payload: payload.to_vec(), ..self.clone() }.build()
        };
        payloads.enumerate().map(segment).collect()
    }

    /// Header and payload, without the checksum.
    fn transport(&self) -> Vec<u8> {
        let mut transport = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        if self.protocol == UDP {
            transport.extend((8 + self.payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
            transport.extend(self.seq.to_be_bytes());
            transport.extend(self.ack.to_be_bytes());
            transport.extend([((20 + self.options.len()) * 4) as u8, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.options);
        }
        transport.extend(&self.payload);
        transport
    }
}

/// Where the transport header starts, its protocol and where its checksum is, without extension headers.
fn layout(packet: &[u8]) -> (usize, u8, usize) {
    let (start, protocol) =
        if packet[0] >> 4 == 4 { (usize::from(packet[0] & 15) * 4, packet[9]) } else { (40, packet[6]) };
    (start, protocol, start + if protocol == TCP { 16 } else { 6 })
}

fn pseudo_header(packet: &[u8]) -> Vec<u8> {
    let (start, protocol, _) = layout(packet);
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let mut pseudo = packet[addresses].to_vec();
    pseudo.extend(((packet.len() - start) as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo
}

/// Writes the checksums of a packet without extension headers.
pub fn complete(packet: &mut [u8]) {
    let (start, protocol, at) = layout(packet);
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let checksum = !naive_sum(&packet[..start]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet[at..at + 2].fill(0);
    let checksum = match !naive_sum(&[&pseudo_header(packet), &packet[start..]].concat()) {
        0 if protocol == UDP => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Turns a large packet into a super-packet as the kernel would hand it out: with only the pseudo header's sum in its checksum.
pub fn into_super_packet(packet: &mut [u8], gso_size: u16) -> VnetHeader {
    let (start, protocol, at) = layout(packet);
    let partial = naive_sum(&pseudo_header(packet));
    packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    let gso_type = match (protocol, packet[0] >> 4) {
        (UDP, _) => vnet::GSO_UDP_L4,
        (_, 4) => vnet::GSO_TCPV4,
        _ => vnet::GSO_TCPV6,
    };
    let ecn = if protocol == TCP && packet[start + 13] & CWR != 0 { vnet::GSO_ECN } else { 0 };
    VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type: gso_type | ecn,
        hdr_len: 0xbad,
        gso_size,
        csum_start: start as u16,
        csum_offset: (at - start) as u16,
    }
}

/// Inserts an extension header (complete, its next header field included) behind the fixed IPv6 header.
pub fn with_extension(packet: &[u8], protocol: u8, extension: &[u8]) -> Vec<u8> {
    let mut longer = [&packet[..40], extension, &packet[40..]].concat();
    longer[6] = protocol;
    let payload_bytes = (longer.len() - 40) as u16;
    longer[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
    longer
}

/// Inserts options behind a 20-byte IPv4 header.
pub fn with_ipv4_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut longer = [&packet[..20], options, &packet[20..]].concat();
    longer[0] += (options.len() / 4) as u8;
    let total_bytes = longer.len() as u16;
    longer[2..4].copy_from_slice(&total_bytes.to_be_bytes());
    complete(&mut longer);
    longer
}

/// Bytes that are random, or a packet with a few bytes changed and perhaps cut, its length field put right half of the time.
pub fn almost_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let base = (0..5u8, 0..3usize, 0..200usize).prop_map(|(kind, extensions, payload_bytes)| {
        let payload = vec![7; payload_bytes];
        let base = match kind {
            0 => Packet { options: vec![1; 12], ..Packet::tcp_v4() },
            1 => Packet::tcp_v6(),
            2 => Packet::udp_v4(),
            3 => Packet::udp_v6(),
            _ => return payload,
        };
        let mut packet = Packet { payload, ..base }.build();
        if base.v6 {
            for protocol in &[0, 43, 44][..extensions] {
                let next = packet[6];
                packet = with_extension(&packet, *protocol, &[next, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        packet
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (base, changes, any::<prop::sample::Index>(), any::<bool>(), any::<bool>()).prop_map(
        |(mut packet, changes, cut, cuts, fixes)| {
            for (at, value) in changes {
                if !packet.is_empty() {
                    let at = at.index(packet.len().min(80));
                    packet[at] = value;
                }
            }
            if cuts {
                packet.truncate(cut.index(packet.len() + 1));
            }
            if fixes && packet.len() >= 40 {
                let length = packet.len() as u16;
                match packet[0] >> 4 {
                    4 => packet[2..4].copy_from_slice(&length.to_be_bytes()),
                    _ => packet[4..6].copy_from_slice(&(length - 40).to_be_bytes()),
                }
            }
            packet
        },
    )
}
