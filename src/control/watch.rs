//! Tells when a file has become another one: written, replaced by renaming, gone.
//!
//! Programs write a file in many ways, and some let a link lead to another one, so any event in the file's folder makes this module look
//! at the file itself. It tells once the file has stayed the same for [`QUIET`]. This module never reads the file.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tracing::warn;

use crate::io::Wake;

/// How long a file must have stayed as it is: whoever writes it may not be done.
pub const QUIET: Duration = Duration::from_millis(200);

/// Everything that may make a path mean another file, or end the watch.
const EVENTS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A watched file. The watch ends when this value is dropped.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    changes: Receiver<()>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the file at `path`, which need not exist; its folder must.
    ///
    /// # Errors
    ///
    /// If the folder cannot be watched.
    pub fn start(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, folder, EVENTS)?;
        let wake = Arc::new(Wake::new()?);
        let (to, changes) = bounded(1);
        let seen = State::of(path);
        let watcher = Watcher { path: path.to_owned(), inotify, wake: wake.clone(), to, seen };
        let thread = thread::Builder::new().name("tollgate-watch".to_owned()).spawn(move || watcher.run())?;
        Ok(Watch { path: path.to_owned(), changes, wake, thread: Some(thread) })
    }

    /// The path of the watched file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hears of changes; several that nobody has taken yet are one. Disconnected when the folder is gone.
    pub fn changes(&self) -> &Receiver<()> {
        &self.changes
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.wake.notify();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

/// What tells one state of a file from the next: device, inode, length, and the times of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(Option<[i64; 7]>);

impl State {
    fn of(path: &Path) -> Self {
        let of = |file: fs::Metadata| {
            let (device, inode, bytes) = (file.dev() as i64, file.ino() as i64, file.size() as i64);
            [device, inode, bytes, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]
        };
        State(fs::metadata(path).ok().map(of))
    }
}

struct Watcher {
    path: PathBuf,
    inotify: OwnedFd,
    wake: Arc<Wake>,
    to: Sender<()>,
    seen: State,
}

impl Watcher {
    fn run(mut self) {
        let mut changed: Option<Instant> = None;
        loop {
            let left = changed.map(|at| QUIET.saturating_sub(at.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                changed = None;
                // The change that waits stands for this one too.
                let _ = self.to.try_send(());
                continue;
            }
            match self.wait(left) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return warn!(%error, "{} is watched no more", self.path.display()),
            }
            let now = State::of(&self.path);
            if now != self.seen {
                self.seen = now;
                changed = Some(Instant::now());
            }
        }
    }

    /// Waits for something to happen in the folder. Returns whether to go on.
    fn wait(&self, patience: Option<Duration>) -> io::Result<bool> {
        let timeout = patience.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !ready[1].revents().is_empty() {
            return Ok(false);
        }
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().intersects(inotify::ReadFlags::IGNORED | inotify::ReadFlags::MOVE_SELF) => {
                    return Err(io::Error::other("its folder is gone"));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn watched() -> (tempfile::TempDir, PathBuf, Watch) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.toml");
        fs::write(&path, "one").unwrap();
        let watch = Watch::start(&path).unwrap();
        (folder, path, watch)
    }

    fn is_quiet(watch: &Watch) -> bool {
        watch.changes().recv_timeout(2 * QUIET).is_err()
    }

    #[test]
    fn replacing_and_removing_are_each_told_once() {
        let (folder, path, watch) = watched();
        assert!(is_quiet(&watch), "nothing has happened yet");
        let other = folder.path().join("users.toml~");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        watch.changes().recv_timeout(LONG).unwrap();
        fs::remove_file(&path).unwrap();
        watch.changes().recv_timeout(LONG).unwrap();
        assert!(is_quiet(&watch));
    }

    #[test]
    fn a_file_behind_a_link_to_its_folder_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("users.toml"), version).unwrap();
        }
        symlink("1", at("current")).unwrap();
        symlink("current/users.toml", at("users.toml")).unwrap();
        let watch = Watch::start(&at("users.toml")).unwrap();
        symlink("2", at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        watch.changes().recv_timeout(LONG).unwrap();
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone_and_others_do_not_count() {
        let (folder, path, watch) = watched();
        let end = Instant::now() + 3 * QUIET;
        while Instant::now() < end {
            fs::write(folder.path().join("other"), "x").unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        assert!(watch.changes().is_empty());
        let (mut last, mut longest_pause) = (Instant::now(), Duration::ZERO);
        for bytes in 0..20 {
            thread::sleep(QUIET / 20);
            fs::write(&path, "x".repeat(bytes)).unwrap();
            longest_pause = longest_pause.max(last.elapsed());
            last = Instant::now();
        }
        watch.changes().recv_timeout(LONG).unwrap();
        // A machine with other work may have made a pause of its own.
        assert!(last.elapsed() >= QUIET / 2 || longest_pause >= QUIET / 2, "told {:?} after a write", last.elapsed());
    }

    #[test]
    fn the_end_of_the_folder_ends_the_watch() {
        let (folder, _path, watch) = watched();
        drop(folder);
        while watch.changes().recv_timeout(LONG).is_ok() {}
        assert_eq!(watch.changes().try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
    }

    #[test]
    fn a_folder_that_is_missing_cannot_be_watched() {
        assert!(Watch::start(Path::new("/nowhere/users.toml")).is_err());
    }
}
