//! Packets outside the tunnel that belong inside.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::raw::{PacketSocket, ends};
use tollgate_testkit::Namespace;
use tollgate_testkit::worker::Worker;

/// The networks that only the tunnel leads to, and those inside of it.
const INSIDE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 0), 32)),
];

/// A watch over all packets that cross some namespaces.
#[derive(Debug)]
pub struct ClearTraffic {
    /// Packets of the tunnel's inside, and others.
    counts: Arc<[AtomicU64; 2]>,
    _workers: Vec<Worker>,
}

impl ClearTraffic {
    pub fn watch(namespaces: &[&Namespace]) -> Self {
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let watch = |namespace: &&Namespace| {
            let counts = Arc::clone(&counts);
            PacketSocket::open_all(namespace).watch(move |head| {
                counts[usize::from(!is_inside(head))].fetch_add(1, Ordering::SeqCst);
            })
        };
        let workers = namespaces.iter().map(watch).collect();
        ClearTraffic { counts, _workers: workers }
    }

    /// Fails if a packet of the tunnel's inside was seen, or if nothing at all was.
    pub fn assert_none(self) {
        let [clear, others] = self.counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        assert!(others > 0, "the watch has seen nothing");
        assert_eq!(clear, 0, "packets in clear, beside {others} others");
    }
}

fn is_inside(packet: &[u8]) -> bool {
    ends(packet).into_iter().flatten().any(|end| INSIDE.iter().any(|network| network.contains(&end)))
}
