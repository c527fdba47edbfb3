//! Runs of the fuzz targets: each until it has had its time and finds nothing new, then what it has found goes into its corpus.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};

use super::nightly;
use super::run as run_command;

const PACKAGE: &str = "tests/fuzz";
const INSTALL: &str = "cargo-fuzz is missing: cargo install cargo-fuzz";
/// Longest input: a super-packet, or a few dozen datagrams.
const INPUT_BYTES_MAX: u32 = 16_384;
/// One input may take so long, in seconds, under instrumentation on a busy machine.
const INPUT_S_MAX: u32 = 30;

/// How long each target runs, and in how many processes. Seconds are of processor time, of all its processes together: what else runs on the
/// machine takes nothing from a target.
pub struct Length {
    /// At least so long.
    pub core_seconds: u64,
    /// Then until so long nothing new was covered.
    pub quiet_core_seconds: u64,
    pub jobs: usize,
}

/// What the processes of one target have told.
#[derive(Debug, Default)]
struct Outcome {
    executions: u64,
    core_seconds: u64,
    /// Edges of the program's control flow that were reached, by the process that reached most.
    coverage: u64,
    crashes: Vec<String>,
}

/// Runs the targets called `names`, or all, one after the other.
pub fn run(root: &Path, names: &[String], length: &Length) -> Result<()> {
    let programs = build(root)?;
    let all = targets(root)?;
    let unknown: Vec<_> = names.iter().filter(|name| !all.contains(*name)).cloned().collect();
    ensure!(unknown.is_empty(), "no target is called {}; there are {all:?}", unknown.join(" or "));
    let mut crashes = Vec::new();
    for target in all.iter().filter(|target| names.is_empty() || names.contains(target)) {
        let folders = Folders::new(root, target)?;
        let program = programs.join(target);
        let outcome = fuzz(&program, &folders, length)?;
        let inputs = merge(&program, &folders)?;
        println!(
            "{target}: {} executions in {} s of processor time, coverage {}, {} inputs in the corpus, {} crashes",
            outcome.executions,
            outcome.core_seconds,
            outcome.coverage,
            inputs,
            outcome.crashes.len()
        );
        crashes.extend(outcome.crashes.into_iter().map(|crash| format!("{target}: {crash}")));
    }
    ensure!(crashes.is_empty(), "{} crashes:\n{}", crashes.len(), crashes.join("\n"));
    Ok(())
}

/// Builds all targets, instrumented and with AddressSanitizer. Returns the folder of the programs.
fn build(root: &Path) -> Result<PathBuf> {
    ensure!(nightly::succeeds(nightly::cargo(root, "fuzz")?.args(["fuzz", "--version"])), INSTALL);
    let mut cargo = nightly::cargo(root, "fuzz")?;
    // As `--release` has it, but with all assertions: those of quinn-proto are off by the profile, see Cargo.toml.
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true").env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    cargo.args(["fuzz", "build", "--fuzz-dir", PACKAGE, "--release", "--no-cfg-fuzzing", "--features", "programs"]);
    run_command(&mut cargo)?;
    Ok(root.join("target/fuzz").join(nightly::TARGET).join("release"))
}

/// The targets' names: those of the programs' sources.
fn targets(root: &Path) -> Result<BTreeSet<String>> {
    let folder = root.join(PACKAGE).join("targets");
    let sources = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned())
    };
    sources.map(name).collect()
}

/// The folders of one target.
struct Folders {
    /// The inputs that are kept in the repository.
    kept: PathBuf,
    /// All that were found on this machine.
    found: PathBuf,
    /// The inputs that crashed.
    crashed: PathBuf,
    /// What is to become `kept`.
    next: PathBuf,
}

impl Folders {
    fn new(root: &Path, target: &str) -> Result<Self> {
        let of = |kind: &str| root.join("target/fuzz").join(kind).join(target);
        let kept = root.join(PACKAGE).join("corpora").join(target);
        let folders = Folders { kept, found: of("found"), crashed: of("crashed"), next: of("next") };
        for folder in [&folders.kept, &folders.found, &folders.crashed] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(folders)
    }
}

