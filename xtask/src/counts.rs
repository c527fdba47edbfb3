//! Instruction counts of two revisions of the engine: both harnesses are built alike, and one runs the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::worktree::in_worktree;
use super::{command, run as run_command};

/// Counts, beside the counts of the revision `against`, and fails if a benchmark costs more than there.
pub fn run(root: &Path, against: Option<&str>, profile: &str) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join(if profile == "dev" { "debug" } else { profile }).join("tollgate-bench");
    let build = |root: &Path| {
        let mut command = command(root);
        command.args(["build", "--workspace", "--locked", "--bin", "tollgate-bench", "--profile", profile]);
        run_command(command.env("CARGO_TARGET_DIR", &target))
    };
    let mut arguments = vec!["engine".into()];
    if let Some(revision) = against {
        let kept = target.join("counts/tollgate-bench");
        in_worktree(root, &target.join("counts/worktree"), revision, |worktree| {
            build(worktree)?;
            fs::copy(&program, &kept).map(drop).with_context(|| format!("cannot copy {}", program.display()))
        })?;
        arguments.extend(["--against".into(), kept.into_os_string()]);
    }
    build(root)?;
    run_command(Command::new(&program).args(arguments))
}
