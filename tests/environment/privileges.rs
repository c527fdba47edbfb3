//! What the gateway's two processes may do, as the kernel says of each of their threads.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::faults::Escapes;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, control, eventually, turn};

use crate::site::{Site, ip};

/// CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_BPF.
const HELPERS: u64 = 1 << 2 | 1 << 10 | 1 << 12 | 1 << 39;
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
/// Of the user nobody.
const NOBODY: u32 = 65534;
const HELPERS_NAME: &str = "tollgate-host";

/// The lines of /proc/PID/status and the like that say which capabilities a thread has.
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

fn field(status: &Path, name: &str) -> String {
    let status = fs::read_to_string(status).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

fn threads(process: u32) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    tasks.map(|task| task.path().join("status")).collect()
}

/// Fails unless each thread of `process` has these capabilities and can get no others.
fn assert_capabilities(process: u32, expected: [u64; 5]) {
    let threads = threads(process);
    for status in &threads {
        let has = SETS.map(|set| u64::from_str_radix(&field(status, set), 16).unwrap());
        assert_eq!((has, &field(status, "NoNewPrivs")[..]), (expected, "1"), "{}", field(status, "Name"));
        let is_filtered = field(status, "Seccomp") == "2";
        assert_eq!(is_filtered, expected[2] == 0, "{}", field(status, "Name"));
    }
    assert!(!threads.is_empty());
}

/// The helper of `process`.
fn helper(process: u32) -> Pid {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    let is_helper = |child: &&str| field(Path::new(&format!("/proc/{child}/status")), "Name") == HELPERS_NAME;
    let found: Vec<_> = children.split_whitespace().filter(is_helper).collect();
    assert_eq!(found.len(), 1, "{children:?}");
    Pid::from_raw(found[0].parse().unwrap()).unwrap()
}

fn number(process: Pid) -> u32 {
    process.as_raw_nonzero().get() as u32
}

/// Whether it runs: one that nobody has waited for does not.
fn lives(process: Pid) -> bool {
    let state = field(Path::new(&format!("/proc/{}/status", number(process))), "State");
    !state.is_empty() && !state.starts_with('Z')
}

fn login(site: &Site) -> TestTunnel {
    site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None))
}

