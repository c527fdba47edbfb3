//! A gateway that is upgraded, where it runs, and its processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::status::Status;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, control, eventually};
use tollgate_testkit::{Topology, TopologyPlan};

/// The gateway's own address, for clients in its namespace.
pub const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

pub struct Site {
    pub gateway: Gateway,
    pub topology: Topology,
    pub deployment: Deployment,
}

impl Site {
    pub fn start(clients: usize, plan: &Plan) -> Self {
        Self::start_with(clients, plan, |_| {})
    }

    /// After `prepare` has changed the command.
    pub fn start_with(clients: usize, plan: &Plan, prepare: impl FnOnce(&mut Command)) -> Self {
        let topology = Topology::build(&TopologyPlan { clients, ..TopologyPlan::default() }).unwrap();
        Self::start_in(topology, plan, prepare)
    }

    /// Where there is a topology already.
    pub fn start_in(topology: Topology, plan: &Plan, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::start_deployed(topology, Deployment::write(plan), prepare)
    }

    /// Where there are a topology and files already.
    pub fn start_deployed(topology: Topology, deployment: Deployment, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Gateway::command(&deployment);
        prepare(&mut command);
        let gateway = Gateway::start_with(command, &topology.gateway);
        Site { gateway, topology, deployment }
    }

    /// The process that was started first.
    pub fn first(&self) -> Serving {
        Serving(Pid::from_raw(self.gateway.process.id() as i32).unwrap())
    }

    /// Gives an order to whichever process has the control socket.
    pub fn order(&self, arguments: &[&str]) -> control::Answer {
        control::ask(&self.deployment, arguments)
    }

    /// Gives an order that must be carried out, and returns what the gateway says.
    pub fn order_done(&self, arguments: &[&str]) -> String {
        let answer = self.order(arguments);
        assert!(answer.done, "{answer:?}\n{}", self.gateway.process.last_lines());
        answer.said
    }

    /// Has the gateway replaced, and returns the process that serves.
    pub fn upgrade(&self, options: &[&str]) -> Serving {
        Serving::of(&self.order_done(&[&["upgrade"], options].concat()))
    }

    /// Fails to have it replaced, and returns why.
    pub fn upgrade_in_vain(&self, options: &[&str]) -> String {
        let answer = self.order(&[&["upgrade"], options].concat());
        assert!(!answer.done, "{answer:?}");
        assert_eq!(answer.said.lines().count(), 1, "{answer:?}");
        answer.said
    }

    /// Clients whose logins have been answered by Retries that they have not looked at.
    pub fn begin_logins(&self, count: usize) -> Vec<TestTunnel> {
        let start = || TestTunnel::start(GATEWAY.0.into(), &self.deployment, "bob", GATEWAY.into(), None);
        let mut clients: Vec<TestTunnel> = self.topology.gateway.run(|| (0..count).map(|_| start()).collect());
        clients.iter_mut().for_each(TestTunnel::turn);
        assert!(clients.iter().all(|client| client.wait(PATIENCE)));
        clients
    }

    /// Has them go on, and returns how long it takes until all are in.
    pub fn end_logins(clients: &mut [TestTunnel]) -> Duration {
        let began = Instant::now();
        while let Some(client) = clients.iter().find(|client| client.address.is_none()) {
            assert!(client.closed.is_none() && began.elapsed() < PATIENCE, "{:?}", client.closed);
            clients.iter_mut().for_each(TestTunnel::turn);
            thread::sleep(Duration::from_micros(200));
        }
        began.elapsed()
    }

    /// Writes a program that runs `script` in a shell, and returns its path.
    pub fn write_program(&self, script: &str) -> String {
        let path = self.deployment.path("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    /// Waits until one process alone has the gateway.
    pub fn wait_for_one(&self) {
        let is_one = || {
            let said = self.order_done(&["status"]);
            !said.contains("taken over")
        };
        assert!(eventually(PATIENCE, is_one), "{}", self.gateway.process.last_lines());
    }

    /// The number of the process that a line of the log says was started.
    pub fn wait_for_started(&self, first: usize) -> Serving {
        let line = self.gateway.process.wait_for_line_from(first, "was started to take over", PATIENCE).unwrap();
        Serving::of(&line)
    }

    /// The counters of one of its processes.
    pub fn status_of(&self, serving: Serving) -> Status {
        let first = self.gateway.process.line_count();
        serving.signal(Signal::USR1);
        let line = self.gateway.process.wait_for_line_from(first, "{\"shards\":", PATIENCE).unwrap();
        Status::parse(&line)
    }

    /// Fails if one of its processes has panicked.
    pub fn assert_no_panic(&self) {
        assert_eq!(self.gateway.count_lines("panicked at "), 0, "{:#?}", self.gateway.process.lines());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Whoever serves by now is in the group of the first process, which may have ended.
        let _ = kill_process_group(self.first().0, Signal::KILL);
    }
}

/// A process of the gateway, which is no child of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving(pub Pid);

impl Serving {
    /// The one that `said` names first.
    pub fn of(said: &str) -> Self {
        let (_, rest) = said.split_once("process ").unwrap_or_else(|| panic!("no process in {said:?}"));
        let number = rest.split_whitespace().next().and_then(|number| number.parse().ok());
        Serving(number.and_then(Pid::from_raw).unwrap_or_else(|| panic!("no process in {said:?}")))
    }

    /// Whether it runs: one that nobody has waited for does not.
    pub fn lives(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    }

    pub fn signal(self, signal: Signal) {
        // It may be gone.
        let _ = kill_process(self.0, signal);
    }

    pub fn is_gone_within(self, time: Duration) -> bool {
        eventually(time, || !self.lives())
    }

    pub fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.as_raw_nonzero())).unwrap().count()
    }

    /// Resident memory, in bytes.
    pub fn memory_bytes(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    }
}
