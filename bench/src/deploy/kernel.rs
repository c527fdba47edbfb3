//! What the kernel dropped on the way between a client, the gateway and the far end, by its own counters.
//!
//! A counter of the kernel counts aggregates once: a super-packet of 64 datagrams that finds no room is one drop.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use tollgate_testkit::{Namespace, Topology};

/// The most packets that the kernel counts as one.
pub const PACKETS_OF_A_DROP_MAX: u64 = 64;

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Outer datagrams from clients to the gateway.
    OuterUp,
    /// Outer datagrams from the gateway to clients.
    OuterDown,
    /// Inner packets from the gateway to the far end.
    InnerUp,
    /// Inner packets from the far end to the gateway.
    InnerDown,
}

/// Counters of `/proc/net/snmp` for packets that were dropped on their way in, through, or out of a namespace.
const IP: &[&str] = &[
    "Ip InHdrErrors",
    "Ip InAddrErrors",
    "Ip InDiscards",
    "Ip OutDiscards",
    "Ip OutNoRoutes",
    "Ip ReasmFails",
    "Ip FragFails",
];
/// Counters of datagrams that did not get to a socket. `InErrors` has those of full buffers and of wrong checksums in it.
const UDP: &[&str] = &["Udp InErrors", "Udp NoPorts"];
/// Where what each namespace counts was dropped. Which direction a packet went that the gateway discarded the kernel does not tell; it may
/// explain either.
const PLACES: [(&str, Place, &[&str]); 12] = [
    ("clients", Place::OuterUp, &["wan0 queue"]),
    ("clients", Place::OuterDown, UDP),
    ("clients", Place::OuterDown, IP),
    ("gateway", Place::OuterUp, UDP),
    ("gateway", Place::OuterDown, &["to-client0 queue"]),
    ("gateway", Place::InnerUp, &["to-network queue"]),
    ("gateway", Place::InnerDown, &[GATEWAY_TUN_QUEUE]),
    ("gateway", Place::InnerUp, IP),
    ("gateway", Place::InnerDown, IP),
    ("network", Place::InnerUp, UDP),
    ("network", Place::InnerUp, IP),
    ("network", Place::InnerDown, &["lan0 queue"]),
];
const GATEWAY_TUN_QUEUE: &str = "tollgate0 queue";

/// What the kernel dropped, by place, and by namespace and reason. Only what is not 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelDrops {
    counts: BTreeMap<(Place, String), u64>,
}

impl KernelDrops {
    /// Reads the counters of all namespaces, which begin with them.
    pub fn read(topology: &Topology) -> Result<Self> {
        let mut drops = KernelDrops::default();
        let Topology { gateway, network, clients, .. } = topology;
        let namespaces = [("clients", &clients[0].namespace), ("gateway", gateway), ("network", network)];
        for (name, namespace) in namespaces {
            let mut counters = protocols(&read(namespace, "snmp")?);
            counters.extend(queues(&read(namespace, "dev")?));
            for (_, place, whats) in PLACES.iter().filter(|(of, ..)| *of == name) {
                for what in *whats {
                    drops.add(*place, &format!("{name}: {what}"), counters.get(*what).copied().unwrap_or(0));
                }
            }
        }
        Ok(drops)
    }

    /// The drops of one place: what, and how many.
    pub fn at(&self, place: Place) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().filter(move |((at, _), _)| *at == place).map(|((_, what), count)| (what.as_str(), *count))
    }

    /// What has been dropped since `earlier`.
    pub fn since(&self, earlier: &KernelDrops) -> KernelDrops {
        let mut drops = KernelDrops::default();
        for ((place, what), count) in &self.counts {
            let before = earlier.counts.get(&(*place, what.clone())).copied().unwrap_or(0);
            drops.add(*place, what, count.saturating_sub(before));
        }
        drops
    }

    /// Counts `count` more drops of `what`.
    pub fn add(&mut self, place: Place, what: &str, count: u64) {
        if count > 0 {
            *self.counts.entry((place, what.to_owned())).or_default() += count;
        }
    }
}

