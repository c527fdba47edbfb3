//! Kernels that refuse, played by a preloaded library, and what happens to a program from outside.

mod escapes;
mod locks;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
use tempfile::TempDir;

pub use escapes::Escapes;
pub use locks::{LockCounts, Locks};

/// Words of the state that the library shares with the test, in its order, and how many there are.
const STILL_NS: usize = 0;
const AHEAD_S: usize = 1;
const ARMED: usize = 2;
const REFUSALS: usize = 3;
const CLOSES: usize = 4;
const LIES: usize = 7;
const SHARDS: usize = 64;
const STATE_WORDS: usize = LIES + SHARDS;

/// Faults of a program's system calls.
#[derive(Debug)]
pub struct Faults {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Faults {
    /// Compiles the library. No call fails yet.
    pub fn build() -> Faults {
        let folder = tempfile::tempdir().unwrap();
        compile("preload.c", &folder.path().join("faults.so"));
        fs::write(folder.path().join("state"), [0; STATE_WORDS * 8]).unwrap();
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
        command.env("LD_PRELOAD", self.path("faults.so")).env("FAULTS_STATE", self.path("state"));
        command.envs(self.variables.iter().map(|(variable, value)| (variable, value)));
    }

    /// Makes the faults happen from now on.
    pub fn arm(&self) {
        self.write(ARMED, 1);
    }

    /// Closes the descriptor that `call` uses next: `recvmmsg`, `sendmmsg`, or `writev` to a TUN queue.
    pub fn close_at(&self, call: &str) {
        let call = ["recvmmsg", "sendmmsg", "writev"].iter().position(|known| *known == call);
        self.write(CLOSES + call.expect("a call that is closed at"), 1);
    }

    /// Has shard `index` panic in its next send: the kernel claims to have sent more than it was given.
    pub fn panic_shard(&self, index: usize) {
        assert!(index < SHARDS);
        self.write(LIES + index, 1);
    }

    /// The monotonic clock has stood still for so long in all, as while a machine sleeps.
    pub fn stop_clock(&self, still: Duration) {
        self.write(STILL_NS, still.as_nanos() as u64);
    }

    /// The wall clock is so many seconds ahead of the machine's.
    pub fn set_wall_clock(&self, ahead_s: i64) {
        self.write(AHEAD_S, ahead_s as u64);
    }

    /// How many merged frames were refused.
    pub fn refusals(&self) -> u64 {
        let mut word = [0; 8];
        self.state().read_exact_at(&mut word, REFUSALS as u64 * 8).unwrap();
        u64::from_ne_bytes(word)
    }

    fn write(&self, word: usize, value: u64) {
        // In place: the file is mapped.
        self.state().write_all_at(&value.to_ne_bytes(), word as u64 * 8).unwrap();
    }

    fn state(&self) -> fs::File {
        fs::OpenOptions::new().read(true).write(true).open(self.path("state")).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Makes a library to preload of `source`, a file of this folder.
fn compile(source: &str, library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/faults").join(source);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source).arg("-ldl");
    let output = compiler.output().expect("a C compiler");
    assert!(output.status.success(), "{output:?}");
}

fn list(errors: &[i32]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Shuts the UDP sockets of the process `id` down, as a debugger could. Returns how many there were.
pub fn shut_down_udp(id: u32) -> usize {
    descriptors(id).filter(shut_down).count()
}

/// Copies of the descriptors of the process `id`.
fn descriptors(id: u32) -> impl Iterator<Item = OwnedFd> {
    let process = Pid::from_raw(id as i32).expect("a process");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("a process that runs");
    let numbers = fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(move |number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok())
}

fn shut_down(copy: &OwnedFd) -> bool {
    let is_udp = rustix::net::sockopt::socket_domain(copy)
        .is_ok_and(|domain| domain == rustix::net::AddressFamily::INET)
        && rustix::net::sockopt::socket_type(copy).is_ok_and(|kind| kind == rustix::net::SocketType::DGRAM);
    if is_udp {
        // It says that the socket is not connected, and shuts it down.
        let _ = rustix::net::shutdown(copy, rustix::net::Shutdown::Both);
    }
    is_udp
}

/// Makes the timers by which the process `id` watches the wall clock due, as the kernel does when the clock is set or the machine wakes up.
/// Returns how many there were. (The machine's own clock is left alone.)
pub fn tell_of_clock_jump(id: u32) -> usize {
    let number_of = |copy: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let timers =
        descriptors(id).filter(|copy| number_of(copy).is_ok_and(|name| name.ends_with("anon_inode:[timerfd]")));
    let past = Timespec { tv_sec: 1, tv_nsec: 0 };
    let due = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: past };
    timers.filter(|timer| timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &due).is_ok()).count()
}
