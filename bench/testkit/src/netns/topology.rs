//! The lab's networks: clients on one side of a gateway, a server's network on the other.
//!
//! ```text
//!  client 0 --+ 198.18.1.0/24                        198.19.0.0/24
//!  client 1 --+ 198.18.2.0/24 --[router]-- gateway ----------------- network (server)
//!  ...                                     198.18.0.1
//! ```
//!
//! Only the gateway knows the server's network: what reaches it from a client went through a tunnel.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Namespace;
use crate::LabError;
use crate::wait::eventually;
use tollgate_netlink::{Route, VethPeer};

/// The gateway's outer IPv4 address, which every client can reach.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 2);
/// A network free for the inside of tunnels; the server's network routes it (like everything) to the gateway.
pub const TUNNEL_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 0), 17);
pub const TUNNEL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x19, 0x80, 0, 0, 0, 0, 0), 64);
/// The router's address on the gateway's side.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 250, 2);
/// The router's second address on the gateway's side, for a NAT that changes its address.
pub const ROUTER_ALTERNATE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 250, 3);
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 250, 0, 0, 0, 0, 2);
pub const ROUTER_ALTERNATE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 250, 0, 0, 0, 0, 3);

const CLIENTS_MAX: usize = 200;
const NETWORK_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const NETWORK_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 1);
/// How long the kernel may take to activate a link.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The link between router and gateway has a client link's numbers, beyond those of the clients.
const ROUTER_LINK: u8 = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathToGateway {
    /// Over a link of its own. The client has a route to the gateway's service address and no other.
    #[default]
    Direct,
    /// Over a router that all clients share, by a default route.
    Routed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopologyPlan {
    /// The number of client namespaces, 0 to 200.
    pub clients: usize,
    pub path: PathToGateway,
    /// The MTU of every link in bytes, 1280 to 65535.
    pub mtu_bytes: u32,
}

/// A set of connected namespaces. Links keep their default offloads: whole TSO and UDP GSO packets cross them.
#[derive(Debug)]
pub struct Topology {
    /// The gateway's namespace; it forwards IPv4 and IPv6. Its interfaces are `to-network`, and `to-client0`... or `to-router`.
    pub gateway: Namespace,
    /// The namespace of the server behind the gateway, with a default route to it. Its interface is `lan0`.
    pub network: Namespace,
    /// The router between clients and gateway, if the path has one. Its interfaces are `to-client0`... and `wan0`.
    pub router: Option<Namespace>,
    pub clients: Vec<ClientSite>,
}

/// A client's namespace with its outer addresses.
#[derive(Debug)]
pub struct ClientSite {
    /// The namespace; its interface is `wan0`.
    pub namespace: Namespace,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The other end of its link: the gateway's or the router's.
    pub first_hop_v4: Ipv4Addr,
    pub first_hop_v6: Ipv6Addr,
}

impl Default for TopologyPlan {
    fn default() -> Self {
        Self { clients: 2, path: PathToGateway::Direct, mtu_bytes: 1500 }
    }
}

impl Topology {
    pub fn build(plan: &TopologyPlan) -> Result<Self, LabError> {
        assert!(plan.clients <= CLIENTS_MAX, "{} clients: at most {CLIENTS_MAX}", plan.clients);
        let gateway = forwarding("gateway")?;
        gateway.configure(|netlink| {
            let loopback = netlink.link("lo")?.index;
            netlink.add_address(loopback, IpNet::from(IpAddr::V4(SERVICE_V4)))?;
            netlink.add_address(loopback, IpNet::from(IpAddr::V6(SERVICE_V6)))
        })?;
        let network = Namespace::new("network")?;
        connect_network(&gateway, &network, plan.mtu_bytes)?;
        let router = match plan.path {
            PathToGateway::Direct => None,
            PathToGateway::Routed => Some(connect_router(&gateway, plan.mtu_bytes)?),
        };
        let first_hop = router.as_ref().unwrap_or(&gateway);
        let clients =
            (0..plan.clients).map(|index| connect_client(first_hop, index, plan)).collect::<Result<_, _>>()?;
        Ok(Self { gateway, network, router, clients })
    }
}

/// One end of a link: the interface's name there, and its addresses.
struct End<'a> {
    namespace: &'a Namespace,
    interface: &'a str,
    addresses: &'a [IpNet],
}