/// Lets the processes of one target run until they have had their time and find nothing new, or one crashes.
fn fuzz(program: &Path, folders: &Folders, length: &Length) -> Result<Outcome> {
    let (sender, lines) = mpsc::channel();
    let mut children = Vec::new();
    for _ in 0..length.jobs.max(1) {
        let mut command = Command::new(program);
        command.args([&folders.found, &folders.kept]);
        command.arg(format!("-artifact_prefix={}/", folders.crashed.display()));
        command.args([format!("-max_len={INPUT_BYTES_MAX}"), format!("-timeout={INPUT_S_MAX}")]);
        // Below that it is the machine that is slow.
        command.arg(format!("-report_slow_units={INPUT_S_MAX}"));
        command.args(["-print_final_stats=1", "-detect_leaks=0"]).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let errors = child.stderr.take().context("its errors are not piped")?;
        children.push(child);
        let sender = sender.clone();
        thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    drop(sender);
    let outcome = follow(&lines, length, &children);
    for child in &mut children {
        child.wait().context("cannot wait for a fuzzer")?;
    }
    outcome
}

fn follow(lines: &Receiver<String>, length: &Length, children: &[Child]) -> Result<Outcome> {
    let (mut new, mut is_stopping) = (0, false);
    let mut outcome = Outcome::default();
    // What a process says before it crashes.
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                if let Some(coverage) = number_behind(&line, "cov: ").filter(|coverage| *coverage > outcome.coverage) {
                    (outcome.coverage, new) = (coverage, outcome.core_seconds);
                }
                outcome.executions += number_behind(&line, "stat::number_of_executed_units: ").unwrap_or(0);
                if !line.starts_with('#') {
                    said.push(line.clone());
                }
                if let Some((_, path)) = line.split_once("Test unit written to ") {
                    said.iter().for_each(|line| println!("{line}"));
                    outcome.crashes.push(path.to_owned());
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(outcome),
        }
        let core_seconds: u64 = children.iter().filter_map(core_seconds_of).sum();
        // A process that is gone tells no more.
        outcome.core_seconds = outcome.core_seconds.max(core_seconds);
        let has_had_its_time = outcome.core_seconds >= length.core_seconds;
        let is_quiet = outcome.core_seconds >= new + length.quiet_core_seconds;
        if !is_stopping && (has_had_its_time && is_quiet || !outcome.crashes.is_empty()) {
            is_stopping = true;
            for child in children {
                // It may be gone already.
                let _ = kill_process(Pid::from_child(child), Signal::INT);
            }
        }
    }
}

/// The processor time that `child` has used, by proc_pid_stat(5): the fields behind the program's name.
fn core_seconds_of(child: &Child) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ticks / clock_ticks_per_second())
}

/// Makes the kept corpus the fewest and shortest inputs that reach all that the kept and the found ones reach. Returns their number.
fn merge(program: &Path, folders: &Folders) -> Result<usize> {
    let Folders { kept, found, next, .. } = folders;
    if next.exists() {
        fs::remove_dir_all(next).context("cannot remove an old corpus")?;
    }
    fs::create_dir_all(next).context("cannot make a corpus")?;
    let mut command = Command::new(program);
    // How often an edge is passed counts while fuzzing; for the tests it would only make more of the same.
    command.args(["-set_cover_merge=1", "-use_counters=0", "-detect_leaks=0"]).args([next, kept, found]);
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "no corpus was made:\n{}", String::from_utf8_lossy(&output.stderr));
    for entry in fs::read_dir(kept).context("cannot read the corpus before")? {
        let entry = entry?;
        // What has failed once stays, whatever it reaches: libFuzzer calls it crash-... or timeout-...
        if !entry.file_name().to_string_lossy().contains('-') {
            fs::remove_file(entry.path()).context("cannot remove an old input")?;
        }
    }
    let mut inputs = 0;
    for entry in fs::read_dir(next).context("cannot read the new corpus")? {
        let entry = entry?;
        fs::copy(entry.path(), kept.join(entry.file_name())).context("cannot copy an input")?;
        inputs += 1;
    }
    ensure!(inputs > 0, "the new corpus is empty");
    Ok(inputs)
}

fn number_behind(line: &str, label: &str) -> Option<u64> {
    let (_, rest) = line.split_once(label)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
