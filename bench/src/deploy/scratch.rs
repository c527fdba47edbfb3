//! Folders for the time of a run: gone with the value that owns them, and also when SIGINT or SIGTERM ends the process.
//!
//! The kernel does the rest after a signal: children die with their parent, and namespaces with those in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tollgate::signals::{Signal, signals};

/// The exit status of a program that an interrupt ended, as shells have it.
const INTERRUPTED: i32 = 130;

/// What there is to be removed.
static PATHS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A folder that is removed when this value goes.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder for this user alone. The first one of a process starts the thread that waits for signals: to be called after
    /// [`tollgate_testkit::prepare`].
    pub fn folder() -> Result<Self> {
        let path = TempDir::with_prefix("tollgate-bench-").context("cannot make a temporary folder")?.keep();
        paths().insert(path.clone());
        watch_signals()?;
        Ok(Scratch(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
        paths().remove(&self.0);
    }
}

fn paths() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PATHS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        eprintln!("tollgate-bench: cannot remove {}: {error}", path.display());
    }
}

fn watch_signals() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        let signals = signals().map_err(|error| format!("cannot watch signals: {error}"))?;
        let watch = move || {
            while let Ok(signal) = signals.recv() {
                if signal == Signal::Stop {
                    eprintln!("tollgate-bench: interrupted");
                    // Held to the end of the process: nothing begins meanwhile.
                    let paths = paths();
                    paths.iter().for_each(|path| remove(path));
                    std::process::exit(INTERRUPTED);
                }
            }
        };
        let thread = thread::Builder::new().name("interrupt".to_owned()).spawn(watch);
        thread.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
    };
    STARTED.get_or_init(start).clone().map_err(anyhow::Error::msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_value_and_with_what_is_in_it() {
        let folder = Scratch::folder().unwrap();
        let path = folder.path().to_owned();
        fs::write(folder.join("key"), "").unwrap();
        assert!(paths().contains(&path));
        drop(folder);
        assert!(!path.exists() && !paths().contains(&path));
    }
}
