//! UDP packets from addresses that are not the sender's own, many in a system call.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tollgate_testkit::packet;

const HEADER_BYTES: usize = 28;
const UDP_CHECKSUM: Range<usize> = 26..28;
/// Packets of one call.
pub const BATCH: usize = 64;

/// A raw socket whose packets bring their own IPv4 header (raw(7)).
pub struct Forger {
    socket: OwnedFd,
    target: libc::sockaddr_in,
    packets: Vec<Vec<u8>>,
}

impl Forger {
    /// Sends to `target` what `payload` begins as.
    ///
    /// # Panics
    ///
    /// Without the right to do so.
    pub fn new(target: SocketAddrV4, payload: &[u8]) -> Self {
        // SAFETY: the call takes plain numbers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        assert!(fd >= 0, "a raw socket: {}", io::Error::last_os_error());
        // SAFETY: `fd` was just opened and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut packet = packet::udp(target.into(), target.into(), payload);
        // None of UDP's, as IPv4 allows; the kernel fills in the IPv4 header's.
        packet[UDP_CHECKSUM].fill(0);
        let target = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(*target.ip()).to_be() },
            sin_zero: [0; 8],
        };
        Forger { socket, target, packets: vec![packet; BATCH] }
    }

    /// Sends `count` packets, each from where `change` says once it has changed the payload. What the kernel does not take is lost.
    pub fn send(&mut self, count: usize, mut change: impl FnMut(&mut [u8]) -> SocketAddrV4) {
        let packets = &mut self.packets[..count];
        let mut parts = Vec::with_capacity(BATCH);
        for packet in packets {
            let source: SocketAddrV4 = change(&mut packet[HEADER_BYTES..]);
            packet[12..16].copy_from_slice(&Ipv4Addr::octets(source.ip()));
            packet[20..22].copy_from_slice(&source.port().to_be_bytes());
            parts.push(libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() });
        }
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all fields of `mmsghdr` may be zero.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_name = (&raw mut self.target).cast();
                message.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_in>() as u32;
                (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
                message
            })
            .collect();
        // SAFETY: each message points to the target and to one part of a packet, all of which outlive the call.
        unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT) };
    }
}
