//! Instruction counts of two revisions of the engine: both harnesses are built alike, and one runs the other.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::guards::command_git;
use super::worktree::{in_worktree, share_dependencies};
use super::{command, run as run_command};

/// What the harness is made of.
const COUNTED: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "rust-toolchain.toml",
    "bench/Cargo.toml",
    "bench/src",
    "config",
    "netlink",
    "shards",
    "src",
];

/// Counts, beside the counts of the revision `against`, and fails if a benchmark costs more than there. Where nothing differs, nothing is counted.
pub fn run(root: &Path, against: Option<&str>, profile: &str) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = if profile == "dev" { "debug" } else { profile };
    let build = |root: &Path, target: &Path| {
        let mut command = command(root);
        command.args(["build", "--workspace", "--locked", "--bin", "tollgate-bench", "--profile", profile]);
        run_command(command.env("CARGO_TARGET_DIR", target))?;
        Ok::<_, anyhow::Error>(target.join(folder).join("tollgate-bench"))
    };
    let mut arguments = vec!["engine".into()];
    if let Some(revision) = against {
        let differs = ["diff", "--quiet", revision, "--"].into_iter().chain(COUNTED);
        let status = command_git(root).args(differs).status().context("cannot run git")?;
        if status.success() {
            println!("what is counted is the same in {revision}");
            return Ok(());
        }
    }
    let own = build(root, &target)?;
    if let Some(revision) = against {
        // A folder of its own: two trees that take turns in one compile each other's crates anew.
        let other = target.join("counts");
        in_worktree(root, &other.join("tree"), revision, |worktree| {
            share_dependencies(worktree, &target.join(folder), &other.join("build").join(folder))?;
            arguments.extend(["--against".into(), build(worktree, &other.join("build"))?.into_os_string()]);
            Ok(())
        })?;
    }
    run_command(Command::new(own).args(arguments))
}
