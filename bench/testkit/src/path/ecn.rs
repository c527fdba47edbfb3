//! UDP datagrams with the ECN field of their IP header (RFC 3168).

use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrStorage;
use rustix::net::sockopt;

/// The field within the octet that IPv4 calls type of service and IPv6 traffic class.
const ECN_BITS: u8 = 0b11;
/// Congestion experienced.
pub(super) const CE: u8 = 0b11;
/// Room for one control message with a `c_int`.
const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Has the kernel tell the field of each datagram that is received.
pub(super) fn prepare(socket: &UdpSocket) -> io::Result<()> {
    let (level, name) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    };
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is a valid `c_int` and its size is given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one datagram without waiting: its length, its sender and its ECN field.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, u8)> {
    let mut storage = mem::MaybeUninit::<SocketAddrStorage>::zeroed();
    let mut control = Control([0; CONTROL_BYTES]);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all fields of `msghdr` may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = storage.as_mut_ptr().cast();
    message.msg_namelen = mem::size_of::<SocketAddrStorage>() as libc::socklen_t;
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: name, vector and control of the message point to live buffers of the given lengths.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written an address of that length into the storage.
    let from = unsafe { SocketAddrAny::read(storage.as_ptr(), message.msg_namelen) };
    Ok((length, SocketAddr::try_from(from)?, field_of(&message)))
}

/// Sends one datagram whose header's ECN field is `field`.
pub(super) fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr, field: u8) -> io::Result<()> {
    match to {
        SocketAddr::V4(_) => sockopt::set_ip_tos(socket, field)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_tclass(socket, field.into())?,
    }
    socket.send_to(datagram, to).map(|_| ())
}

fn field_of(message: &libc::msghdr) -> u8 {
    // SAFETY: the kernel has filled the control buffer up to the length in `message`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: `header` is a complete control message within the buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if matches!((level, kind), (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)) {
            // SAFETY: the message holds at least one byte; of IPv6's `c_int` it is the lowest on a little-endian machine.
            return unsafe { *libc::CMSG_DATA(header) } & ECN_BITS;
        }
        // SAFETY: `header` lies within the buffer of `message`.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_arrives_with_its_field() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (sender, receiver) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            prepare(&receiver).unwrap();
            for field in 0..=CE {
                send(&sender, b"x", receiver.local_addr().unwrap(), field).unwrap();
                let received = receive(&receiver, &mut [0; 8]).unwrap();
                assert_eq!(received, (1, sender.local_addr().unwrap(), field));
            }
        }
    }
}
