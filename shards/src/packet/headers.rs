//! Headers as they lie in a packet, every field in network byte order.

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Without options (RFC 791, section 3.1).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    pub version_and_length: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    pub total_bytes: U16,
    pub identification: U16,
    pub fragment: U16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: U16,
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

/// Flags and offset of [`Ipv4Header::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// In units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ipv4Header {
    /// With the options, in bytes.
    #[inline]
    pub fn header_bytes(&self) -> usize {
        usize::from(self.version_and_length & 0x0f) * 4
    }
}

/// The fixed header (RFC 8200, section 3).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6Header {
    pub version_class_and_label: U32,
    pub payload_bytes: U16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
}

/// The first 8 bytes of an extension header (RFC 8200, section 4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6Extension {
    pub next_header: u8,
    pub length: u8,
    /// Of a fragment header: offset and flags. Of a routing header: type and segments left.
    pub fragment: U16,
    rest: U32,
}

/// Without options (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TcpHeader {
    pub ports: [u8; 4],
    pub seq: U32,
    pub ack: U32,
    pub length_and_flags: U16,
    pub window: U16,
    pub checksum: U16,
    pub urgent: U16,
}

impl TcpHeader {
    /// With the options, in bytes; `None` where that is less than without.
    #[inline]
    pub fn header_bytes(&self) -> Option<usize> {
        let bytes = usize::from(self.length_and_flags.get() >> 12) * 4;
        (bytes >= size_of::<TcpHeader>()).then_some(bytes)
    }
}

/// RFC 768.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    pub ports: [u8; 4],
    pub bytes: U16,
    pub checksum: U16,
}

/// RFC 792, RFC 4443.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcmpHeader {
    pub kind: u8,
    pub code: u8,
    pub checksum: U16,
    /// Of "packet too big", the MTU.
    pub rest: U32,
}
