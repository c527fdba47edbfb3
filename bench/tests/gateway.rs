//! `tollgate-bench gateway` as a user runs it, with every peer that is installed: what it finds, and that nothing stays of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tollgate_bench::peers::{self, Places};
use tollgate_bench::record;
use tollgate_bench::results::{Finding, GatewayResult, Work};

/// How long a comparison of one pair may take, on a machine that does other things too.
const LONG: Duration = Duration::from_secs(180);

const SOCKET_FOLDER: &str = "/var/run/wireguard";

/// A comparison of one pair with transfers of a second, whose temporary files go into a directory of its own.
struct Comparison {
    child: Child,
    temporary: TempDir,
    json: PathBuf,
}

impl Comparison {
    /// With the peer `peer`, whose program is `program`. `None`, saying why, where something is missing.
    fn start(peer: &str, program: &str) -> Option<Self> {
        let places = Places::of_this_process();
        let gateway = Path::new(env!("CARGO_BIN_EXE_tollgate-bench")).with_file_name("tollgate");
        let missing = tollgate::lab::privileges()
            .and_then(|()| tollgate::lab::require_tun())
            .map_err(anyhow::Error::from)
            .and_then(|()| places.find("quincy-client", None, "--client"))
            .and_then(|_| peers::own_gateway(Some(&gateway), "--gateway"));
        if let Err(missing) = missing {
            let required = std::env::var_os("TOLLGATE_REQUIRE_PEERS").is_some_and(|value| value == "1");
            assert!(!required, "nothing may be skipped here: {missing}");
            eprintln!("skipped: {missing}");
            return None;
        }
        // Those of WireGuard are nobody's duty to install.
        if let Err(missing) = places.find(program, None, "--peer-binary") {
            eprintln!("skipped: {missing}");
            return None;
        }
        let temporary = tempfile::tempdir().unwrap();
        let json = temporary.path().join("result.json");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
        command.args(["gateway", "--pairs", "1", "--seconds", "1", "--peer", peer, "--json"]).arg(&json);
        command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some(Comparison { child: command.spawn().unwrap(), temporary, json })
    }

    /// What it found.
    fn finish(mut self) -> (GatewayResult, Vec<String>) {
        // A comparison's table and progress are far shorter than a pipe.
        let deadline = Instant::now() + LONG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the comparison goes on and on");
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = |pipe: Option<&mut dyn Read>| {
            let mut text = String::new();
            pipe.unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let table = said(self.child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read));
        let log = said(self.child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
        assert!(status.success(), "{log}");
        assert!(table.contains("times the CPU per GB"), "{table}");
        let record = record::read(&self.json).unwrap();
        fs::remove_file(&self.json).unwrap();
        self.assert_nothing_left();
        let Finding::Gateway(result) = record.finding else { panic!("no comparison in {record:?}") };
        (result, record.provenance.versions)
    }

    fn assert_nothing_left(&self) {
        let left: Vec<_> = fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let own = format!("tgb{}-", self.child.id());
        let sockets = fs::read_dir(SOCKET_FOLDER).into_iter().flatten().flatten();
        let left: Vec<_> = sockets.filter(|entry| entry.file_name().to_string_lossy().starts_with(&own)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Compares with `peer` and makes sure that all was done, byte by byte, and held against the floor.
fn compares_with(peer: &str, program: &str, client: &str) {
    let Some(comparison) = Comparison::start(peer, program) else { return };
    let (result, versions) = comparison.finish();
    assert_eq!((result.ours.as_str(), result.peer.as_str(), result.pairs.len()), ("tollgate", program, 1));
    assert!(result.clients[0].starts_with("quincy-client ") && result.clients[1].starts_with(client), "{result:?}");
    assert!(versions.iter().any(|version| *version == result.clients[1]), "{versions:?}");
    let works = [Work::Up, Work::Down, Work::Both];
    for run in [&result.pairs[0].ours, &result.pairs[0].peer] {
        assert_eq!(run.iter().map(|transfer| transfer.work).collect::<Vec<_>>(), works);
        for transfer in run {
            assert!(transfer.bytes > 0 && transfer.gateway_cpu_seconds > 0.0, "{transfer:?}");
            assert_eq!(transfer.corrupt_at_byte, None, "{transfer:?}");
        }
    }
    assert_eq!(result.summaries.iter().map(|summary| summary.work).collect::<Vec<_>>(), works);
    assert!(result.floor.is_some());
    for summary in &result.summaries {
        assert!(
            summary.ours_to_floor.is_some_and(|factor| factor.median > 1.0),
            "nothing is below the floor: {summary:?}"
        );
    }
}

#[test]
fn quincy_server_is_compared_with() {
    compares_with("quincy", "quincy-server", "quincy-client ");
}

#[test]
fn boringtun_is_compared_with() {
    compares_with("boringtun", "boringtun-cli", "boringtun ");
}

#[test]
fn gotatun_is_compared_with() {
    compares_with("gotatun", "gotatun", "gotatun");
}

#[test]
fn wireguard_go_is_compared_with() {
    compares_with("wireguard-go", "wireguard-go", "wireguard-go ");
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let Some(mut comparison) = Comparison::start("wireguard-go", "wireguard-go") else { return };
    let mut progress = BufReader::new(comparison.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let begun = progress.find(|line| line.ends_with("wireguard-go: up"));
    assert!(begun.is_some(), "it ended by itself");
    assert!(fs::read_dir(SOCKET_FOLDER).unwrap().count() >= 2);
    let pid = Pid::from_raw(comparison.child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(progress.last().as_deref(), Some("tollgate-bench: interrupted"));
    assert_eq!(comparison.child.wait().unwrap().code(), Some(130));
    comparison.assert_nothing_left();
}

#[test]
fn a_missing_peer_is_told_in_one_line_with_the_remedy() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    command.args(["gateway", "--peer", "gotatun", "--gateway", "/bin/true", "--peer-binary", "/nowhere/gotatun"]);
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(log, "tollgate-bench: --peer-binary is /nowhere/gotatun, which is not an executable file\n");
}
