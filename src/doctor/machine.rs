//! What is read of a machine: files of the kernel, and what its programs say.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fs, io};

pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The one that this process runs on.
    pub fn this() -> Self {
        Machine { root: PathBuf::from("/") }
    }

    /// One whose files are below `root`.
    #[cfg(test)]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Machine { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether there is such a file.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// What a file says, without the end of its line.
    pub fn read(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim_end().to_owned())
    }

    /// The number that a file says.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// Names in a folder.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// What a program of the system prints. Fails where there is none, or it refuses.
pub fn say(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.lines().next().unwrap_or("it fails").to_owned()))
}
