//! Folders and files for the time of a run: gone with the value that owns them, and also when SIGINT or SIGTERM ends the process.
//!
//! The kernel does the rest after a signal: children die with their parent, and namespaces with those in them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;
use tollgate::signals::{Signal, signals};

/// The exit status of a program that an interrupt ended, as shells have it.
const INTERRUPTED: i32 = 130;

const PREFIX: &str = "tollgate-bench-";

/// The folders that there are.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The files of others that there may be.
static FILES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A folder, at first empty, for this user alone.
#[derive(Debug)]
pub struct ScratchFolder {
    folder: Option<TempDir>,
    path: PathBuf,
}

/// A file that a program which this process starts makes at a place of its own choice, and may leave there.
#[derive(Debug)]
pub struct ScratchFile {
    path: PathBuf,
}

impl ScratchFile {
    /// The program is going to make `path`. To be called after [`tollgate::lab::prepare`].
    ///
    /// # Errors
    ///
    /// When signals cannot be watched.
    pub fn expect(path: PathBuf) -> Result<Self> {
        files().insert(path.clone());
        watch_signals()?;
        Ok(ScratchFile { path })
    }

    /// The file, which may be there or not.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        remove_file(&self.path);
        files().remove(&self.path);
    }
}

impl ScratchFolder {
    /// Among the system's temporary files.
    ///
    /// The first one of a process starts the thread that waits for signals: to be called after [`tollgate::lab::prepare`].
    ///
    /// # Errors
    ///
    /// When it cannot be made, or signals cannot be watched.
    pub fn new() -> Result<Self> {
        let folder = builder().tempdir();
        ScratchFolder::watched(folder.context("cannot make a temporary folder")?)
    }

    /// In the folder that `path` is in, hence on the same file system.
    ///
    /// # Errors
    ///
    /// As [`ScratchFolder::new`].
    pub fn beside(path: &Path) -> Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = builder().tempdir_in(parent);
        ScratchFolder::watched(folder.with_context(|| format!("cannot make a folder in {}", parent.display()))?)
    }

    fn watched(folder: TempDir) -> Result<Self> {
        // Absolute: the process may change its working directory.
        let path = std::path::absolute(folder.path())?;
        folders().insert(path.clone());
        watch_signals()?;
        Ok(ScratchFolder { folder: Some(folder), path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder the name `path` for good, with `mode`: all of it or nothing.
    ///
    /// # Errors
    ///
    /// When there is something of that name, which is left as it is; the folder goes then.
    pub fn keep_as(mut self, path: &Path, mode: u32) -> Result<()> {
        let kept = || format!("cannot make {}", path.display());
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode)).with_context(kept)?;
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => bail!("{} exists already: name a folder that is not there yet", path.display()),
            Err(error) => return Err(error).with_context(kept),
        }
        // There is nothing left under its old name.
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
        Ok(())
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.folder.take().map(TempDir::close) {
            eprintln!("tollgate-bench: cannot remove {}: {error}", self.path.display());
        }
        folders().remove(&self.path);
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).permissions(fs::Permissions::from_mode(0o700));
    builder
}

fn folders() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn files() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the file `path`, if it is there, and says on standard error when that fails.
fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("tollgate-bench: cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// Starts the thread that removes all folders on a signal, unless it runs already.
fn watch_signals() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        let signals = signals().map_err(|error| format!("cannot watch signals: {error}"))?;
        let watch = move || {
            while let Ok(signal) = signals.recv() {
                if signal == Signal::Stop {
                    end();
                }
            }
        };
        let thread = thread::Builder::new().name("interrupt".to_owned()).spawn(watch);
        thread.map(drop).map_err(|error| format!("cannot start a thread: {error}"))
    };
    STARTED.get_or_init(start).clone().map_err(anyhow::Error::msg)
}

fn end() -> ! {
    eprintln!("tollgate-bench: interrupted");
    // Held to the end of the process: nobody begins a folder meanwhile.
    let folders = folders();
    for folder in folders.iter() {
        if let Err(error) = fs::remove_dir_all(folder) {
            eprintln!("tollgate-bench: cannot remove {}: {error}", folder.display());
        }
    }
    let files = files();
    files.iter().for_each(|file| remove_file(file));
    process::exit(INTERRUPTED);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_value_and_is_forgotten() {
        let scratch = ScratchFolder::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("key"), "").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(folders().contains(&path));
        drop(scratch);
        assert!(!path.exists() && !folders().contains(&path));
    }

    #[test]
    fn a_file_of_another_program_goes_whether_it_was_made_or_not() {
        let folder = tempfile::tempdir().unwrap();
        for made in [true, false] {
            let file = ScratchFile::expect(folder.path().join("socket")).unwrap();
            if made {
                fs::write(file.path(), "").unwrap();
            }
            assert!(files().contains(file.path()));
            drop(file);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
            assert!(!files().contains(&folder.path().join("socket")));
        }
    }

    #[test]
    fn a_kept_folder_takes_its_name_and_nothing_is_left_of_the_old_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("kept");
        let scratch = ScratchFolder::beside(&path).unwrap();
        fs::write(scratch.path().join("file"), "a").unwrap();
        scratch.keep_as(&path, 0o755).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "a");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_is_there_is_not_replaced_even_when_it_is_empty() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = ScratchFolder::beside(&path).unwrap().keep_as(&path, 0o755).unwrap_err().to_string();
        assert!(error.ends_with("taken exists already: name a folder that is not there yet"), "{error}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
