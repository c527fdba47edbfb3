//! An existing deployment of Quincy's server, migrated as docs/migration.md says.

use std::fs;
use std::process::Command;

use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::pages::{Page, page, root};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::manager::Manager;
use crate::packages;
use crate::site::Site;

/// How an administrator may have set it up: a user of its own, one capability, a read-only system, relative paths.
const UNIT: &str = "\
[Unit]
Description=Quincy VPN
After=network-online.target
[Service]
WorkingDirectory=/etc/quincy
ExecStart=/usr/local/bin/quincy-server --config-path server.toml
User=quincy
Group=quincy
AmbientCapabilities=CAP_NET_ADMIN
CapabilityBoundingSet=CAP_NET_ADMIN
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
Restart=on-failure
[Install]
WantedBy=multi-user.target
";

/// Puts Quincy's server and the files of `deployment` on the machine, and starts it.
fn deploy(manager: &Manager, peers: &Peers, deployment: &Deployment) {
    fs::copy(peers.server(), manager.out().join("quincy-server")).unwrap();
    let copied = Command::new("cp").arg("-r").arg(deployment.folder()).arg(manager.out().join("quincy")).status();
    assert!(copied.unwrap().success());
    let path = manager.out().join("quincy/server.toml");
    let text = fs::read_to_string(&path).unwrap().replace(&format!("{}/", deployment.folder().display()), "");
    fs::write(&path, format!("{text}\n[log]\nlevel = \"info\"\n")).unwrap();
    fs::write(manager.out().join("quincy-server.service"), UNIT).unwrap();
    manager.prepare("quincy-server", "");
    manager.run_done(
        "install -m 755 /out/quincy-server /usr/local/bin/; useradd --system quincy; cp -r /out/quincy /etc/quincy; \
         chown -R quincy:quincy /etc/quincy; \
         cp /out/quincy-server.service /etc/systemd/system/; systemctl daemon-reload; systemctl enable --now quincy-server",
    );
}

/// What serves.
fn program(manager: &Manager) -> String {
    let process = manager.show_of("quincy-server", "MainPID");
    manager.run_done(&format!("cat /proc/{process}/comm")).trim().to_owned()
}

/// A client of Quincy gets through; its configuration is what it was.
fn assert_serves(peers: &Peers, site: &Site) {
    let inside = &site.topology.clients[0].namespace;
    let mut client = Client::start(peers, &site.deployment, inside, Login::of("alice"));
    client.wait_for_address();
    wait_for_ping(inside, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    client.process.stop(PATIENCE).unwrap();
}

fn run(manager: &Manager, page: &Page, mark: &str) -> String {
    manager.run_done(page.block(mark).text)
}

#[test]
#[ignore = "needs root, systemd, a Debian of cargo xtask debian and Quincy's programs: cargo xtask test --full"]
fn an_existing_quincy_deployment_migrates_by_a_swap_of_the_program() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let manager = Manager::start_clean(&site.topology.gateway);
    deploy(&manager, &peers, &site.deployment);
    assert_eq!(program(&manager), "quincy-server", "{}", manager.log());
    assert_serves(&peers, &site);
    let files = "cd /etc/quincy; find . -type f | sort | xargs sha256sum; stat -c '%n %U %a' * /etc/systemd/system/quincy-server.service";
    let before = manager.run_done(files);

    packages::make(manager.out(), 1);
    manager.run_done("dpkg -i /out/tollgate_*.deb");
    assert_eq!(manager.show("ActiveState"), "inactive", "it starts nothing");
    let migration = page(&root(), "docs/migration.md");
    let said = run(&manager, &migration, "before");
    assert!(said.contains("tunnel_network = \"198.19.128.1/24\""), "{said}");
    run(&manager, &migration, "swap");
    manager.wait_for_log("listening on");
    assert_eq!(program(&manager), "tollgate");
    // Quincy's unit has no CAP_BPF, as the document says.
    let log = manager.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("CAP_BPF"), "{warnings:#?}");
    assert_serves(&peers, &site);
    let said = run(&manager, &migration, "after");
    assert!(!said.is_empty());

    // A new user by a reload, which no quincy-server has.
    manager.run_done("cd /etc/quincy; tollgate reload --config-path server.toml");
    assert_eq!(manager.run_done(files), before, "nothing of Quincy's is changed");
    run(&manager, &migration, "back");
    assert!(eventually(PATIENCE, || program(&manager) == "quincy-server"), "{}", manager.log());
    assert_serves(&peers, &site);
}
