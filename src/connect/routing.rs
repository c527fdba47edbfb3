//! Which routes a tunnel needs, and how the gateway stays reachable outside of it.
//!
//! Pure functions: nothing here asks or changes the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{Link, NextHop, PROTOCOL_OWN, Route};

/// The kernel's table of this machine's own addresses, which comes before all others.
pub const TABLE_LOCAL: u32 = 255;
/// The kernel's table of ordinary routes.
pub const TABLE_MAIN: u32 = 254;

/// The destinations to lead into the tunnel for the configured `routes`.
///
/// A default route becomes two halves: they are preferred to the machine's own, which stays and is there again when the tunnel goes. What
/// the kernel routes by itself, because the interface has an address in the network `tunnel`, is left out.
pub fn destinations(routes: &[IpNet], tunnel: IpNet) -> Vec<IpNet> {
    let mut destinations = Vec::with_capacity(routes.len());
    for route in routes {
        let parts = if route.prefix_len() == 0 { halves(*route) } else { vec![route.trunc()] };
        for part in parts {
            if part != tunnel.trunc() && !destinations.contains(&part) {
                destinations.push(part);
            }
        }
    }
    destinations
}

/// Whether packets to the gateway's outer address would go into the tunnel.
pub fn covers(routes: &[IpNet], tunnel: IpNet, gateway: IpAddr) -> bool {
    routes.iter().chain([&tunnel]).any(|route| route.contains(&gateway))
}

/// The host route that keeps packets to `gateway` on the way that they take now, `hop`. None is needed for an address of this machine itself.
pub fn exclusion(gateway: IpAddr, hop: &NextHop) -> Option<Route> {
    if hop.table == TABLE_LOCAL {
        return None;
    }
    Some(Route { gateway: hop.gateway, ..Route::on_link(IpNet::from(gateway), hop.interface) })
}

/// The interfaces that carry packets now.
pub fn running(links: &[Link]) -> BTreeSet<u32> {
    links.iter().filter(|link| link.is_up && link.is_running).map(|link| link.index).collect()
}

/// The way that packets to `gateway` would take by `table` if this program had added nothing: of `routes`, the one with the longest prefix,
/// and of several the one with the lowest metric. Routes whose interface is not among those `running` come last: the kernel keeps them.
pub fn way_out(routes: &[Route], running: &BTreeSet<u32>, gateway: IpAddr, table: u32) -> Option<NextHop> {
    let leads_there = |route: &&Route| {
        route.table.is_none_or(|it| it == table)
            && route.protocol != PROTOCOL_OWN
            && !route.unreachable
            && route.destination.contains(&gateway)
    };
    let preference = |route: &&Route| {
        let is_dead = route.interface.is_none_or(|index| !running.contains(&index));
        (is_dead, u8::MAX - route.destination.prefix_len(), route.metric.unwrap_or(0), route.interface)
    };
    let best = routes.iter().filter(leads_there).min_by_key(preference)?;
    Some(NextHop { interface: best.interface?, gateway: best.gateway, source: best.source, table })
}

fn halves(default: IpNet) -> Vec<IpNet> {
    // A longer prefix than 0 always exists.
    default.subnets(1).map(Iterator::collect).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_default_route_becomes_two_halves() {
        let tunnel = net("198.19.128.2/17");
        assert_eq!(destinations(&nets(&["0.0.0.0/0"]), tunnel), nets(&["0.0.0.0/1", "128.0.0.0/1"]));
        assert_eq!(destinations(&nets(&["::/0"]), tunnel), nets(&["::/1", "8000::/1"]));
    }

    #[test]
    fn each_destination_is_routed_once_and_the_tunnels_own_network_by_the_kernel() {
        let routes = nets(&["198.19.0.0/24", "198.19.0.0/24", "198.19.128.0/17", "0.0.0.0/0", "0.0.0.0/1"]);
        let expected = nets(&["198.19.0.0/24", "0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(destinations(&routes, net("198.19.128.2/17")), expected);
    }

    #[test]
    fn a_route_covers_the_gateway_if_it_contains_its_address() {
        let tunnel = net("198.19.128.2/17");
        for (routes, gateway, expected) in [
            (&["0.0.0.0/0"][..], "198.18.0.1", true),
            (&["198.18.0.0/24"], "198.18.0.1", true),
            (&["198.18.1.0/24", "::/0"], "198.18.0.1", false),
            (&["::/0"], "fd00:18::1", true),
            (&["0.0.0.0/0"], "fd00:18::1", false),
            (&[], "198.19.200.1", true),
            (&[], "198.18.0.1", false),
        ] {
            assert_eq!(covers(&nets(routes), tunnel, address(gateway)), expected, "{routes:?} {gateway}");
        }
    }

    #[test]
    fn the_exclusion_is_a_host_route_by_the_present_next_hop() {
        let hop = NextHop { interface: 3, gateway: Some(address("198.18.1.1")), source: None, table: TABLE_MAIN };
        let route = exclusion(address("198.18.0.1"), &hop).unwrap();
        assert_eq!((route.destination, route.gateway, route.interface), (net("198.18.0.1/32"), hop.gateway, Some(3)));
        let on_link = exclusion(address("fd00:18::1"), &NextHop { gateway: None, ..hop }).unwrap();
        assert_eq!((on_link.destination, on_link.gateway, on_link.interface), (net("fd00:18::1/128"), None, Some(3)));
        assert_eq!(exclusion(address("198.18.0.1"), &NextHop { table: TABLE_LOCAL, ..hop }), None);
    }

    #[test]
    fn the_way_out_is_the_longest_prefix_then_the_lowest_metric_and_nothing_of_ours() {
        let gateway = address("198.18.0.1");
        let via = |destination, via, interface, metric| Route {
            interface: Some(interface),
            metric,
            ..Route::via(net(destination), address(via)).foreign()
        };
        let all: BTreeSet<u32> = (1..10).collect();
        let mut routes = vec![
            Route { protocol: PROTOCOL_OWN, ..via("198.18.0.1/32", "198.18.9.1", 9, None) },
            Route::unreachable(net("198.18.0.1/32"), 8),
            via("0.0.0.0/0", "198.18.1.1", 1, Some(600)),
            via("0.0.0.0/0", "198.18.2.1", 2, Some(100)),
            via("198.19.0.0/16", "198.18.3.1", 3, None),
            Route { table: Some(51_820), ..via("198.18.0.0/24", "198.18.4.1", 4, None) },
        ];
        let interface = |routes: &[Route], running: &BTreeSet<u32>, table| {
            way_out(routes, running, gateway, table).map(|hop| hop.interface)
        };
        assert_eq!(interface(&routes, &all, TABLE_MAIN), Some(2));
        assert_eq!(interface(&routes, &all, 51_820), Some(4));
        routes.push(via("198.18.0.0/16", "198.18.5.1", 5, Some(9000)));
        assert_eq!(interface(&routes, &all, TABLE_MAIN), Some(5));
        assert_eq!(interface(&routes, &BTreeSet::from([1]), TABLE_MAIN), Some(1), "the only one with a carrier");
        assert_eq!(interface(&routes, &BTreeSet::new(), TABLE_MAIN), Some(5), "none has");
        assert_eq!(way_out(&routes, &all, address("fd00:18::1"), TABLE_MAIN), None);
    }
}
