//! The listening side of the control socket: where it is, who may connect, and what remains possible without a free descriptor.
//!
//! This module reads nothing from a client.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::clients::CLIENTS_MAX;
use crate::records::Process;

/// Of whoever runs the gateway, and of nobody else.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The folder's, where it has to be made.
const FOLDER_MODE: u32 = 0o700;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another gateway has it.
    #[error("a gateway already listens on the control socket {}: stop it, or set [control] socket to another path", path.display())]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Something that is not ours to remove.
    #[error("{} is not a socket: remove it, or set [control] socket to another path", path.display())]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("the control socket {} cannot be made: {source}; set [control] socket to a path that this user may write", path.display())]
    Unusable {
        /// The path of the socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A listening control socket, non-blocking. Its file is removed when this value is dropped.
#[derive(Debug)]
pub struct Acceptor {
    path: PathBuf,
    identity: (u64, u64),
    listener: UnixListener,
    /// Whether the file is to stay, because another process has the socket too.
    is_shared: bool,
    /// A descriptor that makes room for a client when there is no other: an operator gets in then of all times.
    spare: Option<OwnedFd>,
}

impl Acceptor {
    /// Listens at `path`, readable and writable for this user only, in place of what a gateway that has died left there. Makes the folder
    /// where there is none.
    ///
    /// # Errors
    ///
    /// If another gateway listens there, if there is something else, or if the system refuses.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let unusable = |source: io::Error| SocketError::Unusable { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(unusable)?;
        }
        Acceptor::over(path, open(path)?, false)
    }

    /// Takes the listening socket at `path` over from another process, which still has it.
    ///
    /// # Errors
    ///
    /// If its file is gone, or descriptors run out.
    pub fn inherit(path: &Path, listener: OwnedFd) -> Result<Self, SocketError> {
        Acceptor::over(path, listener.into(), true)
    }

    fn over(path: &Path, listener: UnixListener, is_shared: bool) -> Result<Self, SocketError> {
        let unusable = |source: io::Error| SocketError::Unusable { path: path.to_owned(), source };
        let metadata = fs::symlink_metadata(path).map_err(unusable)?;
        let identity = (metadata.dev(), metadata.ino());
        let spare = Some(spare().map_err(unusable)?);
        Ok(Acceptor { path: path.to_owned(), identity, listener, is_shared, spare })
    }

    /// A copy of the socket for another process.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn lend(&self) -> io::Result<(PathBuf, OwnedFd)> {
        Ok((self.path.clone(), OwnedFd::from(self.listener.try_clone()?)))
    }

    /// Says whether another process has the socket too, and the file is to stay when this value is dropped.
    pub fn set_shared(&mut self, is_shared: bool) {
        self.is_shared = is_shared;
    }

    /// Accepts a client, in the place of the spare descriptor where there is no other. The stream is non-blocking.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when nobody waits; otherwise the system is out of something.
    pub fn accept(&mut self) -> io::Result<UnixStream> {
        let accepted = match self.listener.accept() {
            Err(error)
                if Errno::from_io_error(&error).is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
                    && self.spare.take().is_some() =>
            {
                self.listener.accept()
            }
            accepted => accepted,
        };
        let (stream, _) = accepted?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Takes a spare descriptor again where the last client got it.
    pub fn keep_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = spare().ok();
        }
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // If it was replaced meanwhile, it is another's to remove.
        if !self.is_shared
            && fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A descriptor of no use but to be closed.
fn spare() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

/// A socket whose file will have its mode from its first moment: Linux gives it the mode of the socket.
fn new_socket() -> rustix::io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::fs::fchmod(&socket, SOCKET_MODE)?;
    Ok(socket)
}

fn open(path: &Path) -> Result<UnixListener, SocketError> {
    let unusable = |errno: Errno| SocketError::Unusable { path: path.to_owned(), source: errno.into() };
    let address = SocketAddrUnix::new(path).map_err(unusable)?;
    let listener = new_socket().map_err(unusable)?;
    match bind(&listener, &address) {
        Err(Errno::ADDRINUSE) => {
            if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            // Where nobody listens, nobody will again: a socket's file does not outlive its socket in any other way.
            if connect(&new_socket().map_err(unusable)?, &address) != Err(Errno::CONNREFUSED) {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(|source| SocketError::Unusable { path: path.to_owned(), source })?;
            bind(&listener, &address).map_err(unusable)?;
        }
        bound => bound.map_err(unusable)?,
    }
    listen(&listener, CLIENTS_MAX as i32).map_err(unusable)?;
    Ok(listener.into())
}

/// The process at the other end, as the kernel knows it; 0 is the number of one that is not in the gateway's namespace.
pub fn peer(stream: &UnixStream) -> Option<Process> {
    // By nix: rustix has no number 0.
    let peer = getsockopt(stream, PeerCredentials).ok()?;
    Some(Process { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
}

/// Whether `process` is this one's user's or root's: the second guard, for whoever has come past the file's mode.
pub fn may_control(process: Process) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&process.uid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/tollgate/control");
        (folder, path)
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_with_the_gateway() {
        let (_folder, path) = folder();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let socket = Acceptor::listen(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_has_its_mode_before_anybody_listens() {
        let (_folder, path) = folder();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let socket = new_socket().unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_dead_gateway_left_is_replaced_and_what_a_live_one_has_is_not() {
        let (_folder, path) = folder();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let socket = Acceptor::listen(&path).unwrap();
        for _ in 0..2 * CLIENTS_MAX {
            let refused = Acceptor::listen(&path).unwrap_err();
            assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        }
        drop(socket);
        fs::write(&path, "somebody's").unwrap();
        assert!(matches!(Acceptor::listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
    }

    #[test]
    fn another_gateways_socket_is_not_removed() {
        let (_folder, path) = folder();
        let first = Acceptor::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Acceptor::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_cannot_be_is_an_error_in_one_line() {
        let (folder, _) = folder();
        fs::write(folder.path().join("file"), "").unwrap();
        for path in [folder.path().join("x".repeat(200)), folder.path().join("file/control")] {
            let error = Acceptor::listen(&path).unwrap_err().to_string();
            assert!(error.contains("[control] socket") && !error.contains('\n'), "{error}");
        }
    }
}
