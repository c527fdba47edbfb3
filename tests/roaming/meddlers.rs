//! Others who change what the client has made: its device, its routes, its socket.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::io::{TunDevice, TunOptions};
use tollgate::netlink::{Netlink, Route};
use tollgate_test_support::site::uplinks::{FIRST_ROUTER, OTHER_ROUTER, Uplinks, by_hand, net};
use tollgate_test_support::site::{CONNECTED, PATIENCE};
use tollgate_testkit::{SERVER_V4, SERVICE_V4};

use crate::tunnel::{Change, FULL, Family, SOON, Tunnel, connect};

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_host_route_of_somebody_else_is_used_and_left_alone() {
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let theirs = by_hand(IpNet::from(IpAddr::from(SERVICE_V4)), OTHER_ROUTER[0]);
    uplinks.configure(|netlink| netlink.add_route(&theirs).unwrap());
    let before = uplinks.site.client_network();
    let _gateway = uplinks.site.serve();
    let mut client = connect(&uplinks, Family::V4);
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert_eq!(uplinks.hop(SERVICE_V4).unwrap().1, "lan0");
    // While it is gone there is one of ours; when it is back it counts again.
    uplinks.configure(|netlink| netlink.remove_route(&theirs).unwrap());
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    uplinks.configure(|netlink| netlink.replace_route(&theirs).unwrap());
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert_eq!(uplinks.hop(SERVICE_V4).unwrap().1, "lan0");
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(uplinks.site.client_network(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_somebody_takes_from_the_tunnel_is_put_back_and_said() {
    for (family, routes) in [FULL[0], FULL[2]] {
        let mut tunnel = Tunnel::start(family, routes);
        let (interface, before) = (tunnel.tunnel_interface(), tunnel.tunnel_routes());
        let index = interface;
        let changes: [(&str, Change<'_>); 5] = [
            ("routes", &|netlink| {
                for route in netlink.routes(index).unwrap() {
                    netlink.remove_route(&route).unwrap();
                }
            }),
            ("state", &|netlink| {
                netlink.set_link_down(index).unwrap();
            }),
            ("down and up", &|netlink| {
                netlink.set_link_down(index).unwrap();
                netlink.set_link_up(index).unwrap();
            }),
            ("address", &|netlink| {
                for address in netlink.addresses(index).unwrap() {
                    netlink.remove_address(index, address).unwrap();
                }
            }),
            ("MTU", &|netlink| netlink.set_link_mtu(index, 1300).unwrap()),
        ];
        for (what, change) in changes {
            let (took, ()) = tunnel.recovery(|| tunnel.uplinks.configure(|netlink| change(netlink)));
            assert!(took < SOON, "{family:?} {what}: {took:?}");
            let mut now = tunnel.tunnel_routes();
            let mut expected = before.clone();
            now.sort();
            expected.sort();
            assert_eq!(now, expected, "{what}");
            assert_eq!(
                tunnel.uplinks.configure(|netlink| netlink.link_by_index(index).unwrap().mtu_bytes),
                1400,
                "{what}"
            );
        }
        tunnel.says("restored");
        tunnel.assert_same_connection();
        assert!(tunnel.client.stop(PATIENCE).unwrap().success());
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_deleted_interface_is_made_anew_under_the_same_connection() {
    let mut tunnel = Tunnel::start_with_dns();
    for _ in 0..2 {
        let (took, ()) = tunnel.recovery(|| {
            let index = tunnel.tunnel_interface();
            tunnel.uplinks.configure(|netlink| netlink.remove_link(index).unwrap());
        });
        assert!(took < SOON, "{took:?}");
    }
    tunnel.assert_same_connection();
    tunnel.says("restored");
    let calls = fs::read_to_string(tunnel.uplinks.site.path("calls")).unwrap();
    assert_eq!(calls, "dns tg-client 198.19.0.53\ndomain tg-client ~.\n".repeat(3));
    assert!(tunnel.client.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn routes_that_are_all_flushed_or_replaced_are_put_back_or_complained_of() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let own = || {
        let mut routes = tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap());
        routes.sort_by_key(|route| (route.destination, route.metric));
        routes
    };
    let (before, start) = (own(), Instant::now());
    tunnel.uplinks.configure(|netlink| before.iter().for_each(|route| netlink.remove_route(route).unwrap()));
    while own() != before {
        assert!(start.elapsed() < SOON, "{:?} instead of {before:?}", own());
        thread::sleep(Duration::from_millis(5));
    }
    tunnel.says("restored");
    let theirs = by_hand(net("128.0.0.0/1"), FIRST_ROUTER[0]);
    tunnel.uplinks.configure(|netlink| netlink.replace_route(&theirs).unwrap());
    tunnel.says("packets leave past the tunnel: network.routes: 128.0.0.0/1 has a route already");
    tunnel.uplinks.configure(|netlink| netlink.remove_route(&theirs).unwrap());
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    assert_eq!(own(), before);
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_fight_over_the_routes_is_fought_quietly() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let index = tunnel.tunnel_interface();
    let lines = tunnel.client.line_count();
    let (took, ()) = tunnel.recovery(|| {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            tunnel.uplinks.configure(|netlink| {
                let _ = netlink.remove_route(&Route::on_link(net("0.0.0.0/1"), index));
                let _ = netlink.remove_route(&Route::on_link(net("128.0.0.0/1"), index));
            });
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(took < SOON, "{took:?}");
    let said = tunnel.client.line_count() - lines;
    assert!((1..=3).contains(&said), "{said} lines: {:#?}", tunnel.client.lines());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_name_that_is_taken_meanwhile_is_waited_for() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let (took, ()) = tunnel.recovery(|| {
        let index = tunnel.tunnel_interface();
        tunnel.uplinks.client().run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.remove_link(index).unwrap();
            let taken = TunDevice::create(Some("tg-client"), 1, 1400, &TunOptions::default());
            thread::sleep(Duration::from_millis(500));
            drop(taken);
        });
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_socket_that_somebody_destroys_is_opened_anew_under_the_same_connection() {
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    for _ in 0..2 {
        let (took, destroyed) = tunnel
            .recovery(|| tunnel.uplinks.client().run(|| Command::new("ss").args(["-K", "-u", "-a"]).output().unwrap()));
        assert!(took < SOON, "{took:?}: {destroyed:?}");
    }
    tunnel.assert_same_connection();
}
