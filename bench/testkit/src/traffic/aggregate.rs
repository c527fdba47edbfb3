//! UDP datagrams in aggregates (one receive for many with `UDP_GRO`, one send for many with `UDP_SEGMENT`), with their ECN field (RFC 3168).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{IpRecvTos, Ipv6RecvTClass, UdpGroSegment};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use rustix::net::sockopt;

/// The most bytes that one receive brings or one send takes.
pub const AGGREGATE_BYTES_MAX: usize = 65_535;
/// The most datagrams in one send, the smallest bound of all kernels since 4.18.
pub const SEGMENTS_MAX: usize = 64;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The socket buffers' size, enough for the bursts of a saturated link.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// The field within the octet that IPv4 calls type of service and IPv6 traffic class.
const ECN_BITS: u8 = 0b11;

/// One aggregate: `length` bytes, all datagrams of `segment` bytes but for a shorter last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub length: usize,
    pub segment: usize,
    pub from: SocketAddr,
    /// The ECN field, where [`tell_ecn`] was called.
    pub ecn: u8,
}

impl Received {
    /// The number of datagrams.
    pub fn count(&self) -> usize {
        self.length.div_ceil(self.segment).max(1)
    }
}

/// Gives a socket big buffers and lets it receive aggregates.
pub fn prepare(socket: &UdpSocket) -> io::Result<()> {
    // Without CAP_NET_ADMIN the kernel caps the size; what it grants must do.
    sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES))?;
    Ok(setsockopt(socket, UdpGroSegment, &true)?)
}

/// Has the kernel tell the ECN field of what is received.
pub fn tell_ecn(socket: &UdpSocket) -> io::Result<()> {
    match socket.local_addr()? {
        SocketAddr::V4(_) => Ok(setsockopt(socket, IpRecvTos, &true)?),
        SocketAddr::V6(_) => Ok(setsockopt(socket, Ipv6RecvTClass, &true)?),
    }
}

/// Receives one aggregate without waiting; `None` when there is none.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let (mut control, mut vector) = (cmsg_space!(libc::c_int, libc::c_int), [IoSliceMut::new(buffer)]);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut vector, Some(&mut control), flags) {
        Err(Errno::EWOULDBLOCK) => return Ok(None),
        message => message?,
    };
    let (mut segment, mut ecn) = (message.bytes, 0);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::UdpGroSegments(bytes) => segment = bytes as usize,
            ControlMessageOwned::Ipv4Tos(field) => ecn = field & ECN_BITS,
            ControlMessageOwned::Ipv6TClass(field) => ecn = field as u8 & ECN_BITS,
            _ => {}
        }
    }
    let v4 = |from: &SockaddrStorage| from.as_sockaddr_in().map(|from| SocketAddr::V4((*from).into()));
    let v6 = |from: &SockaddrStorage| from.as_sockaddr_in6().map(|from| SocketAddr::V6((*from).into()));
    let from = message.address.and_then(|from| v4(&from).or_else(|| v6(&from)));
    let from = from.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(Received { length: message.bytes, segment: segment.max(1), from, ecn }))
}

/// Sends `payload` as datagrams of `segment` bytes, the last one possibly shorter, with this ECN field. At most [`SEGMENTS_MAX`] of them.
pub fn send(socket: &UdpSocket, payload: &[u8], segment: usize, to: SocketAddr, ecn: u8) -> io::Result<()> {
    let class = i32::from(ecn);
    let segments = (payload.len() > segment).then(|| u16::try_from(segment)).transpose().map_err(io::Error::other)?;
    let field = match to {
        SocketAddr::V4(_) => ControlMessage::Ipv4Tos(&ecn),
        SocketAddr::V6(_) => ControlMessage::Ipv6TClass(&class),
    };
    let segments = segments.as_ref().map(ControlMessage::UdpGsoSegments);
    let control: Vec<_> = [field].into_iter().chain(segments).collect();
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], &control, MsgFlags::empty(), Some(&to))?;
    Ok(())
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