fn forwarding(name: &str) -> Result<Namespace, LabError> {
    let namespace = Namespace::new(name)?;
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    Ok(namespace)
}

fn connect_network(gateway: &Namespace, network: &Namespace, mtu_bytes: u32) -> Result<(), LabError> {
    let near = [v4(NETWORK_GATEWAY_V4, 24), v6(NETWORK_GATEWAY_V6)];
    let far = [v4(SERVER_V4, 24), v6(SERVER_V6)];
    link(
        &End { namespace: gateway, interface: "to-network", addresses: &near },
        &End { namespace: network, interface: "lan0", addresses: &far },
        mtu_bytes,
    )?;
    default_routes(network, NETWORK_GATEWAY_V4, NETWORK_GATEWAY_V6)
}

fn connect_router(gateway: &Namespace, mtu_bytes: u32) -> Result<Namespace, LabError> {
    let router = forwarding("router")?;
    let (gateway_v4, gateway_v6) = link_addresses(ROUTER_LINK, 1);
    let far = [v4(ROUTER_V4, 24), v4(ROUTER_ALTERNATE_V4, 24), v6(ROUTER_V6), v6(ROUTER_ALTERNATE_V6)];
    link(
        &End { namespace: gateway, interface: "to-router", addresses: &[v4(gateway_v4, 24), v6(gateway_v6)] },
        &End { namespace: &router, interface: "wan0", addresses: &far },
        mtu_bytes,
    )?;
    service_routes(&router, gateway_v4, gateway_v6)?;
    gateway.configure(|netlink| {
        let clients_v4 = v4(Ipv4Addr::new(198, 18, 0, 0), 16);
        let clients_v6 = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0), 32));
        netlink.add_route(&Route::via(clients_v4, ROUTER_V4.into()).foreign())?;
        netlink.add_route(&Route::via(clients_v6, ROUTER_V6.into()).foreign())
    })?;
    Ok(router)
}

fn connect_client(first_hop: &Namespace, index: usize, plan: &TopologyPlan) -> Result<ClientSite, LabError> {
    let namespace = Namespace::new(&format!("client{index}"))?;
    // The plan's bound on clients keeps the number below the router's.
    let number = index as u8 + 1;
    let (first_hop_v4, first_hop_v6) = link_addresses(number, 1);
    let (client_v4, client_v6) = link_addresses(number, 2);
    link(
        &End {
            namespace: first_hop,
            interface: &format!("to-client{index}"),
            addresses: &[v4(first_hop_v4, 24), v6(first_hop_v6)],
        },
        &End { namespace: &namespace, interface: "wan0", addresses: &[v4(client_v4, 24), v6(client_v6)] },
        plan.mtu_bytes,
    )?;
    match plan.path {
        PathToGateway::Direct => service_routes(&namespace, first_hop_v4, first_hop_v6)?,
        PathToGateway::Routed => default_routes(&namespace, first_hop_v4, first_hop_v6)?,
    }
    Ok(ClientSite { namespace, v4: client_v4, v6: client_v6, first_hop_v4, first_hop_v6 })
}

fn service_routes(namespace: &Namespace, via_v4: Ipv4Addr, via_v6: Ipv6Addr) -> Result<(), LabError> {
    namespace.configure(|netlink| {
        netlink.add_route(&Route::via(IpNet::from(IpAddr::V4(SERVICE_V4)), via_v4.into()).foreign())?;
        netlink.add_route(&Route::via(IpNet::from(IpAddr::V6(SERVICE_V6)), via_v6.into()).foreign())
    })
}

fn default_routes(namespace: &Namespace, via_v4: Ipv4Addr, via_v6: Ipv6Addr) -> Result<(), LabError> {
    namespace.configure(|netlink| {
        netlink.add_route(&Route::via(IpNet::V4(Ipv4Net::default()), via_v4.into()).foreign())?;
        netlink.add_route(&Route::via(IpNet::V6(Ipv6Net::default()), via_v6.into()).foreign())
    })
}

