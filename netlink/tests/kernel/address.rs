use ipnet::IpNet;
use tollgate_testkit::Namespace;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn addresses_come_and_go_on_an_interface() {
    let namespace = Namespace::new("addresses").unwrap();
    let mut netlink = namespace.netlink().unwrap();
    let index = netlink.link("lo").unwrap().index;
    let (v4, v6): (IpNet, IpNet) = ("198.18.0.1/24".parse().unwrap(), "fd00:18::1/64".parse().unwrap());
    netlink.add_address(index, v4).unwrap();
    netlink.add_address(index, v6).unwrap();
    let listed = netlink.addresses(index).unwrap();
    assert!(listed.contains(&v4) && listed.contains(&v6), "{listed:?}");
    assert!(netlink.add_address(index, v4).unwrap_err().is_exists());
    netlink.remove_address(index, v4).unwrap();
    netlink.remove_address(index, v6).unwrap();
    let listed = netlink.addresses(index).unwrap();
    assert!(!listed.contains(&v4) && !listed.contains(&v6), "{listed:?}");
    assert!(netlink.remove_address(index, v4).unwrap_err().is_not_found());
}
