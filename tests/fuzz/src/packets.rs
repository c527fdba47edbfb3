//! Inner packets by another hand than the engine's: what a super-packet stands for, as etherparse and the definitions have it.

use std::net::IpAddr;

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice, UdpHeader,
};
use tollgate_shards::packet::VnetHeader;
use tollgate_shards::packet::vnet;

use crate::input::Input;

/// The checksum's place in a TCP and in a UDP header.
const TCP_CHECKSUM_AT: usize = 16;
const UDP_CHECKSUM_AT: usize = 6;

/// The ones' complement sum by its definition (RFC 1071).
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A TCP segment or UDP datagram without extension headers, in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    pub ip: IpHeaders,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
}

impl Parts {
    /// Takes `packet` apart; `None` where it is nothing of the kind.
    pub fn of(packet: &[u8]) -> Option<Parts> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let ip = match sliced.net? {
            NetSlice::Ipv4(ip) if ip.extensions().is_empty() => {
                IpHeaders::Ipv4(ip.header().to_header(), Default::default())
            }
            NetSlice::Ipv6(ip) if ip.extensions().is_empty() => {
                IpHeaders::Ipv6(ip.header().to_header(), Default::default())
            }
            _ => return None,
        };
        let (transport, payload) = match sliced.transport? {
            TransportSlice::Tcp(tcp) => (Transport::Tcp(tcp.to_header()), tcp.payload().to_vec()),
            TransportSlice::Udp(udp) => (Transport::Udp(udp.to_header()), udp.payload().to_vec()),
            _ => return None,
        };
        Some(Parts { ip, transport, payload })
    }

    /// The packet, with every length and checksum right.
    pub fn build(mut self) -> Vec<u8> {
        let header_bytes = match &self.transport {
            Transport::Tcp(tcp) => tcp.header_len(),
            Transport::Udp(_) => UdpHeader::LEN,
        };
        self.ip.set_payload_len(header_bytes + self.payload.len()).expect("it fits into a packet");
        if let Transport::Udp(udp) = &mut self.transport {
            udp.length = (header_bytes + self.payload.len()) as u16;
        }
        if let IpHeaders::Ipv4(ip, _) = &mut self.ip {
            ip.header_checksum = ip.calc_header_checksum();
        }
        let mut packet = Vec::new();
        self.ip.write(&mut packet).expect("memory takes all");
        let start = packet.len();
        match &self.transport {
            Transport::Tcp(tcp) => tcp.write(&mut packet),
            Transport::Udp(udp) => udp.write(&mut packet),
        }
        .expect("memory takes all");
        packet.extend(&self.payload);
        let at = start + self.checksum_at();
        packet[at..at + 2].fill(0);
        let pseudo = self.pseudo_sum();
        let checksum = match !sum(&[&pseudo.to_be_bytes(), &packet[start..]].concat()) {
            // RFC 768: 0 would say that there is none.
            0 if matches!(self.transport, Transport::Udp(_)) => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The frame that Linux makes of a run that has the length of this packet, of segments with so much payload: the virtio header and the packet,
    /// in which the checksum is that of the pseudo header.
    pub fn super_packet(self, segment_bytes: u16) -> (VnetHeader, Vec<u8>) {
        let (at, pseudo) = (self.checksum_at(), self.pseudo_sum());
        let start = self.ip.header_len();
        let gso_type = match (&self.ip, &self.transport) {
            (_, Transport::Udp(_)) => vnet::GSO_UDP_L4,
            (IpHeaders::Ipv4(..), Transport::Tcp(tcp)) => vnet::GSO_TCPV4 | if tcp.cwr { vnet::GSO_ECN } else { 0 },
            (IpHeaders::Ipv6(..), Transport::Tcp(tcp)) => vnet::GSO_TCPV6 | if tcp.cwr { vnet::GSO_ECN } else { 0 },
        };
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: segment_bytes,
            csum_start: start as u16,
            csum_offset: at as u16,
        };
        let mut packet = self.build();
        packet[start + at..start + at + 2].copy_from_slice(&pseudo.to_be_bytes());
        (header, packet)
    }

    /// The packets that it stands for, with at most so much payload each, as Linux's own segmentation makes them.
    pub fn segments(&self, segment_bytes: usize) -> Vec<Vec<u8>> {
        let payloads: Vec<_> = self.payload.chunks(segment_bytes.max(1)).collect();
        let last = payloads.len().saturating_sub(1);
        let segment = |(index, payload): (usize, &&[u8])| {
            let mut parts = Parts { payload: payload.to_vec(), ..self.clone() };
            if let IpHeaders::Ipv4(ip, _) = &mut parts.ip {
                ip.identification = ip.identification.wrapping_add(index as u16);
            }
            if let Transport::Tcp(tcp) = &mut parts.transport {
                tcp.sequence_number = tcp.sequence_number.wrapping_add((index * segment_bytes) as u32);
                tcp.fin &= index == last;
                tcp.psh &= index == last;
                tcp.cwr &= index == 0;
            }
            parts.build()
        };
        payloads.iter().enumerate().map(segment).collect()
    }

    /// Whether it is a TCP segment without payload that does nothing but acknowledge.
    pub fn is_pure_ack(&self) -> bool {
        let Transport::Tcp(tcp) = &self.transport else { return false };
        self.payload.is_empty() && tcp.ack && !(tcp.syn || tcp.fin || tcp.rst || tcp.urg)
    }

    fn checksum_at(&self) -> usize {
        match self.transport {
            Transport::Tcp(_) => TCP_CHECKSUM_AT,
            Transport::Udp(_) => UDP_CHECKSUM_AT,
        }
    }

    fn pseudo_sum(&self) -> u16 {
        let (header_bytes, protocol) = match &self.transport {
            Transport::Tcp(tcp) => (tcp.header_len(), IpNumber::TCP),
            Transport::Udp(_) => (UdpHeader::LEN, IpNumber::UDP),
        };
        let bytes = (header_bytes + self.payload.len()) as u32;
        let mut pseudo = match &self.ip {
            IpHeaders::Ipv4(ip, _) => [ip.source, ip.destination].concat(),
            IpHeaders::Ipv6(ip, _) => [ip.source, ip.destination].concat(),
        };
        pseudo.extend(bytes.to_be_bytes());
        pseudo.extend([0, 0, 0, protocol.0]);
        sum(&pseudo)
    }
}

