//! The package of Debian in a clean Debian, under the real service manager: installed, upgraded, removed, purged.

use std::path::Path;
use std::process::Command;

use tollgate_test_support::pages::root;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, program, turn};

use tollgate_test_support::deployment::Plan;

use crate::manager::Manager;
use crate::site::Site;

/// What makes all packages of the program under test in `folder`.
pub fn command(folder: &Path, revision: u32) -> Command {
    // Beside the program: `cargo xtask` has built it.
    let xtask = program().with_file_name("xtask");
    assert!(xtask.exists(), "there is no {}: cargo build --workspace --bin xtask", xtask.display());
    let mut command = Command::new(xtask);
    command.args(["release", "--draft", "--revision", &revision.to_string(), "--binary"]).arg(program());
    command.arg("--to").arg(folder).current_dir(root());
    command
}

/// Makes all but the image.
pub fn make(folder: &Path, revision: u32) {
    let output = command(folder, revision).arg("--no-image").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file and folder of a machine, but what package tools remember.
fn files(manager: &Manager) -> String {
    let others = "/var/lib/dpkg /var/lib/apt /var/cache /var/log /var/lib/systemd/deb-systemd-helper-masked";
    let pruned: Vec<String> = others.split(' ').map(|path| format!("-path {path} -prune -o")).collect();
    let backups = "grep -v '^/etc/\\(passwd\\|group\\|shadow\\|gshadow\\|subuid\\|subgid\\|.pwd.lock\\)'";
    let listed = manager
        .run_done(&format!("find /etc /usr /var /run /opt /root -xdev {} -print | sort | {backups}", pruned.join(" ")));
    listed
        .lines()
        .filter(|line| !line.starts_with("/run/systemd") && !line.ends_with("__pycache__"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Puts the files of `site` where the package has the gateway look for them.
fn configure(manager: &Manager, site: &Site) {
    let copied = Command::new("cp").arg("-r").arg(site.deployment.folder()).arg(manager.out().join("files")).status();
    assert!(copied.unwrap().success());
    let from = site.deployment.folder();
    manager.run_done(&format!(
        "cp -r /out/files/. /etc/tollgate; sed -i 's#{}#/etc/tollgate#' /etc/tollgate/server.toml; \
         chgrp -R tollgate /etc/tollgate; chmod -R g+rX,o= /etc/tollgate",
        from.display()
    ));
}

#[test]
#[ignore = "needs root, systemd and a Debian of cargo xtask debian: cargo xtask test --full"]
fn the_package_is_installed_upgraded_removed_and_purged_and_leaves_what_is_the_operators() {
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let manager = Manager::start_clean(&site.topology.gateway);
    make(manager.out(), 1);
    make(manager.out(), 2);
    manager.prepare("tollgate", "");
    manager.run_done("systemctl daemon-reload");
    let install = |revision: u32| manager.run_done(&format!("dpkg -i /out/tollgate_*-{revision}_*.deb 2>&1"));
    let before = files(&manager);

    // Installed: ready, and nothing is started that has no configuration.
    let said = install(1);
    assert!(said.contains("write /etc/tollgate/server.toml"), "{said}");
    assert_eq!(manager.run_done("dpkg --verify tollgate"), "");
    assert_eq!(manager.run_done("systemctl is-enabled tollgate").trim(), "enabled");
    assert_eq!(manager.show("ActiveState"), "inactive");
    assert_eq!(manager.run_done("stat -c '%U:%G %a' /etc/tollgate").trim(), "root:tollgate 750");
    let installed = files(&manager);
    for file in [
        "/usr/share/man/man1/tollgate-serve.1.gz",
        "/usr/share/bash-completion/completions/tollgate",
        "/usr/share/doc/tollgate/THIRD-PARTY",
        "/usr/share/doc/tollgate/examples/server.toml",
    ] {
        assert!(installed.lines().any(|line| line == file), "{file} is not among\n{installed}");
    }
    configure(&manager, &site);
    manager.run_done("systemctl start tollgate");
    assert_eq!(manager.show("ActiveState"), "active", "{}", manager.log());

    // Upgraded: another process serves, and who was there notices nothing.
    let login = || TestTunnel::login(&site.deployment, "alice", ([127, 0, 0, 1], 55555).into(), None);
    let mut client = site.topology.gateway.run(login);
    let process = manager.show("MainPID");
    let said = install(2);
    assert!(manager.run_done("dpkg -s tollgate").contains("\nVersion: 0.1.0-2\n"), "{said}");
    assert!(eventually(PATIENCE, || manager.show("MainPID") != process), "{said}\n{}", manager.log());
    client.turn();
    assert!(client.closed.is_none(), "{said}\n{}", manager.log());
    assert_eq!((&manager.show("ActiveState")[..], &manager.show("NRestarts")[..]), ("active", "0"));

    // An upgrade that cannot be says what to do, and the gateway goes on.
    let said = install(2);
    assert!(said.contains("the gateway goes on with the program before"), "{said}");
    assert_eq!(manager.show("ActiveState"), "active");

    // Removed: the gateway ends; configuration and state stay, for another installation.
    manager.run_done("dpkg -r tollgate");
    assert!(!manager.run("systemctl is-active tollgate").0 && !manager.run("ip link show tollgate0").0);
    let removed = files(&manager);
    let has = |files: &str, file: &str| files.lines().any(|line| line == file);
    assert!(has(&removed, "/etc/tollgate/server.toml") && has(&removed, "/var/lib/tollgate/keys"), "{removed}");
    assert!(!removed.contains("/usr/bin/tollgate") && !removed.contains("/usr/share/doc/tollgate"), "{removed}");
    install(1);
    assert_eq!(manager.show("ActiveState"), "active", "{}", manager.log());

    // Purged: what is left is what the operator has written.
    let said = manager.run_done("dpkg -P tollgate 2>&1");
    assert!(said.contains("/etc/tollgate has files, so it stays"), "{said}");
    let purged = files(&manager);
    let left = purged.lines().filter(|line| !has(&before, line) && !line.starts_with("/etc/tollgate"));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
    manager.run_done("rm -r /etc/tollgate");
    install(1);
    manager.run_done("dpkg -P tollgate");
    assert_eq!(files(&manager), before);
    assert!(!manager.run("getent passwd tollgate").0 && !manager.run("getent group tollgate").0);
}
