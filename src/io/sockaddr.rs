//! Socket addresses as the kernel lays them out.
//!
//! Outside of this folder an IPv4 address is always an IPv4 address: what a dual-stack socket reports as `::ffff:a.b.c.d` is turned
//! into `a.b.c.d` on the way in, and back on the way out. So a client has one name, whatever family the socket has, and a remote
//! address taken from a receive can be given to a send of the same socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Length of a `sockaddr_in`, in bytes.
const V4_BYTES: usize = size_of::<libc::sockaddr_in>();
/// Length of a `sockaddr_in6`, in bytes.
pub(super) const RAW_ADDRESS_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// The family that a socket was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `AF_INET`: IPv4 only.
    V4,
    /// `AF_INET6`: IPv6, and IPv4 as mapped addresses where the socket is dual-stack.
    V6,
}

impl Family {
    /// The family of the socket that `address` can be bound to.
    pub(super) fn of(address: SocketAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address family number for `socket`.
    pub(super) fn number(self) -> libc::c_int {
        match self {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        }
    }
}

/// A `sockaddr_in` or `sockaddr_in6`, to be read and written by the kernel.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct RawAddress {
    bytes: [u8; RAW_ADDRESS_BYTES],
}

impl RawAddress {
    /// An address that means nothing yet.
    pub(super) const EMPTY: RawAddress = RawAddress { bytes: [0; RAW_ADDRESS_BYTES] };

    /// Stores `address` in the form that a socket of `family` takes and returns its length in bytes; `None` for an IPv6 address and
    /// an IPv4 socket.
    pub(super) fn store(&mut self, address: SocketAddr, family: Family) -> Option<libc::socklen_t> {
        let port = address.port().to_be_bytes();
        self.bytes = [0; RAW_ADDRESS_BYTES];
        self.bytes[0..2].copy_from_slice(&(family.number() as libc::sa_family_t).to_ne_bytes());
        self.bytes[2..4].copy_from_slice(&port);
        match (family, address.ip().to_canonical()) {
            (Family::V4, IpAddr::V4(ip)) => {
                self.bytes[4..8].copy_from_slice(&ip.octets());
                Some(V4_BYTES as libc::socklen_t)
            }
            (Family::V4, IpAddr::V6(_)) => None,
            (Family::V6, IpAddr::V4(ip)) => {
                self.bytes[8..24].copy_from_slice(&ip.to_ipv6_mapped().octets());
                Some(RAW_ADDRESS_BYTES as libc::socklen_t)
            }
            (Family::V6, IpAddr::V6(ip)) => {
                self.bytes[8..24].copy_from_slice(&ip.octets());
                if let SocketAddr::V6(v6) = address {
                    self.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                }
                Some(RAW_ADDRESS_BYTES as libc::socklen_t)
            }
        }
    }

    /// The address that the kernel stored with a length of `bytes`, an IPv4-mapped one as IPv4; `None` when it is of no IP family.
    pub(super) fn load(&self, bytes: usize) -> Option<SocketAddr> {
        let family = libc::c_int::from(libc::sa_family_t::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        if family == libc::AF_INET && bytes >= V4_BYTES {
            let octets: [u8; 4] = self.bytes[4..8].try_into().ok()?;
            return Some(SocketAddr::from((Ipv4Addr::from(octets), port)));
        }
        if family != libc::AF_INET6 || bytes < RAW_ADDRESS_BYTES {
            return None;
        }
        let octets: [u8; 16] = self.bytes[8..24].try_into().ok()?;
        let scope: [u8; 4] = self.bytes[24..28].try_into().ok()?;
        let ip = Ipv6Addr::from(octets);
        Some(match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, port)),
            None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, u32::from_ne_bytes(scope))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(address: &str, family: Family) -> Option<String> {
        let mut raw = RawAddress::EMPTY;
        let bytes = raw.store(address.parse().unwrap(), family)?;
        raw.load(bytes as usize).map(|address| address.to_string())
    }

    #[test]
    fn an_address_survives_the_form_of_either_family() {
        assert_eq!(round_trip("198.18.0.7:4433", Family::V4).as_deref(), Some("198.18.0.7:4433"));
        assert_eq!(round_trip("198.18.0.7:4433", Family::V6).as_deref(), Some("198.18.0.7:4433"));
        assert_eq!(round_trip("[fd00::7]:4433", Family::V6).as_deref(), Some("[fd00::7]:4433"));
        assert_eq!(round_trip("[fe80::7%3]:4433", Family::V6).as_deref(), Some("[fe80::7%3]:4433"));
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        assert_eq!(round_trip("[::ffff:198.18.0.7]:4433", Family::V6).as_deref(), Some("198.18.0.7:4433"));
        assert_eq!(round_trip("[::ffff:198.18.0.7]:4433", Family::V4).as_deref(), Some("198.18.0.7:4433"));
    }

    #[test]
    fn an_ipv6_address_does_not_fit_an_ipv4_socket() {
        assert_eq!(round_trip("[fd00::7]:4433", Family::V4), None);
    }

    #[test]
    fn a_short_or_foreign_address_is_none() {
        let mut raw = RawAddress::EMPTY;
        assert_eq!(raw.load(RAW_ADDRESS_BYTES), None);
        raw.store("[fd00::7]:4433".parse().unwrap(), Family::V6).unwrap();
        assert_eq!(raw.load(RAW_ADDRESS_BYTES - 1), None);
    }
}
