//! A client with two ways to the gateway, each over a router of its own, and eyes on both.
//!
//! ```text
//!            +-- wan0 198.18.1.0/24 --[router]----- 198.18.250.0/24 --+
//!   client --+                                                        +-- gateway
//!            +-- lan0 198.18.2.0/24 --[other router]-- 198.18.251.0/24 +
//! ```

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate_netlink::{Netlink, Route};

use super::clear::ClearTraffic;
use super::{PATIENCE, Site};
use crate::eventually;
use crate::traffic::wait_for_ping;
use tollgate_testkit::{EVERYTHING, Namespace, PathToGateway, SERVICE, link};

/// The first router, as the client's next hop on `wan0`.
pub const FIRST_ROUTER: [&str; 2] = ["198.18.1.1", "fd00:18:1::1"];
/// The other router, as the client's next hop on `lan0`.
pub const OTHER_ROUTER: [&str; 2] = ["198.18.2.1", "fd00:18:2::1"];
const FAR_SIDE: [&str; 2] = ["198.18.251.2", "fd00:18:fb::2"];
const GATEWAY_SIDE: [&str; 2] = ["198.18.251.1", "fd00:18:fb::1"];
const LAN_ADDRESSES: [&str; 2] = ["198.18.2.2/24", "fd00:18:2::2/64"];
const WAN_ADDRESSES: [&str; 2] = ["198.18.1.2/24", "fd00:18:1::2/64"];

/// A [`Site`] whose client has a second link. At first the default routes lead through the first router.
#[derive(Debug)]
pub struct Uplinks {
    /// The client, the gateway, and the first router.
    pub site: Site,
    /// The router behind `lan0`.
    pub other_router: Namespace,
}

impl Uplinks {
    /// Both links up, the other router known to the gateway.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let site = Site::new(PathToGateway::Routed);
        let other_router = Namespace::forwarding("other-router").unwrap();
        let (client, gateway) = (site.client(), &site.topology.gateway);
        let near: [IpAddr; 2] = OTHER_ROUTER.map(|address| address.parse().unwrap());
        let (lan, far) = (LAN_ADDRESSES.map(|address| net(address).addr()), FAR_SIDE.map(|it| it.parse().unwrap()));
        let gateways = GATEWAY_SIDE.map(|address| address.parse().unwrap());
        link((client, "lan0", &lan), (&other_router, "to-client0", &near), 1500).unwrap();
        link((gateway, "to-other", &gateways), (&other_router, "wan0", &far), 1500).unwrap();
        other_router.add_routes(SERVICE, gateways).unwrap();
        gateway.add_routes([net("198.18.2.0/24"), net("fd00:18:2::/64")], far).unwrap();
        Uplinks { site, other_router }
    }

    /// Watches both routers' links for packets that should be in the tunnel.
    pub fn watch_for_clear_traffic(&self) -> ClearTraffic {
        ClearTraffic::watch(&[self.site.topology.router.as_ref().unwrap(), &self.other_router])
    }

    pub fn client(&self) -> &Namespace {
        self.site.client()
    }

    pub fn configure<T>(&self, change: impl FnOnce(&mut Netlink) -> T) -> T {
        change(&mut self.client().netlink().unwrap())
    }

    /// The number of an interface of the client's machine.
    pub fn index(&self, interface: &str) -> u32 {
        self.configure(|netlink| netlink.link(interface).unwrap().index)
    }

    /// Takes a link of the client down, and everything with it that the kernel takes.
    pub fn unplug(&self, interface: &str) {
        let index = self.index(interface);
        self.configure(|netlink| netlink.set_link_down(index)).unwrap();
    }

    /// Brings a link up again, with the addresses that it lost and without routes.
    pub fn plug_in(&self, interface: &str) {
        let (index, addresses) =
            (self.index(interface), if interface == "wan0" { WAN_ADDRESSES } else { LAN_ADDRESSES });
        self.configure(|netlink| {
            netlink.set_link_up(index).unwrap();
            addresses.iter().for_each(|address| add_address(netlink, index, address));
        });
        let is_running = || self.configure(|netlink| netlink.link(interface).unwrap().is_running);
        assert!(eventually(PATIENCE, is_running), "{interface} does not start");
    }

    /// Adds the default routes of both families by way of `router`.
    pub fn add_default(&self, router: [&str; 2], metric: Option<u32>) {
        self.configure(|netlink| {
            for route in defaults(router) {
                netlink.add_route(&Route { metric, ..route }).unwrap();
            }
        });
    }

    /// Removes the default routes of both families by way of `router`.
    pub fn remove_default(&self, router: [&str; 2]) {
        self.configure(|netlink| {
            defaults(router).iter().for_each(|route| netlink.remove_route(route).unwrap());
        });
    }

    /// The next hop and the interface by which the client's machine reaches `target`.
    pub fn hop(&self, target: impl Into<IpAddr>) -> Option<(Option<IpAddr>, String)> {
        self.configure(|netlink| {
            let hop = netlink.route_to(target.into()).ok()?;
            Some((hop.gateway, netlink.link_by_index(hop.interface).ok()?.name))
        })
    }

    /// How long it takes until `target` answers a ping.
    pub fn time_until_answer(&self, target: impl Into<IpAddr>) -> Duration {
        let start = Instant::now();
        wait_for_ping(self.client(), target);
        start.elapsed()
    }
}

fn defaults([v4, v6]: [&str; 2]) -> [Route; 2] {
    [by_hand(EVERYTHING[0], v4), by_hand(EVERYTHING[1], v6)]
}

/// A route as an administrator adds it.
pub fn by_hand(destination: IpNet, via: &str) -> Route {
    Route::via(destination, via.parse().unwrap()).foreign()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Adds an address that may be there already.
pub fn add_address(netlink: &mut Netlink, index: u32, address: &str) {
    match netlink.add_address(index, net(address)) {
        Err(error) if !error.is_exists() => panic!("{error}"),
        _ => {}
    }
}
