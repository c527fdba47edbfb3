//! For tests: builds packets and checks packets, plainly and slowly, sharing no code with what is tested.

use bytes::Bytes;
use proptest::prelude::*;

use super::vnet::{self, VnetHeader};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

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

/// What the IP header of a packet under test says; the addresses end in the numbers given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSegment {
    pub v6: bool,
    pub source_host: u8,
    pub destination_host: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub ttl: u8,
    pub identification: u16,
    pub dont_fragment: bool,
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

impl TcpSegment {
    pub fn v4() -> TcpSegment {
        TcpSegment {
            v6: false,
            source_host: 1,
            destination_host: 2,
            traffic_class: 0,
            flow_label: 0,
            ttl: 63,
            identification: 100,
            dont_fragment: true,
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

    pub fn v6() -> TcpSegment {
        TcpSegment { v6: true, ..TcpSegment::v4() }
    }

    pub fn build(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
        let mut tcp = Vec::new();
        tcp.extend(self.source_port.to_be_bytes());
        tcp.extend(self.destination_port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.push(((20 + self.options.len()) * 4) as u8);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let mut packet = self.ip(6, tcp.len());
        packet.extend(tcp);
        complete(&mut packet);
        packet
    }

    pub fn bytes(&self) -> Bytes {
        self.build().into()
    }

    /// The IP header, its checksum included.
    fn ip(&self, protocol: u8, payload_bytes: usize) -> Vec<u8> {
        let mut header = Vec::new();
        if self.v6 {
            let first = 6u32 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
            header.extend(first.to_be_bytes());
            header.extend((payload_bytes as u16).to_be_bytes());
            header.extend([protocol, self.ttl]);
            for host in [self.source_host, self.destination_host] {
                header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        } else {
            header.extend([0x45, self.traffic_class]);
            header.extend((20 + payload_bytes as u16).to_be_bytes());
            header.extend(self.identification.to_be_bytes());
            header.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            header.extend([198, 18, 0, self.source_host, 198, 18, 0, self.destination_host]);
            let checksum = !naive_sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        header
    }
}

/// Like [`TcpSegment`], which it borrows the IP header and the ports from.
#[derive(Debug, Clone)]
pub struct UdpDatagram {
    pub v6: bool,
    pub source_host: u8,
    pub traffic_class: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub source_port: u16,
    pub payload: Vec<u8>,
}

impl UdpDatagram {
    pub fn v4() -> UdpDatagram {
        UdpDatagram {
            v6: false,
            source_host: 1,
            traffic_class: 0,
            identification: 100,
            dont_fragment: true,
            source_port: 40000,
            payload: vec![0xcd; 100],
        }
    }

    pub fn v6() -> UdpDatagram {
        UdpDatagram { v6: true, ..UdpDatagram::v4() }
    }

    pub fn build(&self) -> Vec<u8> {
        let carrier = TcpSegment {
            v6: self.v6,
            source_host: self.source_host,
            traffic_class: self.traffic_class,
            identification: self.identification,
            dont_fragment: self.dont_fragment,
            ..TcpSegment::v4()
        };
        let udp_bytes = 8 + self.payload.len();
        let mut packet = carrier.ip(17, udp_bytes);
        packet.extend(self.source_port.to_be_bytes());
        packet.extend(4433u16.to_be_bytes());
        packet.extend((udp_bytes as u16).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(&self.payload);
        complete(&mut packet);
        packet
    }
}

/// Where the transport header starts, its protocol and where its checksum is, without extension headers.
fn layout(packet: &[u8]) -> (usize, u8, usize) {
    let (start, protocol) =
        if packet[0] >> 4 == 4 { (usize::from(packet[0] & 15) * 4, packet[9]) } else { (40, packet[6]) };
    (start, protocol, start + if protocol == 6 { 16 } else { 6 })
}

fn pseudo_header(packet: &[u8]) -> Vec<u8> {
    let (start, protocol, _) = layout(packet);
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let mut pseudo = packet[addresses].to_vec();
    pseudo.extend(((packet.len() - start) as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo
}

/// Writes the transport checksum of a packet without extension headers.
pub fn complete(packet: &mut [u8]) {
    let (start, protocol, at) = layout(packet);
    packet[at..at + 2].fill(0);
    let mut covered = pseudo_header(packet);
    covered.extend(&packet[start..]);
    let checksum = match !naive_sum(&covered) {
        0 if protocol == 17 => 0xffff,
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
        (17, _) => vnet::GSO_UDP_L4,
        (_, 4) => vnet::GSO_TCPV4,
        _ => vnet::GSO_TCPV6,
    };
    VnetHeader {
        flags: vnet::NEEDS_CSUM,
        gso_type,
        hdr_len: 0xbad,
        gso_size,
        csum_start: start as u16,
        csum_offset: (at - start) as u16,
    }
}

/// A packet without extension headers after every length and checksum in it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub identification: Option<u16>,
    pub seq: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
    /// All that belongs to neither of the fields above, nor to lengths and checksums.
    pub rest: Vec<u8>,
}

/// Checks lengths and checksums of a TCP or UDP packet and takes it apart.
pub fn check(packet: &[u8]) -> Checked {
    let (start, protocol, at) = layout(packet);
    let mut rest = packet[..start].to_vec();
    let identification = if packet[0] >> 4 == 4 {
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "total length");
        assert_eq!(naive_sum(&packet[..start]), 0xffff, "IPv4 header checksum");
        for field in [2..6, 10..12] {
            rest[field].fill(0);
        }
        Some(u16::from_be_bytes([packet[4], packet[5]]))
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len(), "payload length");
        rest[4..6].fill(0);
        None
    };
    let mut covered = pseudo_header(packet);
    covered.extend(&packet[start..]);
    assert_eq!(naive_sum(&covered), 0xffff, "transport checksum");
    let transport = &packet[start..];
    if protocol == 17 {
        assert_ne!(&packet[at..at + 2], &[0, 0], "UDP checksum is absent");
        assert_eq!(usize::from(u16::from_be_bytes([transport[4], transport[5]])), transport.len(), "UDP length");
        rest.extend(&transport[..4]);
        return Checked { identification, seq: 0, flags: 0, payload: transport[8..].to_vec(), rest };
    }
    let header_bytes = usize::from(transport[12] >> 4) * 4;
    rest.extend(&transport[..4]);
    rest.extend(&transport[8..13]);
    rest.extend(&transport[14..16]);
    rest.extend(&transport[18..header_bytes]);
    Checked {
        identification,
        seq: u32::from_be_bytes(transport[4..8].try_into().unwrap()),
        flags: transport[13],
        payload: transport[header_bytes..].to_vec(),
        rest,
    }
}

/// Inserts an extension header (complete, its next header field included) behind the fixed IPv6 header.
pub fn with_extension(packet: &[u8], protocol: u8, extension: &[u8]) -> Vec<u8> {
    let mut longer = packet[..40].to_vec();
    longer[6] = protocol;
    longer.extend(extension);
    longer.extend(&packet[40..]);
    let payload_bytes = (longer.len() - 40) as u16;
    longer[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
    longer
}

/// Inserts options behind a 20-byte IPv4 header.
pub fn with_ipv4_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let mut longer = packet[..20].to_vec();
    longer.extend(options);
    longer.extend(&packet[20..]);
    longer[0] += (options.len() / 4) as u8;
    let total_bytes = longer.len() as u16;
    longer[2..4].copy_from_slice(&total_bytes.to_be_bytes());
    rewrite_ipv4_checksum(&mut longer);
    longer
}

/// Makes the IPv4 header checksum right after a change.
pub fn rewrite_ipv4_checksum(packet: &mut [u8]) {
    let header_bytes = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let checksum = !naive_sum(&packet[..header_bytes]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Bytes that are random, or a packet with a few bytes changed and perhaps cut, its length field put right half of the time.
pub fn almost_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let base = (0..5u8, 0..3usize, 0..200usize).prop_map(|(kind, extensions, payload_bytes)| {
        let payload = vec![7; payload_bytes];
        let mut packet = match kind {
            0 => TcpSegment { payload, options: vec![1; 12], ..TcpSegment::v4() }.build(),
            1 => TcpSegment { payload, ..TcpSegment::v6() }.build(),
            2 => UdpDatagram { payload, ..UdpDatagram::v4() }.build(),
            3 => UdpDatagram { payload, ..UdpDatagram::v6() }.build(),
            _ => return payload,
        };
        if kind == 1 || kind == 3 {
            for index in 0..extensions {
                let next = packet[6];
                packet = with_extension(&packet, [0, 43, 44][index], &[next, 0, 0, 0, 0, 0, 0, 0]);
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
