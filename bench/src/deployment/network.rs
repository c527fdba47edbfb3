//! The namespaces of a run: thousands of clients in one, the gateway, and the network behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use tollgate::io::{UdpGroup, UdpOptions, UdpSocket};
use tollgate::lab::ping::{PingPlan, ping};
use tollgate::lab::{Namespace, SERVER_V4, SERVICE_V4, TUNNEL_V4, Topology, TopologyPlan};
use tollgate::netlink::Route;

/// The clients' outer addresses: all of them are local in the clients' namespace.
pub const CLIENTS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 64, 0), 18);

/// The name of the gateway's TUN interface.
pub const GATEWAY_TUN: &str = "tunnel0";

/// How many clients can have an inner address: all but the network's own, the broadcast and the gateway's.
pub const TUNNEL_ADDRESSES: u32 = (1 << (32 - TUNNEL_V4.prefix_len())) - 3;

/// What QUIC, UDP and IP add to an inner packet, in bytes: 50 inside the UDP payload, 8, and 40 of IPv6.
const OUTER_OVERHEAD_BYTES: u32 = 50 + 8 + 40;

/// The shortest MTU of the links, in bytes.
const LINK_MTU_BYTES_MIN: u32 = 1500;

/// Buffers of a far end's UDP socket, in bytes.
const SOCKET_BUFFER_BYTES: usize = 32 << 20;

/// The namespaces, connected, with every neighbour known.
#[derive(Debug)]
pub struct Network {
    topology: Topology,
}

impl Network {
    /// Makes namespaces and links for a tunnel of this inner MTU.
    ///
    /// # Errors
    ///
    /// What the kernel refuses, in one line.
    pub fn build(mtu_bytes: u16) -> Result<Self> {
        let link_mtu_bytes = (u32::from(mtu_bytes) + OUTER_OVERHEAD_BYTES).max(LINK_MTU_BYTES_MIN);
        let plan = TopologyPlan { clients: 1, mtu_bytes: link_mtu_bytes, ..TopologyPlan::default() };
        let network = Network { topology: Topology::build(&plan)? };
        let clients = network.clients();
        clients.configure(|netlink| {
            let loopback = netlink.link("lo")?.index;
            netlink.add_local_network(IpNet::V4(CLIENTS_V4), loopback)
        })?;
        // Clients with ports of their own need more of them than the usual range has.
        clients.sysctl("net/ipv4/ip_local_port_range", "1024\t65535")?;
        let via = IpAddr::V4(network.topology.clients[0].v4);
        network.gateway().configure(|netlink| netlink.add_route(&Route::via(IpNet::V4(CLIENTS_V4), via).foreign()))?;
        // Of the interfaces to come, the TUN: the kernel would look for IPv6 routers and listeners there, and what a gateway drops of that
        // would be counted as if it were ours.
        network.gateway().sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        network.learn_neighbours()?;
        Ok(network)
    }

    /// The namespace of the clients.
    pub fn clients(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// The gateway's namespace.
    pub fn gateway(&self) -> &Namespace {
        &self.topology.gateway
    }

    /// The namespace of the network behind the gateway.
    pub fn network(&self) -> &Namespace {
        &self.topology.network
    }

    /// Opens a socket for a far end: [`SERVER_V4`] and `port`, 0 for a free one.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn far_socket(&self, port: u16) -> Result<UdpSocket> {
        let options = UdpOptions {
            send_buffer_bytes: SOCKET_BUFFER_BYTES,
            receive_buffer_bytes: SOCKET_BUFFER_BYTES,
            ..UdpOptions::default()
        };
        let address = SocketAddr::new(SERVER_V4.into(), port);
        let mut sockets = self.network().run(|| UdpGroup::bind(address, 1, &options))?;
        sockets.pop().context("there is no socket behind the gateway")
    }

    /// Lets the kernels find each other's link-layer addresses. While they look, they keep only a few packets, and drop the others.
    fn learn_neighbours(&self) -> Result<()> {
        for (namespace, target) in [(self.clients(), SERVICE_V4), (self.gateway(), SERVER_V4)] {
            let plan = PingPlan { count: 1, timeout: Duration::from_secs(5), ..PingPlan::new(target.into()) };
            if namespace.run(|| ping(&plan))?.received == 0 {
                bail!("{target} does not answer pings from namespace {}", namespace.name());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;
    use crate::deployment::require_namespaces_or_skip;

    #[test]
    fn the_gateway_hears_every_client_under_an_address_of_its_own() {
        require_namespaces_or_skip!();
        let network = Network::build(1400).unwrap();
        let receiver = network.gateway().run(|| StdSocket::bind((SERVICE_V4, 0))).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        for address in [Ipv4Addr::new(198, 18, 64, 1), Ipv4Addr::new(198, 18, 127, 254)] {
            let client = network.clients().run(|| StdSocket::bind((address, 0))).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            client.send_to(b"up", receiver.local_addr().unwrap()).unwrap();
            let (_, from) = receiver.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from.ip(), address);
            receiver.send_to(b"down", from).unwrap();
            assert_eq!(client.recv_from(&mut [0; 8]).unwrap().0, 4);
        }
    }

    #[test]
    fn two_far_ends_do_not_get_the_same_port() {
        require_namespaces_or_skip!();
        let network = Network::build(9000).unwrap();
        let first = network.far_socket(0).unwrap();
        assert_eq!(first.local_address().ip(), SERVER_V4);
        assert!(network.far_socket(first.local_address().port()).is_err());
        assert_ne!(network.far_socket(0).unwrap().local_address(), first.local_address());
    }

    #[test]
    fn there_are_inner_addresses_for_more_than_ten_thousand_clients() {
        assert_eq!(TUNNEL_ADDRESSES, 32_765);
    }
}
