//! UDP datagrams in aggregates (one receive for many with `UDP_GRO`, one send for many with `UDP_SEGMENT`), with their ECN field (RFC 3168).

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::{io, mem};

use rustix::net::addr::{SocketAddrArg, SocketAddrStorage};
use rustix::net::{SocketAddrAny, sockopt};

/// The most bytes that one receive brings or one send takes.
pub(crate) const AGGREGATE_BYTES_MAX: usize = 65_535;
/// The most datagrams in one send, the smallest bound of all kernels since 4.18.
pub(crate) const SEGMENTS_MAX: usize = 64;
/// Congestion experienced.
pub(crate) const CE: u8 = 0b11;

/// The socket buffers' size, enough for the bursts of a saturated link.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// The field within the octet that IPv4 calls type of service and IPv6 traffic class.
const ECN_BITS: u8 = 0b11;
/// Room for two control messages with a `c_int` each.
const CONTROL_BYTES: usize = 64;

/// One aggregate: `length` bytes, all datagrams of `segment` bytes but for a shorter last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) segment: usize,
    pub(crate) from: SocketAddr,
    /// The ECN field, where [`tell_ecn`] was called.
    pub(crate) ecn: u8,
}

impl Received {
    /// The number of datagrams.
    pub(crate) fn count(&self) -> usize {
        self.length.div_ceil(self.segment).max(1)
    }
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Gives a socket big buffers and lets it receive aggregates.
pub(crate) fn prepare(socket: &UdpSocket) -> io::Result<()> {
    // Without CAP_NET_ADMIN the kernel caps the size; what it grants must do.
    sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    turn_on(socket, libc::SOL_UDP, libc::UDP_GRO)
}

/// Has the kernel tell the ECN field of what is received.
pub(crate) fn tell_ecn(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => turn_on(socket, libc::IPPROTO_IP, libc::IP_RECVTOS),
        SocketAddr::V6(_) => turn_on(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    }
}

fn turn_on(socket: &UdpSocket, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is a valid `c_int` and its size is given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one aggregate without waiting; `None` when there is none.
pub(crate) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
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
    let Ok(length) = usize::try_from(result) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    // SAFETY: the kernel has written an address of that length into the storage.
    let from = unsafe { SocketAddrAny::read(storage.as_ptr(), message.msg_namelen) };
    let from = SocketAddr::try_from(from).map_err(io::Error::from)?;
    let (mut segment, mut ecn) = (length, 0);
    // SAFETY: the kernel has filled the control buffer up to the length in `message`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: `header` is a complete control message within the buffer.
        let (level, kind, data) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, libc::CMSG_DATA(header)) };
        match (level, kind) {
            // SAFETY: a UDP_GRO message holds a `c_int`.
            (libc::SOL_UDP, libc::UDP_GRO) => segment = unsafe { data.cast::<libc::c_int>().read_unaligned() } as usize,
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // SAFETY: the message holds at least one byte; of IPv6's `c_int` it is the lowest on a little-endian machine.
                ecn = unsafe { *data } & ECN_BITS;
            }
            _ => {}
        }
        // SAFETY: `header` lies within the buffer of `message`.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(Some(Received { length, segment: segment.max(1), from, ecn }))
}

/// Sends `payload` as datagrams of `segment` bytes, the last one possibly shorter, with this ECN field. At most [`SEGMENTS_MAX`] of them.
pub(crate) fn send(socket: &UdpSocket, payload: &[u8], segment: usize, to: SocketAddr, ecn: u8) -> io::Result<()> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut vector = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: all fields of `msghdr` may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    let (level, kind) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    let segments = (payload.len() > segment).then(|| u16::try_from(segment)).transpose().map_err(io::Error::other)?;
    // SAFETY: the control buffer is aligned, zeroed, and longer than the two messages written; the macros only compute.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        let mut bytes = libc::CMSG_SPACE(mem::size_of::<libc::c_int>() as u32) as usize;
        ((*header).cmsg_level, (*header).cmsg_type) = (level, kind);
        (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<libc::c_int>() as u32) as usize;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(ecn.into());
        if let Some(segment) = segments {
            header = libc::CMSG_NXTHDR(&message, header);
            ((*header).cmsg_level, (*header).cmsg_type) = (libc::SOL_UDP, libc::UDP_SEGMENT);
            (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
            bytes += libc::CMSG_SPACE(mem::size_of::<u16>() as u32) as usize;
        }
        message.msg_controllen = bytes;
    }
    // SAFETY: the closure's address is valid during the call.
    let result = unsafe {
        to.with_sockaddr(|address, length| {
            message.msg_name = address.cast_mut().cast();
            message.msg_namelen = length;
            // SAFETY: name, vector and control of the message point to live buffers of the given lengths.
            libc::sendmsg(socket.as_raw_fd(), &message, 0)
        })
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn an_aggregate_arrives_with_its_segments_sender_and_field() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (sender, receiver) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            prepare(&receiver).unwrap();
            tell_ecn(&receiver).unwrap();
            let payload: Vec<u8> = (0..2500u32).map(|number| number as u8).collect();
            for field in 0..=CE {
                send(&sender, &payload, 1000, receiver.local_addr().unwrap(), field).unwrap();
                let mut buffer = vec![0; AGGREGATE_BYTES_MAX];
                let (mut bytes, mut count) = (Vec::new(), 0);
                let deadline = Instant::now() + Duration::from_secs(60);
                while count < 3 {
                    assert!(Instant::now() < deadline, "only {count} datagrams came");
                    let Some(received) = receive(&receiver, &mut buffer).unwrap() else { continue };
                    assert_eq!((received.from, received.ecn), (sender.local_addr().unwrap(), field));
                    bytes.extend_from_slice(&buffer[..received.length]);
                    count += received.count();
                }
                assert_eq!((count, &bytes), (3, &payload));
            }
            assert_eq!(receive(&receiver, &mut [0; 8]).unwrap(), None);
        }
    }
}
