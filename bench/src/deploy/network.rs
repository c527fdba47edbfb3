//! The namespaces of a run: thousands of clients in one, the gateway, and the network behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use tollgate::io::{UdpOptions, UdpSocket};
use tollgate::netlink::Route;
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

/// The clients' outer addresses: all of them are local in the clients' namespace.
pub const CLIENTS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 64, 0), 18);

/// What QUIC, UDP and IP add to an inner packet, in bytes: 50 inside the UDP payload, 8, and 40 of IPv6.
const OUTER_OVERHEAD_BYTES: u32 = 50 + 8 + 40;

/// The shortest MTU of the links, in bytes.
const LINK_MTU_BYTES_MIN: u32 = 1500;

/// Buffers of a responder's UDP socket, in bytes.
const SOCKET_BUFFER_BYTES: usize = 32 << 20;

/// Makes namespaces and links for a tunnel of this inner MTU: the first client's namespace is that of all clients.
pub fn build(mtu_bytes: u16) -> Result<Topology> {
    let link_mtu_bytes = (u32::from(mtu_bytes) + OUTER_OVERHEAD_BYTES).max(LINK_MTU_BYTES_MIN);
    let plan = TopologyPlan { clients: 1, mtu_bytes: link_mtu_bytes, ..TopologyPlan::default() };
    let topology = Topology::build(&plan)?;
    let (clients, gateway) = (&topology.clients[0], &topology.gateway);
    clients.namespace.configure(|netlink| {
        let loopback = netlink.link("lo")?.index;
        netlink.add_local_network(IpNet::V4(CLIENTS_V4), loopback)
    })?;
    let via = IpAddr::V4(clients.v4);
    gateway.configure(|netlink| netlink.add_route(&Route::via(IpNet::V4(CLIENTS_V4), via).foreign()))?;
    // Of the interfaces to come, the TUN: the kernel would look for IPv6 routers and listeners there, and what a gateway drops of that would be
    // counted as if it were ours.
    gateway.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    // The kernels find each other's link-layer addresses. While they look, they keep only a few packets, and drop the others.
    for (namespace, target) in [(&clients.namespace, SERVICE_V4), (gateway, SERVER_V4)] {
        let plan = PingPlan { count: 1, timeout: Duration::from_secs(5), ..PingPlan::new(target.into()) };
        let is_answered = namespace.run(|| ping(&plan))?.received == 1;
        ensure!(is_answered, "{target} does not answer pings from namespace {}", namespace.name());
    }
    Ok(topology)
}

/// Opens a socket for a responder behind the gateway, at [`SERVER_V4`].
pub fn responder_socket(topology: &Topology) -> Result<UdpSocket> {
    let options = UdpOptions {
        send_buffer_bytes: SOCKET_BUFFER_BYTES,
        receive_buffer_bytes: SOCKET_BUFFER_BYTES,
        ..UdpOptions::default()
    };
    let address = SocketAddr::new(SERVER_V4.into(), 0);
    Ok(topology.network.run(|| UdpSocket::bind(address, &options))?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_gateway_hears_every_client_under_an_address_of_its_own() {
        let topology = build(1400).unwrap();
        let receiver = topology.gateway.run(|| StdSocket::bind((SERVICE_V4, 0))).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        for address in [Ipv4Addr::new(198, 18, 64, 1), Ipv4Addr::new(198, 18, 127, 254)] {
            let client = topology.clients[0].namespace.run(|| StdSocket::bind((address, 0))).unwrap();
            client.send_to(b"up", receiver.local_addr().unwrap()).unwrap();
            assert_eq!(receiver.recv_from(&mut [0; 8]).unwrap().1.ip(), address);
        }
        let first = responder_socket(&topology).unwrap();
        assert_ne!(responder_socket(&topology).unwrap().local_address(), first.local_address());
    }
}
