use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use tollgate_netlink::{Changes, NetlinkWatch, Route, VethPeer};
use tollgate_testkit::Namespace;

use super::net;

fn is_readable(watch: &NetlinkWatch, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

/// All changes until none come for a while: the kernel announces some, such as a carrier's, in the background.
fn settled(watch: &NetlinkWatch) -> Changes {
    let mut changes = watch.drain();
    while is_readable(watch, Duration::from_millis(200)) {
        changes.merge(watch.drain());
    }
    changes
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn each_kind_of_change_is_told_with_its_interface() {
    let (near, far) = (Namespace::new("watched").unwrap(), Namespace::new("unwatched").unwrap());
    let watch = near.run(NetlinkWatch::open).unwrap();
    assert_eq!(settled(&watch), Changes::default());
    let mut netlink = near.netlink().unwrap();
    netlink.add_veth("wan0", VethPeer { name: "wan0", namespace: far.as_fd() }).unwrap();
    let index = netlink.link("wan0").unwrap().index;
    let loopback = netlink.link("lo").unwrap().index;
    assert!(is_readable(&watch, Duration::from_secs(5)));
    let changes = settled(&watch);
    assert!(changes.links && changes.concern(index) && !changes.concern(loopback), "{changes:?}");

    netlink.set_link_up(index).unwrap();
    assert!(settled(&watch).links);
    for (address, destination) in [("198.18.0.1/24", "198.19.0.0/16"), ("fd00:18::1/64", "fd00:19::/32")] {
        netlink.add_address(index, net(address)).unwrap();
        let changes = settled(&watch);
        assert!(changes.addresses && changes.concern(index), "{changes:?}");
        let route = Route::on_link(net(destination), index);
        netlink.add_route(&route).unwrap();
        let changes = settled(&watch);
        assert!(changes.routes && changes.concern(index) && !changes.concern(loopback), "{changes:?}");
        netlink.remove_route(&route).unwrap();
        assert!(settled(&watch).routes);
    }
    netlink.set_link_mtu(index, 1400).unwrap();
    assert!(settled(&watch).links);
    netlink.remove_link(index).unwrap();
    let changes = settled(&watch);
    assert!(changes.links && changes.concern(index), "{changes:?}");
    assert!(settled(&watch).is_empty() && !is_readable(&watch, Duration::ZERO));
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn an_overrun_counts_as_a_change_of_everything() {
    let namespace = Namespace::new("overrun").unwrap();
    let watch = namespace.run(NetlinkWatch::open).unwrap();
    let mut netlink = namespace.netlink().unwrap();
    let loopback = netlink.link("lo").unwrap().index;
    sockopt::set_socket_recv_buffer_size(&watch, 4096).unwrap();
    for _ in 0..100 {
        netlink.add_address(loopback, net("198.18.0.1/24")).unwrap();
        netlink.remove_address(loopback, net("198.18.0.1/24")).unwrap();
    }
    let changes = watch.drain();
    assert!(changes.links && changes.addresses && changes.routes && changes.concern(4711), "{changes:?}");
    netlink.add_address(loopback, net("198.18.0.1/24")).unwrap();
    let after = settled(&watch);
    assert!(after.addresses && !after.links && after.concern(loopback), "{after:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn routes_that_one_socket_changed_can_be_left_out() {
    let namespace = Namespace::new("own").unwrap();
    let watch = namespace.run(NetlinkWatch::open).unwrap();
    let [mut own, mut other] = [0, 1].map(|_| namespace.netlink().unwrap());
    let loopback = own.link("lo").unwrap().index;
    settled(&watch);
    for destination in ["198.18.0.0/24", "fd00:18::/64"] {
        let route = Route::on_link(net(destination), loopback);
        own.add_route(&route).unwrap();
        own.remove_route(&route).unwrap();
        assert!(is_readable(&watch, Duration::from_secs(5)));
        assert!(watch.drain_of_others(Some(own.port())).is_empty());
        other.add_route(&route).unwrap();
        assert!(watch.drain_of_others(Some(own.port())).routes);
        own.remove_route(&route).unwrap();
        assert!(watch.drain().routes);
    }
}
