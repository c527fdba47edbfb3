//! What happens when a guard of the engine is gone: somebody must miss it.
//!
//! Each patch in `xtask/guards` takes one guard out. In front of its `diff` it says what the guard promises, and who finds that it is gone:
//!
//! ```text
//! Guard: a client's packets bear the address that it was leased
//! Found by: tollgate-sim --seeds 0..1000 --simulated-seconds 10
//! Found by: cargo test --test tunnel forged
//! ```

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

/// A guard that can be taken out.
struct Guard {
    name: String,
    patch: PathBuf,
    promise: String,
    finders: Vec<String>,
}

/// Takes out the guards called `names`, or all, one at a time, and asks whoever should find that. For no longer than `time_max`, only some of those
/// that the simulator finds: others with each commit.
pub fn run(root: &Path, names: &[String], time_max: Option<Duration>) -> Result<()> {
    let mut guards = guards(root)?;
    if !names.is_empty() {
        guards.retain(|guard| names.contains(&guard.name));
        ensure!(guards.len() == names.len(), "not every name is that of a patch in {FOLDER}: {}", names.join(", "));
    }
    guards.iter().try_for_each(|guard| applies(root, guard))?;
    if time_max.is_some() {
        guards.retain(|guard| guard.finders.iter().any(|finder| finder.starts_with(SIMULATOR)));
        let first = commit_number(root)? % guards.len().max(1);
        guards.rotate_left(first);
    }
    // A folder of its own: what is built without a guard is never taken for the product.
    let folder = root.join("target/guards");
    let target = folder.join("build");
    let (mut tried, mut missed, mut started) = (0, Vec::new(), Instant::now());
    in_worktree(root, &folder.join("tree"), "HEAD", |worktree| {
        let asked =
            guards.iter().flat_map(|guard| &guard.finders).filter(|it| time_max.is_none() || it.starts_with(SIMULATOR));
        for finder in asked.collect::<BTreeSet<_>>() {
            ensure!(!is_found(worktree, &target, finder)?, "{finder} fails although no guard is gone");
        }
        started = Instant::now();
        for guard in &guards {
            if time_max.is_some_and(|time_max| started.elapsed() > time_max) {
                break;
            }
            git(worktree, &["apply", &guard.patch.to_string_lossy()])?;
            for finder in guard.finders.iter().filter(|it| time_max.is_none() || it.starts_with(SIMULATOR)) {
                let asked = Instant::now();
                let is_found = is_found(worktree, &target, finder)?;
                let word = if is_found { "found" } else { "NOT FOUND" };
                println!("{}: {word} by {finder}, {} s", guard.name, asked.elapsed().as_secs());
                if !is_found {
                    missed.push(format!("{}: {}, by {finder}", guard.name, guard.promise));
                }
            }
            git(worktree, &["checkout", "--quiet", "."])?;
            tried += 1;
        }
        Ok(())
    })?;
    println!("{tried} of {} guards taken out, {} s", guards.len(), started.elapsed().as_secs());
    ensure!(missed.is_empty(), "gone, and not missed:\n{}", missed.join("\n"));
    Ok(())
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
        let finders: Vec<_> = head().filter_map(|line| line.strip_prefix("Found by: ")).map(str::to_owned).collect();
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

/// Whether `finder` fails, or does not come to an end. What does not even build is an error.
fn is_found(worktree: &Path, target: &Path, finder: &str) -> Result<bool> {
    let cargo = |arguments: &[&str], more: &str| -> Command {
        let mut cargo = command(worktree);
        cargo.args(arguments).args(more.split_whitespace());
        // Two builds differ in a line or two.
        cargo.env("CARGO_TARGET_DIR", target).env("CARGO_INCREMENTAL", "1");
        cargo
    };
    let asked = if let Some(arguments) = finder.strip_prefix(SIMULATOR) {
        run_command(&mut cargo(&["build", "--quiet", "--locked", "--bin", "tollgate-sim"], ""))?;
        let mut simulator = Command::new(target.join("debug/tollgate-sim"));
        simulator.args(["--failures", "1"]).args(arguments.split_whitespace());
        simulator
    } else {
        let arguments = finder.strip_prefix(TEST).with_context(|| format!("nobody is called {finder}"))?;
        run_command(&mut cargo(&["test", "--quiet", "--locked", "--no-run"], arguments))?;
        cargo(&["test", "--quiet", "--locked"], arguments)
    };
    let mut limited = Command::new("timeout");
    limited.arg(FINDER_S_MAX).arg(asked.get_program()).args(asked.get_args()).current_dir(worktree);
    limited.envs(asked.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().with_context(|| format!("cannot run {finder}"))?;
    Ok(!output.status.success())
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
