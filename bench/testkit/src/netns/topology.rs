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
use tollgate_netlink::VethPeer;

/// The gateway's outer IPv4 address, which every client can reach.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 2);
/// A network free for the inside of tunnels; the server's network routes it (like everything) to the gateway.
pub const TUNNEL_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 0), 17);
/// The router's address on the gateway's side.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, ROUTER_LINK, 2);
/// The router's second address on the gateway's side, for a NAT that changes its address.
pub const ROUTER_ALTERNATE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, ROUTER_LINK, 3);
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, ROUTER_LINK as u16, 0, 0, 0, 0, 2);

/// The link between router and gateway has a client link's number, beyond those of the clients.
const ROUTER_LINK: u8 = 250;
const CLIENTS_MAX: usize = 200;
/// How long the kernel may take to activate a link.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The networks that a route leads to, of either family.
pub const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];
pub const SERVICE: [IpNet; 2] =
    [IpNet::V4(Ipv4Net::new_assert(SERVICE_V4, 32)), IpNet::V6(Ipv6Net::new_assert(SERVICE_V6, 128))];
const CLIENTS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0), 32)),
];
const SERVER: [IpAddr; 2] = [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)];
const BEFORE_SERVER: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 19, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, 1))];

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
        let (gateway, network) = (Namespace::forwarding("gateway")?, Namespace::new("network")?);
        gateway.configure(|netlink| {
            let loopback = netlink.link("lo")?.index;
            SERVICE.iter().try_for_each(|address| netlink.add_address(loopback, *address))
        })?;
        link((&gateway, "to-network", &BEFORE_SERVER), (&network, "lan0", &SERVER), plan.mtu_bytes)?;
        network.add_routes(EVERYTHING, BEFORE_SERVER)?;
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

fn connect_router(gateway: &Namespace, mtu_bytes: u32) -> Result<Namespace, LabError> {
    let router = Namespace::forwarding("router")?;
    let (near_v4, near_v6) = link_addresses(ROUTER_LINK, 1);
    let near = [near_v4.into(), near_v6.into()];
    let far = [ROUTER_V4.into(), ROUTER_V6.into()];
    link((gateway, "to-router", &near), (&router, "wan0", &[far[0], ROUTER_ALTERNATE_V4.into(), far[1]]), mtu_bytes)?;
    router.add_routes(SERVICE, near)?;
    gateway.add_routes(CLIENTS, far)?;
    Ok(router)
}

fn connect_client(first_hop: &Namespace, index: usize, plan: &TopologyPlan) -> Result<ClientSite, LabError> {
    let namespace = Namespace::new(&format!("client{index}"))?;
    // The plan's bound on clients keeps the number below the router's.
    let number = index as u8 + 1;
    let (first_hop_v4, first_hop_v6) = link_addresses(number, 1);
    let (v4, v6) = link_addresses(number, 2);
    let near = [first_hop_v4.into(), first_hop_v6.into()];
    let interface = format!("to-client{index}");
    link((first_hop, &interface, &near), (&namespace, "wan0", &[v4.into(), v6.into()]), plan.mtu_bytes)?;
    let destinations = if plan.path == PathToGateway::Direct { SERVICE } else { EVERYTHING };
    namespace.add_routes(destinations, near)?;
    Ok(ClientSite { namespace, v4, v6, first_hop_v4, first_hop_v6 })
}

fn link_addresses(link: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(198, 18, link, host), Ipv6Addr::new(0xfd00, 0x18, link.into(), 0, 0, 0, 0, host.into()))
}

/// One end of a link: the interface's name in a namespace, and its addresses.
pub type End<'a> = (&'a Namespace, &'a str, &'a [IpAddr]);

/// Makes a link whose ends are ready for packets. Its networks are /24 and /64.
pub fn link(near: End<'_>, far: End<'_>, mtu_bytes: u32) -> Result<(), LabError> {
    let peer = VethPeer { name: far.1, namespace: far.0.as_fd() };
    near.0.configure(|netlink| netlink.add_veth(near.1, peer))?;
    for (namespace, interface, addresses) in [near, far] {
        namespace.configure(|netlink| {
            let index = netlink.link(interface)?.index;
            netlink.set_link_mtu(index, mtu_bytes)?;
            netlink.set_link_up(index)?;
            let network = |address: IpAddr| IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 64 });
            addresses.iter().try_for_each(|address| netlink.add_address(index, network(*address)))
        })?;
    }
    wait_until_ready(near)?;
    wait_until_ready(far)
}

/// Waits for what the kernel does in the background: it activates the link, and joins the groups in which IPv6 neighbours look for its
/// addresses (RFC 4861, section 7.2.1). Before, a first request for a link-layer address would be lost, and repeated only a second later.
fn wait_until_ready(end: End<'_>) -> Result<(), LabError> {
    let (namespace, interface, _) = end;
    let link = || namespace.configure(|netlink| netlink.link(interface));
    if eventually(READY_TIMEOUT, || link().is_ok_and(|link| link.is_running) && is_joined(end)) {
        return Ok(());
    }
    Err(LabError::cannot(format_args!("namespace {}", namespace.name()), "activate a link", interface))
}

/// True when the interface is a member of the solicited-node group of each of its IPv6 addresses (RFC 4291, section 2.7.1).
fn is_joined((namespace, interface, addresses): End<'_>) -> bool {
    let groups = namespace.run(|| fs::read_to_string("/proc/thread-self/net/igmp6")).unwrap_or_default();
    let joined = |group: &str| {
        let mut memberships = groups.lines().map(|line| line.split_whitespace().skip(1));
        memberships.any(|mut fields| fields.next() == Some(interface) && fields.next() == Some(group))
    };
    addresses.iter().all(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => joined(&format!("ff0200000000000000000001ff{:06x}", address.to_bits() & 0xff_ffff)),
    })
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
}
