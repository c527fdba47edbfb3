//! Packet sockets: whole IP packets put on an interface as they are, and seen on one as they are.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use etherparse::{LaxPacketHeaders, NetHeaders};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, eth, recv, sendto,
    socket_with, sockopt,
};

use crate::eventually;
use tollgate_testkit::worker::Worker;
use tollgate_testkit::{Namespace, packet};

const PACKET_BYTES_MAX: usize = 65_536;

/// Room for what is seen faster than it is read, in bytes.
const BUFFER_BYTES: usize = 256 << 20;
/// As much of a packet as holds the headers of IPv4 and TCP, and data if there is any.
const HEAD_BYTES_MAX: usize = 128;

/// Where the UDP packets made here go.
pub const UDP_PORT: u16 = 12_346;
const UDP_SOURCE_PORT: u16 = 12_345;

/// A packet socket (packet(7)) on one interface of a namespace; packets begin with their IP header.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    interface: i32,
}

impl PacketSocket {
    /// Opens one on `interface`.
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        let index = namespace.configure(|netlink| netlink.link(interface)).expect("the interface").index;
        namespace.run(|| Self::bind(index as i32)).expect("a packet socket")
    }

    /// Opens one on all interfaces.
    pub fn open_all(namespace: &Namespace) -> Self {
        namespace.run(|| Self::bind(0)).expect("a packet socket")
    }

    fn bind(interface: i32) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(eth::ALL))?;
        bind(&socket, &link_address(interface, eth::ALL))?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
        Ok(PacketSocket { socket, interface })
    }

    /// Puts `packet` on the interface, as if the kernel had routed it there.
    pub fn send(&self, packet: &[u8]) {
        let version_6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let address = link_address(self.interface, if version_6 { eth::IPV6 } else { eth::IP });
        let sent = sendto(&self.socket, packet, SendFlags::empty(), &address).expect("the interface takes packets");
        assert_eq!(sent, packet.len());
    }

    /// The next packet that was seen, in or out; `None` when there is none now.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let length = self.receive_into(&mut packet)?;
        packet.truncate(length);
        Some(packet)
    }

    /// Reads as much of the next packet as fits; the rest is lost.
    fn receive_into(&self, buffer: &mut [u8]) -> Option<usize> {
        recv(&self.socket, buffer, RecvFlags::DONTWAIT).ok().map(|(length, _)| length)
    }

    /// Looks at the heads of all packets from now on, until what it returns is dropped.
    pub fn watch(self, mut look: impl FnMut(&[u8]) + Send + 'static) -> Worker {
        Worker::repeat(move || {
            let mut head = [0; HEAD_BYTES_MAX];
            while let Some(length) = self.receive_into(&mut head) {
                look(&head[..length]);
            }
            thread::sleep(Duration::from_millis(1));
            true
        })
    }

    /// Waits until a packet with `token` in it is seen.
    pub fn sees(&self, token: &[u8], limit: Duration) -> bool {
        eventually(limit, || std::iter::from_fn(|| self.receive()).any(|packet| contains(&packet, token)))
    }
}

/// The order of one host's TCP data as it was seen on an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeenOrder {
    pub packets: u64,
    /// How many of them began before the one ahead of them: retransmitted, or overtaken.
    pub steps_back: u64,
}

/// Looks at the order of one host's TCP data, of one connection, until it is finished.
#[derive(Debug)]
pub struct OrderWatch {
    order: Arc<Mutex<SeenOrder>>,
    worker: Worker,
}

impl OrderWatch {
    /// Starts with what `source` sends over `socket`'s interface from now on.
    pub fn start(socket: PacketSocket, source: Ipv4Addr) -> Self {
        let order = Arc::new(Mutex::new(SeenOrder::default()));
        let (shared, mut last) = (Arc::clone(&order), None);
        let worker = socket.watch(move |head| {
            let Some(sequence) = tcp_data_sequence(head, source) else { return };
            let mut order = shared.lock().unwrap_or_else(PoisonError::into_inner);
            order.packets += 1;
            order.steps_back += u64::from(last.is_some_and(|last| (sequence.wrapping_sub(last) as i32) < 0));
            last = Some(sequence);
        });
        OrderWatch { order, worker }
    }

    pub fn finish(self) -> SeenOrder {
        drop(self.worker);
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sequence number of a TCP packet from `source` that carries data.
fn tcp_data_sequence(head: &[u8], source: Ipv4Addr) -> Option<u32> {
    let headers = LaxPacketHeaders::from_ip(head).ok()?;
    let tcp = headers.transport?.tcp()?;
    (ends(head)?[0] == source && !headers.payload.slice().is_empty()).then_some(tcp.sequence_number)
}

/// Source and destination of a packet.
pub fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    match LaxPacketHeaders::from_ip(packet).ok()?.net? {
        NetHeaders::Ipv4(header, _) => Some([header.source.into(), header.destination.into()]),
        NetHeaders::Ipv6(header, _) => Some([header.source.into(), header.destination.into()]),
        NetHeaders::Arp(_) => None,
    }
}

pub fn contains(packet: &[u8], token: &[u8]) -> bool {
    packet.windows(token.len()).any(|window| window == token)
}

/// The payloads of UDP packets to `port` among `packets`.
pub fn udp_payloads_to(port: u16, packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let payload = |packet: Vec<u8>| {
        let headers = LaxPacketHeaders::from_ip(&packet).ok()?;
        let udp = headers.transport?.udp()?;
        (udp.destination_port == port).then(|| headers.payload.slice().to_vec())
    };
    packets.into_iter().filter_map(payload).collect()
}

pub fn udp_packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    packet::udp(SocketAddr::new(source, UDP_SOURCE_PORT), SocketAddr::new(destination, UDP_PORT), payload)
}

fn link_address(interface: i32, protocol: Protocol) -> SocketAddrAny {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        // In network byte order already.
        sll_protocol: protocol.as_raw().get() as u16,
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a link-layer address without padding, of the length given.
    unsafe { SocketAddrAny::read(ptr::from_ref(&address).cast(), mem::size_of_val(&address) as u32) }
}
