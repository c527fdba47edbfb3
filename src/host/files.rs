//! The files that the gateway may read: those that its configuration names. They may be another user's, and are opened by who was started with the right
//! to read them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, fcntl_setfl};
use tollgate_config::{ConfigError, Open, ServerConfig, open_file};

use crate::whole_file;

/// Everything that may make a path mean another file, or end the watch of its folder.
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

/// Reads a gateway's configuration, of files that something opens.
pub type Load = dyn Fn(&Open<'_>) -> Result<ServerConfig, ConfigError> + Send;

/// What the configuration names, as it was when it was last looked at.
pub struct Named {
    /// The configuration file.
    path: PathBuf,
    files: BTreeSet<PathBuf>,
    load: Box<Load>,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl Named {
    /// What the file at `path` names, which says `config` now, and whatever `load` says later.
    pub fn of(path: &Path, config: &ServerConfig, load: Box<Load>) -> Self {
        Named { path: path.to_owned(), files: named(path, config), load }
    }

    /// Whether the configuration names the file at `path`: looks at it again where it did not.
    pub fn has(&mut self, path: &Path) -> bool {
        if !self.files.contains(path) {
            self.look();
        }
        self.files.contains(path)
    }

    /// Of a configuration that is wrong, whoever reads it reads as much as this does.
    fn look(&mut self) {
        let opened = RefCell::new(BTreeSet::new());
        let open = |path: &Path| {
            opened.borrow_mut().insert(path.to_owned());
            open_file(path)
        };
        match (self.load)(&open) {
            Ok(config) => self.files = named(&self.path, &config),
            Err(_) => self.files.append(&mut opened.borrow_mut()),
        }
    }
}

fn named(path: &Path, config: &ServerConfig) -> BTreeSet<PathBuf> {
    let files = [path, &config.users_file, &config.shards.key_file.path].into_iter().chain(config.protocol.files());
    files.map(Path::to_owned).collect()
}

/// Opens the file at `path` for reading. One that is a pipe is not waited for.
///
/// # Errors
///
/// Those of the system.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// Watches the folder of the file at `path`. The descriptor is readable when something has happened there.
///
/// # Errors
///
/// If there is none, or the system is out of watches.
pub fn watch_folder(path: &Path) -> io::Result<OwnedFd> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&inotify, whole_file::folder(path), EVENTS)?;
    Ok(inotify)
}
