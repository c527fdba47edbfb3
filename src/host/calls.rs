//! The system calls of a process that serves (seccomp(2)).
//!
//! What is not on the list is refused with EPERM, as container engines do it, and not answered by a kill: a library that asks for more on some machine falls
//! back, where a gateway that dies for it would be an outage. Nobody who has taken the process over gets further by a refusal.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// `TUNSETSTEERINGEBPF` and `TUNSETOFFLOAD`, and what standard libraries ask of descriptors.
const REQUESTS: [u64; 6] =
    [libc::TUNSETSTEERINGEBPF, libc::TUNSETOFFLOAD, libc::FIONBIO, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ];
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Of prctl(2): names and timers of threads, and names of memory, which the C library gives.
const OPTIONS: [libc::c_int; 5] =
    [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_TIMERSLACK, libc::PR_GET_TIMERSLACK, libc::PR_SET_VMA];
/// `BPF_MAP_UPDATE_ELEM`, where the kernel lends no memory of a map.
const MAP_UPDATE: u64 = 2;
/// A thread, and nothing else that is new.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Packets, the poller, time and locks.
const RUNNING: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_getrandom,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Memory, threads, signals, and the process itself.
const PROCESS: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Answered by another filter, so that the C library takes the call whose arguments can be looked at.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_capget,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_pidfd_open,
];

/// Files, and sockets of the control plane.
const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_umask,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
];

/// The same by numbers that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Leaves the calling thread, and those that it starts, the calls of a process that serves.
///
/// # Errors
///
/// Where the kernel or the architecture has no such filters.
pub fn leave_few() -> Result<(), Error> {
    let program = program(clone3_is_unknown()?)?;
    let list = program_of_list()?;
    apply_filter(&program)?;
    apply_filter(&list)
}

fn program(filter: SeccompFilter) -> Result<BpfProgram, Error> {
    Ok(filter.try_into()?)
}

/// The C library falls back to clone(2).
fn clone3_is_unknown() -> Result<SeccompFilter, Error> {
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, unknown, std::env::consts::ARCH.try_into()?)?)
}

fn program_of_list() -> Result<BpfProgram, Error> {
    let whole = [RUNNING, PROCESS, FILES, OLDER].concat().into_iter().map(|call| (call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = whole.collect();
    let process = u64::from(std::process::id());
    let each = |numbers: Vec<u64>, argument| {
        numbers.into_iter().map(|number| rule(argument, Len::Dword, Op::Eq, number)).collect::<Result<Vec<_>, _>>()
    };
    let numbers = |numbers: &[libc::c_int]| numbers.iter().map(|number| *number as u64).collect();
    rules.insert(libc::SYS_ioctl, each(REQUESTS.to_vec(), 1)?);
    rules.insert(libc::SYS_socket, each(numbers(&FAMILIES), 0)?);
    rules.insert(libc::SYS_socketpair, each(vec![libc::AF_UNIX as u64], 0)?);
    rules.insert(libc::SYS_prctl, each(numbers(&OPTIONS), 0)?);
    rules.insert(libc::SYS_bpf, each(vec![MAP_UPDATE], 0)?);
    // Signals to itself only, as in an abort; limits of its own only.
    rules.insert(libc::SYS_tgkill, each(vec![process], 0)?);
    rules.insert(libc::SYS_prlimit64, each(vec![0, process], 0)?);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![rule(0, Len::Qword, Op::MaskedEq(thread | NAMESPACES as u64), thread)?]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    program(SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?)
}

fn rule(argument: u8, length: Len, operation: Op, value: u64) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![Condition::new(argument, length, operation, value)?])?)
}
