//! The inner packets that are measured: TCP and UDP over IPv4, single or as super-packets with a virtio header in front.

use std::net::Ipv4Addr;

use bytes::Bytes;
use etherparse::{IpNumber, Ipv4Header, TcpHeader, TcpOptionElement, UdpHeader};
use tollgate_shards::packet::VnetHeader;
use tollgate_shards::packet::vnet::{GSO_NONE, GSO_TCPV4, GSO_UDP_L4, HEADER_BYTES, NEEDS_CSUM};

use super::PACKET_BYTES;
use tollgate_testkit::packet::Sum;

const IP_BYTES: usize = 20;
const IP_BYTES_MAX: usize = 65_535;
const PORTS: (u16, u16) = (40_000, 5201);

/// What a packet carries: a TCP segment with timestamps, or a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A frame for a TUN queue, as the gateway writes it: headers of its own, and payloads where they were received.
#[derive(Debug, Clone)]
pub struct InnerFrame {
    /// The virtio header, the IPv4 header and the transport header.
    pub header: Vec<u8>,
    /// One payload for each packet of a super-packet.
    pub payloads: Vec<Bytes>,
}

impl Transport {
    fn protocol(self) -> IpNumber {
        if self == Transport::Tcp { IpNumber::TCP } else { IpNumber::UDP }
    }

    fn header_bytes(self) -> usize {
        if self == Transport::Tcp { 32 } else { 8 }
    }

    /// Where the checksum is in the transport header.
    fn checksum_offset(self) -> usize {
        if self == Transport::Tcp { 16 } else { 6 }
    }

    /// Payload of a packet of [`PACKET_BYTES`], in bytes.
    pub fn payload_bytes(self) -> usize {
        PACKET_BYTES - IP_BYTES - self.header_bytes()
    }

    /// As many packets of [`PACKET_BYTES`] as a super-packet holds.
    pub fn packets_max(self) -> usize {
        (IP_BYTES_MAX - IP_BYTES - self.header_bytes()) / self.payload_bytes()
    }

    fn header(self, transport_bytes: usize) -> Vec<u8> {
        match self {
            Transport::Tcp => {
                let mut header = TcpHeader::new(PORTS.0, PORTS.1, 0, 0x2000);
                header.ack = true;
                let timestamps = [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(0, 0)];
                header.set_options(&timestamps).expect("timestamps fit a TCP header");
                header.to_bytes().to_vec()
            }
            Transport::Udp => {
                let length = transport_bytes as u16;
                UdpHeader { source_port: PORTS.0, destination_port: PORTS.1, length, checksum: 0 }.to_bytes().to_vec()
            }
        }
    }
}

impl InnerFrame {
    /// A run of `packets` packets of [`PACKET_BYTES`] from `source` to `destination`; a single one is complete, checksum and all.
    pub fn new(transport: Transport, packets: usize, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        // Payloads lie as far from each other as in the UDP receive that they came in.
        let received = Bytes::from((0..packets * PACKET_BYTES).map(|index| (index * 7 + 3) as u8).collect::<Vec<_>>());
        let payload_bytes = transport.payload_bytes();
        let starts = (0..packets).map(|packet| packet * PACKET_BYTES);
        let payloads: Vec<Bytes> = starts.map(|start| received.slice(start..start + payload_bytes)).collect();
        let transport_bytes = transport.header_bytes() + packets * payload_bytes;

        let header_bytes = (IP_BYTES + transport.header_bytes()) as u16;
        let vnet = match packets {
            1 => VnetHeader { gso_type: GSO_NONE, ..VnetHeader::default() },
            _ => VnetHeader {
                flags: NEEDS_CSUM,
                gso_type: if transport == Transport::Tcp { GSO_TCPV4 } else { GSO_UDP_L4 },
                hdr_len: header_bytes,
                gso_size: payload_bytes as u16,
                csum_start: IP_BYTES as u16,
                csum_offset: transport.checksum_offset() as u16,
            },
        };
        let mut ip =
            Ipv4Header::new(transport_bytes as u16, 64, transport.protocol(), source.octets(), destination.octets())
                .expect("a super-packet fits an IPv4 header");
        ip.dont_fragment = true;
        ip.header_checksum = ip.calc_header_checksum();
        let transport_header = transport.header(transport_bytes);
        let pseudo = Sum::of(&[source.octets(), destination.octets()].concat())
            + Sum::of(&[0, transport.protocol().0])
            + Sum::of(&(transport_bytes as u16).to_be_bytes());
        let checksum = match &payloads[..] {
            [payload] => (pseudo + Sum::of(&transport_header) + Sum::of(payload)).udp_checksum(),
            // The kernel completes it, should a segment ever leave the run.
            _ => pseudo.folded(),
        };
        let mut header = [vnet.bytes(), &ip.to_bytes(), &transport_header].concat();
        let at = HEADER_BYTES + IP_BYTES + transport.checksum_offset();
        header[at..at + 2].copy_from_slice(&checksum);
        InnerFrame { header, payloads }
    }

    /// Bytes of transport payload in it.
    pub fn payload_bytes(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }

    /// Length of the whole frame, virtio header included, in bytes.
    pub fn bytes(&self) -> usize {
        self.header.len() + self.payload_bytes()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketHeaders, TransportHeader};

    use super::*;

    #[test]
    fn packets_are_whole_and_super_packets_as_long_as_ip_allows() {
        let (source, destination) = (Ipv4Addr::new(198, 19, 128, 2), Ipv4Addr::new(198, 19, 129, 2));
        for transport in [Transport::Tcp, Transport::Udp] {
            let frame = |packets| {
                let frame = InnerFrame::new(transport, packets, source, destination);
                [&frame.header[HEADER_BYTES..], &frame.payloads.concat()].concat()
            };
            let single = frame(1);
            assert_eq!(single.len(), PACKET_BYTES);
            let read = PacketHeaders::from_ip_slice(&single).unwrap();
            let Some(etherparse::NetHeaders::Ipv4(ip, _)) = &read.net else { panic!("no IPv4") };
            let (checksum, expected) = match &read.transport {
                Some(TransportHeader::Tcp(tcp)) => (tcp.checksum, tcp.calc_checksum_ipv4(ip, read.payload.slice())),
                Some(TransportHeader::Udp(udp)) => (udp.checksum, udp.calc_checksum_ipv4(ip, read.payload.slice())),
                other => panic!("{other:?}"),
            };
            assert_eq!((checksum, ip.header_checksum), (expected.unwrap(), ip.calc_header_checksum()));
            let whole = frame(transport.packets_max());
            assert!(whole.len() <= IP_BYTES_MAX && whole.len() > IP_BYTES_MAX - PACKET_BYTES);
        }
    }
}
