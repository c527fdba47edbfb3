//! What happens when a guard is gone: somebody must miss it.
//!
//! Each patch in `xtask/guards` takes one guard out. In front of its `diff` it says what the guard promises, which row of the table in
//! `docs/limits.md` it stands for, if it does, and who finds that it is gone:
//!
//! ```text
//! Guard: of the packets that wait for one client, the newest are dropped when they are too many
//! Limit: packets to a client, waiting
//! Found by: tollgate-sim --seeds 0..1000 --simulated-seconds 10
//! Found by: cargo test --test tunnel forged
//! ```
//!
//! `Found by hanging:` names a finder that does not come to an end without the guard. With any other, that is an error of the finder: whoever reads
//! its failure must learn what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::worktree::in_worktree;
use super::{command, run as run_command};

const FOLDER: &str = "xtask/guards";
const SIMULATOR: &str = "tollgate-sim ";
const TEST: &str = "cargo test ";
/// How long a finder may take, in seconds.
const FINDER_S_MAX: &str = "300";
/// The status of `timeout` when that is over.
const TIMED_OUT: i32 = 124;
const FOUND: &str = "found";

/// A guard that can be taken out.
struct Guard {
    name: String,
    patch: PathBuf,
    promise: String,
    finders: Vec<Finder>,
}

/// Who misses a guard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finder {
    call: String,
    may_hang: bool,
}

/// What a finder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Missed,
    Hangs,
}

/// Takes out the guards called `names`, or all, one at a time, and asks whoever should find that. For no longer than `time_max`, only some of those
/// that the simulator finds: others with each commit, and without asking first whether the simulator finds nothing else.
pub fn run(root: &Path, names: &[String], time_max: Option<Duration>) -> Result<()> {
    let mut guards = guards(root)?;
    if !names.is_empty() {
        guards.retain(|guard| names.contains(&guard.name));
        ensure!(guards.len() == names.len(), "not every name is that of a patch in {FOLDER}: {}", names.join(", "));
    }
    guards.iter().try_for_each(|guard| applies(root, guard))?;
    if time_max.is_some() {
        guards.iter_mut().for_each(|guard| guard.finders.retain(Finder::is_simulator));
        guards.retain(|guard| !guard.finders.is_empty());
        let first = commit_number(root)? % guards.len().max(1);
        guards.rotate_left(first);
    }
    // A folder of its own: what is built without a guard is never taken for the product.
    let folder = root.join("target/guards");
    let target = folder.join("build");
    let (mut tried, mut missed, mut started) = (0, Vec::new(), Instant::now());
    in_worktree(root, &folder.join("tree"), "HEAD", |worktree| {
        if time_max.is_none() {
            finders_rest(worktree, &target, &guards)?;
        } else {
            built(worktree, &target, SIMULATOR)?;
        }
        started = Instant::now();
        for guard in &guards {
            if time_max.is_some_and(|time_max| started.elapsed() > time_max) {
                break;
            }
            git(worktree, &["apply", &guard.patch.to_string_lossy()])?;
            for finder in &guard.finders {
                let asked = Instant::now();
                let word = finder.word(ask(worktree, &target, &finder.call)?);
                println!("{}: {word} by {}, {} s", guard.name, finder.call, asked.elapsed().as_secs());
                if word != FOUND {
                    missed.push(format!("{}: {}, {word} by {}", guard.name, guard.promise, finder.call));
                }
            }
            git(worktree, &["checkout", "--quiet", "."])?;
            tried += 1;
        }
        Ok(())
    })?;
    println!("{tried} of {} guards taken out, {} s", guards.len(), started.elapsed().as_secs());
    ensure!(missed.is_empty(), "gone, and not missed as they should be:\n{}", missed.join("\n"));
    Ok(())
}

/// Finders that fail although no guard is gone find nothing.
fn finders_rest(worktree: &Path, target: &Path, guards: &[Guard]) -> Result<()> {
    let calls: BTreeSet<_> = guards.iter().flat_map(|guard| &guard.finders).map(|finder| &finder.call).collect();
    calls.into_iter().try_for_each(|call| {
        let verdict = ask(worktree, target, call)?;
        ensure!(verdict == Verdict::Nothing, "{call}: {verdict:?} although no guard is gone");
        Ok(())
    })
}

