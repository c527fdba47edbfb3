//! Limits of resources, as service managers set them.

use std::fs;

use tollgate_test_support::deployment::Plan;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::{PATIENCE, turn};

use crate::site::Site;
use crate::system_calls::PLAIN_THREADS;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn with_little_lockable_memory_the_shards_run_on_plain_pinned_threads() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let gateway =
        site.start(site.command(&["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"]));
    let line = gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
    assert!(line.contains("64 KiB of memory may be locked"), "{line}");
    site.assert_serves(&peers, gateway);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_soft_limit_of_lockable_memory_is_raised() {
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut gateway = site.start(site.command(&["prlimit", "--memlock=65536:2097152"]));
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.process.id())).unwrap();
    let locked = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    assert_eq!(locked.split_whitespace().take(2).collect::<Vec<_>>(), ["2097152"; 2]);
    assert_eq!(gateway.count_lines(PLAIN_THREADS), usize::from(tollgate::io::uring::probe().is_err()));
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_soft_limit_of_descriptors_is_raised_and_too_low_a_hard_one_is_named() {
    let _turn = turn::together();
    let site = Site::new(&Plan { shards: 24, ..Plan::default() });
    let mut gateway = site.start(site.command(&["prlimit", "--nofile=128:4096"]));
    assert_eq!(gateway.status().shards(), 24);
    let descriptors = gateway.process.open_descriptors().unwrap();
    assert!((128..=16 * 24 + 64).contains(&descriptors), "what is asked for is enough: {descriptors}");
    gateway.assert_sound();
    drop(gateway);
    let line = site.start_and_fail(site.command(&["prlimit", "--nofile=128:200"]));
    assert!(line.contains("24 shards need 448 open descriptors, and this process may have 200"), "{line}");
    assert!(line.contains("ulimit -Hn") && !line.contains("memory"), "{line}");
}
