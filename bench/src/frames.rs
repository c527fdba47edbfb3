//! Inner packets as TUN queues carry them: single ones, or a run of one flow in a super-packet that the receiver is to split.
//!
//! `etherparse` makes them, so that what is measured does not check itself. Nothing here is random.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::TcpOptionElement::{Noop, Timestamp};
use tollgate_shards::packet::VnetHeader;
use tollgate_shards::packet::vnet::{GSO_TCPV4, GSO_UDP_L4, HEADER_BYTES, NEEDS_CSUM};
use tollgate_testkit::packet::{Sum, between};

pub const IP_BYTES: usize = 20;
/// With timestamps, which the kernel's TCP sends in every packet.
pub const TCP_BYTES: usize = 32;
pub const UDP_BYTES: usize = 8;

/// The packets of one flow, of equal length.
#[derive(Debug, Clone)]
pub struct Flow {
    is_tcp: bool,
    from: SocketAddrV4,
    to: SocketAddrV4,
    packet_bytes: usize,
    sequence: u32,
}

impl Flow {
    /// TCP from port 443, as a download has it.
    pub fn tcp(from: Ipv4Addr, to: Ipv4Addr, packet_bytes: usize) -> Self {
        let (from, to) = (SocketAddrV4::new(from, 443), SocketAddrV4::new(to, 40_000));
        Flow { is_tcp: true, from, to, packet_bytes, sequence: 1 }
    }

    /// UDP from `port`.
    pub fn udp(from: Ipv4Addr, port: u16, to: Ipv4Addr, packet_bytes: usize) -> Self {
        let (from, to) = (SocketAddrV4::new(from, port), SocketAddrV4::new(to, 53));
        Flow { is_tcp: false, from, to, packet_bytes, sequence: 0 }
    }

    /// Headers of a packet, in bytes.
    pub fn header_bytes(&self) -> usize {
        IP_BYTES + if self.is_tcp { TCP_BYTES } else { UDP_BYTES }
    }

    /// The next packet, complete.
    pub fn packet(&mut self) -> Vec<u8> {
        let payload_bytes = self.packet_bytes - self.header_bytes();
        self.write(payload_bytes)
    }

    /// The next packet with the header that a TUN queue wants.
    pub fn frame(&mut self) -> Vec<u8> {
        [vec![0; HEADER_BYTES], self.packet()].concat()
    }

    /// The next `packets` packets in one frame. Its checksum is left for the receiver to complete.
    pub fn super_frame(&mut self, packets: usize) -> Vec<u8> {
        let segment_bytes = self.packet_bytes - self.header_bytes();
        let mut packet = self.write(packets * segment_bytes);
        let checksum_offset = if self.is_tcp { 16 } else { 6 };
        let pseudo_header = pseudo_header(&packet).folded();
        packet[IP_BYTES + checksum_offset..][..2].copy_from_slice(&pseudo_header);
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: if self.is_tcp { GSO_TCPV4 } else { GSO_UDP_L4 },
            hdr_len: self.header_bytes() as u16,
            gso_size: segment_bytes as u16,
            csum_start: IP_BYTES as u16,
            csum_offset: checksum_offset as u16,
        };

        [header.bytes(), &packet].concat()
    }

    fn write(&mut self, payload_bytes: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..payload_bytes).map(|at| (at * 31) as u8).collect();
        let (from, to) = (self.from.port(), self.to.port());
        let start = between((*self.from.ip()).into(), (*self.to.ip()).into());
        let mut packet = Vec::new();
        let written = if self.is_tcp {
            let tcp = start.tcp(from, to, self.sequence, u16::MAX).ack(1);
            tcp.options(&[Noop, Noop, Timestamp(1, 1)]).expect("timestamps fit").write(&mut packet, &payload)
        } else {
            start.udp(from, to).write(&mut packet, &payload)
        };
        written.expect("a packet's length fits its IP header");
        self.sequence = self.sequence.wrapping_add(payload_bytes as u32);
        packet
    }
}

/// The sum of the pseudo header that a transport checksum covers beside the packet's own bytes (RFC 9293, section 3.1).
fn pseudo_header(packet: &[u8]) -> Sum {
    let transport_bytes = (packet.len() - IP_BYTES) as u16;
    Sum::of(&packet[12..IP_BYTES]) + Sum::of(&[0, packet[9]]) + Sum::of(&transport_bytes.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tollgate_shards::packet::{PacketPool, split};

    use super::*;

    #[test]
    fn a_super_packet_is_the_run_of_its_packets() {
        let (from, to) = (Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 1, 9));
        for mut flow in [Flow::tcp(from, to, 1400), Flow::udp(from, 20_000, to, 100)] {
            let mut single = flow.clone();
            let frame = flow.super_frame(3);
            let (header, run) = VnetHeader::parse(&frame).unwrap();
            let mut packets: Vec<Bytes> = Vec::new();
            split(&header, run, &mut PacketPool::default(), &mut |packet| packets.push(packet)).unwrap();
            assert_eq!(packets.len(), 3);
            for packet in packets {
                let expected = single.packet();
                assert_eq!((packet.len(), expected.len()), (flow.packet_bytes, flow.packet_bytes));
                assert_eq!(
                    packet[IP_BYTES..][..6],
                    expected[IP_BYTES..][..6],
                    "ports, and TCP's sequence or UDP's length"
                );
                for packet in [&packet[..], &expected] {
                    let pseudo = pseudo_header(packet);
                    assert!(
                        Sum::of(&packet[..IP_BYTES]).is_valid() && (pseudo + Sum::of(&packet[IP_BYTES..])).is_valid()
                    );
                }
            }
        }
    }
}
