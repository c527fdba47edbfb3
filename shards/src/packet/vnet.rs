//! The virtio header in front of every frame of a TUN queue opened with `IFF_VNET_HDR`.
//!
//! It is `struct virtio_net_hdr` without the later `num_buffers` (virtio 1.2, clause 5.1.6). A TUN queue speaks the legacy form: its
//! fields are in the byte order of the host, unless `TUNSETVNETLE` or `TUNSETVNETBE` was called, which this project never does.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::headers::UdpHeader;

pub const HEADER_BYTES: usize = size_of::<VnetHeader>();

/// Flag: the transport checksum holds only the sum of the pseudo header and must be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CSUM: u8 = 1;

/// The frame is one packet.
pub const GSO_NONE: u8 = 0;
/// The frame is a run of TCP segments over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// The frame is one UDP datagram to be fragmented. Obsolete; never offered to the kernel and never accepted.
pub const GSO_UDP: u8 = 3;
/// The frame is a run of TCP segments over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// The frame is a run of UDP datagrams, over either version of IP.
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside a TCP type: CWR is set on the first segment (RFC 3168).
pub const GSO_ECN: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`] or 0. Other bits may be set by the kernel and mean nothing here.
    pub flags: u8,
    /// One of the `GSO_` types, for TCP perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of the IP and transport headers, in bytes. A hint, not to be trusted.
    pub hdr_len: u16,
    /// Payload of each packet of a super-packet but the last, in bytes.
    pub gso_size: u16,
    /// With [`NEEDS_CSUM`]: where the transport header starts, in bytes from the start of the IP header.
    pub csum_start: u16,
    /// With [`NEEDS_CSUM`]: where the checksum is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Takes the header off the front of a frame and returns it with the inner packet behind, or `None` where the frame is too short.
    pub fn parse(frame: &[u8]) -> Option<(VnetHeader, &[u8])> {
        VnetHeader::read_from_prefix(frame).ok()
    }

    /// In the form that a TUN queue wants.
    pub fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    /// Length of the largest IP packet that `packet`, the frame behind this header, is to be split into, in bytes.
    pub fn segment_bytes(&self, packet: &[u8]) -> usize {
        match self.gso_header_bytes(packet) {
            Some(bytes) => packet.len().min(bytes + usize::from(self.gso_size)),
            None => packet.len(),
        }
    }

    /// How many packets `packet`, the frame behind this header, stands for.
    pub fn packets(&self, packet: &[u8]) -> u64 {
        let Some(header_bytes) = self.gso_header_bytes(packet) else { return 1 };
        let payload_bytes = packet.len().saturating_sub(header_bytes);
        payload_bytes.div_ceil(usize::from(self.gso_size).max(1)).max(1) as u64
    }

    /// Length of the headers that each packet of a super-packet gets, in bytes; `None` of a frame that is one packet.
    fn gso_header_bytes(&self, packet: &[u8]) -> Option<usize> {
        let transport = usize::from(self.csum_start);
        let bytes = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 | GSO_TCPV6 => usize::from(packet.get(transport + 12)? >> 4) * 4,
            GSO_UDP_L4 => size_of::<UdpHeader>(),
            _ => return None,
        };
        Some(transport + bytes)
    }

    /// Whether the transport checksum must be completed.
    pub fn needs_csum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSO: VnetHeader = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV6 | GSO_ECN,
        hdr_len: 60,
        gso_size: 1340,
        csum_start: 40,
        csum_offset: 16,
    };

    #[test]
    #[cfg(target_endian = "little")]
    fn fields_lie_where_the_kernel_has_them() {
        assert_eq!(TSO.bytes(), [1, 0x84, 60, 0, 0x3c, 0x05, 40, 0, 16, 0]);
    }

    #[test]
    fn a_frame_shorter_than_the_header_is_refused() {
        assert_eq!(VnetHeader::parse(&[0; HEADER_BYTES - 1]), None);
        assert!(VnetHeader::parse(&[0; HEADER_BYTES]).is_some());
    }
}
