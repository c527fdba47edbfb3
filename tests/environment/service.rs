//! The gateway as a service of systemd: the unit as it is shipped, installed as docs/deployment.md says, under the real service manager.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tollgate_shards::CloseCause;
use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::pages::{page, root};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::{Process, SERVER_V4};

use crate::site::{Site, ip};

/// Of systemd-analyze(1), from 0 (best) to 10.
const EXPOSURE_MAX: f64 = 2.5;
/// What the unit leaves, and only the helper has: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_BPF.
const CAPABILITIES: u64 = 1 << 10 | 1 << 12 | 1 << 39;
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

const RULES: &str = "nft list table ip tollgate_tollgate0";

/// What only the test needs: it sees what the gateway says, and starts nothing but the gateway.
const DROP_IN: &str =
    "[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/out/log\nStandardError=append:/out/log\n";

/// A systemd that has nothing to do but what it is told, in the gateway's network namespace.
struct Manager {
    out: TempDir,
    group: String,
    /// Killed with all that it has started.
    process: Process,
    /// Its number outside.
    first: String,
}

impl Manager {
    /// Starts it, with the files of `site` in /etc/tollgate, and the gateway as docs/deployment.md says, with more `settings` of the service.
    fn start(site: &Site, settings: &str) -> Self {
        let out = tempfile::tempdir().unwrap();
        let group = out.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let mut command = Command::new("sh");
        command.args(["-ec", include_str!("systemd.sh")]).env("group", &group).env("out", out.path());
        command
            .env("files", site.deployment.folder())
            .env("program", env!("CARGO_BIN_EXE_tollgate"))
            .env("source", root());
        let process = site.topology.gateway.spawn(command).unwrap();
        let mut manager = Manager { out, group, process, first: String::new() };
        let children = format!("/proc/{0}/task/{0}/children", manager.process.id());
        let has_started = || {
            manager.first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            !manager.first.is_empty() && manager.run("systemctl show --property=Version").0
        };
        assert!(eventually(PATIENCE, has_started), "{}", manager.process.last_lines());
        manager.install(site, settings);
        manager
    }

    fn install(&self, site: &Site, settings: &str) {
        // The gateway turns it on.
        site.topology.gateway.sysctl("net/ipv4/ip_forward", "0").unwrap();
        let folder = site.deployment.folder().display();
        self.run_done(&format!(
            "sed -i 's#{folder}#/etc/tollgate#' /etc/tollgate/server.toml; printf '[host]\nmasquerade = true\n' >> /etc/tollgate/server.toml"
        ));
        let drop_in = format!("{DROP_IN}{settings}");
        let folder = "/etc/systemd/system/tollgate.service.d";
        self.run_done(&format!("mkdir -p {folder}; cat > {folder}/test.conf <<'END'\n{drop_in}\nEND\n"));
        let deployment = page(&root(), "docs/deployment.md");
        self.run_done(&format!("cd /source\n{}", deployment.block("unit").text));
    }

    /// Runs `commands` inside, as root. Returns whether they went well, and what they said.
    fn run(&self, commands: &str) -> (bool, String) {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.first,
            "--mount",
            "--net",
            "--pid",
            "--root",
            "--cgroup",
            "--wd=/",
            "sh",
            "-euc",
            commands,
        ]);
        let output = command.env("SYSTEMD_IGNORE_CHROOT", "1").output().unwrap();
        let complaints = if output.status.success() { Vec::new() } else { output.stderr };
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, complaints].concat()).into_owned())
    }

    fn run_done(&self, commands: &str) -> String {
        let (done, said) = self.run(commands);
        assert!(done, "{commands}\n{said}\n{}\n{}", self.log(), self.process.last_lines());
        said
    }

    /// A property of the service.
    fn show(&self, property: &str) -> String {
        self.run_done(&format!("systemctl show tollgate --value --property={property}")).trim().to_owned()
    }

    /// What the kernel says of the main process.
    fn kernel_says(&self, of: &str) -> String {
        let status = self.run_done(&format!("cat /proc/{}/status", self.show("MainPID")));
        let value = status.lines().find_map(|line| line.strip_prefix(of)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {of} in {status}")).trim().to_owned()
    }

    /// What the gateway has said.
    fn log(&self) -> String {
        fs::read_to_string(self.out.path().join("log")).unwrap_or_default()
    }

    fn wait_for_log(&self, words: &str) {
        assert!(eventually(PATIENCE, || self.log().contains(words)), "no {words:?} in\n{}", self.log());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = hierarchy.join(&self.group);
            eventually(PATIENCE, || remove_groups(&group));
        }
    }
}

/// Removes a control group and all below it, once nobody is in them. Returns whether it is gone.
fn remove_groups(group: &Path) -> bool {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    below.filter(|entry| entry.path().is_dir()).for_each(|entry| _ = remove_groups(&entry.path()));
    !group.exists() || fs::remove_dir(group).is_ok()
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
    let manager = Manager::start(&site, "");
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
    let manager = Manager::start(&site, "WatchdogSec=3\n");
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
