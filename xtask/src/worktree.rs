//! Other trees of the same repository, for a while, and what they are compiled with.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use walkdir::{DirEntry, WalkDir};

use super::{command, run as run_command};

/// Does `work` in a worktree of `revision` at `path`, which goes afterwards.
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

/// What cargo says of the workspace's own crates.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

/// Names of what cargo makes for the workspace's own crates, without hashes.
#[derive(Default)]
struct Own {
    /// Of folders, by package.
    packages: BTreeSet<String>,
    /// Of files, by target.
    files: BTreeSet<String>,
}

/// Begins the build folder `to` of another tree with what `from`, that of the tree at `root`, has of other people's crates: the same, as links. Crates
/// of the workspace have the same names in every tree, and cargo writes what it notes of them again in place: they are compiled anew.
pub fn share_dependencies(root: &Path, from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let own = Own::of(root)?;
    for part in ["deps", "build", ".fingerprint"].map(|part| from.join(part)).iter().filter(|part| part.exists()) {
        let entries = WalkDir::new(part).into_iter();
        let is_own = |entry: &DirEntry| {
            entry.depth() == 1 && own.has(entry.file_type().is_dir(), &entry.file_name().to_string_lossy())
        };
        for entry in entries.filter_entry(|entry| !is_own(entry)) {
            let entry = entry?;
            let place = to.join(entry.path().strip_prefix(from)?);
            let made = if entry.file_type().is_dir() {
                fs::create_dir_all(&place)
            } else {
                fs::hard_link(entry.path(), &place)
            };
            made.with_context(|| format!("cannot make {}", place.display()))?;
        }
    }
    Ok(())
}

impl Own {
    fn of(root: &Path) -> Result<Self> {
        let output = command(root).args(["metadata", "--no-deps", "--locked", "--format-version", "1"]).output()?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not as expected")?;
        Ok(Self::named(&metadata))
    }

    fn named(metadata: &Metadata) -> Self {
        let mut own = Own::default();
        for Package { name, targets } in &metadata.packages {
            own.packages.insert(name.clone());
            for Target { kind, name } in targets {
                let name = name.replace('-', "_");
                own.files.extend(kind.contains(&"lib".to_owned()).then(|| format!("lib{name}")));
                own.files.insert(name);
            }
        }
        own
    }

    /// Whether a folder or file is of an own crate: `libtollgate-0123456789abcdef.rlib`, for instance.
    fn has(&self, is_folder: bool, name: &str) -> bool {
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        let names = if is_folder { &self.packages } else { &self.files };
        stem.rsplit_once('-').is_some_and(|(base, _)| names.contains(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_makes_of_the_workspace_is_told_from_what_it_makes_of_others() {
        let metadata = r#"{"packages": [{"name": "toll-gate", "targets": [
            {"kind": ["lib"], "name": "toll_gate"}, {"kind": ["test"], "name": "log"}, {"kind": ["bin"], "name": "toll-sim"}
        ]}]}"#;
        let own = Own::named(&serde_json::from_str(metadata).unwrap());
        let ours = ["libtoll_gate-0f.rlib", "libtoll_gate-0f.rmeta", "toll_gate-0f", "log-0f", "toll_sim-0f.d"];
        assert_eq!(ours.map(|name| own.has(false, name)), [true; 5]);
        let others = ["liblog-0f.rlib", "liblog-0f.rmeta", "gate-0f", "toll_gate"];
        assert_eq!(others.map(|name| own.has(false, name)), [false; 4]);
        assert_eq!(["toll-gate-0f", "log-0f"].map(|name| own.has(true, name)), [true, false]);
    }

    #[test]
    fn another_tree_begins_with_links_to_what_others_have_made() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let folder = std::env::temp_dir().join(format!("xtask-shared-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        for file in ["deps/liblog-0f.rlib", ".fingerprint/log-0f/lib-log", ".fingerprint/xtask-0f/bin-xtask"] {
            fs::create_dir_all(from.join(file).parent().unwrap()).unwrap();
            fs::write(from.join(file), file).unwrap();
        }
        share_dependencies(root, &from, &to).unwrap();
        let shared = ["deps/liblog-0f.rlib", ".fingerprint/log-0f/lib-log"].map(|file| to.join(file).exists());
        let own = to.join(".fingerprint/xtask-0f").exists();
        fs::remove_dir_all(folder).unwrap();
        assert_eq!((shared, own), ([true; 2], false));
    }
}
