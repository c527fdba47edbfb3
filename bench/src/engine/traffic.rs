//! Inner packets for the engine to carry: TCP in super-frames as the kernel makes them, and small UDP packets of many flows.
//!
//! Everything has right checksums, as only such packets are merged. Nothing here is random.

use std::net::Ipv4Addr;

use bytes::Bytes;
use tollgate_shards::packet::vnet::VnetHeader;
use tollgate_shards::packet::{PacketPool, split, vnet};

/// Length of the IPv4 header, in bytes.
const IP_BYTES: usize = 20;
/// Length of the TCP header, in bytes.
const TCP_BYTES: usize = 20;
/// Length of the UDP header, in bytes.
const UDP_BYTES: usize = 8;

/// Length of a large inner packet, in bytes: the tunnel's MTU.
pub const LARGE_BYTES: usize = 1400;
/// Length of a small one.
pub const SMALL_BYTES: usize = 100;
/// Large packets of a super-frame: as many as its 65,535 bytes hold, less a few that the sender did not have yet.
pub const SEGMENTS: usize = 44;
/// Flows of small packets, in turn.
const SMALL_FLOWS: u16 = 32;

/// The traffic from one inner address to another.
pub struct Traffic {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    tcp_sequence: u32,
    small_flow: u16,
    arena: PacketPool,
}

impl Traffic {
    /// None so far.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Traffic { source, destination, tcp_sequence: 1, small_flow: 0, arena: PacketPool::default() }
    }

    /// The next [`SEGMENTS`] large packets of the one TCP flow, as the TUN gives them: one frame, its checksum not complete.
    pub fn large_frame(&mut self) -> Vec<u8> {
        let segment_bytes = LARGE_BYTES - IP_BYTES - TCP_BYTES;
        let payload_bytes = SEGMENTS * segment_bytes;
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_TCPV4,
            hdr_len: (IP_BYTES + TCP_BYTES) as u16,
            gso_size: segment_bytes as u16,
            csum_start: IP_BYTES as u16,
            csum_offset: 16,
        };
        let mut frame = self.ip_frame(&header, 6, TCP_BYTES + payload_bytes);
        frame.extend(443u16.to_be_bytes());
        frame.extend(40_000u16.to_be_bytes());
        frame.extend(self.tcp_sequence.to_be_bytes());
        // Acknowledges 1; 20 bytes of header, ACK, a full window.
        frame.extend([0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        fill(&mut frame, payload_bytes);
        self.tcp_sequence = self.tcp_sequence.wrapping_add(payload_bytes as u32);
        frame
    }

    /// The same, as single packets.
    pub fn large_packets(&mut self) -> Vec<Bytes> {
        let frame = self.large_frame();
        packets_of(&frame, &mut self.arena)
    }

    /// The next small packet, as the TUN gives it: a UDP packet with a frame to itself.
    pub fn small_frame(&mut self) -> Vec<u8> {
        let packet = self.small_packet();
        let mut frame = vec![0; vnet::HEADER_BYTES];
        frame.extend(packet);
        frame
    }

    /// The same, without the frame.
    pub fn small_packet(&mut self) -> Bytes {
        let payload_bytes = SMALL_BYTES - IP_BYTES - UDP_BYTES;
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            hdr_len: (IP_BYTES + UDP_BYTES) as u16,
            gso_size: payload_bytes as u16,
            csum_start: IP_BYTES as u16,
            csum_offset: 6,
        };
        let mut frame = self.ip_frame(&header, 17, UDP_BYTES + payload_bytes);
        frame.extend((20_000 + self.small_flow).to_be_bytes());
        frame.extend([0, 53, 0, 0, 0, 0]);
        fill(&mut frame, payload_bytes);
        self.small_flow = (self.small_flow + 1) % SMALL_FLOWS;
        packets_of(&frame, &mut self.arena).swap_remove(0)
    }

    /// A frame up to the end of its IP header. [`split`](split::split) fills in what is missing.
    fn ip_frame(&self, header: &VnetHeader, protocol: u8, rest_bytes: usize) -> Vec<u8> {
        let total_bytes = u16::try_from(IP_BYTES + rest_bytes).expect("a frame's length fits its IP header");
        let mut frame = Vec::with_capacity(vnet::HEADER_BYTES + usize::from(total_bytes));
        frame.extend(header.bytes());
        frame.extend([0x45, 0]);
        frame.extend(total_bytes.to_be_bytes());
        // Not to be fragmented; 64 hops.
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        frame
    }
}

fn packets_of(frame: &[u8], arena: &mut PacketPool) -> Vec<Bytes> {
    let mut packets = Vec::new();
    let (header, packet) = VnetHeader::parse(frame).expect("the frame has a header");
    split(&header, packet, arena, &mut |packet| packets.push(packet)).expect("the frame is well-formed");
    packets
}

fn fill(frame: &mut Vec<u8>, bytes: usize) {
    frame.extend((0..bytes).map(|at| (at * 31) as u8));
}

#[cfg(test)]
mod tests {
    use tollgate_shards::packet::{Coalescer, InnerPacket, MergeLimits};

    use super::*;

    fn traffic() -> Traffic {
        Traffic::new(Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 1, 9))
    }

    #[test]
    fn packets_have_the_length_they_are_named_for() {
        let packets = traffic().large_packets();
        assert_eq!(packets.len(), SEGMENTS);
        assert!(packets.iter().all(|packet| packet.len() == LARGE_BYTES));
        assert_eq!(traffic().small_packet().len(), SMALL_BYTES);
    }

    #[test]
    fn checksums_are_right_so_that_packets_merge() {
        let mut merger = Coalescer::new(MergeLimits::default());
        let mut traffic = traffic();
        let (large, small) = (traffic.large_packets(), (0..64).map(|_| traffic.small_packet()));
        for packet in large.into_iter().chain(small) {
            let inner = InnerPacket::parse(&packet).unwrap();
            merger.push(packet, &inner).unwrap();
        }
        let mut packets = Vec::new();
        while let Some(frame) = merger.poll_frame() {
            packets.push(frame.payloads.len());
        }
        assert_eq!(packets[0], SEGMENTS, "one run of TCP");
        assert_eq!(packets[1..], [2; SMALL_FLOWS as usize], "one run for each flow of UDP");
    }
}
