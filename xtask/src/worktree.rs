//! Other trees of the same repository, for a while.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::run as run_command;

/// Does `work` in a worktree of `revision` at `path`, which goes afterwards.
///
/// It shares the target folder: crates of the registry that both revisions are made of are compiled once.
pub fn in_worktree(root: &Path, path: &Path, revision: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let git =
        |arguments: &[&OsStr]| run_command(Command::new("git").arg("-C").arg(root).arg("worktree").args(arguments));
    let [add, remove, force, detach] = ["add", "remove", "--force", "--detach"].map(OsStr::new);
    // What an interrupted run has left.
    if path.exists() {
        git(&[remove, force, path.as_os_str()])?;
    }
    git(&[add, force, detach, path.as_os_str(), OsStr::new(revision)])?;
    let outcome = work(path);
    git(&[remove, force, path.as_os_str()])?;
    outcome
}
