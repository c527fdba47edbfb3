//! Folders for the time of a run: gone with the value that owns them, and also when SIGINT or SIGTERM ends the process.
//!
//! The kernel does the rest after a signal: children die with their parent, and namespaces with those in them.

use std::fs;
use std::process;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tollgate::signals::{Signal, signals};

/// The exit status of a program that an interrupt ended, as shells have it.
const INTERRUPTED: i32 = 130;

static FOLDERS: Mutex<Vec<Weak<TempDir>>> = Mutex::new(Vec::new());

/// A new folder for this user alone. The first one of a process starts the thread that waits for signals: to be called after
/// [`tollgate_testkit::prepare`].
pub fn folder() -> Result<Arc<TempDir>> {
    let folder = Arc::new(TempDir::with_prefix("tollgate-bench-").context("cannot make a temporary folder")?);
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if folders.is_empty() {
        let signals = signals().context("cannot watch signals")?;
        let watch = move || {
            if signals.iter().any(|signal| signal == Signal::Stop) {
                end();
            }
        };
        thread::Builder::new().name("interrupt".to_owned()).spawn(watch).context("cannot start a thread")?;
    }
    folders.push(Arc::downgrade(&folder));
    Ok(folder)
}

fn end() -> ! {
    eprintln!("tollgate-bench: interrupted");
    // Held to the end of the process: nothing begins meanwhile.
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in folders.iter().filter_map(Weak::upgrade) {
        if let Err(error) = fs::remove_dir_all(folder.path()) {
            eprintln!("tollgate-bench: cannot remove {}: {error}", folder.path().display());
        }
    }
    process::exit(INTERRUPTED);
}
