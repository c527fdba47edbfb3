//! Child processes inside a namespace: their output, their use of the machine, and their end.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use nix::time::{clock_getcpuclockid, clock_gettime};
use rustix::{
    process::{Pid, Signal, getpid, getppid, kill_process, kill_process_group, set_parent_process_death_signal},
    thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_getaffinity, sched_setaffinity},
};

use super::{Namespace, output::Output};
use crate::{LabError, wait::eventually};

/// How long to wait for the end of an ended process's output, which children of its own may keep open.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// How many of a process's last lines go into an error.
const LAST_LINES_MAX: usize = 20;

/// A child process in a lab namespace. It is killed when this value is dropped, and by the kernel when this process ends in any way.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Output,
    has_ended: bool,
}

impl Process {
    /// Starts `command` inside `namespace`, on the given CPUs (none means all), with standard input closed and its output captured.
    pub(super) fn start(mut command: Command, namespace: &Namespace, cpus: &[usize]) -> Result<Self, LabError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let name = format!("{} in {}", program.rsplit('/').next().unwrap_or(&program), namespace.name());
        let failed = |error| LabError::cannot(format_args!("process {name}"), "start", error);
        // A group of its own: an interrupt at the terminal does not reach it, and its own children end with it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let entrance = namespace.as_fd().try_clone_to_owned().map_err(failed)?;
        enter_before_exec(&mut command, entrance, cpus);
        let mut child = start_on_lasting_thread(command).map_err(failed)?;
        let output = Output::default();
        child.stdout.take().into_iter().for_each(|pipe| output.capture(pipe));
        child.stderr.take().into_iter().for_each(|pipe| output.capture(pipe));
        let name = format!("{name} ({})", child.id());
        Ok(Self { name, child, output, has_ended: false })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The lines of its standard output and error so far, in the order of their arrival; of very many, the last ones. All of them, once it is
    /// known to have ended.
    pub fn lines(&self) -> Vec<String> {
        self.output_so_far().lines()
    }

    /// The last of them, for errors.
    pub fn last_lines(&self) -> String {
        let lines = self.lines();
        format!("its last lines:\n{}", lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n"))
    }

    /// The number of lines so far, to wait for what comes later with [`Process::wait_for_line_from`].
    pub fn line_count(&self) -> usize {
        self.output_so_far().count()
    }

    fn output_so_far(&self) -> &Output {
        if self.has_ended {
            self.output.wait_for_end(LAST_OUTPUT);
        }
        &self.output
    }

    /// Waits for a line that contains `pattern`, earlier ones included, and returns it.
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> Result<String, LabError> {
        self.wait_for_line_from(0, pattern, timeout)
    }

    /// Waits for a line that contains `pattern`, from line number `first` on, and returns it.
    pub fn wait_for_line_from(&self, first: usize, pattern: &str, timeout: Duration) -> Result<String, LabError> {
        let found = self.output.wait_for(pattern, first, timeout);
        found.map_err(|reason| self.awaited(&format!("a line with {pattern:?}"), &reason))
    }

    /// CPU time that all its threads have used, ended ones included, in user and kernel mode, in seconds of nanosecond resolution.
    pub fn cpu_seconds(&self) -> Result<f64, LabError> {
        let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(self.child.id() as i32));
        let time = clock.and_then(clock_gettime).map_err(|errno| self.failed("read the CPU time", errno.into()))?;
        Ok(Duration::from(time).as_secs_f64())
    }

    pub fn peak_memory_bytes(&self) -> Result<u64, LabError> {
        self.status_bytes("VmHWM:")
    }

    pub fn memory_bytes(&self) -> Result<u64, LabError> {
        self.status_bytes("VmRSS:")
    }

