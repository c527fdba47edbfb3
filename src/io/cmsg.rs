//! Control messages of UDP sockets: segment size, local address, ECN.
//!
//! They are read and written here as plain bytes in the kernel's layout (`struct cmsghdr`: a length as wide as a pointer, level, type,
//! then the data, each message padded to a pointer's width). Nothing of what the kernel returns is trusted for its lengths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tollgate_shards::Ecn;

/// `UDP_SEGMENT` of `linux/udp.h`: the length of each datagram of a send.
const UDP_SEGMENT: libc::c_int = 103;
/// `UDP_GRO` of `linux/udp.h`: as an option, asks for aggregates; as a control message, is the length of each datagram of one.
pub(super) const UDP_GRO: libc::c_int = 104;

/// Room for all control messages of one datagram, in bytes. The most that the options set in `udp.rs` can bring is 144.
pub(super) const CONTROL_BYTES: usize = 192;

/// Length of a `struct cmsghdr` without its data, in bytes.
const HEADER_BYTES: usize = size_of::<usize>() + 8;

/// Room for the control messages of one datagram.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control {
    bytes: [u8; CONTROL_BYTES],
}

/// What the control messages of a received datagram said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ControlInfo {
    /// The address of ours that the datagram was sent to.
    pub(super) local_ip: Option<IpAddr>,
    /// The ECN codepoint of its IP header.
    pub(super) ecn: Option<Ecn>,
    /// Length of each datagram of an aggregate, in bytes; `None` for a single one.
    pub(super) segment_bytes: Option<usize>,
}

impl Control {
    /// A buffer without control messages.
    pub(super) const EMPTY: Control = Control { bytes: [0; CONTROL_BYTES] };

    /// Reads the first `len` bytes, as the kernel left them.
    pub(super) fn parse(&self, len: usize) -> ControlInfo {
        let mut info = ControlInfo::default();
        let mut rest = &self.bytes[..len.min(CONTROL_BYTES)];
        while let Some((header, _)) = rest.split_at_checked(HEADER_BYTES) {
            let message_bytes = native_usize(header);
            let level = native_i32(&header[size_of::<usize>()..]);
            let kind = native_i32(&header[size_of::<usize>() + 4..]);
            let Some(data) = rest.get(HEADER_BYTES..message_bytes) else { break };
            info.take(level, kind, data);
            rest = rest.get(padded(message_bytes)..).unwrap_or_default();
        }
        info
    }

    /// Writes the messages for a send to `remote` and returns their length in bytes: `segment_bytes` where the send is more than one
    /// datagram, and what `local_ip` and `ecn` ask for. A `local_ip` of the other family is left out.
    pub(super) fn compose(
        &mut self,
        remote: IpAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<Ecn>,
        segment_bytes: Option<u16>,
    ) -> usize {
        let mut len = 0;
        if let Some(bytes) = segment_bytes {
            self.push(&mut len, libc::SOL_UDP, UDP_SEGMENT, &bytes.to_ne_bytes());
        }
        let remote = remote.to_canonical();
        // The kernel takes IPv4's own messages for a mapped address on an IPv6 socket, and `IPV6_TCLASS` only for IPv6.
        match (remote, local_ip.map(|ip| ip.to_canonical())) {
            (IpAddr::V4(_), Some(IpAddr::V4(local))) => {
                // struct in_pktinfo: interface, source address, (header destination).
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                self.push(&mut len, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            (IpAddr::V6(_), Some(IpAddr::V6(local))) => {
                // struct in6_pktinfo: source address, interface.
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.octets());
                self.push(&mut len, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            _ => {}
        }
        if let Some(ecn) = ecn {
            let (level, kind) = match remote {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            self.push(&mut len, level, kind, &(ecn as libc::c_int).to_ne_bytes());
        }
        len
    }

    /// Appends a message at `*len`. The three that a send can have fit by far.
    fn push(&mut self, len: &mut usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let message_bytes = HEADER_BYTES + data.len();
        let end = *len + padded(message_bytes);
        let message = &mut self.bytes[*len..end];
        message.fill(0);
        let (header, body) = message.split_at_mut(HEADER_BYTES);
        let (length, numbers) = header.split_at_mut(size_of::<usize>());
        length.copy_from_slice(&message_bytes.to_ne_bytes());
        numbers[..4].copy_from_slice(&level.to_ne_bytes());
        numbers[4..].copy_from_slice(&kind.to_ne_bytes());
        body[..data.len()].copy_from_slice(data);
        *len = end;
    }
}

impl ControlInfo {
    fn take(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_UDP, UDP_GRO) if data.len() >= 4 => {
                self.segment_bytes = usize::try_from(native_i32(data)).ok().filter(|&bytes| bytes > 0);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) if !data.is_empty() => self.ecn = Ecn::from_bits(data[0]),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if data.len() >= 4 => {
                self.ecn = Ecn::from_bits(native_i32(data) as u8);
            }
            // `ipi_spec_dst`, at 4, is the address to answer from, also where the destination was a broadcast.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(octets) = data.get(4..).and_then(|rest| rest.first_chunk::<4>()) {
                    self.local_ip = Some(IpAddr::V4(Ipv4Addr::from(*octets)));
                }
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(octets) = data.first_chunk::<16>() {
                    self.local_ip = Some(IpAddr::V6(Ipv6Addr::from(*octets)).to_canonical());
                }
            }
            _ => {}
        }
    }
}