impl Finder {
    /// The finder that a line in front of a patch names.
    fn parse(line: &str) -> Option<Finder> {
        let (call, may_hang) = match line.strip_prefix("Found by hanging: ") {
            Some(call) => (call, true),
            None => (line.strip_prefix("Found by: ")?, false),
        };
        Some(Finder { call: call.to_owned(), may_hang })
    }

    fn is_simulator(&self) -> bool {
        self.call.starts_with(SIMULATOR)
    }

    fn word(&self, verdict: Verdict) -> &'static str {
        match verdict {
            Verdict::Missed => FOUND,
            Verdict::Hangs if self.may_hang => FOUND,
            Verdict::Hangs => "HANGS, and tells nothing,",
            Verdict::Nothing => "NOT FOUND",
        }
    }
}

/// All guards, in the order of their names.
fn guards(root: &Path) -> Result<Vec<Guard>> {
    let folder = root.join(FOLDER);
    let mut guards = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let patch = entry?.path();
        let text = fs::read_to_string(&patch).with_context(|| format!("cannot read {}", patch.display()))?;
        let head = || text.lines().take_while(|line| !line.starts_with("diff "));
        let promise = head().find_map(|line| line.strip_prefix("Guard: ")).unwrap_or_default().to_owned();
        let finders: Vec<_> = head().filter_map(Finder::parse).collect();
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(!promise.is_empty() && !finders.is_empty(), "{name}: the patch needs `Guard:` and `Found by:` lines");
        guards.push(Guard { name, patch, promise, finders });
    }
    guards.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(guards)
}

fn applies(root: &Path, guard: &Guard) -> Result<()> {
    let checked = git(root, &["apply", "--check", &guard.patch.to_string_lossy()]);
    checked.with_context(|| format!("{}: the patch does not fit the code any more: make it anew", guard.name))
}

/// Builds a finder. Returns the command that asks it.
fn built(worktree: &Path, target: &Path, finder: &str) -> Result<Command> {
    let cargo = |arguments: &[&str], more: &str| -> Command {
        let mut cargo = command(worktree);
        cargo.args(arguments).args(more.split_whitespace());
        // Two builds differ in a line or two.
        cargo.env("CARGO_TARGET_DIR", target).env("CARGO_INCREMENTAL", "1");
        cargo
    };
    Ok(if let Some(arguments) = finder.strip_prefix(SIMULATOR) {
        run_command(&mut cargo(&["build", "--quiet", "--locked", "--bin", "tollgate-sim"], ""))?;
        let mut simulator = Command::new(target.join("debug/tollgate-sim"));
        simulator.args(["--failures", "1", "--no-shrink"]).args(arguments.split_whitespace());
        simulator
    } else {
        let arguments = finder.strip_prefix(TEST).with_context(|| format!("nobody is called {finder}"))?;
        run_command(&mut cargo(&["test", "--quiet", "--locked", "--no-run"], arguments))?;
        cargo(&["test", "--quiet", "--locked"], arguments)
    })
}

/// Has a finder say whether something is missing. What does not even build is an error.
fn ask(worktree: &Path, target: &Path, finder: &str) -> Result<Verdict> {
    let asked = built(worktree, target, finder)?;
    let mut limited = Command::new("timeout");
    limited.arg(FINDER_S_MAX).arg(asked.get_program()).args(asked.get_args()).current_dir(worktree);
    limited.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().with_context(|| format!("cannot run {finder}"))?;
    Ok(match output.status.code() {
        Some(0) => Verdict::Nothing,
        Some(TIMED_OUT) => Verdict::Hangs,
        _ => Verdict::Missed,
    })
}

/// A number that differs from commit to commit.
fn commit_number(root: &Path) -> Result<usize> {
    let output = command_git(root).args(["rev-parse", "--short=7", "HEAD"]).output().context("cannot run git")?;
    let text = String::from_utf8_lossy(&output.stdout);
    usize::from_str_radix(text.trim(), 16).with_context(|| format!("git says {text:?} of HEAD"))
}

fn git(root: &Path, arguments: &[&str]) -> Result<()> {
    run_command(command_git(root).args(arguments))
}

fn command_git(root: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(root);
    git
}