/// The counters in a table like /proc/net/snmp, each by its protocol and name: a line of names, then a line of numbers.
fn protocols(table: &str) -> BTreeMap<String, u64> {
    let lines: Vec<&str> = table.lines().collect();
    let pairs = lines.as_chunks::<2>().0.iter().filter_map(|[names, numbers]| {
        let ((protocol, names), (_, numbers)) = (names.split_once(": ")?, numbers.split_once(": ")?);
        Some(
            names
                .split(' ')
                .zip(numbers.split(' '))
                .filter_map(move |(name, number)| Some((format!("{protocol} {name}"), number.parse().ok()?))),
        )
    });
    pairs.flatten().collect()
}

/// Drops in sending of each interface in a table like /proc/net/dev: a name, 8 numbers of receiving, 8 of sending, the fourth of which is
/// of drops.
fn queues(table: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        Some((format!("{} queue", name.trim()), numbers.split_whitespace().nth(11)?.parse().ok()?))
    };
    table.lines().filter_map(line).collect()
}

/// One counter of the table `file` of /proc/net in `namespace`: `Tcp RetransSegs`.
pub fn counter(namespace: &Namespace, file: &str, name: &str) -> Result<u64> {
    let counters = protocols(&read(namespace, file)?);
    counters.get(name).copied().with_context(|| format!("the kernel does not count {name}"))
}

/// Packets for which the queue of `interface` in `namespace` had no room.
pub fn queue_drops(namespace: &Namespace, interface: &str) -> Result<u64> {
    Ok(queues(&read(namespace, "dev")?).get(&format!("{interface} queue")).copied().unwrap_or(0))
}

fn read(namespace: &Namespace, file: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = namespace.run(|| fs::read_to_string(&path));
    text.with_context(|| format!("cannot read {path} in namespace {}", namespace.name()))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::net::sockopt::set_socket_recv_buffer_size;
    use tollgate_testkit::SERVER_V4;
    use tollgate_testkit::deploy::GATEWAY_TUN;

    use super::*;
    use crate::deploy::network;

    #[test]
    fn tables_of_the_kernel_are_read_by_name() {
        let table = "Ip: Forwarding InDiscards\nIp: 1 7\nUdpLite: NoPorts\nUdpLite: 9\n";
        let expected = [("Ip Forwarding", 1), ("Ip InDiscards", 7), ("UdpLite NoPorts", 9)];
        assert_eq!(protocols(table), expected.map(|(name, count)| (name.to_owned(), count)).into());
        let table = "Inter-| Receive\n face |bytes\n  lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        assert_eq!(queues(table), [("lo queue".to_owned(), 12)].into());
        assert!(GATEWAY_TUN_QUEUE.starts_with(GATEWAY_TUN));
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn every_counter_is_one_that_the_kernel_has() {
        let topology = network::build(1400).unwrap();
        let counters = protocols(&read(&topology.gateway, "snmp").unwrap());
        assert!(IP.iter().chain(UDP).all(|name| counters.contains_key(*name)), "{counters:?}");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_full_socket_behind_the_gateway_is_a_drop_on_the_way_up() {
        let topology = network::build(1400).unwrap();
        let before = KernelDrops::read(&topology).unwrap();
        let receiver = topology.network.run(|| UdpSocket::bind((SERVER_V4, 0))).unwrap();
        set_socket_recv_buffer_size(&receiver, 4096).unwrap();
        let sender = topology.gateway.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..200 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| receiver.recv(&mut [0; 2000]).ok()).count() as u64;
        let drops = KernelDrops::read(&topology).unwrap().since(&before);
        assert_eq!(drops.at(Place::InnerUp).collect::<Vec<_>>(), [("network: Udp InErrors", 200 - received)]);
    }
}
