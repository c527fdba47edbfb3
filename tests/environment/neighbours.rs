//! Other gateways and processes on the same machine, and what the machine has not yet when the gateway starts.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::{PATIENCE, turn};

use crate::site::{Site, ip, order};

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn two_gateways_with_one_port_on_two_addresses_are_told_apart() {
    let _turn = turn::together();
    let first = Site::with_quincys_own_file(&Plan { bind: "198.18.0.1", ..Plan::default() });
    let second =
        Site::with_quincys_own_file(&Plan { bind: "198.18.1.1", tunnel: "198.19.129.1/24", ..Plan::default() });
    second.deployment.edit_server("tollgate0", "tollgate1");
    let folder = first.deployment.path("run").display().to_string();
    let variables = [("RUNTIME_DIRECTORY", &folder[..]), ("STATE_DIRECTORY", &folder[..])];
    let start_in_one_place = |site: &Site| {
        let mut command = site.command(&[]);
        command.envs(variables);
        first.start(command)
    };
    let mut gateways = [start_in_one_place(&first), start_in_one_place(&second)];
    for (index, site) in [&first, &second].into_iter().enumerate() {
        let counts = || [0, 1].map(|index: usize| gateways[index].count_lines("reloaded on order"));
        let before = counts();
        let (code, text) = order(site, &variables, &["reload", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        gateways[index].process.wait_for_line("reloaded on order", PATIENCE).unwrap();
        let after = counts();
        assert_eq!(
            (after[index], after[1 - index]),
            (before[index] + 1, before[1 - index]),
            "the other one is left alone"
        );
    }
    assert_eq!(gateways.iter().map(|gateway| gateway.count_lines("WARN")).sum::<usize>(), 0, "{gateways:#?}");
    gateways.iter_mut().for_each(Gateway::assert_sound);
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_control_socket_that_another_gateway_has_is_a_warning_where_none_is_configured() {
    let peers = Peers::find();
    let _turn = turn::together();
    let (first, second) =
        (Site::with_quincys_own_file(&Plan::default()), Site::with_quincys_own_file(&Plan::default()));
    let folder = first.deployment.path("run").display().to_string();
    let start_with_one_run = |site: &Site| {
        let mut command = site.command(&[]);
        command.env("RUNTIME_DIRECTORY", &folder).env("STATE_DIRECTORY", &folder);
        site.start(command)
    };
    let mut one = start_with_one_run(&first);
    let two = start_with_one_run(&second);
    let line = two.process.wait_for_line("a gateway already listens on the control socket", PATIENCE).unwrap();
    assert!(line.contains("WARN") && line.contains("tollgate reload") && line.contains("SIGHUP"), "{line}");
    // Whichever file it is given, it is the first one that takes the order; the second one takes signals.
    let variables = [("RUNTIME_DIRECTORY", &folder[..])];
    for file in [&first, &second] {
        let before = one.process.line_count();
        let (code, text) = order(file, &variables, &["reload", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        one.process.wait_for_line_from(before, "reloaded on order", PATIENCE).unwrap();
    }
    assert!(line.contains("whichever --config"), "{line}");
    two.process.signal(rustix::process::Signal::HUP).unwrap();
    two.process.wait_for_line("reloaded on SIGHUP", PATIENCE).unwrap();
    assert_eq!((two.count_lines("reloaded on order"), one.count_lines("reloaded on SIGHUP")), (0, 0));
    second.assert_serves(&peers, two);
    let (code, text) = order(&first, &[("RUNTIME_DIRECTORY", &folder)], &["reload", "--config", "server.toml"]);
    assert_eq!(code, Some(0), "the first one keeps its socket: {text}");
    one.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_name_that_another_process_holds_keeps_no_gateway_from_its_port() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let name = SocketAddr::from_abstract_name("tollgate-udp-0.0.0.0:55555").unwrap();
    let _held = site.topology.gateway.run(|| UnixDatagram::bind_addr(&name)).unwrap();
    let gateway = site.start(site.command(&[]));
    let second = Deployment::write(&Plan { tunnel: "198.19.129.1/24", ..Plan::default() });
    second.edit_server("tollgate0", "tollgate1");
    let line = site.start_and_fail(Gateway::command(&second));
    assert!(line.contains("UDP address 0.0.0.0:55555 is in use"), "the port is still its own: {line}");
    site.assert_serves(&peers, gateway);
}

#[test]
fn the_shipped_unit_starts_the_gateway_again_for_as_long_as_it_takes() {
    let unit = include_str!("../../config/systemd/tollgate.service");
    for setting in [
        "StartLimitIntervalSec=0",
        "Restart=on-failure",
        "RestartSec=1",
        "ExecReload=/usr/bin/tollgate reload --config /etc/tollgate/server.toml",
        "RuntimeDirectory=tollgate",
        "StateDirectory=tollgate",
    ] {
        assert!(unit.lines().any(|line| line == setting), "{setting} is not in {unit}");
    }
}

/// A failure like others: systemd tries again.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_serves_once_its_address_is_there() {
    let _turn = turn::together();
    let site = Site::new(&Plan { bind: "198.18.0.77", ..Plan::default() });
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("no interface of this machine has the address 198.18.0.77"), "{line}");
    ip(&site, &["address", "add", "198.18.0.77/32", "dev", "lo"]);
    site.start(site.command(&[])).assert_sound();
}