fn link(near: &End<'_>, far: &End<'_>, mtu_bytes: u32) -> Result<(), LabError> {
    let peer = VethPeer { name: far.interface, namespace: far.namespace.as_fd() };
    near.namespace.configure(|netlink| netlink.add_veth(near.interface, peer))?;
    for end in [near, far] {
        end.namespace.configure(|netlink| {
            let index = netlink.link(end.interface)?.index;
            netlink.set_link_mtu(index, mtu_bytes)?;
            netlink.set_link_up(index)?;
            end.addresses.iter().try_for_each(|address| netlink.add_address(index, *address))
        })?;
    }
    wait_until_ready(near)?;
    wait_until_ready(far)
}

/// Waits for what the kernel does in the background: it activates the link, and joins the groups in which IPv6 neighbours look for its
/// addresses (RFC 4861, section 7.2.1). Before, a first request for a link-layer address would be lost, and repeated only a second later.
fn wait_until_ready(end: &End<'_>) -> Result<(), LabError> {
    let link = || end.namespace.configure(|netlink| netlink.link(end.interface));
    if eventually(READY_TIMEOUT, || link().is_ok_and(|link| link.is_running) && is_joined(end)) {
        return Ok(());
    }
    Err(LabError::namespace(end.namespace.name(), "activate a link", end.interface))
}

/// True when the interface is a member of the solicited-node group of each of its IPv6 addresses (RFC 4291, section 2.7.1).
fn is_joined(end: &End<'_>) -> bool {
    let groups = end.namespace.run(|| fs::read_to_string("/proc/thread-self/net/igmp6")).unwrap_or_default();
    let joined = |group: &str| {
        let mut memberships = groups.lines().map(|line| line.split_whitespace().skip(1));
        memberships.any(|mut fields| fields.next() == Some(end.interface) && fields.next() == Some(group))
    };
    end.addresses.iter().all(|address| match address.addr() {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => joined(&format!("ff0200000000000000000001ff{:06x}", address.to_bits() & 0xff_ffff)),
    })
}

fn link_addresses(link: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(198, 18, link, host), Ipv6Addr::new(0xfd00, 0x18, link.into(), 0, 0, 0, 0, host.into()))
}

fn v4(address: Ipv4Addr, prefix_length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, prefix_length))
}

fn v6(address: Ipv6Addr) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ping::{PingPlan, ping};

    fn reachable(from: &Namespace, target: impl Into<IpAddr>) -> bool {
        let plan = PingPlan { count: 3, ..PingPlan::new(target.into()) };
        from.run(|| ping(&plan)).is_ok_and(|report| report.received == 3)
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn clients_reach_the_gateway_but_the_network_only_through_a_tunnel() {
        for path in [PathToGateway::Direct, PathToGateway::Routed] {
            let topology = Topology::build(&TopologyPlan { path, ..TopologyPlan::default() }).unwrap();
            for client in &topology.clients {
                assert!(reachable(&client.namespace, SERVICE_V4));
                assert!(reachable(&client.namespace, SERVICE_V6));
                assert!(reachable(&topology.gateway, client.v4));
                assert!(reachable(&topology.gateway, client.v6));
                assert!(!reachable(&client.namespace, SERVER_V4));
                assert!(!reachable(&client.namespace, SERVER_V6));
            }
            assert!(reachable(&topology.gateway, SERVER_V4));
            assert!(reachable(&topology.network, SERVICE_V6));
        }
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_router_has_two_addresses_on_the_gateways_side() {
        let plan = TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() };
        let topology = Topology::build(&plan).unwrap();
        assert!(topology.router.is_some());
        for address in [ROUTER_V4, ROUTER_ALTERNATE_V4] {
            assert!(reachable(&topology.gateway, address));
        }
        for address in [ROUTER_V6, ROUTER_ALTERNATE_V6] {
            assert!(reachable(&topology.gateway, address));
        }
    }
}
