//! The gateway as a service of systemd: the unit as it is shipped, installed as docs/deployment.md says, under the real service manager.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tollgate_shards::CloseCause;
use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::pages::{page, root};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::manager::Manager;
use crate::site::{Site, ip};

/// Of systemd-analyze(1), from 0 (best) to 10.
const EXPOSURE_MAX: f64 = 2.5;
/// What the unit leaves, and only the helper has: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_BPF.
const CAPABILITIES: u64 = 1 << 10 | 1 << 12 | 1 << 39;
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

const RULES: &str = "nft list table ip tollgate_tollgate0";

/// Starts a systemd in the gateway's namespace, with the files of `site` in /etc/tollgate, and the gateway as docs/deployment.md says, with more `settings` of
/// the service.
fn start(site: &Site, settings: &str) -> Manager {
    let (folder, program) = (site.deployment.folder(), Path::new(env!("CARGO_BIN_EXE_tollgate")));
    // The gateway turns it on.
    site.topology.gateway.sysctl("net/ipv4/ip_forward", "0").unwrap();
    let manager = Manager::start(&site.topology.gateway, &[("files", folder), ("program", program)]);
    manager.run_done(&format!(
        "sed -i 's#{}#/etc/tollgate#' /etc/tollgate/server.toml; printf '[host]\nmasquerade = true\n' >> /etc/tollgate/server.toml",
        folder.display()
    ));
    manager.prepare("tollgate", settings);
    manager.run_done(&format!("cd /source\n{}", page(&root(), "docs/deployment.md").block("unit").text));
    manager
}

#[test]
#[ignore = "needs systemd-analyze: cargo xtask test --full"]
fn the_unit_leaves_little_open() {
    let unit = root().join("config/systemd/tollgate.service");
    let output = Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(unit).output();
    let said = String::from_utf8(output.expect("systemd-analyze, of Debian's systemd").stdout).unwrap();
    let (_, exposure) = said.trim().rsplit_once("tollgate.service: ").unwrap_or_else(|| panic!("{said}"));
    let exposure: f64 = exposure.split_whitespace().next().unwrap().parse().unwrap();
    println!("exposure {exposure}");
    assert!(exposure <= EXPOSURE_MAX, "{said}");
}

#[test]
#[ignore = "needs root, systemd and Quincy's programs: cargo xtask test --full"]
fn under_the_shipped_unit_the_gateway_serves_reloads_repairs_and_is_upgraded_without_privileges() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let manager = start(&site, "");
    assert_eq!(manager.show("ActiveState"), "active");
    let user = manager.run_done("id -u tollgate");
    assert_eq!(manager.kernel_says("Uid").split_whitespace().next(), Some(user.trim()));
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&manager.kernel_says(set), 16), Ok(0), "{set}");
    }
    assert_eq!(u64::from_str_radix(&manager.kernel_says("CapBnd"), 16), Ok(CAPABILITIES));
    assert_eq!((&manager.kernel_says("NoNewPrivs")[..], &manager.kernel_says("Seccomp")[..]), ("1", "2"));
    let log = manager.log();
    assert!(!log.contains("WARN") && log.contains("TUN steered by inner destination (eBPF"), "{log}");
    assert!(!log.contains("not forbidden"), "{log}");

    let inside = &site.topology.clients[0].namespace;
    let client = Client::start(&peers, &site.deployment, inside, Login::of("alice"));
    client.wait_for_address();
    wait_for_ping(inside, SERVER_V4);
    manager.run_done("systemctl reload tollgate");
    manager.wait_for_log("reloaded");
    ip(&site, &["link", "del", "tollgate0"]);
    manager.wait_for_log("was gone: made anew");
    wait_for_ping(inside, SERVER_V4);

    let before = manager.show("MainPID");
    manager.run_done("tollgate upgrade --within 1h --config /etc/tollgate/server.toml");
    assert!(eventually(PATIENCE, || manager.show("MainPID") != before), "{}", manager.log());
    assert_eq!(u64::from_str_radix(&manager.kernel_says("CapEff"), 16), Ok(0));
    assert_pings(inside, SERVER_V4);
    manager.run_done(RULES);
    assert_eq!((&manager.show("ActiveState")[..], &manager.show("NRestarts")[..]), ("active", "0"));
    // Where control groups are the old ones, in a container, systemd waits for no process that is not its child before it kills.
    manager.run_done("systemctl kill --kill-whom=main --signal=TERM tollgate");
    assert!(eventually(PATIENCE, || manager.show("ActiveState") == "inactive"), "{}", manager.log());
    manager.run_done("systemctl stop tollgate");
    assert_eq!((&manager.show("ActiveState")[..], &manager.show("Result")[..]), ("inactive", "success"));
    assert!(!manager.run(RULES).0, "{}", manager.log());
    assert!(manager.run("ip link show tollgate0").1.contains("does not exist"), "{}", manager.log());
}

#[test]
#[ignore = "needs root and systemd: cargo xtask test --full"]
fn systemd_starts_a_gateway_again_that_hangs_or_dies_and_none_that_works() {
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let manager = start(&site, "WatchdogSec=3\n");
    let login = || TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None);
    let mut client = site.topology.gateway.run(login);
    std::thread::sleep(Duration::from_secs(7));
    client.turn();
    assert!(client.closed.is_none(), "{:?}", client.closed.as_ref().map(CloseCause::to_string));
    assert_eq!(manager.show("NRestarts"), "0", "{}", manager.log());
    for (signal, restarts) in [("STOP", "1"), ("KILL", "2")] {
        manager.run_done(&format!("systemctl kill --kill-whom=main --signal={signal} tollgate"));
        let is_back = || manager.show("NRestarts") == restarts && manager.show("ActiveState") == "active";
        assert!(eventually(PATIENCE, is_back), "{signal}: {}", manager.log());
    }
    site.topology.gateway.run(login);
}
