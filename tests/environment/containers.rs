//! Folders, users, devices and variables of a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::mounts::after_mounts;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::{PATIENCE, turn};

use crate::site::Site;
use crate::system_calls::{FORBIDDEN, PLAIN_THREADS, URING_CALLS, forbidding};

/// Mounts as of a container with a read-only root, and a user who has CAP_NET_ADMIN and nothing else.
const READ_ONLY: &str = "mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /var";
const ANYBODYS_TUN: &str = "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200";
const ORDINARY_USER: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=+net_admin",
];

/// What Kubernetes sets in each container of a name space that has a service of this name.
fn variables_of_a_service(name: &str) -> Vec<(String, &'static str)> {
    let variables = [
        ("SERVICE_HOST", "198.18.77.7"),
        ("SERVICE_PORT", "9090"),
        ("SERVICE_PORT_HTTP", "9090"),
        ("PORT", "tcp://198.18.77.7:9090"),
        ("PORT_9090_TCP", "tcp://198.18.77.7:9090"),
        ("PORT_9090_TCP_PROTO", "tcp"),
        ("PORT_9090_TCP_PORT", "9090"),
        ("PORT_9090_TCP_ADDR", "198.18.77.7"),
    ];
    variables.into_iter().map(|(suffix, value)| (format!("{name}_{suffix}"), value)).collect()
}

/// Lets other users read what only root may.
fn open_to_all(deployment: &Deployment) {
    fs::set_permissions(deployment.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(deployment.path("server_key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn quincys_own_file_serves_with_a_read_only_run_and_var() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let gateway = site.start(after_mounts(READ_ONLY, &site.command(&[])));
    for (lost, path) in [("tollgate reload", "/run/tollgate"), ("notice a restart", "/var/lib/tollgate/keys")] {
        let line = gateway.process.wait_for_line(lost, PATIENCE).unwrap();
        assert!(line.contains("WARN") && line.contains(path) && line.contains("Read-only"), "{line}");
    }
    site.assert_serves(&peers, gateway);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_is_configured_and_cannot_be_made_is_refused() {
    let _turn = turn::together();
    for (setting, word) in [
        ("[control]\nsocket = \"/run/tollgate/own.sock\"", "control socket"),
        ("[shards]\nkey_file = \"/var/lib/own\"", "key file"),
    ] {
        let site = Site::with_quincys_own_file(&Plan::default());
        let path = site.deployment.path("server.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n{setting}\n")).unwrap();
        let line = site.start_and_fail(after_mounts(READ_ONLY, &site.command(&[])));
        assert!(line.contains(word) && line.contains("Read-only"), "{line}");
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_user_with_nothing_but_the_right_to_make_network_devices_serves() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    open_to_all(&site.deployment);
    let gateway = site.start(after_mounts(ANYBODYS_TUN, &site.command(&ORDINARY_USER)));
    let line = gateway.process.wait_for_line("listening on", PATIENCE).unwrap();
    assert!(line.contains("the driver's flow table"), "no eBPF without CAP_BPF: {line}");
    site.assert_serves(&peers, gateway);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn without_a_tun_driver_the_gateway_says_so_in_one_line() {
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut process =
        site.topology.gateway.spawn(after_mounts("mount -t tmpfs none /dev/net", &site.command(&[]))).unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1));
    let lines = process.lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("tun")).collect();
    assert!(told.len() == 1 && told[0].starts_with("tollgate: ") && told[0].contains("/dev/net/tun"), "{lines:#?}");
    assert!(told[0].contains("load the module `tun`, or give the container this device"), "{told:?}");
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_hardened_container_of_a_cluster_serves() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    open_to_all(&site.deployment);
    let forbidden = URING_CALLS.map(|(call, _)| format!("{call}={}", libc::EPERM)).join(",");
    // The filter goes in last, as the user: a test program that others may run.
    let program = site.deployment.path("launcher");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let served = site.deployment.path("tollgate");
    fs::copy(env!("CARGO_BIN_EXE_tollgate"), &served).unwrap();
    let mut serve = Command::new(&served);
    serve.args(Gateway::command(&site.deployment).get_args());
    let filtered = forbidding(&forbidden, &serve);
    let mut command = Command::new(ORDINARY_USER[0]);
    command.args(&ORDINARY_USER[1..]).arg(&program).args(filtered.get_args()).env(FORBIDDEN, forbidden);
    command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(site.deployment.folder());
    for service in ["QUINCY", "QUINCY_METRICS", "QUINCY_BIND", "TOLLGATE", "TOLLGATE_METRICS", "TOLLGATE_SERVER"] {
        command.envs(variables_of_a_service(service));
    }
    command.env("QUINCY_VERSION", "3.1.1");
    let gateway = site.start(after_mounts(&format!("{READ_ONLY} && {ANYBODYS_TUN}"), &command));
    gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
    site.assert_serves(&peers, gateway);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_full_disk_at_the_first_start_leaves_nothing_behind() {
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let folder = site.deployment.path("full");
    fs::create_dir(&folder).unwrap();
    let full = folder.display();
    let program = env!("CARGO_BIN_EXE_tollgate");
    for arguments in [
        format!("serve --config {}", site.deployment.path("with_key_file.toml").display()),
        format!("identity gencert --name a --out-cert {full}/c.pem --out-key {full}/k.pem"),
    ] {
        let text = fs::read_to_string(site.deployment.path("server.toml")).unwrap();
        let text = format!("{text}\n[control]\nsocket = \"control\"\n[shards]\nkey_file = \"{full}/keys\"\n");
        fs::write(site.deployment.path("with_key_file.toml"), text).unwrap();
        let script = format!(
            "exec 2>&1; mount -t tmpfs -o size=4k,nr_inodes=100 none {full}; head -c 4096 /dev/zero > {full}/filler || true; \
             {program} {arguments} || echo refused; ls -A {full}"
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .current_dir(site.deployment.folder());
        let mut process = site.topology.gateway.spawn(command).unwrap();
        process.wait(PATIENCE).unwrap();
        let lines = process.lines();
        let refused = lines.iter().position(|line| line == "refused").unwrap_or_else(|| panic!("{lines:#?}"));
        assert!(lines[..refused].iter().any(|line| line.contains("No space left")), "{lines:#?}");
        assert_eq!(lines[refused + 1..], ["filler"], "{lines:#?}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn variables_of_services_and_of_quincys_other_programs_do_not_keep_a_gateway_from_serving() {
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut command = site.command(&[]);
    for service in ["QUINCY", "QUINCY_METRICS", "QUINCY_BIND", "TOLLGATE", "TOLLGATE_METRICS", "TOLLGATE_CONTROL"] {
        command.envs(variables_of_a_service(service));
    }
    let others = [
        ("QUINCY_VERSION", "3.1.1"),
        ("QUINCY_CONNECTION_STRING", "vpn.example.org:1"),
        ("QUINCY_NETWORK__ROUTES", "[]"),
    ];
    command.envs(others).env("QUINCY_CONNECTION__MTUU", "1300");
    let mut gateway = site.start(command);
    for (name, _) in others.into_iter().chain([("QUINCY_CONNECTION__MTUU", "")]) {
        let line = gateway.process.wait_for_line(&format!("variable {name}:"), PATIENCE).unwrap();
        assert!(line.contains("WARN") && line.contains("ignored"), "{line}");
    }
    assert_eq!(gateway.count_lines("SERVICE") + gateway.count_lines("9090"), 0);
    gateway.assert_sound();
}
