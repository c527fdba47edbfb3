//! A client with two ways to the gateway, each over a router of its own, and eyes on both.
//!
//! ```text
//!            +-- wan0 198.18.1.0/24 --[router]----- 198.18.250.0/24 --+
//!   client --+                                                        +-- gateway
//!            +-- lan0 198.18.2.0/24 --[other router]-- 198.18.251.0/24 +
//! ```

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate_netlink::{Netlink, Route, VethPeer};

use super::clear::ClearTraffic;
use super::{PATIENCE, Site};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::wait::eventually;
use tollgate_testkit::{Namespace, PathToGateway, SERVICE_V4, SERVICE_V6};

/// The first router, as the client's next hop on `wan0`.
pub const FIRST_ROUTER: [&str; 2] = ["198.18.1.1", "fd00:18:1::1"];
/// The other router, as the client's next hop on `lan0`.
pub const OTHER_ROUTER: [&str; 2] = ["198.18.2.1", "fd00:18:2::1"];
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
        let other_router = Namespace::new("other-router").unwrap();
        other_router.sysctl("net/ipv4/ip_forward", "1").unwrap();
        other_router.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        let client = site.client();
        connect(client, "lan0", &LAN_ADDRESSES, &other_router, "to-client0", &["198.18.2.1/24", "fd00:18:2::1/64"]);
        let gateway = &site.topology.gateway;
        let near = ["198.18.251.1/24", "fd00:18:fb::1/64"];
        connect(gateway, "to-other", &near, &other_router, "wan0", &["198.18.251.2/24", "fd00:18:fb::2/64"]);
        other_router
            .configure(|netlink| {
                netlink.add_route(&by_hand(IpNet::from(IpAddr::from(SERVICE_V4)), "198.18.251.1"))?;
                netlink.add_route(&by_hand(IpNet::from(IpAddr::from(SERVICE_V6)), "fd00:18:fb::1"))
            })
            .unwrap();
        gateway
            .configure(|netlink| {
                netlink.add_route(&by_hand(net("198.18.2.0/24"), "198.18.251.2"))?;
                netlink.add_route(&by_hand(net("fd00:18:2::/64"), "fd00:18:fb::2"))
            })
            .unwrap();
        let uplinks = Uplinks { site, other_router };
        for router in OTHER_ROUTER {
            uplinks.time_until_answer(router.parse::<IpAddr>().unwrap());
        }
        uplinks
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
        let (target, start) = (target.into(), Instant::now());
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(50), ..PingPlan::new(target) };
        let answered = || self.client().run(|| ping(&plan)).is_ok_and(|report| report.received == 1);
        assert!(eventually(PATIENCE, answered), "{target} does not answer");
        start.elapsed()
    }
}

fn defaults([v4, v6]: [&str; 2]) -> [Route; 2] {
    [by_hand(net("0.0.0.0/0"), v4), by_hand(net("::/0"), v6)]
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

fn connect(
    near: &Namespace,
    near_name: &str,
    near_addresses: &[&str],
    far: &Namespace,
    name: &str,
    addresses: &[&str],
) {
    near.configure(|netlink| netlink.add_veth(near_name, VethPeer { name, namespace: far.as_fd() })).unwrap();
    for (namespace, name, addresses) in [(near, near_name, near_addresses), (far, name, addresses)] {
        let mut netlink = namespace.netlink().unwrap();
        let index = netlink.link(name).unwrap().index;
        netlink.set_link_up(index).unwrap();
        addresses.iter().for_each(|address| add_address(&mut netlink, index, address));
    }
}
