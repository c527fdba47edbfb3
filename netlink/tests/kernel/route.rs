use std::net::IpAddr;
use std::os::fd::AsFd;

use tollgate_netlink::{Netlink, NextHop, PROTOCOL_OWN, Route, VethPeer};
use tollgate_testkit::Namespace;
use tollgate_testkit::wait::{PATIENCE, eventually};

use super::net;

/// The kernel's table of its own addresses (rtnetlink(7), `RT_TABLE_LOCAL`).
const TABLE_LOCAL: u32 = 255;

/// A namespace with one interface, 198.18.0.1/24 and fd00:18::1/64, up.
fn connected() -> (Namespace, Namespace, u32) {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    let mut netlink = near.netlink().unwrap();
    netlink.add_veth("wan0", VethPeer { name: "wan0", namespace: far.as_fd() }).unwrap();
    let index = netlink.link("wan0").unwrap().index;
    netlink.set_link_up(index).unwrap();
    netlink.add_address(index, net("198.18.0.1/24")).unwrap();
    netlink.add_address(index, net("fd00:18::1/64")).unwrap();
    let mut far_netlink = far.netlink().unwrap();
    let far_index = far_netlink.link("wan0").unwrap().index;
    far_netlink.set_link_up(far_index).unwrap();
    // The kernel makes the route to its own address a moment after the link has a carrier.
    let own = "fd00:18::1".parse().unwrap();
    assert!(eventually(PATIENCE, || netlink.is_local(own).unwrap()), "{own} is not the machine's own");
    (near, far, index)
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_route_to_an_address_names_interface_gateway_and_source() {
    let (near, _far, index) = connected();
    let mut netlink = near.netlink().unwrap();
    let server: IpAddr = "198.19.0.9".parse().unwrap();
    assert_eq!(netlink.route_to(server).unwrap_err().errno(), Some(libc::ENETUNREACH));
    for (destination, gateway, source, host) in
        [("0.0.0.0/0", "198.18.0.2", "198.18.0.1", "198.19.0.9"), ("::/0", "fd00:18::2", "fd00:18::1", "fd00:19::9")]
    {
        let gateway: IpAddr = gateway.parse().unwrap();
        netlink.add_route(&Route::via(net(destination), gateway)).unwrap();
        let hop = netlink.route_to(host.parse().unwrap()).unwrap();
        let source = Some(source.parse().unwrap());
        assert_eq!(hop, NextHop { interface: index, gateway: Some(gateway), source, table: 254 });
    }
    let neighbour = netlink.route_to("198.18.0.7".parse().unwrap()).unwrap();
    assert_eq!(neighbour.gateway, None);
    for own in ["198.18.0.1", "fd00:18::1"] {
        let own = own.parse().unwrap();
        assert_eq!(netlink.route_to(own).unwrap().table, TABLE_LOCAL, "{own}");
        assert!(netlink.is_local(own).unwrap(), "{own}");
    }
    for other in ["198.18.0.7", "fd00:18::7"] {
        assert!(!netlink.is_local(other.parse().unwrap()).unwrap(), "{other}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn routes_are_added_replaced_listed_and_removed() {
    let (near, _far, index) = connected();
    let mut netlink = near.netlink().unwrap();
    for (destination, first, second) in
        [("198.19.0.0/16", "198.18.0.2", "198.18.0.3"), ("fd00:19::/32", "fd00:18::2", "fd00:18::3")]
    {
        let metric = Some(70);
        let route = Route { metric, ..Route::via(net(destination), first.parse().unwrap()) };
        netlink.add_route(&route).unwrap();
        let error = netlink.add_route(&route).unwrap_err();
        assert!(error.is_exists(), "{error}");
        let better = Route { metric, ..Route::via(net(destination), second.parse().unwrap()) };
        netlink.replace_route(&better).unwrap();
        let listed: Vec<Route> =
            netlink.routes(index).unwrap().into_iter().filter(|r| r.destination == net(destination)).collect();
        assert_eq!(listed, [Route { interface: Some(index), table: Some(254), ..better }]);
        netlink.remove_route(&Route { metric: None, gateway: None, ..better }).unwrap();
        assert!(netlink.routes(index).unwrap().iter().all(|r| r.destination != net(destination)));
        assert!(netlink.remove_route(&better).unwrap_err().is_not_found());
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_route_has_its_mtu_and_is_told_from_those_of_others() {
    let (near, _far, index) = connected();
    let mut netlink = near.netlink().unwrap();
    for (host, foreign) in [("198.19.0.9/32", "198.19.1.0/24"), ("fd00:19::9/128", "fd00:19:1::/64")] {
        let foreign = Route::on_link(net(foreign), index).foreign();
        netlink.add_route(&foreign).unwrap();
        let own = |mtu_bytes| Route { mtu_bytes, ..Route::on_link(net(host), index) };
        netlink.add_route(&own(Some(1280))).unwrap();
        netlink.replace_route(&own(Some(1300))).unwrap();
        let listed: Vec<_> = netlink.own_routes().unwrap();
        let shown = listed.iter().map(|route| (route.destination, route.interface, route.mtu_bytes, route.protocol));
        assert_eq!(shown.collect::<Vec<_>>(), [(net(host), Some(index), Some(1300), PROTOCOL_OWN)]);
        let there = |netlink: &mut Netlink, route: &Route| {
            let listed = netlink.routes(index).unwrap();
            listed.iter().any(|r| r.destination == route.destination && r.protocol == route.protocol)
        };
        assert!(there(&mut netlink, &foreign));
        // What somebody else added is not removed in the name of this program.
        let error = netlink.remove_route(&Route { protocol: PROTOCOL_OWN, ..foreign }).unwrap_err();
        assert!(error.is_not_found() && there(&mut netlink, &foreign), "{error}");
        netlink.remove_route(&own(None)).unwrap();
        assert_eq!(netlink.own_routes().unwrap(), []);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn every_address_of_a_local_network_is_the_hosts_own() {
    let namespace = Namespace::new("anyip").unwrap();
    let mut netlink = namespace.netlink().unwrap();
    let loopback = netlink.link("lo").unwrap().index;
    let talk = |address: &str, source: &str| {
        let (address, source): (IpAddr, IpAddr) = (address.parse().unwrap(), source.parse().unwrap());
        namespace.run(|| {
            let sockets = [address, source].map(|ip| std::net::UdpSocket::bind((ip, 0)));
            let [receiver, sender] = sockets.map(|socket| socket.map_err(|_| "no such address"));
            let (receiver, sender) = (receiver?, sender?);
            sender.send_to(b"x", receiver.local_addr().unwrap()).map_err(|_| "no route")?;
            Ok::<_, &str>(receiver.recv_from(&mut [0; 1]).unwrap().1.ip() == source)
        })
    };
    let (network, first, last) = (net("198.18.64.0/18"), "198.18.64.1", "198.18.127.254");
    assert_eq!(talk(last, first), Err("no such address"));
    netlink.add_local_network(network, loopback).unwrap();
    assert_eq!(talk(last, first), Ok(true));
    assert!(netlink.add_local_network(network, loopback).unwrap_err().is_exists());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn tables_beyond_255_hold_routes_with_a_chosen_source() {
    let (near, _far, index) = connected();
    let mut netlink = near.netlink().unwrap();
    let source = Some("198.18.0.1".parse().unwrap());
    let route = Route { table: Some(51_820), source, ..Route::on_link(net("198.19.0.0/16"), index) };
    netlink.add_route(&route).unwrap();
    assert!(netlink.routes(index).unwrap().contains(&route));
    netlink.remove_route(&route).unwrap();
}
