//! How one process becomes two.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tollgate_config::ServerConfig;

use super::paths::Paths;
use super::rules::Rules;
use super::{Host, Named, calls, helper, privileges};
use crate::upgrade::Program;

/// What `ps` calls the helper's thread.
const NAME: &CStr = c"tollgate-host";

/// What the process that serves begins with.
#[derive(Debug)]
pub struct Split {
    /// The way to the helper.
    pub host: Host,
    /// What the kernel does not close for it, each in one line for people.
    pub left_open: Vec<String>,
}

/// There cannot be two processes.
#[derive(Debug, thiserror::Error)]
#[error("no process can be started that changes the host for the gateway: {0}")]
pub struct SplitError(#[from] io::Error);

/// Starts the helper of a gateway of `config`, which names `files`, from `program`, and gives up all privileges of this process, for good, and all system calls that it does not
/// need. The helper ends when this process has ended.
///
/// To be called before there is a second thread: each has privileges of its own.
///
/// # Errors
///
/// When the system is out of something.
pub fn split(config: &ServerConfig, files: Named, program: Program) -> Result<Split, SplitError> {
    raise_limits();
    let (rules, paths) = (Rules::of(config, files), Paths::of(config));
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
    // SAFETY: the process has one thread, so nothing is held by another one that the child would miss.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            // Whatever becomes of it, the child never returns to what its parent was about.
            let code = i32::from(be_helper(&theirs, rules, program).is_err());
            // SAFETY: ends the process, whose only thread this is. Destructors are its parent's.
            unsafe { libc::_exit(code) }
        }
        _ => {
            drop(theirs);
            privileges::keep_none()?;
            let host = Host::over(ours)?;
            Ok(Split { host, left_open: [unlocked(&paths), unfiltered()].into_iter().flatten().collect() })
        }
    }
}

/// What is to be said of files, if anything.
fn unlocked(paths: &Paths) -> Option<String> {
    let why = match paths.leave() {
        Ok(true) => return None,
        Ok(false) => "this kernel has no Landlock".to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!("files that are not the gateway's own are not forbidden to it: {why}"))
}

/// Likewise of system calls.
fn unfiltered() -> Option<String> {
    let error = calls::leave_few().err()?;
    Some(format!("system calls that the gateway does not need are not forbidden to it: {error}"))
}

fn be_helper(link: &OwnedFd, rules: Rules, program: Program) -> io::Result<()> {
    // The signals of a terminal or a service manager are for the process that serves, whose end is the end of this one. Handlers, unlike SIG_IGN, are not
    // handed to a program that is executed.
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let _ = rustix::thread::set_name(NAME);
    close_all_but(link)?;
    privileges::keep_helpers()?;
    helper::serve(link, rules, program);
    Ok(())
}

/// Closes what this process has of its parent: whoever waits for the other's end of a connection waits for that one alone. Outputs stay, for the program that
/// it starts.
fn close_all_but(link: &OwnedFd) -> io::Result<()> {
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    drop(nothing);
    let kept = link.as_raw_fd();
    for (first, last) in [(3, kept - 1), (kept + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: takes no pointers; whatever else owns one of these descriptors is never used or dropped in this process.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    Ok(())
}

/// Both processes have many descriptors to pass. Executors look at the limit of locked memory, which does not bind who has CAP_IPC_LOCK, as long as this
/// process may.
fn raise_limits() {
    raise_to_hard(Resource::Nofile);
    if capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK)) {
        let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    }
}

/// The limit of `resource` after the soft one was raised to the hard one; `None` for no limit.
pub fn raise_to_hard(resource: Resource) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current == maximum {
        return current;
    }
    match setrlimit(resource, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}
