//! Standard error and standard output of the real program when nobody reads them, when they are full, closed, or on a full disk: the
//! gateway forwards, takes orders and ends as if they were read.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use tollgate::log::{LINES_BURST, LINES_PER_S};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{Namespace, PathToGateway, Process, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::control;
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::initials::{FIRST_BYTES_MIN, Stranger, crypto_frame, varint};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::wait_for_ping;
use tollgate_test_support::{PATIENCE, eventually, turn};

/// How long the end of a gateway may take, whoever reads what it says.
const END_MAX: Duration = Duration::from_secs(3);
const PINGS: u32 = 200;
const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

/// `command` with the shell's `redirection`, in which `$FIFO` stands for the path of a pipe.
fn redirected(command: &Command, redirection: &str, fifo: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$@\" {redirection}")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args()).env("FIFO", fifo);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    command.get_current_dir().into_iter().for_each(|folder| {
        shell.current_dir(folder);
    });
    shell
}

/// A named pipe, open at the end where somebody could read.
struct Pipe {
    path: PathBuf,
    reader: File,
}

impl Pipe {
    fn new(path: PathBuf) -> Self {
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Open for both, so that nobody who opens it waits.
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Pipe { path, reader }
    }

    /// Writes until it takes no byte more.
    fn fill(&self) {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut writer = OpenOptions::new().write(true).custom_flags(flags).open(&self.path).unwrap();
        for bytes in [4096, 1] {
            while writer.write(&vec![b'.'; bytes]).is_ok() {}
        }
    }
}

/// What happens to an output.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// A pipe that is full, and nobody reads.
    Full,
    /// A pipe whose reader has gone.
    Closed,
    /// A disk that is full.
    FullDisk,
    /// There is none.
    Absent,
}

const OUTPUTS: [Output; 4] = [Output::Full, Output::Closed, Output::FullDisk, Output::Absent];

impl Output {
    /// The shell's words for it, for descriptor `number`.
    fn redirection(self, number: u8) -> String {
        match self {
            Output::Full | Output::Closed => format!("{number}>\"$FIFO\""),
            Output::FullDisk => format!("{number}>/dev/full"),
            Output::Absent => format!("{number}>&-"),
        }
    }
}

/// A gateway one of whose outputs is in a bad way.
struct Site {
    gateway: Process,
    topology: Topology,
    deployment: Deployment,
    _pipe: Option<Pipe>,
}

impl Site {
    fn start(output: Output, number: u8) -> Self {
        let users = ["alice", "bob"].map(|name| (name.to_owned(), None)).to_vec();
        let mut deployment = Deployment::write(&Plan { users, ..Plan::default() });
        deployment.write_identity("mallory", &[]);
        let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
        let pipe = Pipe::new(deployment.path("fifo"));
        let command = redirected(&Gateway::command(&deployment), &output.redirection(number), &pipe.path);
        let gateway = topology.gateway.spawn(command).unwrap();
        assert!(eventually(PATIENCE, || control::kick(&deployment, "alice").done), "{:#?}", gateway.lines());
        let pipe = match output {
            Output::Full => {
                pipe.fill();
                Some(pipe)
            }
            _ => None,
        };
        Site { gateway, topology, deployment, _pipe: pipe }
    }

    fn inside(&self, client: usize) -> &Namespace {
        &self.topology.clients[client].namespace
    }

    fn log_in_alice(&self, peers: &Peers) -> Client {
        let alice = Client::start(peers, &self.deployment, self.inside(0), Login::of("alice"));
        alice.wait_for_address();
        wait_for_ping(self.inside(0), SERVER_V4);
        alice
    }

    fn assert_takes_orders(&self, what: &str) {
        for answer in [control::kick(&self.deployment, "bob"), control::reload(&self.deployment)] {
            assert!(answer.done && answer.took < Duration::from_secs(5), "{what}: {answer:?}");
        }
    }

    fn assert_ends_in_time(&mut self, what: &str) {
        assert_ends_in_time(&mut self.gateway, what);
    }
}

