//! The patches, and what stands in front of each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::finders::Finder;

/// Where they are, below the root.
pub const FOLDER: &str = "xtask/guards";

/// A guard that can be taken out.
pub struct Guard {
    pub name: String,
    pub patch: PathBuf,
    pub promise: String,
    pub finders: Vec<Finder>,
}

/// All guards, in the order of their names.
pub fn all(root: &Path) -> Result<Vec<Guard>> {
    let folder = root.join(FOLDER);
    let mut guards = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let patch = entry?.path();
        let text = fs::read_to_string(&patch).with_context(|| format!("cannot read {}", patch.display()))?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let head = || text.lines().take_while(|line| !line.starts_with("diff "));
        let promise = head().find_map(|line| line.strip_prefix("Guard: ")).unwrap_or_default().to_owned();
        let calls = head().filter_map(|line| line.strip_prefix("Found by: "));
        let finders = calls.map(Finder::parse).collect::<Result<Vec<_>>>().with_context(|| name.clone())?;
        ensure!(!promise.is_empty() && !finders.is_empty(), "{name}: the patch needs `Guard:` and `Found by:` lines");
        guards.push(Guard { name, patch, promise, finders });
    }
    guards.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(guards)
}
