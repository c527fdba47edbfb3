//! What happens when a guard is gone: somebody must miss it.
//!
//! Each patch in `xtask/guards` takes one guard out. In front of its `diff` it says what the guard promises, which row of the table in
//! `docs/limits.md` it stands for, if it does, who finds that it is gone, and why the simulator does not where one would expect that it does:
//!
//! ```text
//! Guard: of the packets that wait for one client, the newest are dropped when they are too many
//! Limit: packets to a client, waiting
//! Found by: tollgate-sim --seeds 0..1000 --simulated-seconds 10
//! Found by: cargo test --test tunnel -- forged
//! ```
//!
//! A patch changes nothing but bodies of functions. So one tree has all guards and what is left without each, and programs choose as they run:
//! they are built once, not once a guard.

mod finders;
mod patches;
mod switches;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::finders::{Finder, Finders, Verdict};
use self::patches::Guard;
use super::run as run_command;
use super::worktree::in_worktree;

/// Takes out the guards called `names`, or all, one at a time, and asks whoever should find that, or only those in whose call there is `by`. For no
/// longer than `time_max`, only some of those that the simulator finds: others with each commit, and without asking first whether the simulator finds
/// nothing else.
pub fn run(root: &Path, names: &[String], by: &str, time_max: Option<Duration>) -> Result<()> {
    let mut guards = patches::all(root)?;
    if !names.is_empty() {
        guards.retain(|guard| names.contains(&guard.name));
        ensure!(guards.len() == names.len(), "not every name is that of a patch in {}: {names:?}", patches::FOLDER);
    }
    // A folder of its own: what is built with switches is never taken for the product.
    let folder = root.join("target/guards");
    let (mut tried, mut missed, mut started) = (0, Vec::new(), Instant::now());
    in_worktree(root, &folder.join("tree"), "HEAD", |worktree| {
        switches::put_in(worktree, &guards)?;
        let is_asked = |finder: &Finder| finder.is_called(by) && (time_max.is_none() || finder.is_simulator());
        guards.iter_mut().for_each(|guard| guard.finders.retain(is_asked));
        guards.retain(|guard| !guard.finders.is_empty());
        if time_max.is_some() {
            let first = commit_number(root)? % guards.len().max(1);
            guards.rotate_left(first);
        }
        let finders = Finders::build(worktree, &folder.join("build"), guards.iter().flat_map(|guard| &guard.finders))?;
        if time_max.is_none() {
            finders.rest()?;
        }
        started = Instant::now();
        for guard in guards.iter().take_while(|_| time_max.is_none_or(|time_max| started.elapsed() < time_max)) {
            missed.extend(ask(&finders, guard)?);
            tried += 1;
        }
        Ok(())
    })?;
    println!("{tried} of {} guards taken out, {} s", guards.len(), started.elapsed().as_secs());
    ensure!(missed.is_empty(), "gone, and not missed as they should be:\n{}", missed.join("\n"));
    Ok(())
}

/// Has each finder of a guard say whether it is missing. Returns who does not, in words.
fn ask(finders: &Finders, guard: &Guard) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    for finder in &guard.finders {
        let asked = Instant::now();
        let verdict = finders.ask(finder, &guard.name)?;
        let word = match verdict {
            Verdict::Missed => "found",
            Verdict::Nothing => "NOT FOUND",
            // Whoever reads a failure must learn what is missing.
            Verdict::Hangs => "HANGS, and tells nothing,",
        };
        println!("{}: {word} by {finder}, {:.1} s", guard.name, asked.elapsed().as_secs_f64());
        if verdict != Verdict::Missed {
            missed.push(format!("{}: {}, {word} by {finder}", guard.name, guard.promise));
        }
    }
    Ok(missed)
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

pub fn command_git(root: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(root);
    git
}
