//! Packets outside the tunnel that belong inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};

use crate::Namespace;

/// `ETH_P_ALL` of linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;
/// The networks that only the tunnel leads to, and those inside of it.
const INSIDE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 0), 32)),
];

/// A watch over all packets that cross some namespaces.
#[derive(Debug)]
pub struct ClearTraffic {
    clear: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl ClearTraffic {
    /// Watches from now on.
    pub fn watch(namespaces: &[&Namespace]) -> Self {
        let (clear, others, ended) = (Arc::default(), Arc::default(), Arc::default());
        let sockets = namespaces.iter().map(|namespace| namespace.run(packet_socket));
        let threads = sockets.map(|socket| {
            let (clear, others, ended) = (Arc::clone(&clear), Arc::clone(&others), Arc::clone(&ended));
            thread::spawn(move || count(&socket, &clear, &others, &ended))
        });
        let threads = threads.collect();
        ClearTraffic { clear, others, ended, threads }
    }

    /// Fails if a packet of the tunnel's inside was seen, or if nothing at all was.
    pub fn assert_none(self) {
        let (clear, others) = (self.clear.load(Ordering::SeqCst), self.others.load(Ordering::SeqCst));
        assert!(others > 0, "the watch has seen nothing");
        assert_eq!(clear, 0, "packets in clear, beside {others} others");
    }
}

impl Drop for ClearTraffic {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn packet_socket() -> OwnedFd {
    let protocol = Protocol::from_raw(NonZeroU32::from(std::num::NonZeroU16::new(ALL_PROTOCOLS.to_be()).unwrap()));
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(50))).unwrap();
    socket
}

fn count(socket: &OwnedFd, clear: &AtomicU64, others: &AtomicU64, ended: &AtomicBool) {
    let mut packet = [0; 128];
    while !ended.load(Ordering::SeqCst) {
        let Ok((_, bytes)) = recv(socket, &mut packet[..], RecvFlags::TRUNC) else { continue };
        let counter = if is_inside(&packet[..bytes.min(packet.len())]) { clear } else { others };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

fn is_inside(packet: &[u8]) -> bool {
    let address = |at: usize, bytes: usize| -> Option<IpAddr> {
        let bytes = packet.get(at..at + bytes)?;
        Some(match bytes.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
        })
    };
    let ends = match packet.first().map(|byte| byte >> 4) {
        Some(4) => [address(12, 4), address(16, 4)],
        Some(6) => [address(8, 16), address(24, 16)],
        _ => [None, None],
    };
    ends.into_iter().flatten().any(|end| INSIDE.iter().any(|network| network.contains(&end)))
}
