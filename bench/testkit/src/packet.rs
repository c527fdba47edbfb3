//! IP packets for tests, and their checksums: by `etherparse`, not by the engine that is judged.

use std::net::{IpAddr, SocketAddr};
use std::ops::{Add, Sub};

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};

const HOPS: u8 = 64;

/// A ones' complement sum of 16-bit words (RFC 1071), so that sums of parts add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum(u16);

impl Sum {
    /// Of bytes that begin at an even offset; an odd last one is padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        Sum(!Sum16BitWords::new().add_slice(bytes).ones_complement())
    }

    /// What goes into a header.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        (!self.0).to_ne_bytes()
    }

    /// What the kernel finds where it is to complete a checksum.
    pub fn folded(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// What goes into a UDP header, where 0 would say that there is none.
    #[inline]
    pub fn udp_checksum(self) -> [u8; 2] {
        (if self.0 == u16::MAX { u16::MAX } else { !self.0 }).to_ne_bytes()
    }

    /// Whether this is the sum of bytes with a right checksum among them.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.0 == u16::MAX
    }
}

impl Add for Sum {
    type Output = Sum;

    #[inline]
    fn add(self, other: Sum) -> Sum {
        let (sum, carried) = self.0.overflowing_add(other.0);
        Sum(sum + u16::from(carried))
    }
}

impl Sub for Sum {
    type Output = Sum;

    #[inline]
    fn sub(self, other: Sum) -> Sum {
        self + Sum(!other.0)
    }
}

/// The beginning of a packet, for `etherparse` to go on.
pub fn between(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => panic!("{from} and {to} are of different families"),
    }
}

pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = between(from.ip(), to.ip()).udp(from.port(), to.port());
    builder.write(&mut packet, payload).unwrap_or_else(|error| panic!("{error}"));
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_internets_and_add_up() {
        // The example of RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).folded(), [0xdd, 0xf2]);
        assert_eq!(Sum::of(&bytes[..2]) + Sum::of(&bytes[2..]), Sum::of(&bytes));
        assert_eq!(Sum::of(&bytes) - Sum::of(&bytes[..4]), Sum::of(&bytes[4..]));
        let packet = udp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), b"odd");
        assert!(Sum::of(&packet[..20]).is_valid() && packet.len() == 31);
    }
}
