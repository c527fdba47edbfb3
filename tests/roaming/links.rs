//! Links, routers and addresses that come and go.

use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::site::uplinks::{FIRST_ROUTER, OTHER_ROUTER, Uplinks, add_address, by_hand, net};
use tollgate_test_support::site::{CONNECTED, PATIENCE};
use tollgate_testkit::SERVICE_V4;
use tollgate_testkit::ping::{PingPlan, ping};

use crate::tunnel::{FULL, Family, SOON, Tunnel, connect};

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_link_that_flaps_is_used_again_by_the_same_connection() {
    for (family, routes) in FULL {
        let tunnel = Tunnel::start(family, routes);
        let (took, ()) = tunnel.recovery(|| {
            tunnel.uplinks.unplug("wan0");
            thread::sleep(Duration::from_secs(3));
            tunnel.uplinks.plug_in("wan0");
            tunnel.uplinks.add_default(FIRST_ROUTER, None);
        });
        assert!(took < SOON, "{family:?} {routes}: {took:?}");
        tunnel.assert_same_connection();
        assert_eq!(tunnel.uplinks.hop(family.service()), Some((Some(family.router(FIRST_ROUTER)), "wan0".to_owned())));
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_new_default_router_is_followed_by_the_same_connection() {
    for (family, routes) in [FULL[0], FULL[2]] {
        let tunnel = Tunnel::start(family, routes);
        let (took, ()) = tunnel.recovery(|| {
            tunnel.uplinks.remove_default(FIRST_ROUTER);
            tunnel.uplinks.add_default(OTHER_ROUTER, None);
            // The old way leads nowhere from now on.
            let router = tunnel.uplinks.site.topology.router.as_ref().unwrap();
            router
                .configure(|netlink| {
                    let index = netlink.link("wan0")?.index;
                    netlink.set_link_down(index)
                })
                .unwrap();
        });
        assert!(took < SOON, "{family:?}: {took:?}");
        tunnel.assert_same_connection();
        assert_eq!(tunnel.uplinks.hop(family.service()), Some((Some(family.router(OTHER_ROUTER)), "lan0".to_owned())));
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_better_way_is_taken_when_it_appears_and_left_when_it_goes() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.uplinks.remove_default(FIRST_ROUTER);
    tunnel.uplinks.add_default(FIRST_ROUTER, Some(600));
    for (interface, metric) in [("lan0", Some(100)), ("wan0", None)] {
        let (took, ()) = tunnel.recovery(|| match metric {
            Some(_) => tunnel.uplinks.add_default(OTHER_ROUTER, metric),
            None => tunnel.uplinks.unplug("lan0"),
        });
        assert!(took < SOON, "{interface}: {took:?}");
        assert_eq!(tunnel.uplinks.hop(SERVICE_V4).unwrap().1, interface);
    }
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_link_without_carrier_gives_way_to_one_that_has_it() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.uplinks.add_default(OTHER_ROUTER, Some(600));
    let (took, ()) = tunnel.recovery(|| {
        let router = tunnel.uplinks.site.topology.router.as_ref().unwrap();
        router
            .configure(|netlink| {
                let index = netlink.link("to-client0")?.index;
                netlink.set_link_down(index)
            })
            .unwrap();
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn another_address_of_the_machine_keeps_the_connection() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let index = tunnel.uplinks.index("wan0");
    let (took, ()) = tunnel.recovery(|| {
        tunnel.uplinks.configure(|netlink| {
            netlink.remove_address(index, net("198.18.1.2/24")).unwrap();
            add_address(netlink, index, "198.18.1.77/24");
            netlink.add_route(&by_hand(net("0.0.0.0/0"), FIRST_ROUTER[0])).unwrap();
        });
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_that_only_sends_learns_the_new_address_at_once() {
    let tunnel = Tunnel::start(Family::V4, "\"198.19.0.0/24\"");
    let index = tunnel.uplinks.index("wan0");
    // Nothing goes from the client to the gateway by itself.
    let to_client = || {
        let plan =
            PingPlan { count: 1, timeout: Duration::from_millis(50), ..PingPlan::new("198.19.128.2".parse().unwrap()) };
        tunnel.uplinks.site.topology.network.run(|| ping(&plan)).unwrap().received == 1
    };
    assert!(to_client());
    // What the exchange left to be acknowledged is over.
    thread::sleep(Duration::from_secs(1));
    tunnel.uplinks.configure(|netlink| {
        netlink.remove_address(index, net("198.18.1.2/24")).unwrap();
        add_address(netlink, index, "198.18.1.77/24");
        netlink.add_route(&by_hand(net("0.0.0.0/0"), FIRST_ROUTER[0])).unwrap();
    });
    let start = Instant::now();
    while !to_client() {
        assert!(start.elapsed() < SOON, "the gateway still sends to the old address");
    }
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn without_any_way_to_the_gateway_nothing_leaves_in_clear_and_a_new_interface_is_taken() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let (took, ()) = tunnel.recovery(|| {
        let wan = tunnel.uplinks.index("wan0");
        tunnel.uplinks.configure(|netlink| netlink.remove_link(wan).unwrap());
        thread::sleep(Duration::from_secs(1));
        tunnel.uplinks.add_default(OTHER_ROUTER, None);
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn an_attempt_to_connect_starts_anew_when_the_network_comes() {
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let _gateway = uplinks.site.serve();
    uplinks.remove_default(FIRST_ROUTER);
    let client = connect(&uplinks, Family::V4);
    // By then it waits for 1.6 to 4.8 s between attempts.
    for _ in 0..5 {
        let lines = client.line_count();
        client.wait_for_line_from(lines, "no tunnel", PATIENCE).unwrap();
    }
    uplinks.add_default(OTHER_ROUTER, None);
    client.wait_for_line(CONNECTED, Duration::from_secs(1)).unwrap();
}
