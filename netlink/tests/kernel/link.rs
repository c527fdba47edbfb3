use std::os::fd::AsFd;

use tollgate_netlink::VethPeer;
use tollgate_testkit::Namespace;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_veth_pair_spans_two_namespaces_and_follows_commands() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    let mut netlink = near.netlink().unwrap();
    netlink.add_veth("left", VethPeer { name: "right", namespace: far.as_fd() }).unwrap();
    let left = netlink.link("left").unwrap();
    assert!(!left.is_up);
    netlink.set_link_mtu(left.index, 1380).unwrap();
    netlink.set_link_up(left.index).unwrap();
    let up = netlink.link_by_index(left.index).unwrap();
    assert_eq!((up.is_up, up.mtu_bytes), (true, 1380));
    netlink.set_link_down(left.index).unwrap();
    netlink.rename_link(left.index, "renamed").unwrap();
    assert!(netlink.link("left").unwrap_err().is_not_found());

    let mut netlink = far.netlink().unwrap();
    let names: Vec<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "right"]);
    let right = netlink.link("right").unwrap();
    netlink.move_link(right.index, near.as_fd()).unwrap();
    let mut netlink = near.netlink().unwrap();
    let right = netlink.link("right").unwrap();
    netlink.remove_link(right.index).unwrap();
    assert!(netlink.link("renamed").unwrap_err().is_not_found());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_name_taken_twice_is_refused_by_name() {
    let namespace = Namespace::new("single").unwrap();
    let mut netlink = namespace.netlink().unwrap();
    let peer = VethPeer { name: "b", namespace: namespace.as_fd() };
    netlink.add_veth("a", peer).unwrap();
    let error = netlink.add_veth("a", VethPeer { name: "c", ..peer }).unwrap_err();
    assert!(error.is_exists());
    assert_eq!(error.to_string(), "cannot make the veth pair a, c: it exists already");
}
