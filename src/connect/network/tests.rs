use tempfile::TempDir;

use super::*;
use tollgate_testkit::{PathToGateway, SERVER_V4, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

fn routed() -> Topology {
    Topology::build(&TopologyPlan { clients: 1, path: PathToGateway::Routed, ..TopologyPlan::default() }).unwrap()
}

fn config(routes: &str) -> ClientConfig {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("client.toml");
    let text = format!(
        r#"
        connection_string = "198.18.0.1:55555"
        [protocol]
        mode = "tls"
        trusted_certificate_paths = ["server.pem"]
        client_certificate_file = "client.pem"
        client_certificate_key_file = "client.key"
        [network]
        routes = {routes}
        interface_name = "tg-test"
        "#
    );
    fs::write(&path, text).unwrap();
    ClientConfig::load(&path, std::iter::empty()).unwrap()
}

fn assignment(client: &str, server: &str) -> Assignment {
    Assignment { client_address: net(client), server_address: net(server) }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn interface_to(gateway: impl Into<IpAddr>) -> String {
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.route_to(gateway.into()).unwrap().interface;
    netlink.link_by_index(index).unwrap().name
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn everything_but_the_gateway_goes_through_the_tunnel_and_all_is_gone_with_it() {
    let topology = routed();
    topology.clients[0].namespace.run(|| {
        let config = config(r#"["0.0.0.0/0"]"#);
        let first = assignment("198.19.128.2/17", "198.19.128.1/17");
        let (network, queue) = Network::establish(&config, SERVICE_V4.into(), first).unwrap();
        assert_eq!((interface_to(SERVER_V4), interface_to(SERVICE_V4)), ("tg-test".into(), "wan0".into()));
        assert_eq!(interface_to(SERVICE_V6), "wan0", "the other family is untouched");
        drop((network, queue));
        assert_eq!(interface_to(SERVER_V4), "wan0");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("wan0").unwrap().index;
        assert!(!netlink.routes(index).unwrap().iter().any(|route| route.destination == net("198.18.0.1/32")));
        assert!(netlink.link("tg-test").unwrap_err().is_not_found());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn another_address_of_either_family_leaves_the_routes_in_place() {
    let topology = routed();
    topology.clients[0].namespace.run(|| {
        let config = config(r#"["0.0.0.0/0", "::/0"]"#);
        let first = assignment("198.19.128.2/17", "198.19.128.1/17");
        let (mut network, _queue) = Network::establish(&config, SERVICE_V4.into(), first).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("tg-test").unwrap().index;
        for next in [
            assignment("198.19.128.9/17", "198.19.128.1/17"),
            assignment("198.19.64.9/24", "198.19.64.1/24"),
            assignment("fd00:19:80::9/64", "fd00:19:80::1/64"),
            first,
        ] {
            network.readdress(SERVICE_V4.into(), next).unwrap();
            let addresses = netlink.addresses(index).unwrap();
            let global: Vec<_> = addresses.into_iter().filter(|it| !net("fe80::/10").contains(it)).collect();
            assert_eq!(global, [next.client_address]);
            let routes: Vec<_> = netlink.routes(index).unwrap().into_iter().map(|route| route.destination).collect();
            for half in ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"] {
                assert_eq!(routes.iter().filter(|route| **route == net(half)).count(), 1, "{half} in {routes:?}");
            }
            assert_eq!((interface_to(SERVER_V4), interface_to(SERVICE_V4)), ("tg-test".into(), "wan0".into()));
            assert_eq!(network.assignment, next);
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_exclusion_follows_the_gateways_address_and_the_machines_routes() {
    let topology = routed();
    topology.clients[0].namespace.run(|| {
        let config = config(r#"["0.0.0.0/0", "::/0"]"#);
        let first = assignment("198.19.128.2/17", "198.19.128.1/17");
        let (mut network, _queue) = Network::establish(&config, SERVICE_V4.into(), first).unwrap();
        network.follow(SERVICE_V6.into()).unwrap();
        assert_eq!((interface_to(SERVICE_V4), interface_to(SERVICE_V6)), ("tg-test".into(), "wan0".into()));
        network.follow(SERVICE_V4.into()).unwrap();
        assert_eq!((interface_to(SERVICE_V4), interface_to(SERVICE_V6)), ("wan0".into(), "tg-test".into()));
        // The machine's way out changes: another default route becomes the better one, here a next hop that does not answer.
        let mut netlink = Netlink::open().unwrap();
        let better = Route::via(net("198.18.0.0/16"), "198.18.1.77".parse().unwrap()).foreign();
        netlink.add_route(&better).unwrap();
        network.follow(SERVICE_V4.into()).unwrap();
        assert_eq!(netlink.route_to(SERVICE_V4.into()).unwrap().gateway, better.gateway);
        // That one goes away again.
        netlink.remove_route(&better).unwrap();
        network.follow(SERVICE_V4.into()).unwrap();
        assert_eq!(netlink.route_to(SERVICE_V4.into()).unwrap().gateway, Some("198.18.1.1".parse().unwrap()));
        // So does the last one: the exclusion stays as it is.
        let default = Route::via(net("0.0.0.0/0"), "198.18.1.1".parse().unwrap()).foreign();
        netlink.remove_route(&default).unwrap();
        network.follow(SERVICE_V4.into()).unwrap();
        assert_eq!(interface_to(SERVICE_V4), "wan0");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn routes_of_others_are_neither_changed_nor_removed() {
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    topology.clients[0].namespace.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let before = netlink.route_to(SERVICE_V4.into()).unwrap();
        let first = assignment("198.19.128.2/17", "198.19.128.1/17");
        let covering = config(r#"["0.0.0.0/0"]"#);
        drop(Network::establish(&covering, SERVICE_V4.into(), first).unwrap());
        assert_eq!(netlink.route_to(SERVICE_V4.into()).unwrap(), before);
        let taken = config(r#"["198.19.0.0/24", "198.18.1.0/24"]"#);
        let error = Network::establish(&taken, SERVICE_V4.into(), first).unwrap_err();
        assert!(matches!(error, NetworkError::Taken { route } if route == net("198.18.1.0/24")), "{error}");
        assert!(netlink.link("tg-test").unwrap_err().is_not_found());
        let small = config(r#"[]"#);
        let small = ClientConfig {
            connection: tollgate_config::Connection { mtu_bytes: 1200, ..small.connection.clone() },
            ..small
        };
        let v6 = assignment("fd00:19:80::9/64", "fd00:19:80::1/64");
        assert!(matches!(
            Network::establish(&small, SERVICE_V4.into(), v6),
            Err(NetworkError::Mtu { mtu_bytes: 1200 })
        ));
    });
}
