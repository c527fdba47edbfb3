//! The inner packets that are measured: TCP and UDP over IPv4, single or as super-packets with a virtio header in front.

use std::net::Ipv4Addr;

use bytes::Bytes;
use tollgate_shards::packet::VnetHeader;
use tollgate_shards::packet::checksum::Sum;
use tollgate_shards::packet::vnet::{GSO_NONE, GSO_TCPV4, GSO_UDP_L4, HEADER_BYTES, NEEDS_CSUM};

use super::crossing::PACKET_BYTES;

const IP_BYTES: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The longest IPv4 packet.
const IP_BYTES_MAX: usize = 65_535;

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// A segment with timestamps.
    Tcp,
    /// A datagram.
    Udp,
}

/// A frame for a TUN queue, as the gateway writes it: headers of its own, and payloads where they were received.
#[derive(Debug, Clone)]
pub(super) struct InnerFrame {
    /// The virtio header, the IPv4 header and the transport header.
    pub(super) header: Vec<u8>,
    /// One payload for each packet of a super-packet.
    pub(super) payloads: Vec<Bytes>,
}

impl Transport {
    fn protocol(self) -> u8 {
        match self {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        }
    }

    fn header_bytes(self) -> usize {
        match self {
            Transport::Tcp => 32,
            Transport::Udp => 8,
        }
    }

    /// Where the checksum is in the transport header.
    fn checksum_offset(self) -> usize {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    fn gso_type(self) -> u8 {
        match self {
            Transport::Tcp => GSO_TCPV4,
            Transport::Udp => GSO_UDP_L4,
        }
    }

    /// Payload of a packet of [`PACKET_BYTES`], in bytes.
    pub(super) fn payload_bytes(self) -> usize {
        PACKET_BYTES - IP_BYTES - self.header_bytes()
    }

    /// As many packets of [`PACKET_BYTES`] as a super-packet holds.
    pub(super) fn packets_max(self) -> usize {
        (IP_BYTES_MAX - IP_BYTES - self.header_bytes()) / self.payload_bytes()
    }
}

impl InnerFrame {
    /// A run of `packets` packets of [`PACKET_BYTES`] from `source` to `destination`; a single one is complete, checksum and all.
    pub(super) fn new(transport: Transport, packets: usize, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        // Payloads lie as far from each other as in the UDP receive that they came in.
        let received = Bytes::from((0..packets * PACKET_BYTES).map(|index| (index * 7 + 3) as u8).collect::<Vec<_>>());
        let payload_bytes = transport.payload_bytes();
        let starts = (0..packets).map(|packet| packet * PACKET_BYTES);
        let payloads: Vec<Bytes> = starts.map(|start| received.slice(start..start + payload_bytes)).collect();
        let transport_bytes = transport.header_bytes() + packets * payload_bytes;

        let is_run = packets > 1;
        let vnet = VnetHeader {
            flags: if is_run { NEEDS_CSUM } else { 0 },
            gso_type: if is_run { transport.gso_type() } else { GSO_NONE },
            hdr_len: if is_run { (IP_BYTES + transport.header_bytes()) as u16 } else { 0 },
            gso_size: if is_run { payload_bytes as u16 } else { 0 },
            csum_start: if is_run { IP_BYTES as u16 } else { 0 },
            csum_offset: if is_run { transport.checksum_offset() as u16 } else { 0 },
        };
        let mut start = [0; HEADER_BYTES];
        vnet.write(&mut start);
        let mut header = start.to_vec();
        header.extend_from_slice(&ip_header(transport, IP_BYTES + transport_bytes, source, destination));
        let transport_at = header.len();
        header.extend_from_slice(&transport_header(transport, transport_bytes));

        let addresses: [u8; 8] = std::array::from_fn(|index| header[HEADER_BYTES + 12 + index]);
        let pseudo = Sum::pseudo_v4(&addresses, transport.protocol(), transport_bytes as u16);
        let checksum = match &payloads[..] {
            [payload] => (pseudo + Sum::of(&header[transport_at..]) + Sum::of(payload)).checksum(),
            // The kernel completes it, should a segment ever leave the run.
            _ => pseudo.folded(),
        };
        let at = transport_at + transport.checksum_offset();
        header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        InnerFrame { header, payloads }
    }

