//! Notices when a file has become another one: written, replaced by renaming, removed.
//!
//! Programs write a file in many ways, and some let a link lead to another one, so any event in the file's folder makes this module look
//! at the file itself. A change counts once the file has stayed the same for [`QUIET`]. This module never reads the file.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::io::Errno;
use tollgate_config::Open;

/// How long a file must have stayed as it is: whoever writes it may not be done.
pub const QUIET: Duration = Duration::from_millis(200);

/// A watched file. The descriptor is readable when something has happened in the file's folder.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    inotify: OwnedFd,
    seen: State,
    /// When a change counts, if the file stays as it is.
    settled_at: Option<Instant>,
}

impl FileWatch {
    /// Watches the file at `path`, which need not exist, and which `open` opens, by a watch of its `folder` (inotify(7)).
    pub fn start(path: &Path, folder: OwnedFd, open: &Open<'_>) -> Self {
        FileWatch { path: path.to_owned(), inotify: folder, seen: State::of(path, open), settled_at: None }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the file, which `open` opens, after something has happened in its folder.
    ///
    /// # Errors
    ///
    /// If the folder is gone, or the watch fails: it sees no further change.
    pub fn handle_ready(&mut self, open: &Open<'_>, now: Instant) -> io::Result<()> {
        self.take_events()?;
        let state = State::of(&self.path, open);
        if state != self.seen {
            self.seen = state;
            self.settled_at = Some(now + QUIET);
        }
        Ok(())
    }

    /// When to call [`FileWatch::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.settled_at
    }

    /// Whether the file has become another one since this was last true.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.settled_at.take_if(|at| *at <= now).is_some()
    }

    fn take_events(&self) -> io::Result<()> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().intersects(inotify::ReadFlags::IGNORED | inotify::ReadFlags::MOVE_SELF) => {
                    return Err(io::Error::other("its folder is gone"));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// What tells one state of a file from the next: device, inode, length, and the times of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(Option<[i64; 7]>);

impl State {
    fn of(path: &Path, open: &Open<'_>) -> Self {
        let of = |file: fs::Metadata| {
            let (device, inode, bytes) = (file.dev() as i64, file.ino() as i64, file.size() as i64);
            [device, inode, bytes, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]
        };
        State(open(path).and_then(|file| file.metadata()).ok().map(of))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use tollgate_config::open_file;

    use super::*;
    use crate::host::watch_folder;

    const LONG: Duration = Duration::from_secs(60);

    fn watch(path: &Path) -> FileWatch {
        FileWatch::start(path, watch_folder(path).unwrap(), &open_file)
    }

    fn watched() -> (tempfile::TempDir, PathBuf, FileWatch) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.toml");
        fs::write(&path, "one").unwrap();
        let watch = watch(&path);
        (folder, path, watch)
    }

    /// Whether the file becomes another one within `limit`.
    fn changes_within(watch: &mut FileWatch, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let now = Instant::now();
            if watch.handle_timeout(now) {
                return Ok(true);
            }
            if now >= end {
                return Ok(false);
            }
            let due = watch.poll_timeout().unwrap_or(end).min(end);
            let timeout = Timespec::try_from(due.saturating_duration_since(now)).unwrap();
            if poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timeout)).unwrap() > 0 {
                watch.handle_ready(&open_file, Instant::now())?;
            }
        }
    }

    #[test]
    fn replacing_and_removing_each_count_once() {
        let (folder, path, mut watch) = watched();
        assert!(!changes_within(&mut watch, 2 * QUIET).unwrap(), "nothing has happened yet");
        let other = folder.path().join("users.toml~");
        fs::write(&other, "two").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(changes_within(&mut watch, LONG).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(changes_within(&mut watch, LONG).unwrap());
        assert!(!changes_within(&mut watch, 2 * QUIET).unwrap());
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
        let mut watch = watch(&at("users.toml"));
        symlink("2", at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        assert!(changes_within(&mut watch, LONG).unwrap());
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone_and_others_do_not_count() {
        let (folder, path, mut watch) = watched();
        for _ in 0..20 {
            fs::write(folder.path().join("other"), "x").unwrap();
            watch.handle_ready(&open_file, Instant::now()).unwrap();
        }
        assert_eq!(watch.poll_timeout(), None);
        // Each write puts the moment off, by the times that this side tells.
        let mut now = Instant::now();
        for bytes in 0..20 {
            fs::write(&path, "x".repeat(bytes)).unwrap();
            now += QUIET / 20;
            watch.handle_ready(&open_file, now).unwrap();
            assert!(!watch.handle_timeout(now));
        }
        assert_eq!(watch.poll_timeout(), Some(now + QUIET));
        assert!(watch.handle_timeout(now + QUIET) && !watch.handle_timeout(now + QUIET));
    }

    #[test]
    fn the_end_of_the_folder_ends_the_watch() {
        let (folder, _path, mut watch) = watched();
        drop(folder);
        while changes_within(&mut watch, LONG).is_ok() {}
    }

    #[test]
    fn a_folder_that_is_missing_cannot_be_watched() {
        assert!(watch_folder(Path::new("/nowhere/users.toml")).is_err());
    }
}
