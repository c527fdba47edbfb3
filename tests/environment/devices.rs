//! The gateway's device: its name, its network, and one that is there already.

use std::net::IpAddr;
use std::process::Command;

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use crate::site::{Site, ip, order};

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_tunnel_in_a_link_local_network_reaches_the_gateway_and_other_clients() {
    let peers = Peers::find();
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan { tunnel: "169.254.7.1/24", isolate_clients: false, ..Plan::default() });
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [_alice, bob] = [(0, "alice"), (1, "bob")].map(|(index, user)| {
        let inside = &topology.clients[index].namespace;
        Attached::start(&peers, &deployment, inside, &gateway, Login::of(user))
    });
    let inside = &topology.clients[0].namespace;
    let own: IpAddr = "169.254.7.1".parse().unwrap();
    for target in [own, bob.address] {
        wait_for_ping(inside, target);
        assert_pings(inside, target);
    }
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn the_names_that_the_kernel_takes_are_valid_for_check_serve_and_connect() {
    let peers = Peers::find();
    let _turn = turn::together();
    for (name, made) in [("vpn.0", "vpn.0"), ("quincy%d", "quincy0"), ("tun+1", "tun+1")] {
        let site = Site::new(&Plan::default());
        site.deployment.edit_server("\"tollgate0\"", &format!("{name:?}"));
        let (code, text) = order(&site, &[], &["check", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        let gateway = site.start(site.command(&[]));
        gateway.process.wait_for_line(&format!(" on {made};"), PATIENCE).unwrap();

        let file = site.deployment.write_client(Login::of("bob"));
        site.deployment.edit("client_bob.toml", "\"quincy0\"", &format!("{name:?}"));
        let mut connect = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        connect.arg("connect").arg("--config").arg(file).env("NO_COLOR", "1").env_remove("RUST_LOG");
        let inside = &site.topology.clients[0].namespace;
        let mut client = inside.spawn(connect).unwrap();
        client.wait_for_line(&format!(" on {made}"), PATIENCE).unwrap();
        wait_for_ping(inside, SERVER_V4);
        assert!(client.stop(PATIENCE).unwrap().success());
        site.assert_serves(&peers, gateway);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_tun_device_that_was_made_beforehand_is_adopted_and_stays() {
    let peers = Peers::find();
    let _turn = turn::together();
    for (shards, kind) in [(1, None), (1, Some("multi_queue")), (2, Some("multi_queue"))] {
        let site = Site::new(&Plan { shards, ..Plan::default() });
        let add = ["tuntap", "add", "dev", "tollgate0", "mode", "tun"];
        ip(&site, &add.into_iter().chain(kind).collect::<Vec<_>>());
        for _ in 0..2 {
            let gateway = site.start(site.command(&[]));
            let second = Deployment::write(&Plan { shards, tunnel: "198.19.129.1/24", ..Plan::default() });
            second.edit_server("bind_port = 55555", "bind_port = 55556");
            let line = site.start_and_fail(Gateway::command(&second));
            assert!(line.contains("tollgate0 exists already"), "one that is in use is not adopted: {line}");
            site.assert_serves(&peers, gateway);
        }
        ip(&site, &["link", "show", "dev", "tollgate0"]);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_device_that_does_not_fit_is_refused_with_what_would() {
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    ip(&site, &["tuntap", "add", "dev", "tollgate0", "mode", "tun"]);
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("with a single queue, and 2 shards need one each"), "{line}");
    assert!(line.contains("ip tuntap add dev tollgate0 mode tun multi_queue"), "{line}");
    ip(&site, &["link", "delete", "dev", "tollgate0"]);
    ip(&site, &["tuntap", "add", "dev", "tollgate0", "mode", "tap", "multi_queue"]);
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("tollgate0 exists already"), "{line}");
}
