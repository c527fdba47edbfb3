//! `tollgate demo` as a user runs it: what it prints, and that nothing stays of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a demo of one second may take altogether, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(60);

/// A demo whose temporary files go into a directory of its own, which its children know from their environment.
struct Demo {
    child: Child,
    temporary: TempDir,
    interfaces: Vec<String>,
}

/// A demo's exit status and output.
struct Outcome {
    status: ExitStatus,
    table: String,
    log: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.arg("demo").args(arguments);
        Self::start_by(command)
    }

    fn start_by(mut command: Command) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Demo { interfaces: interfaces(), child: command.spawn().unwrap(), temporary }
    }

    /// Waits for its end, and makes sure that nothing stays. Namespaces have no names, so that none can outlive the processes.
    fn finish(mut self) -> Outcome {
        let deadline = Instant::now() + LONG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the demo goes on and on");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(interfaces(), self.interfaces, "interfaces stay");
        let files: Vec<_> = fs::read_dir(&self.temporary).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(files, [] as [&Path; 0], "files stay");
        let processes = processes_with(self.temporary.path());
        assert_eq!(processes, [] as [String; 0], "processes stay");
        // What it prints is less than a pipe holds.
        let (mut table, mut log) = (String::new(), String::new());
        self.child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut table).unwrap());
        self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut log).unwrap());
        Outcome { status, table, log }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already; if not, its children end with it.
        let _ = self.child.kill();
    }
}

fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Processes in whose environment `path` occurs.
fn processes_with(path: &Path) -> Vec<String> {
    let mentions = |pid: &str| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let path = path.as_os_str().as_encoded_bytes();
        environment.windows(path.len()).any(|window| window == path)
    };
    let names = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && mentions(name)).collect()
}

/// The numbers in the row of that label.
fn numbers(table: &str, label: &str) -> Vec<f64> {
    let row = table.lines().find_map(|line| line.strip_prefix(label));
    let row = row.unwrap_or_else(|| panic!("no row {label:?} in\n{table}"));
    row.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_demo_prints_its_table_and_leaves_nothing_behind() {
    let Outcome { status, table, log } = Demo::start(&["--seconds", "1", "--shards", "2"]).finish();
    assert!(status.success(), "{log}");
    assert!(table.starts_with("2 clients through one gateway with 2 shards; 1 TCP connection each\n"), "{table}");
    for label in ["throughput", "transferred, every byte verified", "gateway CPU", "bytes per TUN frame of data"] {
        let [up, down] = numbers(&table, label)[..] else { panic!("{label}:\n{table}") };
        assert!(up > 0.0 && down > 0.0, "{label}:\n{table}");
    }
    for label in ["packets per UDP receive", "packets per UDP send of data"] {
        let [mean] = numbers(&table, label)[..] else { panic!("{label}:\n{table}") };
        assert!(mean >= 1.0, "{label}:\n{table}");
    }
    for (label, directions) in [("round trip idle, p50 / p99", 1), ("round trip under load, p50 / p99", 2)] {
        let times = numbers(&table, label);
        assert_eq!(times.len(), 2 * directions, "{label}:\n{table}");
        assert!(times.chunks(2).all(|pair| pair[0] <= pair[1]), "{label}:\n{table}");
    }
    assert_eq!(numbers(&table, "pings answered idle")[1], 400.0, "{table}");
    for label in ["packets dropped by the gateway", "placement     shard ", "kernel        UDP steered by "] {
        assert!(table.contains(label), "{label}:\n{table}");
    }
    assert!(log.contains("TCP, clients to network") && log.ends_with("nothing left behind\n"), "{log}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_demo_runs_with_noise_keys_of_each_kind() {
    for noise in [&["--noise"][..], &["--noise", "hybrid"], &["--noise=post-quantum"]] {
        let Outcome { status, table, log } = Demo::start(&[&["--seconds", "1"], noise].concat()).finish();
        assert!(status.success(), "{noise:?}: {log}");
        let [up, down] = numbers(&table, "throughput")[..] else { panic!("{noise:?}:\n{table}") };
        assert!(up > 0.0 && down > 0.0, "{noise:?}:\n{table}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn ctrl_c_in_the_middle_of_a_transfer_ends_everything() {
    let mut demo = Demo::start(&["--seconds", "600"]);
    let mut log = BufReader::new(demo.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(" Gb/s") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the demo has ended before its first transfer");
    }
    assert!(!processes_with(demo.temporary.path()).is_empty());
    kill_process(Pid::from_child(&demo.child), Signal::INT).unwrap();
    let Outcome { status, table, .. } = demo.finish();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(!status.success() && table.is_empty(), "{table}");
    assert!(rest.ends_with("nothing left behind\ntollgate: interrupted\n"), "{rest}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_machine_without_the_tun_driver_is_told_so_in_one_line() {
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" demo";
    command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_tollgate")]);
    let Outcome { status, table, log } = Demo::start_by(command).finish();
    assert_eq!((status.code(), table.as_str()), (Some(1), ""), "{log}");
    assert!(log.starts_with("tollgate: /dev/net/tun cannot be opened"), "{log}");
    assert!(log.contains("modprobe tun") && log.trim_end().lines().count() == 1, "{log}");
}