    /// Bytes of transport payload in it.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payloads.iter().map(Bytes::len).sum()
    }

    /// Length of the whole frame, virtio header included, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.header.len() + self.payload_bytes()
    }
}

fn ip_header(transport: Transport, total_bytes: usize, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; IP_BYTES] {
    let [high, low] = (total_bytes as u16).to_be_bytes();
    let mut header = [0; IP_BYTES];
    // Version and length of the header, total length, don't fragment, time to live, protocol.
    header[..10].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, transport.protocol()]);
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let checksum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn transport_header(transport: Transport, transport_bytes: usize) -> Vec<u8> {
    let ports = [0x9c, 0x40, 0x14, 0x51];
    let mut header = vec![0; transport.header_bytes()];
    header[..4].copy_from_slice(&ports);
    match transport {
        Transport::Tcp => {
            // Length of the header and ACK, a window; two NOPs and a timestamp.
            header[12..16].copy_from_slice(&[0x80, 0x10, 0x20, 0]);
            header[20..24].copy_from_slice(&[1, 1, 8, 10]);
        }
        Transport::Udp => header[4..6].copy_from_slice(&(transport_bytes as u16).to_be_bytes()),
    }
    header
}

#[cfg(test)]
mod tests {
    use tollgate_shards::packet::{InnerPacket, PacketPool, split};

    use super::*;
    use crate::floor::crossing::PAYLOAD_BYTES;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 19, 128, 2);
    const DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 19, 129, 2);

    fn joined(frame: &InnerFrame) -> Vec<u8> {
        [&frame.header[..], &frame.payloads.concat()].concat()
    }

    #[test]
    fn a_single_packet_is_complete_and_as_long_as_the_mtu() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let frame = joined(&InnerFrame::new(transport, 1, SOURCE, DESTINATION));
            let (vnet, packet) = VnetHeader::parse(&frame).unwrap();
            assert_eq!((vnet, packet.len()), (VnetHeader::default(), PACKET_BYTES));
            assert!(InnerPacket::parse(packet).is_ok());
            let addresses: &[u8; 8] = packet[12..20].try_into().unwrap();
            let transport_bytes = (packet.len() - IP_BYTES) as u16;
            let pseudo = Sum::pseudo_v4(addresses, transport.protocol(), transport_bytes);
            assert!((pseudo + Sum::of(&packet[IP_BYTES..])).is_valid());
            assert!(Sum::of(&packet[..IP_BYTES]).is_valid());
        }
    }

    #[test]
    fn a_super_packet_is_as_long_as_ip_allows_and_splits_into_packets_of_the_mtu() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let whole = InnerFrame::new(transport, transport.packets_max(), SOURCE, DESTINATION);
            let frame = joined(&whole);
            assert_eq!((frame.len(), whole.payload_bytes() % transport.payload_bytes()), (whole.bytes(), 0));
            let (vnet, packet) = VnetHeader::parse(&frame).unwrap();
            assert!(packet.len() <= IP_BYTES_MAX && packet.len() > IP_BYTES_MAX - PACKET_BYTES);
            assert_eq!(vnet.segment_bytes(packet), PACKET_BYTES);
            let mut lengths = Vec::new();
            split(&vnet, packet, &mut PacketPool::default(), &mut |piece| lengths.push(piece.len())).unwrap();
            assert_eq!(lengths, vec![PACKET_BYTES; transport.packets_max()]);
        }
        assert_eq!(Transport::Tcp.payload_bytes(), PAYLOAD_BYTES);
    }
}