fn start() -> (Site, Gateway) {
    let site = Site::new(&Plan::default());
    let gateway = site.start(site.command(&[]));
    (site, gateway)
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn no_thread_that_serves_has_a_capability_and_the_helper_has_four() {
    let _turn = turn::together();
    let (site, gateway) = start();
    let client = login(&site);
    assert!(client.closed.is_none());
    let serving = gateway.process.id();
    assert!(threads(serving).len() > 2, "shards and the log");
    assert_capabilities(serving, [0; 5]);
    let first = helper(serving);
    assert_capabilities(number(first), [0, HELPERS, HELPERS, HELPERS, 0]);
    let open = fs::read_dir(format!("/proc/{}/fd", number(first))).unwrap().count();
    assert_eq!((threads(number(first)).len(), open), (1, 5), "input, outputs, the link, netlink");

    let answer = control::ask(&site.deployment, &["upgrade", "--within", "0s"]);
    assert!(answer.done, "{answer:?}");
    let line = gateway.process.wait_for_line("was started to take over", PATIENCE).unwrap();
    let next: u32 = line.split_once("process ").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    // The helper before has left its child no way to empty the bounding set, and none to make use of it.
    assert_capabilities(next, [0, 0, 0, HELPERS, 0]);
    assert_capabilities(number(helper(next)), [0, HELPERS, HELPERS, HELPERS, 0]);
    assert!(eventually(PATIENCE, || !lives(first)), "the first helper ends with its gateway");
    let last = helper(next);
    let next = Pid::from_raw(next as i32).unwrap();
    kill_process(next, Signal::TERM).unwrap();
    assert!(eventually(PATIENCE, || !lives(next) && !lives(last)));
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_helper_ends_with_the_gateway_and_not_by_the_signals_that_are_meant_for_it() {
    let _turn = turn::together();
    let (site, mut gateway) = start();
    let helper = helper(gateway.process.id());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        kill_process(helper, signal).unwrap();
    }
    ip(&site, &["link", "del", "tollgate0"]);
    gateway.process.wait_for_line("was gone: made anew", PATIENCE).unwrap();
    assert!(lives(helper));
    gateway.process.kill().unwrap();
    assert!(eventually(PATIENCE, || !lives(helper)));
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_without_its_helper_serves_and_says_what_it_cannot_do() {
    let _turn = turn::together();
    let (site, mut gateway) = start();
    let helper = helper(gateway.process.id());
    kill_process(helper, Signal::KILL).unwrap();
    assert!(eventually(PATIENCE, || !lives(helper)));
    let client = login(&site);
    assert!(client.closed.is_none(), "{:?}", client.closed);
    ip(&site, &["link", "set", "tollgate0", "mtu", "1300"]);
    let line = gateway.process.wait_for_line("are not as they should be", PATIENCE).unwrap();
    assert!(line.contains("the process that changes the host for this one is gone"), "{line}");
    let answer = control::ask(&site.deployment, &["upgrade"]);
    assert!(!answer.done && answer.said.contains("restart the gateway"), "{answer:?}");
    gateway.assert_sound();
    assert!(gateway.process.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_a_shards_own_thread_tries_once_somebody_has_taken_it_over_is_refused() {
    let _turn = turn::together();
    let (site, escapes) = (Site::new(&Plan::default()), Escapes::build());
    let mut command = site.command(&[]);
    escapes.prepare(&mut command);
    let mut gateway = site.start(command);
    escapes.arm();
    let client = login(&site);
    assert!(client.closed.is_none(), "{:?}", client.closed);
    assert!(eventually(PATIENCE, || !escapes.attempts().is_empty()), "{:#?}", gateway.process.lines());
    for (attempt, error) in escapes.attempts() {
        // By Landlock, or by the filter of system calls.
        let refusal = if attempt.starts_with("path: ") { libc::EACCES } else { libc::EPERM };
        assert_eq!(error, Some(refusal), "{attempt}");
    }
    gateway.assert_sound();
}

/// As quincy-server does that root starts. The configuration is in somebody's own folder, and metrics are at a port below 1024.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_only_another_user_may_read_is_read_at_the_start_at_reloads_and_by_the_next_process() {
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let folder = site.deployment.folder();
    let path = site.deployment.path("server.toml");
    let mut text = fs::read_to_string(&path).unwrap();
    text = text.replace("[control]", "[control]\nwatch_users_file = true");
    text.push_str("\n[metrics]\nenabled = true\naddress = \"127.0.0.1\"\nport = 97\n");
    fs::write(&path, text).unwrap();
    let give_away = || {
        for file in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    };
    give_away();
    let gateway = site.start(site.command(&[]));
    assert!(login(&site).closed.is_none());

    // Another one is written, and is noticed without an order.
    let users = fs::read_to_string(site.deployment.path("users.toml")).unwrap();
    fs::write(site.deployment.path("next"), format!("{users}\n[users.carol]\nauthorized_certs = []\n")).unwrap();
    give_away();
    fs::rename(site.deployment.path("next"), site.deployment.path("users.toml")).unwrap();
    let line = gateway.process.wait_for_line("users: 1 added", PATIENCE);
    assert!(line.is_ok(), "{:#?}", gateway.process.lines());

    let answer = control::ask(&site.deployment, &["upgrade", "--within", "0s"]);
    assert!(answer.done, "{answer:?}");
    assert!(login(&site).closed.is_none());
    let answer = control::ask(&site.deployment, &["reload"]);
    assert!(answer.done, "{answer:?}");
}
