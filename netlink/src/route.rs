//! Routes: adding and removing them, listing those of an interface, and asking which way an address goes.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteProtocol, RouteScope, RouteType,
    },
};
use serde::{Deserialize, Serialize};

use super::{Netlink, NetlinkError};

/// The kernel's table of its own addresses (rtnetlink(7), `RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;

/// The routing protocol of this program's own routes (`rtm_protocol`, shown by `ip route` as `proto 84`): what bears it was added here, by
/// this process or an earlier one. iproute2's list gives the number to nobody.
pub const PROTOCOL_OWN: u8 = 84;
/// The routing protocol of the routes that the kernel makes for addresses (`RTPROT_KERNEL`), and removes with them.
pub const PROTOCOL_KERNEL: u8 = 2;
/// The routing protocol of an administrator's routes (`RTPROT_STATIC`).
pub const PROTOCOL_STATIC: u8 = 4;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads; prefix length 0 is the default route of its family.
    pub destination: IpNet,
    /// The next hop, of the destination's family; without one the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the outgoing interface.
    pub interface: Option<u32>,
    /// The preference among routes to the same destination; the lowest wins. The kernel's default is 0 for IPv4, 1024 for IPv6.
    pub metric: Option<u32>,
    /// The routing table; `None` is the main table (254).
    pub table: Option<u32>,
    /// The source address that the kernel chooses for packets on this route.
    pub source: Option<IpAddr>,
    /// The MTU of packets on this route, in bytes, where it is smaller than the interface's.
    pub mtu_bytes: Option<u32>,
    /// Who added it (`rtm_protocol`): [`PROTOCOL_OWN`] unless said otherwise.
    pub protocol: u8,
    /// Whether packets are refused ("unreachable") instead of being sent anywhere. Such a route stays whatever becomes of the interfaces.
    pub unreachable: bool,
}

/// The way that the kernel sends packets to an address at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The index of the outgoing interface.
    pub interface: u32,
    /// The next hop; `None` when the address is on the link, or local.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// The table in which the route was found.
    pub table: u32,
}

impl Route {
    /// A route of our own on the link of `interface`, and nothing more.
    pub fn on_link(destination: IpNet, interface: u32) -> Self {
        Self { interface: Some(interface), ..Self::to(destination) }
    }