    pub fn open_descriptors(&self) -> Result<usize, LabError> {
        let listing = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        Ok(listing.map_err(|source| self.failed("count the open descriptors", source))?.count())
    }

    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let sent = self.pid().and_then(|pid| kill_process(pid, signal));
        sent.map_err(|errno| self.failed("signal", errno.into()))
    }

    /// The exit status, once it has ended.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>, LabError> {
        let status = self.child.try_wait();
        self.has_ended |= matches!(status, Ok(Some(_)));
        status.map_err(|source| self.failed("wait for the end", source))
    }

    /// Waits until it ends. When it has not in time, it goes on running.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        eventually(timeout, || !matches!(self.exit_status(), Ok(None)));
        let status = self.exit_status()?;
        status.ok_or_else(|| self.awaited("its end", &format!("{timeout:?} have passed")))
    }

    /// Asks it to end with SIGTERM and waits. When it has not ended in time, it is killed, and that is an error.
    pub fn stop(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.exit_status()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        let ended = self.wait(timeout);
        if ended.is_err() {
            self.kill()?;
        }
        ended
    }

    /// Ends it, and the children that it has at this moment, with SIGKILL, and waits for the kernel to be done with it.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.exit_status()? {
            return Ok(status);
        }
        let killed = self.pid().and_then(|pid| kill_process_group(pid, Signal::KILL));
        let killed = killed.map_err(io::Error::from).and_then(|()| self.child.wait());
        self.has_ended |= killed.is_ok();
        killed.map_err(|source| self.failed("kill", source))
    }

    fn pid(&self) -> rustix::io::Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)
    }

    fn status_bytes(&self, field: &str) -> Result<u64, LabError> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.map_err(|source| self.failed("read the memory", source))?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        let ended = || self.failed("read the memory", io::Error::other("the process has ended"));
        kib.map(|kib| kib * 1024).ok_or_else(ended)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> LabError {
        LabError::cannot(format_args!("process {}", self.name), operation, source)
    }

    fn awaited(&self, awaited: &str, reason: &str) -> LabError {
        LabError::new(format!("process {}: {awaited} did not come: {reason}; {}", self.name, self.last_lines()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only a process that is gone already cannot be killed by its parent.
        let _ = self.kill();
    }
}

/// Makes the child enter the namespace, bind its life to its parent's, and take its CPUs, before it becomes the program.
fn enter_before_exec(command: &mut Command, entrance: OwnedFd, cpus: &[usize]) {
    let parent = getpid();
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    let cpus = (!cpus.is_empty()).then_some(set);
    let enter = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        if let Some(cpus) = &cpus {
            sched_setaffinity(None, cpus)?;
        }
        move_into_link_name_space(entrance.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
}

/// Starts a child from a thread that lasts as long as the process, for the kernel sends the parent's death signal when the *thread* that
/// forked ends.
fn start_on_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            resemble_main_thread();
            for (mut command, answer) in requests {
                // Whoever asked waits for the answer, so that it cannot be lost.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    STARTER.send((command, answer)).expect("a thread that lasts");
    child.recv().expect("a thread that lasts")
}

/// Gives this thread the main thread's namespace and CPUs, whichever thread it was started by: it would keep a lab namespace alive, and
/// pass its CPUs on to children.
fn resemble_main_thread() {
    // Where the main thread has ended there is nothing to take; children enter their namespace anyway.
    let _ = fs::File::open("/proc/self/ns/net").map(|own| move_into_link_name_space(own.as_fd(), None));
    let _ = sched_getaffinity(Some(getpid())).and_then(|cpus| sched_setaffinity(None, &cpus));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// True while a process of that ID exists, one that waits to be reaped included.
    fn exists(id: &str) -> bool {
        fs::exists(format!("/proc/{id}")).unwrap()
    }

    fn threads_inside(inode: u64) -> usize {
        let wanted = format!("net:[{inode}]");
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks.filter(|task| fs::read_link(task.path().join("ns/net")).is_ok_and(|link| *link == *wanted)).count()
    }

    fn wait_until_gone(id: &str) {
        assert!(eventually(LONG, || !exists(id)), "process {id} lives on");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_child_runs_inside_the_namespace_and_on_its_cpus() {
        let namespace = Namespace::new("home").unwrap();
        let script = "readlink /proc/self/ns/net; grep Cpus_allowed_list /proc/self/status; echo oops >&2; exit 3";
        let mut child = namespace.spawn_pinned(shell(script), &[0]).unwrap();
        child.wait_for_line(&format!("net:[{}]", namespace.inode()), LONG).unwrap();
        assert_eq!(child.wait_for_line("Cpus_allowed_list", LONG).unwrap(), "Cpus_allowed_list:\t0");
        child.wait_for_line("oops", LONG).unwrap();
        assert_eq!(child.wait(LONG).unwrap().code(), Some(3));
        let error = child.wait_for_line("never", LONG).unwrap_err().to_string();
        assert!(error.contains("closed its output") && error.contains("oops"), "{error}");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn all_that_a_child_has_printed_is_there_when_it_has_ended() {
        let namespace = Namespace::new("wordy").unwrap();
        let mut child = namespace.spawn(shell("seq 10000")).unwrap();
        child.wait(LONG).unwrap();
        assert_eq!((child.lines().len(), child.line_count()), (10_000, 10_000));
        let mut child = namespace.spawn(shell("sleep 1000 & echo ready")).unwrap();
        child.wait(LONG).unwrap();
        assert_eq!(child.lines(), ["ready"], "its own children may keep its output open");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn the_use_of_cpu_memory_and_descriptors_is_measured() {
        let namespace = Namespace::new("measured").unwrap();
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; kill -STOP $$";
        let mut child = namespace.spawn(shell(script)).unwrap();
        child.wait_for_line("done", LONG).unwrap();
        let used = child.cpu_seconds().unwrap();
        assert!(used > 0.0 && used < 60.0, "{used}");
        let resident = child.memory_bytes().unwrap();
        assert!(resident > 0 && child.peak_memory_bytes().unwrap() >= resident);
        assert!(child.open_descriptors().unwrap() >= 3);
        assert!(child.kill().unwrap().code().is_none());
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_child_that_ignores_the_request_to_stop_is_killed() {
        let namespace = Namespace::new("stubborn").unwrap();
        let mut child = namespace.spawn(shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")).unwrap();
        child.wait_for_line("ready", LONG).unwrap();
        assert!(child.stop(Duration::from_millis(50)).is_err());
        assert!(child.exit_status().unwrap().is_some());
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_child_outlives_the_thread_that_started_it_but_not_its_owner() {
        let namespace = Namespace::new("lasting").unwrap();
        let script = "sleep 1000 & echo grandchild is $!; wait";
        let mut child = namespace.run(|| namespace.spawn(shell(script))).unwrap();
        let line = child.wait_for_line("grandchild is ", LONG).unwrap();
        let (_, grandchild) = line.rsplit_once(' ').unwrap();
        assert!(child.exit_status().unwrap().is_none() && exists(grandchild));
        let id = child.id().to_string();
        drop(child);
        assert!(!exists(&id));
        wait_until_gone(grandchild);
        assert!(eventually(LONG, || threads_inside(namespace.inode()) == 0), "a thread stays in the namespace");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_child_dies_when_its_parent_is_killed() {
        const PARENT: &str = "TOLLGATE_LAB_TEST_PARENT";
        let namespace = Namespace::new("family").unwrap();
        if std::env::var_os(PARENT).is_some() {
            let child = namespace.spawn(shell("echo ready; exec sleep 1000")).unwrap();
            child.wait_for_line("ready", LONG).unwrap();
            println!("child is {}", child.id());
            thread::sleep(LONG);
            return;
        }
        let mut parent = Command::new(std::env::current_exe().unwrap());
        let test = "netns::process::tests::a_child_dies_when_its_parent_is_killed";
        parent.args(["--exact", test, "--ignored", "--nocapture"]).env(PARENT, "1");
        let mut parent = namespace.spawn(parent).unwrap();
        let line = parent.wait_for_line("child is ", LONG).unwrap();
        let (_, child) = line.rsplit_once(' ').unwrap();
        assert!(exists(child));
        parent.kill().unwrap();
        wait_until_gone(child);
    }
}
