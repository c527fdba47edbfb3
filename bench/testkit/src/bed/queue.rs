//! The length of an interface's queue, for tests that count what the gateway loses and not what its client's kernel does.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::Namespace;

/// Gives `interface` room for `packets` packets; a TUN interface has room for 500, which a busy quincy-client lets overflow.
///
/// # Panics
///
/// If the kernel refuses.
pub fn lengthen(namespace: &Namespace, interface: &str, packets: i32) {
    namespace.run(|| set(interface, packets)).expect("another length of the queue");
}

fn set(interface: &str, packets: i32) -> io::Result<()> {
    // Any socket of the namespace will do (netdevice(7)).
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: all fields of `ifreq` may be zero.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte is left for the end of the string.
    for (place, byte) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    // The kernel's name for this field of the union is `ifr_qlen`, an integer as all the others of that place.
    request.ifr_ifru.ifru_metric = packets;
    // SAFETY: the request is valid, and its name ends within its field.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