    /// A route of our own by way of `gateway`; the kernel finds the interface.
    pub fn via(destination: IpNet, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..Self::to(destination) }
    }

    /// A route of our own that refuses packets, after all routes to the same destination with a lower `metric`.
    pub fn unreachable(destination: IpNet, metric: u32) -> Self {
        Self { metric: Some(metric), unreachable: true, ..Self::to(destination) }
    }

    /// The same route as an administrator would add it, which no run of this program takes for its own.
    #[must_use]
    pub fn foreign(self) -> Self {
        Self { protocol: PROTOCOL_STATIC, ..self }
    }

    fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            interface: None,
            metric: None,
            table: None,
            source: None,
            mtu_bytes: None,
            protocol: PROTOCOL_OWN,
            unreachable: false,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}route {}", if self.unreachable { "unreachable " } else { "" }, self.destination)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))?;
        self.interface.map_or(Ok(()), |index| write!(f, " on interface #{index}"))?;
        self.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))?;
        self.mtu_bytes.map_or(Ok(()), |mtu_bytes| write!(f, " mtu {mtu_bytes}"))?;
        self.table.map_or(Ok(()), |table| write!(f, " in table {table}"))
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    ///
    /// `is_exists()` when there is one with the same destination and metric.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(message(route));
        self.request(message, NLM_F_CREATE | NLM_F_EXCL, &|| format!("add {route}"))?;
        Ok(())
    }

    /// Adds a route, in place of the one with the same destination and metric if there is one.
    ///
    /// # Errors
    ///
    /// When the gateway is not reachable on the link, or without CAP_NET_ADMIN.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRoute(message(route));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, &|| format!("set {route}"))?;
        Ok(())
    }

    /// Makes every address of `network` this host's own, as if `interface` had them all: what is sent there is delivered here. Sockets may
    /// also send from any of them if they are of IPv4; in IPv6 the kernel wants `IPV6_FREEBIND` for that.
    ///
    /// # Errors
    ///
    /// `is_exists()` when the network is this host's already.
    pub fn add_local_network(&mut self, network: IpNet, interface: u32) -> Result<(), NetlinkError> {
        let table = Some(TABLE_LOCAL);
        let mut message = message(&Route { table, ..Route::on_link(network, interface) });
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        let operation = || format!("make {network} local on interface #{interface}");
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL, &operation)?;
        Ok(())
    }

    /// Removes the route that matches every field that is given, the protocol included; metric, MTU and gateway may be left out.
    ///
    /// # Errors
    ///
    /// `is_not_found()` when there is none.
    pub fn remove_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let mut message = message(route);
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.request(RouteNetlinkMessage::DelRoute(message), 0, &|| format!("remove {route}"))?;
        Ok(())
    }

    /// Asks the kernel which way it would send a packet to `destination`.
    ///
    /// # Errors
    ///
    /// When no route leads there (`errno()` ENETUNREACH or EHOSTUNREACH).
    pub fn route_to(&mut self, destination: IpAddr) -> Result<NextHop, NetlinkError> {
        let operation = || format!("find the route to {destination}");
        let host = IpNet::from(destination);
        let mut request = RouteMessage::default();
        request.header.address_family = family(destination);
        request.header.destination_prefix_length = host.prefix_len();
        request.header.flags = RouteFlags::LookupTable;
        request.attributes.push(RouteAttribute::Destination(destination.into()));
        let messages = self.request(RouteNetlinkMessage::GetRoute(request), 0, &operation)?;
        let found = messages.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some((described(route)?, &route.header.kind)),
            _ => None,
        });
        let (found, kind) = found.ok_or_else(|| NetlinkError::missing_answer(operation()))?;
        let interface = found.interface.ok_or_else(|| NetlinkError::missing_answer(operation()))?;
        // Without rules of its own, the kernel has the local table and the main one in one, and names the main one.
        let table = if *kind == RouteType::Local { Some(TABLE_LOCAL) } else { found.table };
        let table = table.unwrap_or_else(|| u32::from(RouteHeader::RT_TABLE_MAIN));
        Ok(NextHop { interface, gateway: found.gateway, source: found.source, table })
    }

    /// Whether the kernel delivers packets to `address` to this host: whether there is a local route to it, in whichever table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let operation = || format!("find the local route to {address}");
        let messages = self.dump(&RouteNetlinkMessage::GetRoute(RouteMessage::default()), &operation)?;
        let host = IpNet::from(address);
        Ok(messages.iter().any(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local => {
                described(route).is_some_and(|route| route.destination == host)
            }
            _ => false,
        }))
    }

    /// Lists the unicast routes that leave through an interface, of all tables, local and multicast ones left out.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn routes(&mut self, interface: u32) -> Result<Vec<Route>, NetlinkError> {
        let routes = self.all_routes()?;
        Ok(routes.into_iter().filter(|route| route.interface == Some(interface) && !route.unreachable).collect())
    }

    /// Lists the routes that this program added, in this run or an earlier one, on any interface and in any table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn own_routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let routes = self.all_routes()?;
        Ok(routes.into_iter().filter(|route| route.protocol == PROTOCOL_OWN).collect())
    }

    /// Lists all unicast and unreachable routes, of all tables. Of several next hops of one route the first is named.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the dump.
    pub fn all_routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let messages =
            self.dump(&RouteNetlinkMessage::GetRoute(RouteMessage::default()), &|| "list all routes".to_owned())?;
        let ordinary = messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route)
                if matches!(route.header.kind, RouteType::Unicast | RouteType::Unreachable) =>
            {
                described(route)
            }
            _ => None,
        });
        Ok(ordinary.collect())
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn message(route: &Route) -> RouteMessage {
    let destination = route.destination.trunc();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(destination.addr());
    header.destination_prefix_length = destination.prefix_len();
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = if route.unreachable { RouteType::Unreachable } else { RouteType::Unicast };
    header.scope = match (destination, route.gateway) {
        (IpNet::V4(_), None) if !route.unreachable => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let table = route.table.unwrap_or_else(|| u32::from(RouteHeader::RT_TABLE_MAIN));
    header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    if header.table == RouteHeader::RT_TABLE_UNSPEC {
        message.attributes.push(RouteAttribute::Table(table));
    }
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.addr().into()));
    }
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.interface.map(RouteAttribute::Oif));
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message
        .attributes
        .extend(route.mtu_bytes.map(|mtu_bytes| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu_bytes)])));
    message
}

/// Reads a route; `None` for a family other than IP.
fn described(message: &RouteMessage) -> Option<Route> {
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let destination = IpNet::new(unspecified, message.header.destination_prefix_length).ok()?;
    let mut route = Route {
        table: Some(u32::from(message.header.table)),
        protocol: message.header.protocol.into(),
        unreachable: message.header.kind == RouteType::Unreachable,
        ..Route::to(destination)
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = IpNet::new(ip(address)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::MultiPath(hops) => first_hop(hops, &mut route),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = Some(*table),
            RouteAttribute::Metrics(metrics) => {
                route.mtu_bytes = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu_bytes) => Some(*mtu_bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(route)
}

/// Takes the first of several next hops that is alive for all of them.
fn first_hop(hops: &[RouteNextHop], route: &mut Route) {
    let out_of_order = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    let alive = hops.iter().find(|hop| !hop.flags.intersects(out_of_order));
    let Some(hop) = alive.or(hops.first()) else { return };
    route.interface = Some(hop.interface_index);
    route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    });
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
