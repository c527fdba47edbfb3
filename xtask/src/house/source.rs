//! The source files of the workspace.

use std::path::Path;

use anyhow::{Context, Result};
use walkdir::{DirEntry, WalkDir};

/// Folders that hold no source of ours.
const NOT_OURS: &[&str] = &["target", "vendor", ".git", ".peers"];

/// A source file.
#[derive(Debug, Clone)]
pub struct Source {
    /// From the root of the workspace, with `/` between its parts.
    pub path: String,
    /// The whole file.
    pub text: String,
}

impl Source {
    /// The text without comments, and without the tests at its end; lines keep their numbers.
    pub fn code(&self) -> String {
        let product = self.text.find("#[cfg(test)]\nmod tests {").map_or(&*self.text, |at| &self.text[..at]);
        product.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    /// Whether it is made of tests only.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/") || self.path.starts_with("tests/")
    }
}

/// Reads all source files below `root`, in the order of their paths.
///
/// # Errors
///
/// When a file or folder cannot be read.
pub fn read(root: &Path) -> Result<Vec<Source>> {
    let is_ours = |entry: &DirEntry| !NOT_OURS.iter().any(|name| entry.file_name() == *name);
    let mut sources = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(is_ours) {
        let entry = entry?;
        if entry.path().extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let path = entry.path().strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
        sources.push(Source { path, text });
    }
    Ok(sources)
}
