//! Kernels that refuse, played by a preloaded library, and what other programs may do to a socket.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Faults of a program's system calls.
pub struct Faults {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Faults {
    /// Compiles the library. No call fails yet.
    pub fn build() -> Faults {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/preload.c");
        let library = folder.path().join("faults.so");
        let compiler =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]).output();
        let compiler = compiler.expect("a C compiler");
        assert!(compiler.status.success(), "{compiler:?}");
        Faults { folder, variables: Vec::new() }
    }

    /// Receives on sockets fail with these errors, one each.
    pub fn fail_receives(self, errors: &[i32]) -> Faults {
        self.with("FAULTS_RECEIVE", list(errors))
    }

    /// Sends fail with these errors, one each.
    pub fn fail_sends(self, errors: &[i32]) -> Faults {
        self.with("FAULTS_SEND", list(errors))
    }

    /// TUN writes of merged packets fail with EINVAL.
    pub fn refuse_merged_frames(self) -> Faults {
        self.with("FAULTS_MERGED", "all".into())
    }

    /// TUN writes of merged packets whose last one is shorter fail with EINVAL.
    pub fn refuse_frames_with_a_short_last_segment(self) -> Faults {
        self.with("FAULTS_MERGED", "short".into())
    }

    fn with(mut self, variable: &'static str, value: String) -> Faults {
        self.variables.push((variable, value));
        self
    }

    /// Has `command` suffer the faults, once they are armed.
    pub fn prepare(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.path("faults.so")).env("FAULTS_ARMED", self.path("armed"));
        command.env("FAULTS_REFUSALS", self.path("refusals"));
        command.envs(self.variables.iter().map(|(variable, value)| (variable, value)));
    }

    /// From now on.
    pub fn arm(&self) {
        fs::write(self.path("armed"), "").unwrap();
    }

    /// How many TUN writes were refused.
    pub fn refusals(&self) -> u64 {
        fs::metadata(self.path("refusals")).map_or(0, |file| file.len())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn list(errors: &[i32]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Shuts the UDP sockets of the process `id` down, as a debugger could. Returns how many there were.
pub fn shut_down_udp(id: u32) -> usize {
    // SAFETY: takes no pointers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    assert!(process >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    let numbers = fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|number| shut_down(&process, *number)).count()
}

fn shut_down(process: &OwnedFd, number: i32) -> bool {
    // SAFETY: takes no pointers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if copy < 0 {
        return false;
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let copy = unsafe { OwnedFd::from_raw_fd(copy as i32) };
    let is_udp = rustix::net::sockopt::socket_domain(&copy)
        .is_ok_and(|domain| domain == rustix::net::AddressFamily::INET)
        && rustix::net::sockopt::socket_type(&copy).is_ok_and(|kind| kind == rustix::net::SocketType::DGRAM);
    if is_udp {
        // It says that the socket is not connected, and shuts it down.
        let _ = rustix::net::shutdown(&copy, rustix::net::Shutdown::Both);
    }
    is_udp
}
