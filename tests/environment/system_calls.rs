//! System calls that a container's filter forbids.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tollgate_test_support::deployment::Plan;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::Process;

use crate::site::Site;

pub const PLAIN_THREADS: &str = "the shards run on plain pinned threads";

/// Set for this test program where it is to forbid system calls and become the command behind `--`: `call=errno` with commas between.
pub const FORBIDDEN: &str = "TOLLGATE_TEST_FORBIDDEN_CALLS";

/// The calls of io_uring, by number.
pub const URING_CALLS: [(&str, i64); 3] = [
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
];

/// A call that container engines of before 2021 do not know, nor kernels before 5.11.
const WAITING_CALL: (&str, i64) = ("epoll_pwait2", libc::SYS_epoll_pwait2);

/// Has `command` run without the system calls that `forbidden` names, by way of this test program.
pub fn forbidding(forbidden: &str, command: &Command) -> Command {
    let mut launcher = Command::new(std::env::current_exe().unwrap());
    launcher.args([
        "--exact",
        "system_calls::a_program_is_run_without_some_system_calls",
        "--nocapture",
        "--test-threads=1",
        "--",
    ]);
    launcher.arg(command.get_program()).args(command.get_args()).env(FORBIDDEN, forbidden);
    for (name, value) in command.get_envs() {
        launcher.env(name, value.unwrap_or_default());
    }
    if let Some(folder) = command.get_current_dir() {
        launcher.current_dir(folder);
    }
    launcher
}

/// Not a test by itself: with [`FORBIDDEN`] set, this program becomes another one, under a filter as container engines install it.
#[test]
fn a_program_is_run_without_some_system_calls() {
    let Ok(forbidden) = std::env::var(FORBIDDEN) else { return };
    for rule in forbidden.split(',') {
        let (call, errno) = rule.split_once('=').unwrap();
        let (_, number) = URING_CALLS.into_iter().chain([WAITING_CALL]).find(|(name, _)| *name == call).unwrap();
        let filter = seccompiler::SeccompFilter::new(
            BTreeMap::from([(number, vec![])]),
            seccompiler::SeccompAction::Allow,
            seccompiler::SeccompAction::Errno(errno.parse().unwrap()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }
    let mut command = std::env::args_os().skip_while(|argument| argument != "--").skip(1);
    let error = Command::new(command.next().unwrap()).args(command).env_remove(FORBIDDEN).exec();
    panic!("not run: {error}");
}

/// The names of a process's threads, and the CPUs that they may use.
fn threads(process: &Process) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap().flatten();
    let mut threads: Vec<_> = tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            (field("Name:"), field("Cpus_allowed_list:"))
        })
        .collect();
    threads.sort();
    threads
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn where_io_uring_is_forbidden_the_shards_run_on_plain_pinned_threads() {
    let peers = Peers::find();
    let _turn = turn::together();
    let all = |errno: i32| URING_CALLS.map(|(call, _)| format!("{call}={errno}")).join(",");
    // As Docker's rules have it, as a kernel without io_uring has it, and as other filters may.
    for forbidden in [
        all(libc::EPERM),
        all(libc::ENOSYS),
        format!("io_uring_enter={}", libc::EPERM),
        format!("io_uring_register={}", libc::EACCES),
    ] {
        let site = Site::new(&Plan::default());
        let gateway = site.start(forbidding(&forbidden, &site.command(&[])));
        let line = gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
        assert!(line.contains("io_uring_") && line.contains("refused"), "{forbidden}: {line}");
        assert_eq!(gateway.count_lines(PLAIN_THREADS), 1);
        let shards: Vec<_> = threads(&gateway.process)
            .into_iter()
            .filter(|(name, _)| *name == "tollgate-0" || *name == "tollgate-1")
            .collect();
        assert!(shards.len() == 2 && shards.iter().all(|(_, cpus)| cpus.parse::<usize>().is_ok()), "{shards:?}");
        site.assert_serves(&peers, gateway);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn where_the_newer_way_to_wait_is_forbidden_the_older_one_serves() {
    let peers = Peers::find();
    let _turn = turn::together();
    for errno in [libc::ENOSYS, libc::EPERM] {
        let site = Site::new(&Plan::default());
        let gateway = site.start(forbidding(&format!("epoll_pwait2={errno}"), &site.command(&[])));
        site.assert_serves(&peers, gateway);
    }
}