/// `bytes` up to the next multiple of a pointer's width.
fn padded(bytes: usize) -> usize {
    bytes.saturating_add(size_of::<usize>() - 1) & !(size_of::<usize>() - 1)
}

/// The first bytes of `bytes`, which must be long enough, as a length in the machine's order.
fn native_usize(bytes: &[u8]) -> usize {
    bytes.first_chunk().map_or(0, |chunk| usize::from_ne_bytes(*chunk))
}

/// The first four bytes of `bytes`, which must be long enough, as a number in the machine's order.
fn native_i32(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |chunk| i32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_layout_is_the_c_librarys() {
        // SAFETY: both are pure arithmetic on their argument.
        let (space, header) = unsafe { (libc::CMSG_SPACE(12), libc::CMSG_LEN(0)) };
        let mut control = Control::EMPTY;
        let len = control.compose(ip("198.18.0.1"), Some(ip("198.18.0.2")), None, None);
        assert_eq!(len, space as usize);
        assert_eq!(HEADER_BYTES, header as usize);
    }

    #[test]
    fn what_is_composed_is_parsed_for_both_families() {
        for (remote, local) in [("198.18.0.1", "198.18.0.2"), ("fd00::1", "fd00::2")] {
            let mut control = Control::EMPTY;
            let len = control.compose(ip(remote), Some(ip(local)), Some(Ecn::Ce), Some(1400));
            assert_eq!(len % 8, 0);
            let info = control.parse(len);
            assert_eq!((info.local_ip, info.ecn), (Some(ip(local)), Some(Ecn::Ce)));
        }
    }

    #[test]
    fn a_mapped_remote_takes_the_messages_of_ipv4() {
        let (mut mapped, mut plain) = (Control::EMPTY, Control::EMPTY);
        let local = Some(ip("198.18.0.2"));
        let mapped_len = mapped.compose(ip("::ffff:198.18.0.1"), local, Some(Ecn::Ect0), None);
        let plain_len = plain.compose(ip("198.18.0.1"), local, Some(Ecn::Ect0), None);
        assert_eq!((mapped_len, mapped.bytes), (plain_len, plain.bytes));
    }

    #[test]
    fn a_local_address_of_the_other_family_is_left_out() {
        let mut control = Control::EMPTY;
        assert_eq!(control.compose(ip("198.18.0.1"), Some(ip("fd00::2")), None, None), 0);
    }

    #[test]
    fn the_segment_size_of_an_aggregate_is_read() {
        let mut control = Control::EMPTY;
        let mut len = 0;
        control.push(&mut len, libc::SOL_UDP, UDP_GRO, &1414i32.to_ne_bytes());
        assert_eq!(control.parse(len).segment_bytes, Some(1414));
        let mut len = 0;
        control.push(&mut len, libc::SOL_UDP, UDP_GRO, &0i32.to_ne_bytes());
        assert_eq!(control.parse(len).segment_bytes, None, "a segment is never empty");
    }

    #[test]
    fn lying_lengths_end_the_parse() {
        for lie in [0usize, 1, HEADER_BYTES - 1, CONTROL_BYTES + 1, usize::MAX] {
            let mut control = Control::EMPTY;
            let mut len = 0;
            control.push(&mut len, libc::IPPROTO_IP, libc::IP_TOS, &[3]);
            control.bytes[..size_of::<usize>()].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(control.parse(len), ControlInfo::default(), "length {lie}");
        }
        assert_eq!(Control::EMPTY.parse(usize::MAX), ControlInfo::default());
    }
}