fn assert_ends_in_time(process: &mut Process, what: &str) {
    let start = Instant::now();
    process.signal(Signal::TERM).unwrap();
    let ended = process.wait(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"));
    let took = start.elapsed();
    println!("{what}: ended {took:?} after SIGTERM");
    assert!(took <= END_MAX, "{what}: ended {took:?} after SIGTERM");
    assert!(ended.success(), "{what}: {ended}");
}

/// Pings while `others` does other things.
fn pings_beside(from: &Namespace, others: impl FnOnce()) -> u32 {
    let plan = PingPlan { count: PINGS, timeout: Duration::from_secs(5), ..PingPlan::new(SERVER_V4.into()) };
    thread::scope(|scope| {
        let pings = scope.spawn(|| from.run(|| ping(&plan)).unwrap());
        others();
        pings.join().unwrap().received
    })
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_gateway_forwards_takes_orders_and_ends_whoever_reads_its_log() {
    let peers = Peers::find();
    let _turn = turn::alone();
    for output in OUTPUTS {
        let what = format!("standard error is {output:?}");
        let mut site = Site::start(output, 2);
        let _alice = site.log_in_alice(&peers);
        let received = pings_beside(site.inside(0), || {
            // Each makes lines.
            let mut mallory = Client::start(&peers, &site.deployment, site.inside(1), Login::of("mallory"));
            let bob = Client::start(&peers, &site.deployment, site.inside(1), Login::of("bob"));
            assert!(!mallory.process.wait(PATIENCE).unwrap().success());
            bob.wait_for_address();
            site.assert_takes_orders(&what);
        });
        assert_eq!(received, PINGS, "{what}: pings answered");
        site.assert_ends_in_time(&what);
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_report_that_cannot_be_printed_is_told_once_and_stops_nothing() {
    let peers = Peers::find();
    let _turn = turn::alone();
    for output in OUTPUTS {
        let what = format!("standard output is {output:?}");
        let mut site = Site::start(output, 1);
        let _alice = site.log_in_alice(&peers);
        let received = pings_beside(site.inside(0), || {
            for _ in 0..20 {
                site.gateway.signal(Signal::USR1).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            site.assert_takes_orders(&what);
        });
        assert_eq!(received, PINGS, "{what}: pings answered");
        // Rust's runtime opens /dev/null in place of an output that is absent.
        if !matches!(output, Output::Absent) {
            site.gateway.wait_for_line("a report cannot be printed on standard output", PATIENCE).unwrap();
        }
        let told = site.gateway.lines().iter().filter(|line| line.contains("cannot be printed")).count();
        assert!(told <= 1, "{what}: {:#?}", site.gateway.lines());
        site.assert_ends_in_time(&what);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_forwards_reconnects_and_ends_whoever_reads_what_it_says() {
    let _turn = turn::alone();
    for (name, number) in [("standard output", 1), ("standard error", 2)] {
        for output in OUTPUTS {
            let what = format!("{name} is {output:?}");
            let site = tollgate_test_support::site::Site::new(PathToGateway::Direct);
            site.client_file("\"198.19.0.0/24\"", "", "server");
            let mut gateway = site.serve();
            let pipe = Pipe::new(site.path("fifo"));
            let command = redirected(&site.command("connect", "client.toml"), &output.redirection(number), &pipe.path);
            let mut client = site.client().spawn(command).unwrap();
            wait_for_ping(site.client(), SERVER_V4);
            let pipe = match output {
                Output::Full => {
                    pipe.fill();
                    Some(pipe)
                }
                _ => None,
            };
            let received = pings_beside(site.client(), || {
                for _ in 0..20 {
                    client.signal(Signal::USR1).unwrap();
                    thread::sleep(Duration::from_millis(20));
                }
            });
            assert_eq!(received, PINGS, "{what}: pings answered");
            // To lose the tunnel and to have it back makes lines.
            gateway.stop(PATIENCE).unwrap();
            let _gateway = site.serve();
            wait_for_ping(site.client(), SERVER_V4);
            assert_ends_in_time(&mut client, &what);
            drop(pipe);
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_a_full_disk_did_not_take_is_counted_and_told_when_there_is_room() {
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan::default());
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let disk = deployment.path("disk");
    fs::create_dir(&disk).unwrap();
    let command = Gateway::command(&deployment);
    let mut shell = redirected(&command, "2>>\"$FIFO/log\"", &disk);
    // A disk of its own, which goes with it.
    let mount = "mount -t tmpfs -o size=64k tmpfs \"$FIFO\" && head -c 65536 /dev/zero >\"$FIFO/rubbish\"";
    let arguments: Vec<_> = shell.get_args().skip(1).map(ToOwned::to_owned).collect();
    let script = arguments[0].to_string_lossy().into_owned();
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c"]).arg(format!("{mount}; {script}")).args(&arguments[1..]);
    unshare.envs(shell.env("NO_COLOR", "1").get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare.current_dir(deployment.folder());
    let mut gateway = topology.gateway.spawn(unshare).unwrap();
    assert!(eventually(PATIENCE, || control::kick(&deployment, "alice").done), "{:#?}", gateway.lines());
    let inside = PathBuf::from(format!("/proc/{}/root{}", gateway.id(), disk.display()));
    let log = || fs::read_to_string(inside.join("log")).unwrap();
    assert_eq!(log(), "", "there was room after all");

    fs::remove_file(inside.join("rubbish")).unwrap();
    assert!(control::kick(&deployment, "bob").done);
    // The writer may be busy with lines from before there was room.
    let parts = ["log lines were lost", "No space left on device", "of user 'bob' closed"];
    assert!(eventually(PATIENCE, || parts.iter().all(|part| log().contains(part))), "{}", log());
    assert!(gateway.stop(PATIENCE).unwrap().success());
}

/// Runs `tollgate` with `arguments`, its outputs as the shell's `redirection` wants, and returns its exit code and standard error.
fn run(folder: &Path, arguments: &[&str], redirection: &str) -> (Option<i32>, String) {
    let mut command = Command::new(TOLLGATE);
    command.args(arguments).current_dir(folder);
    let mut shell = redirected(&command, redirection, Path::new("fifo"));
    let output = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn commands_end_quietly_when_their_reader_has_gone_and_say_when_the_disk_is_full() {
    let deployment = Deployment::write(&Plan::default());
    let folder = deployment.folder();
    for arguments in [
        &["check", "--config", "server.toml"][..],
        &["identity", "fingerprint", "server_cert.pem"],
        &["--help"],
        &["check", "--help"],
    ] {
        let (code, said) = run_with_closed_reader(folder, arguments);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?}");
    }
    for arguments in [&["check", "--config", "server.toml"][..], &["identity", "fingerprint", "server_cert.pem"]] {
        let (code, said) = run(folder, arguments, ">/dev/full");
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains("standard output cannot be written") && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
    // Neither is there anybody to tell.
    for redirection in ["2>/dev/full", "2>&-", ">&- 2>&-"] {
        assert_eq!(run(folder, &["check", "--config", "nowhere.toml"], redirection).0, Some(1), "{redirection}");
    }
}

/// Runs `tollgate` with `arguments` and a standard output whose reader has gone.
fn run_with_closed_reader(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(TOLLGATE);
    let output = command.args(arguments).current_dir(folder).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_program_that_fails_ends_though_nobody_reads_why() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = Pipe::new(folder.path().join("fifo"));
    pipe.fill();
    for arguments in [&["serve", "--config", "nowhere.toml"][..], &["connect", "--config", "nowhere.toml"]] {
        let mut command = Command::new(TOLLGATE);
        command.args(arguments).current_dir(folder.path());
        let start = Instant::now();
        let mut child = redirected(&command, "2>\"$FIFO\"", &pipe.path).spawn().unwrap();
        let ended = eventually(PATIENCE, || child.try_wait().unwrap().is_some());
        let _ = child.kill();
        assert!(ended, "{arguments:?} has not ended {:?} after its start", start.elapsed());
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
    drop(pipe.reader);
}

#[test]
fn the_reason_of_a_failure_is_told_once() {
    let deployment = Deployment::write(&Plan::default());
    let folder = deployment.folder();
    fs::create_dir(folder.join("folder")).unwrap();
    for (arguments, reason) in [
        (&["kick", "alice", "--socket", "server.toml/control"][..], "Not a directory"),
        (&["kick", "alice", "--config", "nowhere.toml"], "No such file"),
        (&["identity", "fingerprint", "nowhere.pem"], "No such file"),
        (&["identity", "gencert", "--name", "a", "--out-cert", "nowhere/a", "--out-key", "nowhere/b"], "No such file"),
        (&["check", "--config", "folder"], "folder"),
    ] {
        let mut command = Command::new(TOLLGATE);
        let output = command.args(arguments).current_dir(folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.matches(reason).count(), 1, "{arguments:?}: {said}");
    }
}

/// How many lines of `lines` contain `line`, and how many more those that begin with "and" say there were.
fn counted(lines: &[String], line: &str, more: &str) -> (u64, u64) {
    let withheld = lines.iter().filter(|line| line.contains(more)).map(|line| {
        let number = line.split_once("and ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("no number in {line:?}"))
    });
    (lines.iter().filter(|said| said.contains(line)).count() as u64, withheld.sum())
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_flood_of_what_others_cause_is_a_few_lines_and_their_number() {
    const ORDERS: u64 = 2000;
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan::default());
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let start = Instant::now();
    let mut stream = UnixStream::connect(deployment.path("control")).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..ORDERS {
        for user in ["nobody", "alice"] {
            writeln!(stream, "{{\"order\":\"kick\",\"user\":\"{user}\"}}").unwrap();
            answers.read_line(&mut String::new()).unwrap();
        }
    }
    let took = start.elapsed();
    for (line, more) in [
        ("an order to kick was not carried out", "more orders to kick were not carried out"),
        ("of user 'alice' closed", "more users' connections were closed, by order"),
    ] {
        let all = || {
            let (lines, withheld) = counted(&gateway.process.lines(), line, more);
            lines + withheld == ORDERS
        };
        assert!(eventually(PATIENCE, all), "{:?}", counted(&gateway.process.lines(), line, more));
        let (lines, _) = counted(&gateway.process.lines(), line, more);
        println!("{line:?}: {lines} lines for {ORDERS} orders in {took:?}");
        let lines_max = LINES_BURST + (took.as_secs_f64() * LINES_PER_S as f64) as u64 + 1;
        assert!((LINES_BURST..=lines_max).contains(&lines), "{lines} lines in {took:?}");
    }
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn strangers_packets_make_a_few_lines_and_libraries_are_silent() {
    const PACKETS: u64 = 5000;
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan::default());
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let client = &topology.clients[0].namespace;
    let before = gateway.process.line_count();
    client.run(|| {
        let service = SocketAddr::from((SERVICE_V4, PORT));
        let mut stranger = Stranger::prove_address(Ipv4Addr::UNSPECIFIED.into(), service, 1).expect("a Retry");
        stranger.send(&crypto_frame(0, &[1]), FIRST_BYTES_MIN).unwrap();
        stranger.spoil_token();
        for _ in 0..PACKETS {
            stranger.send(&[1], 1200).unwrap();
        }
    });
    // What came is handled before what comes after it.
    thread::sleep(Duration::from_millis(500));
    gateway.status();
    let lines = gateway.process.lines();
    let made: Vec<_> = lines[before..].iter().filter(|line| !line.starts_with('{')).collect();
    assert!(made.len() <= 5, "{} lines, the first: {:?}", made.len(), &made[..5]);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn clients_that_are_refused_again_and_again_are_a_few_lines() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.write_identity("mallory", &[]);
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let start = Instant::now();
    let config = deployment.write_client(Login { key_exchange: "standard", ..Login::of("mallory") });
    let mut clients: Vec<_> = (0..100).map(|_| Client::start_with(&peers, &deployment, inside, &config)).collect();
    for client in &mut clients {
        assert!(!client.process.wait(PATIENCE).unwrap().success());
    }
    let took = start.elapsed();
    let count = || counted(&gateway.process.lines(), "no user has this certificate", "no user has their certificates");
    assert!(eventually(PATIENCE, || count().0 + count().1 == 100), "{:?}", count());
    let lines_max = LINES_BURST + (took.as_secs_f64() * LINES_PER_S as f64) as u64 + 1;
    println!("{} lines for 100 refused logins in {took:?}", count().0);
    assert!(count().0 <= lines_max, "{} lines in {took:?}", count().0);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_a_client_says_when_it_goes_is_escaped_and_cut() {
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan::default());
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut command = Gateway::command(&deployment);
    command.env("RUST_LOG", "debug");
    let mut gateway = Gateway::start_with(command, &topology.gateway);
    topology.clients[0].namespace.run(|| {
        let service = SocketAddr::from((SERVICE_V4, PORT));
        let mut stranger = Stranger::prove_address(Ipv4Addr::UNSPECIFIED.into(), service, 1).expect("a Retry");
        stranger.send(&crypto_frame(0, &[1]), FIRST_BYTES_MIN).unwrap();
        // CONNECTION_CLOSE (RFC 9000, section 19.19) with as many words as a datagram takes, which are more than a log should have.
        let words = "bye\n\u{1b}[31mERROR ".repeat(60);
        let close = [&[0x1c, 0, 0][..], &varint(words.len()), words.as_bytes()].concat();
        stranger.send(&close, 1200).unwrap();
    });
    let line = gateway.process.wait_for_line("bye", PATIENCE).unwrap();
    assert!(line.len() <= 400 && line.contains("bye\\n\\u{1b}[31mERROR bye") && line.ends_with("..."), "{line:?}");
    gateway.assert_sound();
}