/// Source and destination of any IP packet.
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
    let v6 = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

/// Packets of one flow keep their order: who sends, to whom, by which protocol, the ports.
pub type Flow = (IpAddr, IpAddr, u8, [u8; 4]);

/// The flow of a TCP segment or UDP datagram, damaged or not; `None` for fragments, other protocols and what is behind extension headers.
pub fn flow(packet: &[u8]) -> Option<Flow> {
    let (source, destination) = addresses(packet)?;
    let (start, protocol) = match packet[0] >> 4 {
        4 if packet[6] & 0x3f == 0 && packet[7] == 0 => (usize::from(packet[0] & 15) * 4, packet[9]),
        6 => (40, packet[6]),
        _ => return None,
    };
    let ports = packet.get(start..)?.first_chunk::<4>()?;
    [IpNumber::TCP.0, IpNumber::UDP.0].contains(&protocol).then_some((source, destination, protocol, *ports))
}

/// What merging packets and taking them apart again keeps of one: all but the identification of an atomic datagram (RFC 6864) and its checksum.
pub fn kept(packet: &[u8]) -> Vec<u8> {
    let mut kept = packet.to_vec();
    if kept.len() >= 20 && kept[0] >> 4 == 4 && kept[6] & 0x40 != 0 {
        kept[4..6].fill(0);
        kept[10..12].fill(0);
    }
    kept
}

/// A TCP segment or UDP datagram with all fields from `input`, and a payload of `payload_bytes`.
pub fn draw(input: &mut Input<'_>, payload_bytes: usize) -> Parts {
    let kind = input.u8();
    let (is_v6, is_udp, is_atomic) = (kind & 1 != 0, kind & 2 != 0, kind & 4 != 0);
    let (hosts, class, ttl) = (input.u8(), input.u8(), input.u8());
    let (source, destination) = (hosts >> 4, hosts & 15);
    let protocol = if is_udp { IpNumber::UDP } else { IpNumber::TCP };
    let ip = if is_v6 {
        let address = |host| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
        let label = Ipv6FlowLabel::try_new(input.u32() & 0xf_ffff).expect("20 bits");
        let ip = Ipv6Header {
            traffic_class: class,
            flow_label: label,
            payload_length: 0,
            next_header: protocol,
            hop_limit: ttl,
            source: address(source),
            destination: address(destination),
        };
        IpHeaders::Ipv6(ip, Default::default())
    } else {
        let mut ip =
            Ipv4Header::new(0, ttl, protocol, [198, 18, 0, source], [198, 18, 0, destination]).expect("0 bytes");
        ip.dscp = IpDscp::try_new(class >> 2).expect("6 bits");
        ip.ecn = IpEcn::try_new(class & 3).expect("2 bits");
        ip.identification = input.u16();
        ip.dont_fragment = is_atomic;
        IpHeaders::Ipv4(ip, Default::default())
    };
    let ports = (1000 + u16::from(input.u8()), 443);
    let transport = if is_udp {
        Transport::Udp(UdpHeader { source_port: ports.0, destination_port: ports.1, length: 0, checksum: 0 })
    } else {
        let mut tcp = TcpHeader::new(ports.0, ports.1, input.u32(), input.u16());
        tcp.acknowledgment_number = input.u32();
        let flags = input.u8();
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 8 != 0);
        (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (flags & 16 != 0, flags & 32 != 0, flags & 64 != 0, flags & 128 != 0);
        let words = usize::from(input.u8() % 11);
        tcp.set_options_raw(input.take(words * 4)).expect("at most 40 bytes");
        Transport::Tcp(tcp)
    };
    // Bytes that differ, so that what is exchanged or left out shows.
    let seed = input.u8();
    let payload =
        (0..payload_bytes).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed);
    Parts { ip, transport, payload: payload.collect() }
}
