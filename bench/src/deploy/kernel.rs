//! What the kernel dropped on the way between a client, the gateway and the far end, by its own counters.
//!
//! A counter of the kernel counts aggregates once: a super-packet of 64 datagrams that finds no room is one drop.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use tollgate_testkit::Namespace;
use tollgate_testkit::deploy::GATEWAY_TUN;

use super::Network;

/// The most packets that the kernel counts as one.
pub const PACKETS_OF_A_DROP_MAX: u64 = 64;

/// Counters of `/proc/net/snmp` for packets that were dropped on their way in, through, or out of a namespace.
const IP_COUNTERS: [&str; 7] =
    ["InHdrErrors", "InAddrErrors", "InDiscards", "OutDiscards", "OutNoRoutes", "ReasmFails", "FragFails"];

/// Counters of datagrams that did not get to a socket. `InErrors` has those of full buffers and of wrong checksums in it.
const UDP_COUNTERS: [&str; 2] = ["InErrors", "NoPorts"];

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

/// What the kernel dropped, by place, and by namespace and reason. Only what is not 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelDrops {
    counts: BTreeMap<(Place, String), u64>,
}

impl KernelDrops {
    /// Reads the counters of all namespaces of `network`, which begin with the namespaces.
    pub fn read(network: &Network) -> Result<Self> {
        let mut drops = KernelDrops::default();
        let clients = Table::read(network.clients())?;
        drops.add(Place::OuterUp, "clients: wan0 queue", clients.queue("wan0"));
        drops.add_all(Place::OuterDown, "clients", &clients.udp);
        drops.add_all(Place::OuterDown, "clients", &clients.ip);
        let gateway = Table::read(network.gateway())?;
        drops.add_all(Place::OuterUp, "gateway", &gateway.udp);
        drops.add(Place::OuterDown, "gateway: to-client0 queue", gateway.queue("to-client0"));
        drops.add(Place::InnerUp, "gateway: to-network queue", gateway.queue("to-network"));
        drops.add(Place::InnerDown, &format!("gateway: {GATEWAY_TUN} queue"), gateway.queue(GATEWAY_TUN));
        // Which direction a discarded packet went the kernel does not tell; it may explain either.
        drops.add_all(Place::InnerUp, "gateway", &gateway.ip);
        drops.add_all(Place::InnerDown, "gateway", &gateway.ip);
        let far = Table::read(network.network())?;
        drops.add_all(Place::InnerUp, "network", &far.udp);
        drops.add_all(Place::InnerUp, "network", &far.ip);
        drops.add(Place::InnerDown, "network: lan0 queue", far.queue("lan0"));
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

    fn add_all(&mut self, place: Place, namespace: &str, counts: &[(String, u64)]) {
        for (name, count) in counts {
            self.add(place, &format!("{namespace}: {name}"), *count);
        }
    }
}

/// A namespace's counters.
struct Table {
    ip: Vec<(String, u64)>,
    udp: Vec<(String, u64)>,
    /// Packets that an interface did not take, by its name.
    queues: BTreeMap<String, u64>,
}

impl Table {
    fn read(namespace: &Namespace) -> Result<Self> {
        let (protocols, interfaces) = (read(namespace, "snmp")?, read(namespace, "dev")?);
        Ok(Table {
            ip: counters(&protocols, "Ip", &IP_COUNTERS)?,
            udp: counters(&protocols, "Udp", &UDP_COUNTERS)?,
            queues: queues(&interfaces),
        })
    }

    fn queue(&self, interface: &str) -> u64 {
        self.queues.get(interface).copied().unwrap_or(0)
    }
}

/// The counters `names` of `protocol` in a table like /proc/net/snmp: a line of names, then a line of numbers.
fn counters(table: &str, protocol: &str, names: &[&str]) -> Result<Vec<(String, u64)>> {
    let mut lines =
        table.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": ")).map(str::split_whitespace);
    let (heading, values) = (lines.next().into_iter().flatten(), lines.next().into_iter().flatten());
    let values: BTreeMap<&str, u64> =
        heading.zip(values).filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
    let find = |name: &&str| {
        let value = values.get(name).with_context(|| format!("the kernel does not count {protocol} {name}"))?;
        Ok((format!("{protocol} {name}"), *value))
    };
    names.iter().map(find).collect()
}

/// Drops in sending of each interface in a table like /proc/net/dev: a name, 8 numbers of receiving, 8 of sending, the fourth of which is
/// of drops.
fn queues(table: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        Some((name.trim().to_owned(), numbers.split_whitespace().nth(11)?.parse().ok()?))
    };
    table.lines().filter_map(line).collect()
}

/// One counter of the table `file` of /proc/net in `namespace`.
pub fn counter(namespace: &Namespace, file: &str, protocol: &str, name: &str) -> Result<u64> {
    Ok(counters(&read(namespace, file)?, protocol, &[name])?.iter().map(|(_, count)| count).sum())
}

/// Packets for which the queue of `interface` in `namespace` had no room.
pub fn queue_drops(namespace: &Namespace, interface: &str) -> Result<u64> {
    Ok(queues(&read(namespace, "dev")?).get(interface).copied().unwrap_or(0))
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

    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read_by_name() {
        let table = "Ip: Forwarding InDiscards\nIp: 1 7\nUdpLite: NoPorts\nUdpLite: 9\n";
        assert_eq!(counters(table, "Ip", &["InDiscards"]).unwrap(), [("Ip InDiscards".to_owned(), 7)]);
        assert!(counters(table, "Ip", &["Missing"]).unwrap_err().to_string().contains("does not count Ip Missing"));
        let table = "Inter-| Receive\n face |bytes\n  lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        assert_eq!(queues(table), BTreeMap::from([("lo".to_owned(), 12)]));
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_full_socket_behind_the_gateway_is_a_drop_on_the_way_up() {
        let network = Network::build(1400).unwrap();
        let before = KernelDrops::read(&network).unwrap();
        let receiver = network.network().run(|| UdpSocket::bind((SERVER_V4, 0))).unwrap();
        set_socket_recv_buffer_size(&receiver, 4096).unwrap();
        let sender = network.gateway().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        for _ in 0..200 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let received = std::iter::from_fn(|| receiver.recv(&mut [0; 2000]).ok()).count() as u64;
        let drops = KernelDrops::read(&network).unwrap().since(&before);
        assert_eq!(drops.at(Place::InnerUp).collect::<Vec<_>>(), [("network: Udp InErrors", 200 - received)]);
    }
}
